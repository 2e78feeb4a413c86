//! From a new process in new namespaces to the guest: what the launcher's child does, step by step.
//!
//! Nothing here is allowed to fail quietly: the first step that fails ends the process, and its name and reason reach the host.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::process::Resource;

use super::host_root::{DEV_LINKS, NOTHING};
use super::launcher::{LaunchRequest, Sent};
use super::plan::{AGENT, Ids, LAYER, Made, Mount, Plan, Source, What};
use super::users::{self, Table};
use crate::path::SandboxPath;
use crate::sys::mount::{self, Attributes, Depth};
use crate::sys::{namespace, packet, process};

/// A step that failed.
#[derive(Debug)]
pub struct StepError {
    pub step: String,
    pub error: io::Error,
}

pub(super) trait Step<T> {
    fn step(self, name: impl Into<String>) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, name: impl Into<String>) -> Result<T, StepError> {
        self.map_err(|error| StepError {
            step: name.into(),
            error: error.into(),
        })
    }
}

/// What the child holds when it begins.
pub struct Inherited<'a> {
    pub request: &'a LaunchRequest,
    /// Files of cgroups; see [`join`].
    pub joins: Vec<File>,
    /// To the launcher.
    pub sync: OwnedFd,
    pub control: OwnedFd,
    pub guest: BorrowedFd<'a>,
}

