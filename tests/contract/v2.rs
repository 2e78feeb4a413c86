//! Control groups of version 2, on a machine that has them: user-mode Linux, which runs this very test binary again as its own first
//! process's child, as root and as an ordinary user to whom a group was delegated.
//!
//! Its root is a small ext4 image of the machine's own programs (a file system whose ids can be mapped, which hostfs is not); the folder
//! of the test binary and of belljar is the host's.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use belljar::audit::journal::Reader;
use belljar::audit::record::{Usage, UsageSource};
use belljar::sandbox::outside::find;
use serde_json::json;

use crate::live::{Live, Runtime};

/// What runs there, for each user.
const PROMISES: [&str; 9] = [
    "builtin::a_command_out_of_time_ends_with_what_it_said",
    "builtin::a_killed_sandbox_leaves_nothing_running",
    "builtin::counters_come_from_the_kernel",
    "builtin::memory_beyond_the_limit_is_told_apart",
    "builtin::nothing_is_left_behind",
    "builtin::the_box_is_sealed",
    "builtin::what_a_command_leaves_running_ends_with_it",
    "v2::the_kernel_counts_an_exec_by_itself",
    "v2::the_kernel_counts_a_task_as_a_whole",
];

/// What the promises and the machine's first process call.
const PROGRAMS: [&str; 25] = [
    "bash", "cat", "chown", "cut", "dd", "env", "find", "grep", "head", "hostname", "id", "mkdir", "mount", "readlink",
    "rm", "setpriv", "setsid", "sh", "sleep", "sort", "tail", "touch", "tr", "true", "yes",
];

/// Bytes of the image.
const IMAGE: &str = "96M";

#[test]
fn the_promises_hold_on_cgroup_version_2_for_root_and_user() {
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
    fill(&tree, &[&own, belljar]);
    // Both are below this folder.
    let folder = belljar.parent().unwrap();
    assert!(
        own.starts_with(folder),
        "{} is not in {}",
        own.display(),
        folder.display()
    );
    std::fs::write(tree.join("init"), first_process(folder, &own)).unwrap();
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
    for user in ["root", "user"] {
        assert!(said.contains(&format!("machine: {user}: 0")), "as {user}:\n{said}");
    }
    // A name that is misspelt would be a test that is not there.
    let passed = format!("{} passed", PROMISES.len());
    assert_eq!(said.matches(&passed).count(), 2, "{said}");
}

fn first_process(folder: &Path, tests: &Path) -> String {
    let (folder, tests, names) = (folder.display(), tests.display(), PROMISES.join(" "));
    format!(
        r#"#!/bin/sh
export PATH=/usr/bin HOME=/tmp CI=true RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /dev/pts /dev/shm '{folder}'
mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts
mount -t hostfs -o '{folder}' none '{folder}'
mount -t cgroup2 cgroup2 /sys/fs/cgroup
tests() {{ "$@" '{tests}' --test-threads 1 --include-ignored --exact {names}; }}
tests
echo "machine: root: $?"
# What systemd does for a user with Delegate=yes.
echo "+cpu +io +memory +pids" > /sys/fs/cgroup/cgroup.subtree_control
mkdir -p /sys/fs/cgroup/user/session
echo "+cpu +io +memory +pids" > /sys/fs/cgroup/user/cgroup.subtree_control
chown -R 1000:1000 /sys/fs/cgroup/user
echo $$ > /sys/fs/cgroup/user/session/cgroup.procs
tests setpriv --reuid 1000 --regid 1000 --clear-groups
echo "machine: user: $?"
echo o > /proc/sysrq-trigger
# The first process must not end before its machine does.
sleep 600
"#
    )
}

/// The programs with the libraries that they and `more` are linked with.
fn fill(tree: &Path, more: &[&Path]) {
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
    for name in PROGRAMS {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is for a machine with control groups of version 2, and run there by the test above"]
async fn the_kernel_counts_an_exec_by_itself() {
    let live = Live::start(Runtime::Builtin).await;
    let script = "dd if=/dev/zero of=big bs=1M count=4 conv=fsync 2> /dev/null; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; \
                  sleep 0.01 & sleep 0.01 & wait";
    let done = live.sh(script).await;
    let usage = done.end.usage;
    assert_eq!(usage.source, UsageSource::CgroupV2, "{usage:?}");
    assert!(usage.cpu_user_seconds > 0.0, "{usage:?}");
    assert!(usage.memory_peak_bytes.unwrap() > 1 << 20, "{usage:?}");
    assert!(usage.io_write_bytes.unwrap() >= 4 << 20, "{usage:?}");
    assert!(usage.pids_peak.unwrap() >= 3, "{usage:?}");
    assert_eq!(usage.oom_kills, Some(0), "{usage:?}");
    // The next one's are its own.
    let next = live.sh("true").await.end.usage;
    assert_eq!(next.io_write_bytes, Some(0), "{next:?}");
    // cgroup.kill ends even what nobody waits for.
    let killed = live
        .run(json!({ "argv": ["sh", "-c", "sleep 600 & setsid sleep 600 & wait"], "timeout_seconds": 0.3 }))
        .await;
    assert_eq!(killed.end.outcome, belljar::audit::record::ExecOutcome::TimedOut);
    let running = live.sh("cat /proc/[0-9]*/comm").await;
    assert!(!running.text().contains("sleep"), "{}", running.text());
    live.task.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is for a machine with control groups of version 2, and run there by the test above"]
async fn the_kernel_counts_a_task_as_a_whole() {
    let live = Live::with(Runtime::Builtin, |args| args.cpus = Some("0.2".to_owned())).await;
    let busy = live.sh("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done").await;
    live.task.stop().await;
    let journal = Reader::open(&live.state.path().join("journal")).unwrap();
    let records = journal.after(0, 100).unwrap();
    let finished = records.iter().find(|record| record.kind == "task.finished").unwrap();
    let usage: Usage = serde_json::from_value(finished.value()["usage"].clone()).unwrap();
    assert_eq!(usage.source, UsageSource::CgroupV2, "{usage:?}");
    assert!(usage.cpu_throttled_seconds.unwrap() > 0.0, "{usage:?}");
    assert!(usage.cpu_user_seconds >= busy.end.usage.cpu_user_seconds, "{usage:?}");
    assert!(usage.memory_peak_bytes >= busy.end.usage.memory_peak_bytes, "{usage:?}");
    assert!(usage.pids_peak.unwrap() >= 2, "{usage:?}");
    assert_eq!(
        (usage.memory_limit_hits, usage.oom_kills),
        (Some(0), Some(0)),
        "{usage:?}"
    );
    // Whoever has such counters sees them, and a kernel without them is told apart from one where nothing waited.
    let counts_pressure = Path::new("/sys/fs/cgroup/cpu.pressure").exists();
    assert_eq!(usage.pressure.is_some(), counts_pressure, "{usage:?}");
}
