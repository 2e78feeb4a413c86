//! An outside OCI runtime (runc, crun, …) instead of the builtin launcher's own last steps.
//!
//! The runtime never acts as the host's root: it runs as PID 1 of a pid namespace, inside the plan's user namespace, on a mount
//! namespace of its own in which the bundle lies, and makes the container's namespaces within these. So what ends this one process
//! ends the container with it, nothing of it stays on the host, and a fault of the runtime's stays in the user namespace.
//!
//! ```text
//!  launcher ─clone3(user, mount, pid)─▶ prepare: sources, root, binds, bundle below /tmp ─exec─▶ runc run ─▶ container: guest
//!      └ pidfd: of runc ◀──────────────────────────────────────────────────────────────────────┘    fd 3: the control socket
//! ```
//!
//! gVisor (runsc) takes no descriptors: its guest connects to a socket below /tmp there, which nobody else can see; see `relay`.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use super::bundle;
use super::host_root::NOTHING;
use super::launcher::{Carry, LaunchError, Said};
use super::plan::{Ids, Plan, Source};
use super::setup::{self, Inherited, Sources, Step, StepError};
use crate::audit::record::{Control, Enforced};
use crate::path::SandboxPath;
use crate::sys::mount::{self, Attributes};
use crate::sys::{guest, packet, process};

/// Where a runtime is looked for, beside the caller's PATH: an ordinary user's often lacks the folders for admins.
const FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Room for the guest's program, the bundle and the runtime's state.
const WORK_BYTES: u64 = 16 << 20;
const WORK_INODES: u64 = 4096;

/// The runtime's program. `runtime` is a name or an absolute path.
pub fn find(runtime: &str) -> Result<PathBuf, LaunchError> {
    let path = std::env::var("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = if runtime.starts_with('/') {
        vec![runtime.into()]
    } else {
        let folders = path.split(':').chain(FOLDERS.split(':'));
        folders
            .filter(|folder| folder.starts_with('/'))
            .map(|folder| Path::new(folder).join(runtime))
            .collect()
    };
    let is_program = |path: &&PathBuf| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    places
        .iter()
        .find(is_program)
        .cloned()
        .ok_or_else(|| LaunchError::NoRuntime {
            runtime: runtime.to_owned(),
            package: package(runtime),
        })
}

/// The package that has it, as distributions name it.
fn package(runtime: &str) -> String {
    let name = runtime.rsplit('/').next().unwrap_or(runtime);
    match name {
        "runsc" => "runsc, or gVisor's own repository".to_owned(),
        "kata-runtime" => "kata-containers".to_owned(),
        other => other.to_owned(),
    }
}

/// How a guest in a sandbox of this runtime is spoken to. gVisor has sockets and descriptors of its own, into which none of the
/// host's can be passed.
pub fn carry(runtime: &str) -> Carry {
    let name = runtime.rsplit('/').next().unwrap_or(runtime);
    match name.contains("runsc") || name.contains("gvisor") {
        true => Carry::Stream,
        false => Carry::Descriptors,
    }
}

/// What a runtime gives less of than belljar's own launcher.
pub fn shortfalls(runtime: &str) -> Vec<Control> {
    shortfalls_of(carry(runtime))
}

/// The same of one whose guest is spoken to in this way.
pub fn shortfalls_of(carry: Carry) -> Vec<Control> {
    let partial = |control: &str, reason: &str| Control {
        control: control.to_owned(),
        enforced: Enforced::Partial,
        reason: Some(reason.to_owned()),
    };
    match carry {
        Carry::Descriptors => Vec::new(),
        Carry::Stream => vec![
            partial(
                "exec_isolation",
                "gVisor's kernel has no Landlock, so commands of one task can read each other's environment",
            ),
            partial(
                "limit.pids",
                "gVisor's kernel has processes of its own: the limit bounds the host's threads by which it runs them",
            ),
        ],
    }
}

/// What this plan asks that an outside runtime cannot give.
pub fn check(plan: &Plan, runtime: &str) -> Result<(), LaunchError> {
    match plan.ids {
        // A runtime sets a container up as its root, so a lone id has to be root's.
        // gVisor makes a user namespace of its own, with two ids.
        Ids::Single { .. } if carry(runtime) == Carry::Stream => Err(LaunchError::ManyIds {
            runtime: runtime.to_owned(),
        }),
        Ids::Single { inside, .. } if inside != 0 => Err(LaunchError::LoneId {
            runtime: runtime.to_owned(),
        }),
        // gVisor's file server is its own root to the host, and the devices of any other runtime are the host's: root outside could
        // change their modes.
        Ids::Range { user: Some(user), .. } if carry(runtime) == Carry::Stream || user.uid == 0 => {
            Err(LaunchError::Unmapped {
                runtime: runtime.to_owned(),
                uid: user.uid,
                gid: user.gid,
            })
        }
        Ids::Single { .. } | Ids::Range { .. } => Ok(()),
    }
}

