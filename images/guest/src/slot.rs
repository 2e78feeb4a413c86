//! A slot: a process that sits in the cgroup of an exec before there is one, so that starting a command moves nobody.
//!
//! It runs one command at a time. Being a subreaper, it inherits whatever the command's descendants leave behind, counts it,
//! and ends it.

use std::env;
use std::ffi::{CStr, CString};
use std::fs;
use std::io::{Error, ErrorKind, Result, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process;

use belljar_guest::{FromSlot, Rusage, Start, Step, ToSlot};

use crate::init::errno;
use crate::kernel::{self, Reap, Streams};
use crate::link::Link;

/// Where a program is looked for when the environment has no PATH: as execvp(3).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The command that runs.
struct Running {
    pid: i32,
    usage: Rusage,
    detach: bool,
    /// Set when the command itself is over and what it left is being ended.
    status: Option<i32>,
    leftovers: u32,
    /// Set when init was asked to end what this process could not adopt.
    asked_init: bool,
}

/// Who inherits what a command's descendants leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heir {
    /// This process, which is a subreaper.
    Slot,
    /// Init, in a kernel without subreapers (gVisor's, for long): it is asked to end all that it inherited, whichever exec left it.
    Init,
}

/// Joins its cgroups, then serves the host until it closes the socket. `is_relayed` where the kernel may be one of the sandbox's own.
pub fn run(socket: OwnedFd, joins: Vec<OwnedFd>, is_relayed: bool) -> ! {
    let code = match join(joins).and_then(|()| serve(socket, is_relayed)) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    process::exit(code)
}

/// By its own hand: the kernel moves a thread that moves itself at once, and makes one that is moved by others wait for milliseconds
/// (cgroup_procs_write_start in its `kernel/cgroup/cgroup.c`).
fn join(files: Vec<OwnedFd>) -> Result<()> {
    files
        .into_iter()
        .try_for_each(|file| fs::File::from(file).write_all(b"0"))
}

fn serve(socket: OwnedFd, is_relayed: bool) -> Result<()> {
    kernel::hide()?;
    kernel::enter_domain()?;
    kernel::set_name(c"belljar-slot");
    let heir = match kernel::become_subreaper() {
        Ok(()) => Heir::Slot,
        Err(_) if is_relayed => Heir::Init,
        Err(error) => return Err(error),
    };
    let signals = kernel::block_signals()?;
    let mut host = Link::new(socket);
    host.say(&FromSlot::Ready, &[])?;
    let mut running: Option<Running> = None;
    loop {
        let (asked, died) = kernel::wait_readable(host.fd(), signals.as_fd())?;
        if died {
            kernel::drain_signals(signals.as_fd());
            running = reap(&host, running, heir)?;
        }
        if !asked {
            continue;
        }
        let Some((message, fds)) = host.hear()? else {
            return Ok(());
        };
        match (message, &running) {
            // What it left could not be told from what another did, and would not be left alone.
            (ToSlot::Start(start), None) if start.detach && heir == Heir::Init => {
                refuse(&host, Step::Message, libc::EOPNOTSUPP)?;
            }
            (ToSlot::Start(start), None) => running = begin(&host, &start, &fds)?,
            (ToSlot::Start(_), Some(_)) => refuse(&host, Step::Message, libc::EBUSY)?,
            (ToSlot::Signal { signal }, Some(command)) if command.status.is_none() => {
                // The whole process group, as a terminal would; gone already is as good as signalled.
                let _ = kernel::kill(-command.pid, signal);
            }
            (ToSlot::Kill, Some(command)) => {
                let _ = kernel::kill(-command.pid, libc::SIGKILL);
                kill_children(&[]);
            }
            // The one who holds the terminal has sized it, which some kernels of sandboxes tell nobody.
            (ToSlot::Resize { .. }, Some(command)) if heir == Heir::Init && command.status.is_none() => {
                let _ = kernel::kill(-command.pid, libc::SIGWINCH);
            }
            (ToSlot::Signal { .. } | ToSlot::Kill | ToSlot::Resize { .. }, _) => {}
        }
    }
}

fn refuse(host: &Link, step: Step, errno: i32) -> Result<()> {
    host.say(&FromSlot::NotStarted { step, errno }, &[])
}

fn begin(host: &Link, start: &Start, fds: &[OwnedFd]) -> Result<Option<Running>> {
    match spawn(start, fds) {
        Ok((pid, terminal)) => {
            let extra: Vec<_> = terminal.iter().map(|fd| fd.as_fd()).collect();
            host.say(&FromSlot::Started { pid }, &extra)?;
            Ok(Some(Running {
                pid,
                usage: Rusage::default(),
                detach: start.detach,
                status: None,
                leftovers: 0,
                asked_init: false,
            }))
        }
        Err((step, error)) => {
            refuse(host, step, errno(&error))?;
            Ok(None)
        }
    }
}

