//! A machine with control groups of version 2: user-mode Linux, which runs the test binary that asks for it again as its own first
//! process's child, as root and as an ordinary user to whom a group was delegated.
//!
//! Its root is a small ext4 image of the machine's own programs (a file system whose ids can be mapped, which hostfs is not); the folder
//! of the test binary and of belljar is the host's.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use belljar::sandbox::outside::find;

/// What is to run there.
pub struct Machine<'a> {
    /// Tests of this very binary, those that are ignored elsewhere among them, as root.
    pub as_root: &'a [&'a str],
    /// Likewise as an ordinary user.
    pub as_user: &'a [&'a str],
    /// Programs that they call, beside those of the first process.
    pub programs: &'a [&'a str],
    /// Whether there is all else that the host has in /usr, too.
    pub has_usr: bool,
}

/// What the machine's first process calls, and tests of all kinds.
const PROGRAMS: [&str; 8] = ["chown", "env", "mkdir", "mount", "setpriv", "sh", "sleep", "true"];

/// Bytes of the image, of which those are on the disk that are written.
const IMAGE: &str = "1G";

impl Machine<'_> {
    /// Runs them all; whoever asked for one that failed, or that is not there, hears of it.
    pub fn run(&self) {
        let is_root = rustix::process::geteuid().is_root();
        let (Ok(linux), Ok(mke2fs), true) = (find("linux.uml"), find("mke2fs"), is_root) else {
            assert_ne!(
                std::env::var("CI").as_deref(),
                Ok("true"),
                "no machine with version 2: user-mode-linux or e2fsprogs is not installed, or this is not root"
            );
            eprintln!("skipped: user-mode-linux or e2fsprogs is not installed, or this is not root");
            return;
        };
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        let own = std::env::current_exe().unwrap();
        let belljar = Path::new(env!("CARGO_BIN_EXE_belljar"));
        self.fill(&tree, &[&own, belljar]);
        // Both are below this folder.
        let folder = belljar.parent().unwrap();
        assert!(
            own.starts_with(folder),
            "{} is not in {}",
            own.display(),
            folder.display()
        );
        std::fs::write(tree.join("init"), self.first_process(folder, &own)).unwrap();
        std::fs::set_permissions(tree.join("init"), PermissionsExt::from_mode(0o755)).unwrap();
        let image = place.path().join("image");
        let made = Command::new(mke2fs)
            .args(["-q", "-t", "ext4", "-d"])
            .args([&tree, &image])
            .arg(IMAGE)
            .status();
        assert!(made.unwrap().success());

        let output = Command::new(linux)
            .args(["mem=768M", "root=/dev/ubda", "rootfstype=ext4", "rw", "init=/init"])
            .args(["con=null", "con0=fd:0,fd:1", "quiet"])
            .arg(format!("ubd0={}", image.display()))
            .env("HOME", place.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        for (user, names) in [("root", self.as_root), ("user", self.as_user)] {
            let (_, part) = said.split_once(&format!("machine: {user} begins")).unwrap_or_default();
            let (part, code) = part.split_once(&format!("machine: {user}: ")).unwrap_or((&said, ""));
            assert!(code.starts_with('0'), "as {user}:\n{said}");
            // A name that is misspelt would be a test that is not there.
            assert!(part.contains(&format!("{} passed", names.len())), "as {user}:\n{said}");
            part.lines()
                .filter(|line| line.starts_with('|'))
                .for_each(|row| println!("{}", row.trim_end()));
        }
    }

    fn first_process(&self, folder: &Path, tests: &Path) -> String {
        let (folder, tests) = (folder.display(), tests.display());
        let usr = match self.has_usr {
            true => "mount -t hostfs -o /usr none /usr",
            false => "",
        };
        let (as_root, as_user) = (self.as_root.join(" "), self.as_user.join(" "));
        format!(
            r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin HOME=/tmp CI=true RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /dev/pts /dev/shm '{folder}'
mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts
mount -t hostfs -o '{folder}' none '{folder}'
mount -t cgroup2 cgroup2 /sys/fs/cgroup
{usr}
tests() {{ "$@" --test-threads 1 --include-ignored --nocapture --exact; }}
echo "machine: root begins"
tests '{tests}' {as_root}
echo "machine: root: $?"
# What systemd does for a user with Delegate=yes.
echo "+cpu +io +memory +pids" > /sys/fs/cgroup/cgroup.subtree_control
mkdir -p /sys/fs/cgroup/user/session
echo "+cpu +io +memory +pids" > /sys/fs/cgroup/user/cgroup.subtree_control
chown -R 1000:1000 /sys/fs/cgroup/user
echo $$ > /sys/fs/cgroup/user/session/cgroup.procs
echo "machine: user begins"
tests setpriv --reuid 1000 --regid 1000 --clear-groups '{tests}' {as_user}
echo "machine: user: $?"
echo o > /proc/sysrq-trigger
# The first process must not end before its machine does.
sleep 600
"#
        )
    }

    /// The programs with the libraries that they and `more` are linked with.
    fn fill(&self, tree: &Path, more: &[&Path]) {
        for folder in [
            "dev",
            "etc",
            "home",
            "proc",
            "root",
            "run",
            "sys",
            "usr/bin",
            "usr/lib64",
        ] {
            std::fs::create_dir_all(tree.join(folder)).unwrap();
        }
        std::fs::create_dir(tree.join("tmp")).unwrap();
        std::fs::set_permissions(tree.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        for name in ["bin", "lib", "lib64", "sbin"] {
            let target = if name == "sbin" {
                "usr/bin".to_owned()
            } else {
                format!("usr/{name}")
            };
            symlink(target, tree.join(name)).unwrap();
        }
        let mut linked: Vec<PathBuf> = more.iter().map(|path| (*path).to_owned()).collect();
        for name in PROGRAMS.iter().chain(self.programs) {
            let program = find(name).unwrap_or_else(|_| panic!("{name} is not here"));
            std::fs::copy(&program, tree.join("usr/bin").join(name)).unwrap();
            linked.push(program);
        }
        let output = Command::new("ldd").args(&linked).output().unwrap();
        let listed = String::from_utf8(output.stdout).unwrap();
        let libraries = listed
            .split_whitespace()
            .filter(|word| word.starts_with('/') && !word.ends_with(':'));
        for library in libraries {
            // On merged-/usr systems /lib is /usr/lib.
            let inside = Path::new("usr").join(library.trim_start_matches("/usr").trim_start_matches('/'));
            let target = tree.join(inside);
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(library, target).unwrap();
        }
    }
}