/// Becomes the guest; returns only to say which step failed.
pub fn run(inherited: Inherited<'_>, seccomp: &[u64]) -> StepError {
    match steps(inherited, seccomp) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn steps(inherited: Inherited<'_>, seccomp: &[u64]) -> Result<std::convert::Infallible, StepError> {
    let Inherited {
        request,
        joins,
        sync,
        control,
        guest,
    } = inherited;
    let plan = &request.plan;
    join(joins).step("join the task's cgroups")?;
    // Once the launcher has written the id maps.
    expect_go(&sync).step("wait for the launcher")?;
    namespace::new_cgroup_namespace().step("make a cgroup namespace")?;
    mount::make_private().step("cut off the mounts")?;
    rustix::process::umask(Mode::empty());
    // Host paths are opened under the caller's own id, which is still this process's outside.
    let place = open_folder(request.place.as_ref()).step("open the place of the root")?;
    let null = open_device("null", OFlags::RDWR).step("open /dev/null")?;
    let mut sources = Sources::of(plan, &sync);
    if let Ids::Range { .. } = plan.ids {
        process::become_user(0, 0, true).step("become root inside")?;
    }
    let root = make_root(plan, &place, &mut sources)?;
    make_all(root.as_fd(), plan)?;
    if !plan.root.layers.is_empty() {
        add_agent(root.as_fd()).step("add the agent to /etc/passwd")?;
    }
    for mount in &plan.mounts {
        attach(root.as_fd(), mount, &mut sources).step(format!("mount {}", mount.path))?;
    }
    finish_dev(root.as_fd()).step("finish /dev")?;
    let mut empty = None;
    for path in &plan.masked {
        mask(root.as_fd(), path, &null, &mut empty).step(format!("mask {path}"))?;
    }
    free_low_ports(root.as_fd()).step("free the low ports")?;
    for path in &plan.read_only {
        make_read_only(root.as_fd(), path).step(format!("make {path} read-only"))?;
    }
    process::set_hostname(&plan.hostname).step("set the host name")?;
    namespace::bring_up_loopback().step("bring up loopback")?;
    namespace::pivot_into(&root).step("change to the new root")?;
    drop((root, place));

    process::leave_keyring().step("leave the keyring")?;
    process::set_limit(Resource::Nofile, plan.process.open_files).step("limit open files")?;
    process::set_limit(Resource::Core, 0).step("limit core files")?;
    if let Some(pids) = plan.process_limit() {
        process::set_limit(Resource::Nproc, pids).step("limit processes")?;
    }
    process::set_limit(Resource::Memlock, 8 << 20).step("limit locked memory")?;
    process::drop_bounding_set().step("drop the bounding set")?;
    let drop_groups = matches!(plan.ids, Ids::Range { .. });
    process::become_user(plan.process.uid, plan.process.gid, drop_groups).step("become the command's user")?;
    process::drop_capabilities().step("drop capabilities")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let stderr = null.try_clone().step("open /dev/null again")?;
    process::keep_only(null, stderr, control).step("arrange descriptors")?;
    process::load_seccomp(seccomp).step("load the seccomp filter")?;
    Err(process::exec_file(guest, &[c"belljar-guest"], &[])).step("start the guest")
}

/// Moves this process, of one thread, into cgroups: by its own hand, see `sys::cgroup`.
pub(super) fn join(files: Vec<File>) -> io::Result<()> {
    files.into_iter().try_for_each(|mut file| file.write_all(b"0"))
}

pub(super) fn expect_go(sync: &OwnedFd) -> io::Result<()> {
    match packet::receive::<Sent>(sync.as_fd())? {
        Some((Sent::Go, _)) => Ok(()),
        Some((Sent::Source { .. }, _)) | None => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Where detached mounts of host folders come from: for root the launcher makes them outside, id-mapped, and sends them in the order
/// of the plan; an ordinary user may only make them here, from the copies of the host's mounts that this namespace has.
pub(super) enum Sources<'a> {
    Sent {
        sync: &'a OwnedFd,
        next: u32,
    },
    Own,
    /// Taken before, in the same order.
    Held(VecDeque<OwnedFd>),
}

impl<'a> Sources<'a> {
    pub(super) fn of(plan: &Plan, sync: &'a OwnedFd) -> Self {
        match plan.ids {
            Ids::Range { .. } => Sources::Sent { sync, next: 0 },
            Ids::Single { .. } => Sources::Own,
        }
    }

    pub(super) fn take(&mut self, host: &Path, attributes: Attributes) -> io::Result<OwnedFd> {
        match self {
            Sources::Held(trees) => trees.pop_front().ok_or_else(|| ErrorKind::UnexpectedEof.into()),
            Sources::Sent { sync, next } => match packet::receive::<Sent>(sync.as_fd())? {
                Some((Sent::Source { index }, fds)) if index == *next => {
                    *next += 1;
                    fds.into_iter().next().ok_or_else(|| ErrorKind::UnexpectedEof.into())
                }
                _ => Err(ErrorKind::UnexpectedEof.into()),
            },
            Sources::Own => {
                let source = mount::open_source(host)?;
                let tree = clone(&source)?;
                mount::set_attributes(tree.as_fd(), attributes, None)?;
                Ok(tree)
            }
        }
    }
}

/// A detached copy of one mount. Where something is mounted below and the kernel does not let us look under it, that comes along.
pub(super) fn clone(source: &OwnedFd) -> io::Result<OwnedFd> {
    match mount::clone_tree(source.as_fd(), Depth::Single) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => mount::clone_tree(source.as_fd(), Depth::Recursive),
        other => other,
    }
}

pub(super) fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

pub(super) fn open_device(name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let fd = rustix::fs::open(format!("/dev/{name}"), flags | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::CharacterDevice {
        return Err(ErrorKind::InvalidInput.into());
    }
    Ok(fd)
}

pub(super) fn tmpfs(bytes: u64, inodes: u64, mode: u32, attributes: Attributes) -> io::Result<OwnedFd> {
    let (size, inodes, mode) = (bytes.to_string(), inodes.to_string(), format!("{mode:o}"));
    mount::new_file_system(
        "tmpfs",
        &[("size", &size), ("nr_inodes", &inodes), ("mode", &mode)],
        attributes,
    )
}

/// The root, attached over `place`: a tmpfs, or the layers with a tmpfs on top.
pub(super) fn make_root(plan: &Plan, place: &OwnedFd, sources: &mut Sources<'_>) -> Result<OwnedFd, StepError> {
    let attributes = Attributes {
        no_dev: true,
        no_suid: true,
        ..Attributes::default()
    };
    let top = tmpfs(plan.root.bytes, plan.root.inodes, 0o755, attributes).step("make the disposable layer")?;
    mount::attach(top.as_fd(), place.as_fd()).step("attach the disposable layer")?;
    if plan.root.layers.is_empty() {
        return Ok(top);
    }
    let mut lower = Vec::new();
    for (index, layer) in plan.root.layers.iter().enumerate() {
        let name = index.to_string();
        let step = || format!("attach layer {layer}");
        let tree = sources.take(layer.as_ref(), LAYER).step(step())?;
        rustix::fs::mkdirat(&top, &name, Mode::RWXU).step(step())?;
        let target = mount::open_inside(top.as_fd(), &name, OFlags::PATH, Mode::empty()).step(step())?;
        mount::attach(tree.as_fd(), target.as_fd()).step(step())?;
        lower.insert(0, name);
    }
    for name in ["upper", "work"] {
        rustix::fs::mkdirat(&top, name, Mode::from_raw_mode(0o755)).step("make the disposable layer's folders")?;
    }
    // Relative names, so that no character of a host path can be taken for an option.
    rustix::process::fchdir(&top).step("enter the disposable layer")?;
    let lower = lower.join(":");
    let options = [
        ("lowerdir", lower.as_str()),
        ("upperdir", "upper"),
        ("workdir", "work"),
        ("userxattr", ""),
    ];
    let root = mount::new_file_system("overlay", &options, attributes).step("mount the overlay")?;
    mount::attach(root.as_fd(), top.as_fd()).step("attach the overlay")?;
    Ok(root)
}

fn parent_and_name(path: &SandboxPath) -> io::Result<(&str, &str)> {
    match path.relative().rsplit_once('/') {
        Some((parent, name)) => Ok((parent, name)),
        None if path.relative().is_empty() => Err(ErrorKind::InvalidInput.into()),
        None => Ok(("", path.relative())),
    }
}

/// Makes what the plan puts into the new root.
pub(super) fn make_all(root: BorrowedFd<'_>, plan: &Plan) -> Result<(), StepError> {
    // What lies in one folder mostly comes together. Nothing is mounted or taken away meanwhile that it could lie in.
    let mut folder: Option<(&str, OwnedFd)> = None;
    for made in &plan.root.made {
        let step = || format!("make {}", made.path);
        let (parent, name) = parent_and_name(&made.path).step(step())?;
        let held = folder.take().filter(|(path, _)| *path == parent);
        let (_, held) = match held {
            Some(held) => folder.insert(held),
            None => folder.insert((parent, make_folders(root, parent).step(step())?)),
        };
        make(held, name, made, plan).step(step())?;
    }
    Ok(())
}

fn make(parent: &OwnedFd, name: &str, made: &Made, plan: &Plan) -> io::Result<()> {
    match &made.what {
        What::Folder { mode } => match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(*mode)) {
            Ok(()) => {}
            // An image's own folder stays as it is, but for those that everybody must be able to write to.
            Err(rustix::io::Errno::EXIST) if *mode == 0o1777 => {
                rustix::fs::chmodat(parent, name, Mode::from_raw_mode(*mode), AtFlags::empty())?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        },
        What::File { content, mode } => {
            let fd = new_file(parent, name, *mode)?;
            std::fs::File::from(fd).write_all(content.as_bytes())?;
        }
        What::Bytes { content, mode } => {
            let fd = new_file(parent, name, *mode)?;
            std::fs::File::from(fd).write_all(content)?;
        }
        What::Link { target } => {
            in_place_of(parent, name, || rustix::fs::symlinkat(target, parent, name))?;
        }
    }
    if let (true, Ids::Range { .. }) = (made.users, plan.ids) {
        let (uid, gid) = (Uid::from_raw(plan.process.uid), Gid::from_raw(plan.process.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn new_file(parent: &OwnedFd, name: &str, mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    in_place_of(parent, name, || {
        rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode))
    })
}

/// Makes something, and takes away first what an image has there, be it a link.
fn in_place_of<T>(parent: &OwnedFd, name: &str, make: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
    match make() {
        Err(rustix::io::Errno::EXIST) => {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
            Ok(make()?)
        }
        made => Ok(made?),
    }
}

/// Opens a folder of the new root, making what is missing on the way.
pub(super) fn make_folders(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let open = |path: &str| mount::open_inside(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    match open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = make_folders(root, parent)?;
    // What is there and could not be opened is a link of an image's that leads nowhere.
    in_place_of(&parent, name, || {
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
    })?;
    open(path)
}

/// What a mount is attached to: made where it is missing, a folder for a folder and a file for anything else.
pub(super) fn make_target(root: BorrowedFd<'_>, path: &SandboxPath, is_folder: bool) -> io::Result<OwnedFd> {
    if is_folder {
        return make_folders(root, path.relative());
    }
    match mount::open_inside(root, path.relative(), OFlags::PATH, Mode::empty()) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    let (parent, name) = parent_and_name(path)?;
    let parent = make_folders(root, parent)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
    mount::open_inside(root, path.relative(), OFlags::PATH, Mode::empty())
}

fn attach(root: BorrowedFd<'_>, mount: &Mount, sources: &mut Sources<'_>) -> io::Result<()> {
    let (tree, is_folder) = match &mount.source {
        Source::Bind { host, .. } => {
            let tree = sources.take(host.as_ref(), mount.attributes)?;
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode);
            (tree, kind == FileType::Directory)
        }
        Source::Device { name } => {
            let source = open_device(name, OFlags::PATH)?;
            let tree = mount::clone_tree(source.as_fd(), Depth::Single)?;
            mount::set_attributes(tree.as_fd(), mount.attributes, None)?;
            (tree, false)
        }
        Source::Tmpfs { bytes, inodes, mode } => (tmpfs(*bytes, *inodes, *mode, mount.attributes)?, true),
        Source::Proc => (mount::new_file_system("proc", &[], mount.attributes)?, true),
        Source::Sysfs => match mount::new_file_system("sysfs", &[], mount.attributes) {
            Ok(tree) => (tree, true),
            // Inside another container, whose own /sys is partly hidden, the kernel shows none: an empty one hides more, not less.
            Err(_) => (tmpfs(0, 1, 0o555, mount.attributes)?, true),
        },
        Source::Devpts => {
            let options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")];
            (mount::new_file_system("devpts", &options, mount.attributes)?, true)
        }
        Source::Itself { within } => {
            let name = name_within(&mount.path, within)?;
            return hold(root, within.relative(), name, None, mount.attributes);
        }
        Source::Nothing { within } => {
            let name = name_within(&mount.path, within)?;
            return hold(
                root,
                within.relative(),
                name,
                Some(NOTHING.trim_start_matches('/')),
                mount.attributes,
            );
        }
        Source::Mqueue => match mount::new_file_system("mqueue", &[], mount.attributes) {
            Ok(tree) => (tree, true),
            // A kernel without message queues has none to mount.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => return Ok(()),
            Err(error) => return Err(error),
        },
    };
    let target = make_target(root, &mount.path, is_folder)?;
    mount::attach(tree.as_fd(), target.as_fd())
}

/// A path as seen from a folder that it lies in.
pub(super) fn name_within<'a>(path: &'a SandboxPath, within: &SandboxPath) -> io::Result<&'a Path> {
    let name = path
        .relative()
        .strip_prefix(within.relative())
        .ok_or(ErrorKind::InvalidInput)?;
    Ok(Path::new(name.trim_start_matches('/')))
}

/// Mounts what is there already over itself, or `cover` over it. Whoever shares the writable root `top` may change it this very
/// moment, so nothing is made and no link followed.
pub(super) fn hold(
    root: BorrowedFd<'_>,
    top: &str,
    name: &Path,
    cover: Option<&str>,
    attributes: Attributes,
) -> io::Result<()> {
    let top = mount::open_inside(root, top, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    let target = mount::open_beneath(top.as_fd(), name, OFlags::PATH)?;
    let tree = match cover {
        None => clone(&target)?,
        Some(cover) => clone(&mount::open_inside(root, cover, OFlags::PATH, Mode::empty())?)?,
    };
    mount::set_attributes(tree.as_fd(), attributes, None)?;
    if !attributes.read_only {
        // It may lie in something that was made read-only a moment ago.
        mount::set_writable(tree.as_fd())?;
    }
    mount::attach(tree.as_fd(), target.as_fd())
}

/// The links of /dev; after them nobody makes anything there.
fn finish_dev(root: BorrowedFd<'_>) -> io::Result<()> {
    let dev = mount::open_inside(root, "dev", OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    for (link, target) in DEV_LINKS {
        rustix::fs::symlinkat(target, &dev, link.trim_start_matches("/dev/"))?;
    }
    mount::set_read_only(dev.as_fd())
}

/// Covers a path: a file by /dev/null, a folder by an empty one. All folders share one file system, for making one costs more than
/// all the rest here; the first is attached before it is copied, because older kernels copy no detached mount.
fn mask(root: BorrowedFd<'_>, path: &SandboxPath, null: &OwnedFd, empty: &mut Option<OwnedFd>) -> io::Result<()> {
    let target = match mount::open_inside(root, path.relative(), OFlags::PATH, Mode::empty()) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let attributes = Attributes {
        read_only: true,
        no_suid: true,
        no_dev: false,
        no_exec: true,
    };
    let is_folder = FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode) == FileType::Directory;
    match (is_folder, empty.as_ref()) {
        (true, Some(empty)) => mount::attach(mount::clone_tree(empty.as_fd(), Depth::Single)?.as_fd(), target.as_fd()),
        (true, None) => {
            let attributes = Attributes {
                no_dev: true,
                ..attributes
            };
            let cover = tmpfs(4096, 1, 0o555, attributes)?;
            mount::attach(cover.as_fd(), target.as_fd())?;
            *empty = Some(cover);
            Ok(())
        }
        (false, _) => {
            let cover = mount::clone_tree(null.as_fd(), Depth::Single)?;
            mount::set_attributes(cover.as_fd(), attributes, None)?;
            mount::attach(cover.as_fd(), target.as_fd())
        }
    }
}

/// Lets anybody inside listen on any port of the sandbox's own loopback: the guest on 53, for names, and servers on 80.
fn free_low_ports(root: BorrowedFd<'_>) -> io::Result<()> {
    let path = "proc/sys/net/ipv4/ip_unprivileged_port_start";
    let file = mount::open_inside(root, path, OFlags::WRONLY, Mode::empty())?;
    std::fs::File::from(file).write_all(b"0")
}

fn make_read_only(root: BorrowedFd<'_>, path: &SandboxPath) -> io::Result<()> {
    let target = match mount::open_inside(root, path.relative(), OFlags::PATH, Mode::empty()) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let tree = mount::clone_tree(target.as_fd(), Depth::Recursive)?;
    let attributes = Attributes {
        read_only: true,
        no_suid: true,
        no_dev: true,
        no_exec: false,
    };
    mount::set_attributes(tree.as_fd(), attributes, None)?;
    mount::attach(tree.as_fd(), target.as_fd())
}

/// Adds the agent to an image's users where no one has its id. The image is foreign: its files are read bounded and replaced, never
/// written through.
pub(super) fn add_agent(root: BorrowedFd<'_>) -> io::Result<()> {
    let etc = make_folders(root, "etc")?;
    for table in Table::BOTH {
        let path = format!("etc/{}", table.name());
        let own = match mount::open_inside(root, &path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
            Ok(file) => {
                let mut text = String::new();
                std::fs::File::from(file)
                    .take(users::MOST_BYTES)
                    .read_to_string(&mut text)?;
                Some(text)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(text) = table.with_agent(own.as_deref(), (AGENT, AGENT)) {
            let fd = new_file(&etc, table.name(), 0o644)?;
            std::fs::File::from(fd).write_all(text.as_bytes())?;
        }
    }
    Ok(())
}
