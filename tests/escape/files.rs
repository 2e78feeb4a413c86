//! Attacks by files and descriptors: what is open while its name changes, what would give rights outside, what makes a reader wait.

use crate::cves::blocked;
use crate::jail::{Caller, Place, row};

/// CVE-2026-77179, CVE-2026-39861: a file that is open is opened again, after its folder became a link to somewhere on the host, after
/// it was removed, and by all the names that /proc has for it.
pub fn what_is_open_is_not_looked_up_again_by_its_name(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("mkdir ../target; echo precious > ../target/f; mkdir -p .git; echo precious > .envrc");
    let target = place.path().join("target");
    let before = place.on_host("ls -lR --time-style=full-iso ../target; cat ../target/f .envrc");
    let script = r#"
import mmap, os
def again(fd, word):
    names = ["/proc/self/fd/%d" % fd, "/proc/thread-self/fd/%d" % fd, "/dev/fd/%d" % fd]
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        names += ["/proc/self/map_files/" + name for name in os.listdir("/proc/self/map_files")] if os.path.isdir("/proc/self/map_files") else []
        for name in names:
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC):
                try:
                    os.write(os.open(name, flags), word)
                except OSError:
                    pass
os.mkdir("sub")
with open("sub/f", "w") as file:
    file.write("own\n")
fd = os.open("sub/f", os.O_RDONLY)
os.rename("sub", "old")
os.symlink(TARGET, "sub")
again(fd, b"EXPOSED\n")
os.unlink("old/f")
os.symlink(TARGET + "/f", "old/f")
for name in (os.O_RDWR, os.O_RDONLY):
    try:
        os.ftruncate(os.open("/proc/self/fd/%d" % fd, name), 1)
    except OSError:
        pass
try:
    os.link("/proc/self/fd/%d" % fd, "linked", follow_symlinks=True)
except OSError:
    pass
held = os.open(".envrc", os.O_RDONLY)
again(held, b"EXPOSED\n")
for name in ("sub/f", "old/f", "sub/new", "linked"):
    try:
        with open(name, "a") as file:
            file.write("EXPOSED\n")
    except OSError:
        pass
print("done")
"#;
    let mut jail = place.start("");
    let ran = jail.python(&script.replace("TARGET", &format!("{:?}", target.display().to_string())));
    assert_eq!(ran.stdout, "done\n", "{}", ran.stderr);
    jail.end();
    let after = place.on_host("ls -lR --time-style=full-iso ../target; cat ../target/f .envrc");
    assert_eq!(after, before);
    row("what is open, opened again by other names", caller, "BLOCKED");
}

/// Set-id bits are told by `left`; a file's capabilities and labels would give as much to whoever runs it outside.
pub fn no_attribute_that_gives_rights_comes_back(caller: Caller) {
    let place = Place::new(caller);
    let script = r#"
import os, shutil, struct
done = []
shutil.copy("/bin/true", "program")
os.chmod("program", 0o755)
os.mkdir("folder")
every = 0xffffffff
capabilities = struct.pack("<5I", 0x02000001, every, 0, every, 0)
of_a_namespace = struct.pack("<6I", 0x03000001, every, 0, every, 0, 0)
# Not SELinux's labels: where it has a policy, that says who may set them, and elsewhere nobody reads them.
for name, value in (("security.capability", capabilities), ("security.capability", of_a_namespace), ("security.SMACK64EXEC", b"_"),
                    ("security.apparmor", b"x"), ("security.ima", b"\x01"), ("security.evm", b"\x02"),
                    ("trusted.overlay.redirect", b"/"), ("trusted.overlay.opaque", b"y"), ("trusted.md5sum", b"x")):
    for path in ("program", "folder"):
        try:
            os.setxattr(path, name, value)
            done.append(name)
        except OSError:
            pass
print("EXPOSED" if done else "BLOCKED", *done)
"#;
    for user in ["agent", "root"] {
        if user == "root" && matches!(caller, Caller::Docker(..)) {
            continue;
        }
        let mut jail = place.start(&format!("user = {user:?}\n"));
        blocked(
            &format!("capabilities of files, as {user}"),
            caller,
            &jail.python(script),
        );
        jail.end();
        let look = "import os\nfor n in ('program', 'folder'):\n print([a for a in os.listxattr(n) if not a.startswith(('user.', 'system.'))])";
        let found = place.on_host(&format!(
            "python3 -c \"{}\"; rm -r program folder",
            look.replace('"', "'")
        ));
        assert_eq!(found, "[]\n[]\n");
    }
}

