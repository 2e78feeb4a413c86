//! What is the kernel's own: its files in /proc and /sys, and devices. The probes name some of them; here all that a sandbox sees are
//! tried.

use crate::cves::blocked;
use crate::jail::{Caller, Place};

/// core_pattern, release_agent, sysrq-trigger, binfmt_misc and whatever else takes effect outside: nothing in /proc and /sys that is
/// not a process's own opens for writing, nor do the files of a process that watches.
pub fn nothing_of_the_kernels_opens_for_writing(caller: Caller) {
    let script = r#"
import os, stat
done = []
def attempt(path):
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return
    # What is masked is /dev/null.
    if os.fstat(fd).st_rdev != os.makedev(1, 3):
        done.append(path)
    os.close(fd)
def attempt_writing(path):
    # Some say no only to what is written.
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            os.write(fd, b"1")
            done.append(path)
        finally:
            os.close(fd)
    except OSError:
        pass
for top in ("/proc", "/sys"):
    for folder, folders, names in os.walk(top):
        if folder == "/proc":
            folders[:] = [name for name in folders if not name.isdigit() and name not in ("self", "thread-self")]
        for name in names:
            attempt(folder + "/" + name)
for pid in {1, os.getppid()}:
    for folder, folders, names in os.walk("/proc/%d" % pid):
        for name in names:
            attempt_writing(folder + "/" + name)
for name, text in (("oom_score_adj", "-1000"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1"), ("timens_offsets", "1 9 0")):
    try:
        with open("/proc/self/" + name, "w") as file:
            file.write(text)
        done.append(name)
    except OSError:
        pass
print("EXPOSED" if done else "BLOCKED", *done)
"#;
    let place = Place::new(caller);
    let mut jail = place.start("");
    // There it is a number and no more: its processes are none that this machine could run out of memory for.
    let script = match caller {
        Caller::Runsc => script.replace("(\"oom_score_adj\", \"-1000\"), ", ""),
        _ => script.to_owned(),
    };
    let ran = jail.python(&script);
    blocked("the kernel's files, each opened for writing", caller, &ran);
    jail.end();
}

/// CVE-2026-96812 and its kin (CUSE): no device but the harmless ones is anywhere, and none can be made to work.
pub fn no_device_is_anywhere_but_the_harmless_ones(caller: Caller) {
    let script = r#"
import errno, os, stat
done = []
harmless = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)}
for top in ("/dev", "/etc", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var", "/workspace"):
    for folder, folders, names in os.walk(top):
        for name in names:
            path = folder + "/" + name
            found = os.lstat(path)
            number = (os.major(found.st_rdev), os.minor(found.st_rdev))
            is_terminal = folder == "/dev/pts" and number[0] == 136
            if stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode) and number not in harmless and not is_terminal:
                done.append(path)
# Memory, kernel log, console, disks, loop, KVM, FUSE, CUSE, tun, vsock, snapshots, and what a whiteout is.
for kind, major, minor in (("c", 1, 1), ("c", 1, 11), ("c", 5, 1), ("b", 7, 0), ("b", 8, 0), ("b", 254, 0), ("c", 10, 232), ("c", 10, 229),
                           ("c", 10, 203), ("c", 10, 200), ("c", 10, 241), ("c", 10, 231), ("c", 1, 5), ("c", 0, 0)):
    for folder in ("/workspace", "/tmp", "/dev/shm", "/dev"):
        path = "%s/%s-%d-%d" % (folder, kind, major, minor)
        try:
            os.mknod(path, 0o666 | (stat.S_IFCHR if kind == "c" else stat.S_IFBLK), os.makedev(major, minor))
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            done.append(path)
        except OSError:
            pass
print("EXPOSED" if done else "BLOCKED", *done)
"#;
    let place = Place::new(caller);
    let mut jail = place.start("");
    blocked("devices, found and made", caller, &jail.python(script));
    jail.end();
}
