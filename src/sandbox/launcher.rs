//! The launcher: a process of one thread, started before belljar makes threads or opens secrets, that makes sandboxes on request.
//!
//! A process with threads must not fork and go on, and forking a large one costs milliseconds; this one is small, holds nothing
//! worth stealing, and has an empty environment. It ends when its socket closes.
//!
//! ```text
//!   host: Launcher::launch(plan, control socket) ──> launcher: clone3, id maps, cgroup, id-mapped mounts ──> child: setup
//!         pidfd, pipe  <─────────────────────────────┘                                     pipe: which step failed, or EOF at exec
//! ```

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::outside;
use super::plan::{Ids, OutsideUser, Owner, Plan};
use super::setup::{self, Inherited, Step, StepError};
use super::spare::Spare;
use crate::path::HostPath;
use crate::sys::cgroup::Joins;
use crate::sys::mount::{self, Attributes, Depth};
use crate::sys::namespace::{self, Cloned, IdRange, Setgroups};
use crate::sys::{guest, packet, process};

/// The name under which belljar's own program is the launcher.
pub const ARGV0: &str = "belljar-launcher";

/// Asked of the launcher.
#[derive(Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time, on its way")]
enum Asked<'a> {
    /// Descriptor: the guest's end of the control socket.
    Launch(Cow<'a, LaunchRequest>),
    Give(Cow<'a, GiveRequest>),
}

/// A folder or file whose owner's files are to show as somebody else's. Only a process of one thread can make what maps them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GiveRequest {
    pub host: HostPath,
    pub attributes: Attributes,
    pub user: OutsideUser,
    /// Who else may make files there, to give them to that one at once: gVisor's file server does so.
    pub maker: Option<OutsideUser>,
}

/// One sandbox to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchRequest {
    pub plan: Plan,
    /// A folder of the task's own over which the root is mounted, in the sandbox's own mount namespace only.
    pub place: HostPath,
    /// The cgroups that the new process is in before it does anything.
    pub joins: Joins,
    pub by: LaunchedBy,
}

/// Who takes the last steps into the sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum LaunchedBy {
    /// This program, with this filter; see `seccomp::Filter`.
    Builtin { seccomp: Vec<u64> },
    /// An OCI runtime, with this `config.json`.
    Runtime {
        program: PathBuf,
        config: String,
        carry: Carry,
    },
}

/// How the guest is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carry {
    /// By the socket that is passed in, and by descriptors over it.
    Descriptors,
    /// By a socket to which it connects: no descriptor crosses.
    Stream,
}

#[derive(Debug, Serialize, Deserialize)]
enum LaunchReply {
    /// Descriptors: the pidfd of PID 1, and a pipe on which the step that failed is told.
    Launched,
    /// Descriptor: a detached mount.
    Given,
    Failed {
        step: String,
        errno: i32,
    },
}

/// From the launcher to its child.
#[derive(Debug, Serialize, Deserialize)]
pub enum Sent {
    Go,
    /// Descriptor: a detached mount.
    Source {
        index: u32,
    },
}

/// From the launcher's child to belljar, over the guest's control socket, where no guest will ever have that.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    /// Descriptor: the socket to which the guest will connect.
    Listening,
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("the launcher could not be started")]
    Start { source: io::Error },
    #[error("the launcher is gone")]
    Gone,
    #[error("could not {step}")]
    Step { step: String, source: io::Error },
    #[error("the runtime \"{runtime}\" is not installed (package: {package})")]
    NoRuntime { runtime: String, package: String },
    #[error(
        "the runtime \"{runtime}\" must be root inside, and an ordinary user has one id to give: it works with user = \"root\", \
         or with runtime = \"builtin\""
    )]
    LoneId { runtime: String },
    #[error(
        "the runtime \"{runtime}\" needs more ids than the one that an ordinary user has to give: it works for root only"
    )]
    ManyIds { runtime: String },
    #[error(
        "the runtime \"{runtime}\" cannot give a writable root of {uid}:{gid} to the command's user where ids cannot be mapped: \
         runtime = \"builtin\" can, or the root can lie on a volume or a tmpfs"
    )]
    Unmapped { runtime: String, uid: u32, gid: u32 },
    #[error("the bundle cannot be made")]
    Bundle { source: oci_spec::OciSpecError },
    #[error("the runtime said: {said}")]
    Runtime { said: String },
}