/// A program outside that listens in a root would be a way out beside the proxy; what nobody listens on any more is in nobody's way.
pub fn nobody_speaks_to_a_program_outside_that_listens_in_a_root(caller: Caller) {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    let place = Place::new(caller);
    place.on_host("git init -q -b main . && mkdir -p deep/er && chmod 777 deep/er .git");
    let at = |name: &str| place.work().join(name);
    let listeners = ["server", "deep/er/server", ".git/fsmonitor--daemon.ipc"];
    let heard = listeners.map(|name| UnixListener::bind(at(name)).unwrap());
    let letters = UnixDatagram::bind(at("letters")).unwrap();
    drop(UnixListener::bind(at("stale")).unwrap());
    for name in listeners.iter().chain(&["letters", "stale"]) {
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    place.on_host("python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('server')\"");
    // The one connection that this was.
    heard[0].accept().unwrap();
    let script = r#"
import os, socket
done = []
for name in ("server", "deep/er/server", ".git/fsmonitor--daemon.ipc", "letters"):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        for way in ("", "/proc/self/cwd/", "/proc/self/root/workspace/"):
            try:
                socket.socket(socket.AF_UNIX, kind).connect(way + name)
                done.append(name)
            except OSError:
                pass
    for act in (lambda: os.unlink(name), lambda: os.rename(name, name + "2"), lambda: os.link(name, name + "3")):
        try:
            act()
            done.append(name)
        except OSError:
            pass
os.rename("deep", "moved")
try:
    socket.socket(socket.AF_UNIX).connect("moved/er/server")
    done.append("moved")
except OSError:
    pass
os.rename("moved", "deep")
print("EXPOSED" if done else "BLOCKED", *done)
"#;
    let mut jail = place.start("");
    blocked("a program outside that listens in a root", caller, &jail.python(script));
    let again =
        "rm stale; python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.bind('stale'); print('bound')\"";
    let ran = jail.sh(again);
    assert_eq!(ran.stdout, "bound\n", "{}", ran.stderr);
    jail.end();
    // It is heard as ever.
    assert!(UnixStream::connect(at("server")).is_ok());
    drop((heard, letters));
}

/// FIFOs where git outside, or belljar at the next task, reads unasked: whoever opens one waits for a writer that never comes.
pub fn no_reader_outside_waits_at_what_a_task_left(caller: Caller) {
    let place = Place::new(caller);
    place.on_host(
        "git init -q -b main . && git config user.name t && git config user.email t@example.org && mkdir pkg && echo a > pkg/a
         git add . && git commit -qm one",
    );
    let mut jail = place.start("");
    let ran = jail.sh(
        "set -e; for at in .gitignore .gitattributes .mailmap pkg/.gitignore pkg/.gitattributes pkg/.GitIgnore .git/FETCH_HEAD .git/ORIG_HEAD \\
             .git/MERGE_HEAD .git/packed-refs .git/refs/heads/x .git/sequencer .git/shallow .git/info/grafts pkg/pipe; do
             rm -f $at 2>/dev/null || true; mkfifo $at 2>/dev/null || echo held: $at; done
         rm -f .git/index && mkfifo .git/index; echo made",
    );
    assert_eq!(ran.last_line(), "made", "{}", ran.stderr);
    jail.end();
    // A deadline, and no measure: the commands end at once or never.
    let script = "for command in status diff 'log --oneline' 'add -A' 'commit -qm two' 'branch -a' 'stash list'; do
                  code=0; timeout 100 git $command > /dev/null 2>&1 < /dev/null || code=$?; [ $code != 124 ] || echo \"git $command waits\"; done";
    assert_eq!(place.on_host(script), "");
    place.start("").end();
    let told = crate::left::left_files(&place);
    assert_eq!(
        told,
        [] as [&str; 0],
        "the next task leaves nothing, and was not held up"
    );
    row("FIFOs where git reads", caller, "disarmed");
}

/// Names that only some file systems or programs take for `.git`: here they are others', and git outside must take them for others too.
pub fn no_other_spelling_passes_for_a_repository(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("git init -q -b main . && git config user.name t && git config user.email t@example.org && echo a > a && git add . && git commit -qm one");
    let before = place.on_host("git config --list --local; ls .git/hooks");
    let mut jail = place.start("");
    // Upper case, what HFS+ leaves out (U+200C), the short name and the stream of NTFS, a full stop and a space at the end.
    let script = r##"
import os
for name in (".GIT", ".Git", ".g\u200cit", ".git\u200c", "git~1", ".git::$INDEX_ALLOCATION", ".git.", ".git ", ".ｇｉｔ"):
    for folder in ("", "pkg/"):
        path = folder + name
        for part in ("hooks", "objects", "refs"):
            os.makedirs(path + "/" + part, exist_ok=True)
        with open(path + "/HEAD", "w") as file:
            file.write("ref: refs/heads/main\n")
        with open(path + "/config", "w") as file:
            file.write("[core]\n\tfsmonitor = touch RAN\n\thooksPath = hooks\n")
        with open(path + "/hooks/post-index-change", "w") as file:
            file.write("#!/bin/sh\ntouch RAN\n")
        os.chmod(path + "/hooks/post-index-change", 0o755)
for name in (".ENVRC", ".Envrc", ".MCP.json", ".Claude"):
    open(name, "w").close()
print("done")
"##;
    let ran = jail.python(script);
    assert_eq!(ran.stdout, "done\n", "{}", ran.stderr);
    jail.end();
    place.on_host(
        "git status > /dev/null; git -C pkg status > /dev/null; git diff > /dev/null; git stash list > /dev/null",
    );
    assert_eq!(place.on_host("find . -name RAN"), "");
    assert_eq!(place.on_host("git config --list --local; ls .git/hooks"), before);
    row("other spellings of .git", caller, "BLOCKED");
}

/// A worktree's link names the repository that it is of; that one is no root for it, and neither is what a link was bent to.
pub fn a_worktree_opens_nothing_of_its_repository(caller: Caller) {
    let place = Place::new(caller);
    place.on_host(
        "git init -q -b main . && git config user.name t && git config user.email t@example.org && echo HOSTCANARY > a && git add . && git commit -qm one
         git worktree add -q ../tree -b tree && echo HOSTCANARY > ../tree/../secret && mkdir ../bent && printf 'gitdir: %s\\n' $PWD/.git > ../bent/.git
         rm ../tree/a",
    );
    for name in ["tree", "bent"] {
        let (root, repository) = (place.path().join(name), place.work());
        let mut jail = place.start_spec(&format!(
            "version = 1\nname = \"escape\"\nworkdir = {root:?}\n[[writable_roots]]\nhost = {root:?}\npath = {root:?}\n"
        ));
        let ran = jail.sh(&format!(
            "cat {0}/a {0}/.git/config {0}/../secret; ls {0} {0}/.git; git log; git show main:a; echo x > {0}/.git/hooks/pre-commit; \
             mkdir -p {0}/.git/hooks; true",
            repository.display()
        ));
        assert_eq!(ran.stdout, "", "{name}");
        jail.end();
    }
    assert_eq!(
        place.on_host("ls .git/hooks | grep -v sample || true; git status --porcelain"),
        ""
    );
    row("a worktree without its repository", caller, "BLOCKED");
}