fn spawn(start: &Start, fds: &[OwnedFd]) -> std::result::Result<(i32, Option<OwnedFd>), (Step, Error)> {
    let text = |word: &String| CString::new(word.as_str()).map_err(|_| (Step::Message, ErrorKind::InvalidInput.into()));
    let argv = start
        .argv
        .iter()
        .map(text)
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let env = start.env.iter().map(text).collect::<std::result::Result<Vec<_>, _>>()?;
    let program = start
        .argv
        .first()
        .filter(|name| !name.is_empty())
        .ok_or((Step::Lookup, not_found()))?;
    env::set_current_dir(&start.cwd).map_err(|error| (Step::Cwd, error))?;
    let path = look_up(program, &start.env).map_err(|error| (Step::Lookup, error))?;
    let spawned = match (start.tty, fds) {
        (Some((rows, cols)), []) => {
            let (master, slave) = kernel::open_pty(rows, cols).map_err(|error| (Step::Tty, error))?;
            let pid = kernel::spawn(&path, &argv, &env, Streams::Tty(&slave)).map_err(|error| (Step::Exec, error))?;
            (pid, Some(master))
        }
        (None, [stdin, stdout, stderr]) => {
            let streams = Streams::Given([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
            (
                kernel::spawn(&path, &argv, &env, streams).map_err(|error| (Step::Exec, error))?,
                None,
            )
        }
        _ => return Err((Step::Message, ErrorKind::InvalidInput.into())),
    };
    Ok(spawned)
}

fn not_found() -> Error {
    Error::from_raw_os_error(libc::ENOENT)
}

/// As execvp(3) does: a name with a slash is a path, another is looked for in the command's own PATH, where a file that cannot
/// be executed is passed over but remembered.
fn look_up(program: &str, env: &[String]) -> Result<CString> {
    let text = |path: String| CString::new(path).map_err(|_| Error::from(ErrorKind::InvalidInput));
    if program.contains('/') {
        return text(program.to_owned());
    }
    let folders = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut found = not_found();
    for folder in folders.split(':') {
        let folder = if folder.is_empty() { "." } else { folder };
        let path = text(format!("{folder}/{program}"))?;
        match kernel::is_executable(CStr::from_bytes_with_nul(path.as_bytes_with_nul()).map_err(|_| not_found())?) {
            Ok(()) => return Ok(path),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => found = error,
            Err(_) => {}
        }
    }
    Err(found)
}

/// Reaps all there is; once the command is over, ends what it left and reports.
fn reap(host: &Link, mut running: Option<Running>, heir: Heir) -> Result<Option<Running>> {
    loop {
        match kernel::reap()? {
            Reap::One(dead) => {
                if let Some(command) = &mut running {
                    add(&mut command.usage, &dead.usage);
                    if dead.pid == command.pid {
                        command.status = Some(dead.status);
                    }
                }
            }
            Reap::Running => {
                let Some(command) = &mut running else {
                    return Ok(running);
                };
                let Some(status) = command.status else {
                    return Ok(running);
                };
                if command.detach {
                    // It stays occupied: what was left to live is this slot's until the task ends.
                    host.say(
                        &FromSlot::Exited {
                            status,
                            usage: command.usage,
                            leftovers: 0,
                        },
                        &[],
                    )?;
                    command.status = None;
                    return Ok(running);
                }
                command.leftovers += kill_children(&[]);
                return Ok(running);
            }
            Reap::None => {
                let unasked = |command: &&mut Running| command.status.is_some() && !command.asked_init;
                if let (Heir::Init, Some(command)) = (heir, running.as_mut().filter(unasked)) {
                    // It answers with the same signal.
                    command.asked_init = true;
                    kernel::kill(kernel::parent_pid(), libc::SIGCHLD)?;
                    return Ok(running);
                }
                if let Some(Running {
                    status: Some(status),
                    usage,
                    leftovers,
                    ..
                }) = running
                {
                    host.say(
                        &FromSlot::Exited {
                            status,
                            usage,
                            leftovers,
                        },
                        &[],
                    )?;
                    return Ok(None);
                }
                return Ok(running);
            }
        }
    }
}

fn add(sum: &mut Rusage, one: &Rusage) {
    sum.user_micros += one.user_micros;
    sum.system_micros += one.system_micros;
    sum.max_rss_kib = sum.max_rss_kib.max(one.max_rss_kib);
    sum.blocks_in += one.blocks_in;
    sum.blocks_out += one.blocks_out;
    sum.processes += one.processes;
}

/// Kills every direct child but those named; what they leave becomes a child in turn, and another SIGCHLD comes. Says how many
/// there were.
pub fn kill_children(but: &[i32]) -> u32 {
    let own = kernel::own_pid().to_string();
    let mut killed = 0;
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
            continue;
        };
        // proc_pid_stat(5): the name stands in parentheses and may hold any byte; state and parent follow the last one.
        let Some(end) = stat.iter().rposition(|byte| *byte == b')') else {
            continue;
        };
        let mut fields = stat[end + 1..].split(|byte| *byte == b' ').skip(2);
        let is_ours = fields.next() == Some(own.as_bytes()) && !but.contains(&pid);
        if is_ours && kernel::kill(pid, libc::SIGKILL).is_ok() {
            killed += 1;
        }
    }
    killed
}