/// Becomes the runtime; returns only to say which step failed. What the runtime itself says goes to `report`.
pub fn run(inherited: Inherited<'_>, program: &Path, config: &str, carry: Carry, report: OwnedFd) -> StepError {
    match steps(inherited, program, config, carry, report) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn steps(
    inherited: Inherited<'_>,
    program: &Path,
    config: &str,
    carry: Carry,
    report: OwnedFd,
) -> Result<std::convert::Infallible, StepError> {
    let Inherited {
        request,
        joins,
        sync,
        control,
        ..
    } = inherited;
    let plan = &request.plan;
    setup::join(joins).step("join the task's cgroups")?;
    setup::expect_go(&sync).step("wait for the launcher")?;
    // What the host unmounts must go away here too: this namespace lives as long as the task.
    mount::make_slave().step("cut off the mounts")?;
    rustix::process::umask(Mode::empty());
    let null = setup::open_device("null", OFlags::RDWR).step("open /dev/null")?;
    // All that lies outside is opened before anything of the outside is covered.
    let mut sources = hold_sources(plan, &sync)?;
    if let Ids::Range { .. } = plan.ids {
        process::become_user(0, 0, true).step("become root inside")?;
    }
    let strict = Attributes {
        no_suid: true,
        no_dev: true,
        ..Attributes::default()
    };
    let proc = mount::new_file_system("proc", &[], strict).step("make a /proc of its own")?;
    cover("/proc", &proc).step("mount /proc")?;
    let work = setup::tmpfs(WORK_BYTES, WORK_INODES, 0o755, strict).step("make the runtime's folder")?;
    cover(bundle::WORK, &work).step("mount the runtime's folder")?;

    for name in [bundle::ROOT, bundle::BUNDLE, bundle::STATE, bundle::BINDS] {
        setup::make_folders(work.as_fd(), name).step(format!("make {name}"))?;
    }
    let place = setup::make_folders(work.as_fd(), bundle::ROOT).step("open the place of the root")?;
    let root = setup::make_root(plan, &place, &mut sources)?;
    setup::make_all(root.as_fd(), plan)?;
    if !plan.root.layers.is_empty() {
        setup::add_agent(root.as_fd()).step("add the agent to /etc/passwd")?;
    }
    if carry == Carry::Stream {
        fill_tmp(&root).step("put something into /tmp")?;
    }
    attach_binds(plan, &work, &mut sources)?;
    let at = |name: &str| Path::new(bundle::WORK).join(name);
    std::fs::write(at(bundle::BUNDLE).join("config.json"), config).step("write the bundle")?;
    write_program(&at(bundle::GUEST)).step("write the guest's program")?;
    let control = match carry {
        Carry::Descriptors => control,
        Carry::Stream => {
            let socket = listen(&at(bundle::CHANNEL)).step("make the guest's socket")?;
            packet::send(control.as_fd(), &Said::Listening, &[socket.as_fd()]).step("pass the guest's socket out")?;
            null.try_clone().step("open /dev/null again")?
        }
    };
    drop((root, place, work, sources));

    process::leave_keyring().step("leave the keyring")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let argv = arguments(program, &plan.task.to_string(), carry).step("name the runtime")?;
    let env = [CString::from(
        c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    )];
    rustix::process::chdir("/").step("change to /")?;
    process::keep_only(null, report, control).step("arrange descriptors")?;
    Err(process::exec_path(&argv[0], &argv, &env)).step(format!("start {}", program.display()))
}

/// Over an empty /tmp gVisor mounts a file system of its own, which no limit of the disposable layer bounds.
fn fill_tmp(root: &OwnedFd) -> io::Result<()> {
    let tmp = setup::make_folders(root.as_fd(), "tmp")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&tmp, ".belljar", flags, Mode::from_raw_mode(0o444))?;
    Ok(())
}

/// A socket that whoever sees it may connect to; only the sandbox will.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(socket.into())
}