/// A sandbox's process just made; it still sets itself up.
#[derive(Debug)]
pub struct Launched {
    /// PID 1; readable when it is over.
    pub pidfd: OwnedFd,
    /// Ends empty when the guest has started, else with the step that failed; see [`read_failure`]. An outside runtime keeps it open
    /// while it lives, and writes to it why it could not go on.
    pub failure: OwnedFd,
}

/// The host's end. One request at a time, in blocking calls.
pub struct Launcher {
    socket: OwnedFd,
    child: std::process::Child,
}

impl Launcher {
    /// Starts the launcher: belljar's own program (`/proc/self/exe`, where this process is belljar) under another name.
    pub fn start(program: &Path) -> Result<Launcher, LaunchError> {
        let start = |source| LaunchError::Start { source };
        let (ours, theirs) = packet::pair().map_err(start)?;
        let child = Command::new(program)
            .arg0(ARGV0)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(start)?;
        Ok(Launcher { socket: ours, child })
    }

    /// Makes the sandbox's process. Blocking, for about a millisecond.
    pub fn launch(&mut self, request: &LaunchRequest, control: BorrowedFd<'_>) -> Result<Launched, LaunchError> {
        match self.ask(&Asked::Launch(Cow::Borrowed(request)), &[control])? {
            (LaunchReply::Launched, fds) => {
                let [pidfd, failure] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| LaunchError::Gone)?;
                Ok(Launched { pidfd, failure })
            }
            (LaunchReply::Failed { .. } | LaunchReply::Given, _) => Err(LaunchError::Gone),
        }
    }

    /// A mount, attached nowhere yet, of what somebody else's files show as a given user's in. Blocking, for less than a millisecond.
    pub fn give(&mut self, request: &GiveRequest) -> Result<OwnedFd, LaunchError> {
        match self.ask(&Asked::Give(Cow::Borrowed(request)), &[])? {
            (LaunchReply::Given, fds) => fds.into_iter().next().ok_or(LaunchError::Gone),
            (LaunchReply::Failed { .. } | LaunchReply::Launched, _) => Err(LaunchError::Gone),
        }
    }

    fn ask(&mut self, asked: &Asked<'_>, fds: &[BorrowedFd<'_>]) -> Result<(LaunchReply, Vec<OwnedFd>), LaunchError> {
        let gone = |_| LaunchError::Gone;
        packet::send(self.socket.as_fd(), asked, fds).map_err(gone)?;
        let answer = packet::receive::<LaunchReply>(self.socket.as_fd()).map_err(gone)?;
        match answer.ok_or(LaunchError::Gone)? {
            (LaunchReply::Failed { step, errno }, _) => Err(LaunchError::Step {
                step,
                source: io::Error::from_raw_os_error(errno),
            }),
            done => Ok(done),
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // It ends by itself when its socket closes; killed, it ends now, and is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the pipe of a launch to its end: `None` when the guest has started. Blocking.
pub fn read_failure(pipe: OwnedFd) -> Option<LaunchError> {
    let mut text = String::new();
    let read = std::fs::File::from(pipe).take(4096).read_to_string(&mut text);
    if let Err(source) = read {
        return Some(LaunchError::Step {
            step: "read how the setup went".to_owned(),
            source,
        });
    }
    if text.trim().is_empty() {
        return None;
    }
    match text.split_once(' ').map(|(errno, step)| (errno.parse(), step)) {
        Some((Ok(errno), step)) => Some(LaunchError::Step {
            step: step.to_owned(),
            source: io::Error::from_raw_os_error(errno),
        }),
        // Not a step of ours: an outside runtime's own words.
        Some((Err(_), _)) | None => Some(LaunchError::Runtime {
            said: text.trim().replace('\n', "; "),
        }),
    }
}

/// Whether this process was started as the launcher.
pub fn is_launcher(argv0: Option<&std::ffi::OsStr>) -> bool {
    argv0.is_some_and(|name| name == ARGV0)
}

/// The launcher's life. Called first thing in `main`, while there is one thread; returns the exit code.
pub fn run() -> u8 {
    match serve() {
        Ok(()) => 0,
        // The host went away while it was being answered; so does the launcher.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => 0,
        Err(error) => {
            eprintln!("belljar launcher: {error}");
            1
        }
    }
}

fn serve() -> io::Result<()> {
    // It stays dumpable: an ordinary user's launcher could not write its child's id maps otherwise. Nobody inside can see it, for
    // it is in no sandbox's pid namespace.
    process::ignore_children();
    process::reserve_low_descriptors()?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let guest = packet::memory_file("belljar-guest", guest::PROGRAM)?;
    // For the first task, while the host still reads what that is.
    let mut spare = Spare::make(guest.as_fd()).ok();
    loop {
        if spare.is_none() && is_quiet(&socket)? {
            // Where there can be none the sandbox's own way says why.
            spare = Spare::make(guest.as_fd()).ok();
        }
        let Some((asked, fds)) = packet::receive::<Asked<'static>>(socket.as_fd())? else {
            return Ok(());
        };
        let done = match asked {
            Asked::Launch(request) => {
                let control = fds.into_iter().next().ok_or(ErrorKind::InvalidData)?;
                launch(&request, control, guest.as_fd(), &mut spare)
                    .map(|Launched { pidfd, failure }| (LaunchReply::Launched, vec![pidfd, failure]))
            }
            Asked::Give(request) => give(&request)
                .map(|tree| (LaunchReply::Given, vec![tree]))
                .map_err(|error| StepError {
                    step: format!("give {} to the command's user", request.host),
                    error,
                }),
        };
        let (reply, fds) = done.unwrap_or_else(|StepError { step, error }| {
            let errno = error.raw_os_error().unwrap_or(0);
            (LaunchReply::Failed { step, errno }, Vec::new())
        });
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        packet::send(socket.as_fd(), &reply, &fds)?;
    }
}

/// After this long without a request the sandbox that was made last is ready, and there is time to prepare for the next one.
const QUIET: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

fn is_quiet(socket: &OwnedFd) -> io::Result<bool> {
    let mut waited = [PollFd::new(socket, PollFlags::IN)];
    match rustix::event::poll(&mut waited, Some(&QUIET)) {
        Ok(ready) => Ok(ready == 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn give(request: &GiveRequest) -> io::Result<OwnedFd> {
    let source = mount::open_source(request.host.as_ref())?;
    let stat = rustix::fs::fstat(&source)?;
    let tree = mount::clone_tree(source.as_fd(), Depth::Single)?;
    let one = |inside, outside| IdRange {
        inside,
        outside,
        count: 1,
    };
    let map = |owner: u32, user: u32, maker: Option<u32>| {
        let mut ranges = vec![one(owner, user)];
        if let Some(maker) = maker.filter(|maker| *maker != user) {
            // For that moment they are nobody's, where the owner has that number.
            let shown = if owner == maker { namespace::FIRST_ID } else { maker };
            ranges.push(one(shown, maker));
        }
        ranges
    };
    let (user, maker) = (request.user, request.maker);
    let uids = map(stat.st_uid, user.uid, maker.map(|maker| maker.uid));
    let gids = map(stat.st_gid, user.gid, maker.map(|maker| maker.gid));
    let map = namespace::mapping(&uids, &gids)?;
    mount::set_attributes(tree.as_fd(), request.attributes, Some(map.as_fd()))?;
    Ok(tree)
}

/// Makes what was asked for: of the process that stands ready, or else of a new one.
fn launch(
    request: &LaunchRequest,
    control: OwnedFd,
    guest: BorrowedFd<'_>,
    spare: &mut Option<Spare>,
) -> Result<Launched, StepError> {
    let (failure, report) = packet::pipe().step("make a pipe")?;
    if Spare::serves(request)
        && let Some(spare) = spare.take()
        // One that is gone is no reason to fail.
        && map_ids(&request.plan, spare.pid()).is_ok()
        && let Ok(inside) = inside(&request.plan, spare.pid())
        && spare.tell(request, control.as_fd(), report.as_fd()).is_ok()
    {
        drop((control, report));
        let helped = help(request, inside, spare.sync());
        let pidfd = spare.became()?;
        return launched(pidfd, helped, failure);
    }
    let (sync, child_sync) = packet::pair().step("make a socket")?;
    let namespaces = match request.by {
        LaunchedBy::Builtin { .. } => namespace::SANDBOX,
        LaunchedBy::Runtime { .. } => namespace::RUNTIME,
    };
    let (cloned, joins) = clone_and_join(namespaces, &request.joins)?;
    match cloned {
        Cloned::Child => {
            drop((sync, failure));
            let sync = child_sync;
            let inherited = Inherited {
                request,
                joins,
                sync,
                control,
                guest,
            };
            set_up(inherited, report)
        }
        Cloned::Parent { pid, pidfd } => {
            drop((child_sync, report, control, joins));
            let helped = map_ids(&request.plan, pid)
                .and_then(|()| inside(&request.plan, pid))
                .and_then(|inside| help(request, inside, &sync));
            launched(pidfd, helped, failure)
        }
    }
}

fn launched(pidfd: OwnedFd, helped: Result<(), StepError>, failure: OwnedFd) -> Result<Launched, StepError> {
    if helped.is_err() {
        let _ = process::pidfd_kill(pidfd.as_fd());
    }
    helped?;
    Ok(Launched { pidfd, failure })
}

/// The new process's own part: it becomes the guest, or tells on `report` which step failed and ends.
pub(super) fn set_up(inherited: Inherited<'_>, report: OwnedFd) -> ! {
    let StepError { step, error } = match &inherited.request.by {
        LaunchedBy::Builtin { seccomp } => setup::run(inherited, seccomp),
        LaunchedBy::Runtime { program, config, carry } => match report.try_clone() {
            Ok(report) => outside::run(inherited, program, config, *carry, report),
            Err(error) => StepError {
                step: "copy a pipe".to_owned(),
                error,
            },
        },
    };
    let text = format!("{} {step}", error.raw_os_error().unwrap_or(0));
    let _ = std::fs::File::from(report).write_all(text.as_bytes());
    std::process::exit(1)
}

/// The new process, in the cgroup that it can be cloned into, and the files by which it is to join the others.
pub(super) fn clone_and_join(namespaces: u64, joins: &Joins) -> Result<(Cloned, Vec<File>), StepError> {
    let open = |path: &PathBuf| {
        let opened = OpenOptions::new().write(true).open(path);
        opened.map_err(|error| StepError {
            step: format!("open {}", path.display()),
            error,
        })
    };
    let mut files = joins.files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let cloned = match &joins.into {
        None => namespace::clone_into(namespaces, None),
        Some(folder) => {
            let cloned =
                setup::open_folder(folder).and_then(|folder| namespace::clone_into(namespaces, Some(folder.as_fd())));
            match cloned {
                Ok(cloned) => Ok(cloned),
                // Linux before 5.7, or a folder from which only its files may be written: it joins by itself, which takes longer.
                Err(_) => {
                    files.push(open(&folder.join("cgroup.procs"))?);
                    namespace::clone_into(namespaces, None)
                }
            }
        }
    };
    let cloned = cloned.map_err(|error| StepError {
        step: "make namespaces".to_owned(),
        error,
    })?;
    Ok((cloned, files))
}

fn map_ids(plan: &Plan, pid: Pid) -> Result<(), StepError> {
    let (uids, gids) = plan.ids.maps(plan.process.uid);
    let setgroups = match plan.ids {
        Ids::Range { .. } => Setgroups::Allow,
        Ids::Single { .. } => Setgroups::Deny,
    };
    namespace::write_id_maps(pid, &uids, &gids, setgroups).step("write the id maps")
}

/// The new user namespace, where mounts are to be mapped into it.
fn inside(plan: &Plan, pid: Pid) -> Result<Option<OwnedFd>, StepError> {
    match plan.ids {
        Ids::Range { .. } => namespace::user_namespace(pid).step("open the user namespace").map(Some),
        Ids::Single { .. } => Ok(None),
    }
}

/// What the child, whose ids are mapped, cannot do for itself: for root, mounts with mapped ids.
fn help(request: &LaunchRequest, inside: Option<OwnedFd>, sync: &OwnedFd) -> Result<(), StepError> {
    let step = |step: String| move |error| StepError { step, error };
    let plan = &request.plan;
    packet::send(sync.as_fd(), &Sent::Go, &[]).map_err(step("go on".to_owned()))?;
    let Some(inside) = inside else { return Ok(()) };
    // gVisor's file server makes each file as its own root and gives it to the command's user then.
    let roots_too = matches!(
        request.by,
        LaunchedBy::Runtime {
            carry: Carry::Stream,
            ..
        }
    );
    let mut users = Users {
        roots_too,
        maps: Vec::new(),
    };
    for (index, (host, owner, attributes)) in plan.host_sources().enumerate() {
        let tree = detached(plan, host, owner, attributes, inside.as_fd(), &mut users)
            .map_err(step(format!("open {host}")))?;
        let message = Sent::Source { index: index as u32 };
        // A child that is gone has already said why.
        if packet::send(sync.as_fd(), &message, &[tree.as_fd()]).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The maps that give what belongs to somebody outside to the command's user.
struct Users {
    /// Whether root inside has itself beside.
    roots_too: bool,
    maps: Vec<(u32, u32, OwnedFd)>,
}

fn detached(
    plan: &Plan,
    host: &HostPath,
    owner: Owner,
    attributes: Attributes,
    inside: BorrowedFd<'_>,
    users: &mut Users,
) -> io::Result<OwnedFd> {
    let source = mount::open_source(host.as_ref())?;
    let tree = mount::clone_tree(source.as_fd(), Depth::Single)?;
    match owner {
        // The sandbox's own map: what is root's outside shows as root's inside.
        Owner::Same => match mount::set_attributes(tree.as_fd(), attributes, Some(inside)) {
            // A file system whose ids cannot be mapped, such as the overlay that is the root of a container. Read-only, its files may
            // as well be nobody's: all may read what all may read, and nothing is owned by anybody inside.
            Err(error)
                if attributes.read_only && error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) =>
            {
                mount::set_attributes(tree.as_fd(), attributes, None)?;
            }
            done => done?,
        },
        Owner::User => {
            let stat = rustix::fs::fstat(&source)?;
            let (uid, gid) = (stat.st_uid, stat.st_gid);
            let (user, group) = plan.owner_outside();
            // Such files are the user's without a map, and some of them are where there can be none; see `owners`.
            if (uid, gid) == (user, group) {
                mount::set_attributes(tree.as_fd(), attributes, None)?;
                return Ok(tree);
            }
            if !users.maps.iter().any(|(one, two, _)| (*one, *two) == (uid, gid)) {
                let map = |owner: u32, id: u32| {
                    let mut ranges = vec![(owner, id)];
                    if users.roots_too && id != plan.ids.root_outside() {
                        ranges.push((plan.ids.root_outside(), plan.ids.root_outside()));
                    }
                    let range = |(inside, outside)| IdRange {
                        inside,
                        outside,
                        count: 1,
                    };
                    ranges.into_iter().map(range).collect::<Vec<_>>()
                };
                users
                    .maps
                    .push((uid, gid, namespace::mapping(&map(uid, user), &map(gid, group))?));
            }
            let (_, _, user) = users
                .maps
                .iter()
                .find(|(one, two, _)| (*one, *two) == (uid, gid))
                .expect("it was just put there");
            mount::set_attributes(tree.as_fd(), attributes, Some(user.as_fd()))?;
        }
    }
    Ok(tree)
}