/// The runtime's command line: what runc, crun and youki have in common, and gVisor's.
fn arguments(program: &Path, id: &str, carry: Carry) -> io::Result<Vec<CString>> {
    let at = |name: &str| format!("{}/{name}", bundle::WORK).into_bytes();
    let word = |word: &str| word.as_bytes().to_vec();
    let mut words = vec![
        program.as_os_str().as_bytes().to_vec(),
        word("--root"),
        at(bundle::STATE),
    ];
    match carry {
        Carry::Descriptors => words.push(word("run")),
        // ptrace is the platform that needs nothing of the machine; a network of its own would need rights on the host's. The cgroup
        // that it is started in is the task's already. The filter of the bundle is only loaded when asked for.
        Carry::Stream => words.extend(
            [
                "--platform=ptrace",
                "--network=none",
                "--host-uds=open",
                "--ignore-cgroups",
                "--oci-seccomp",
                "run",
            ]
            .map(word),
        ),
    }
    words.extend([word("--bundle"), at(bundle::BUNDLE)]);
    if carry == Carry::Descriptors {
        // Descriptor 3, the guest's control socket.
        words.extend([word("--preserve-fds"), word("1")]);
    }
    words.push(word(id));
    words
        .into_iter()
        .map(|word| CString::new(word).map_err(io::Error::from))
        .collect()
}

/// Takes everything that comes from the host, in the order of the plan.
fn hold_sources<'a>(plan: &Plan, sync: &'a OwnedFd) -> Result<Sources<'a>, StepError> {
    let mut sources = Sources::of(plan, sync);
    let mut held = VecDeque::new();
    for (host, _, attributes) in plan.host_sources() {
        held.push_back(sources.take(host.as_ref(), attributes).step(format!("open {host}"))?);
    }
    Ok(Sources::Held(held))
}

/// Attaches the binds where the bundle says that they are, and within them what is held: that comes along with them.
fn attach_binds(plan: &Plan, work: &OwnedFd, sources: &mut Sources<'_>) -> Result<(), StepError> {
    let mut folders: HashMap<&SandboxPath, String> = HashMap::new();
    let folder_of =
        |folders: &HashMap<&SandboxPath, String>, path| folders.get(path).cloned().ok_or(io::ErrorKind::InvalidInput);
    for mount in &plan.mounts {
        let mut attach = || {
            match &mount.source {
                Source::Bind { host, .. } => {
                    let folder = format!("{}/{}", bundle::BINDS, folders.len());
                    let tree = sources.take(host.as_ref(), mount.attributes)?;
                    let kind = FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode);
                    let path = SandboxPath::new(&format!("/{folder}")).map_err(io::Error::other)?;
                    let target = setup::make_target(work.as_fd(), &path, kind == FileType::Directory)?;
                    mount::attach(tree.as_fd(), target.as_fd())?;
                    folders.insert(&mount.path, folder);
                }
                Source::Itself { within } => {
                    let (folder, name) = (folder_of(&folders, within)?, setup::name_within(&mount.path, within)?);
                    setup::hold(work.as_fd(), &folder, name, None, mount.attributes)?;
                }
                Source::Nothing { within } => {
                    let (folder, name) = (folder_of(&folders, within)?, setup::name_within(&mount.path, within)?);
                    let nothing = format!("{}{NOTHING}", bundle::ROOT);
                    setup::hold(work.as_fd(), &folder, name, Some(&nothing), mount.attributes)?;
                }
                Source::Tmpfs { .. }
                | Source::Proc
                | Source::Sysfs
                | Source::Devpts
                | Source::Mqueue
                | Source::Device { .. } => {}
            }
            Ok::<_, io::Error>(())
        };
        attach().step(format!("attach {}", mount.path))?;
    }
    Ok(())
}

fn cover(path: &str, mounted: &OwnedFd) -> io::Result<()> {
    let target = setup::open_folder(Path::new(path))?;
    mount::attach(mounted.as_fd(), target.as_fd())
}

fn write_program(path: &Path) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(guest::PROGRAM)?;
    file.set_permissions(Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_is_not_there_is_named_with_its_package() {
        let error = find("no-such-runtime").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the runtime \"no-such-runtime\" is not installed (package: no-such-runtime)"
        );
        let plain = tempfile::NamedTempFile::new().unwrap();
        let plain = plain.path().to_str().unwrap();
        assert!(find(plain).is_err(), "a file that cannot be executed is no runtime");
        assert_eq!(find("/bin/sh").unwrap(), Path::new("/bin/sh"));
    }
}
