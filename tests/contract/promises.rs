//! The promises. Each says in its name what holds, whatever the runtime.

use std::os::unix::fs::MetadataExt;

use belljar::audit::record::{ExecOutcome, TaskOutcome, UsageSource};
use bytes::Bytes;
use serde_json::json;

use crate::live::{Live, Runtime, finish, until};

pub async fn the_command_is_the_agent_and_its_files_belong_to_the_caller(runtime: Runtime) {
    let live = Live::start(runtime).await;
    // Not stat: gVisor's of 2022 refuses what that asks for.
    let done = live
        .sh("id -u; id -g; id -un; touch made; find made -printf '%u\\n'")
        .await;
    assert_eq!(done.text(), "1000\n1000\nagent\nagent");
    let made = std::fs::metadata(live.workspace.join("made")).unwrap();
    let own = std::fs::metadata(&live.workspace).unwrap();
    assert_eq!((made.uid(), made.gid()), (own.uid(), own.gid()));
    live.task.stop().await;
}

pub async fn the_environment_is_the_tasks_and_nothing_else(runtime: Runtime) {
    let live = Live::with(runtime, |args| args.env = vec!["CI=yes".to_owned()]).await;
    let done = live
        .run(json!({ "argv": ["/usr/bin/env"], "env": { "ASKED": "too" } }))
        .await;
    let mut names: Vec<_> = done.text().lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "ASKED", "BELLJAR", "CI", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"
        ]
    );
    live.task.stop().await;
}

pub async fn the_command_starts_in_its_folder(runtime: Runtime) {
    let live = Live::start(runtime).await;
    assert_eq!(live.sh("pwd").await.text(), "/workspace");
    assert_eq!(
        live.run(json!({ "argv": ["/bin/pwd"], "cwd": "/usr/bin" }))
            .await
            .text(),
        "/usr/bin"
    );
    live.task.stop().await;
}

pub async fn exit_codes_come_through(runtime: Runtime) {
    let live = Live::start(runtime).await;
    for (argv, code) in [
        (json!(["true"]), 0),
        (json!(["sh", "-c", "exit 3"]), 3),
        (json!(["sh", "-c", "exit 255"]), 255),
        (json!(["/etc/hosts"]), 126),
        (json!(["no-such-program"]), 127),
        (json!(["/no/such/program"]), 127),
    ] {
        let done = live.run(json!({ "argv": argv })).await;
        assert_eq!(
            (done.end.outcome, done.end.exit_code, done.end.signal),
            (ExecOutcome::Exited, Some(code), None),
            "{argv}"
        );
    }
    let killed = live.sh("kill -9 $$").await.end;
    assert_eq!((killed.outcome, killed.signal), (ExecOutcome::Signaled, Some(9)));
    live.task.stop().await;
}

pub async fn signals_reach_the_whole_exec(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let exec = live.submit(json!({ "argv": ["sh", "-c", "sleep 600 & trap '' TERM; echo ready; wait; echo over"] }));
    until(&exec, "ready").await;
    exec.signal(15).unwrap();
    // The sleep in the background gets it too, and only so can the shell's wait come to an end.
    let done = finish(exec).await;
    assert!(done.text().ends_with("over"), "{done:?}");
    let exec = live.submit(json!({ "argv": ["sh", "-c", "echo ready; exec sleep 600"] }));
    until(&exec, "ready").await;
    exec.signal(2).unwrap();
    assert_eq!(finish(exec).await.end.signal, Some(2));
    live.task.stop().await;
}

pub async fn bytes_go_in_and_out_unchanged(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    })
    .take(1 << 20)
    .collect();
    let exec = live.submit(json!({ "argv": ["sh", "-c", "tee /dev/stderr"], "stdin": "stream" }));
    let feeding = async {
        for piece in data.chunks(10_007) {
            exec.write_stdin(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        exec.close_stdin();
    };
    let (done, ()) = tokio::join!(finish(exec.clone()), feeding);
    assert_eq!(done.end.exit_code, Some(0));
    assert!(done.stdout == data, "stdout is not what went in");
    assert!(done.stderr == data, "stderr is not what went in");
    assert_eq!(done.end.stdout_bytes, 1 << 20);
    live.task.stop().await;
}

pub async fn a_flood_of_output_arrives_whole_and_in_order(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let done = live
        .sh("seq 1 1500000; sleep 0.05; seq 1500001 2500000; echo over >&2")
        .await;
    let expected = (1..=2_500_000).fold(String::new(), |text, line| text + &line.to_string() + "\n");
    assert!(done.stdout == expected.as_bytes(), "{} bytes", done.stdout.len());
    assert_eq!(done.end.stdout_bytes, expected.len() as u64);
    let digest = format!("blake3:{}", blake3::hash(expected.as_bytes()));
    assert_eq!(done.end.stdout_digest, Some(digest));
    assert_eq!((done.stderr.as_slice(), done.end.exit_code), (&b"over\n"[..], Some(0)));
    live.task.stop().await;
}

pub async fn a_terminal_has_its_size_and_follows_a_resize(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size; trap 'stty size; exit 7' WINCH; echo ready; while :; do sleep 0.02; done";
    let exec = live.submit(json!({ "argv": ["sh", "-c", script], "tty": { "rows": 30, "cols": 100 } }));
    until(&exec, "ready").await;
    exec.resize(serde_json::from_value(json!({ "rows": 41, "cols": 141 })).unwrap());
    let done = finish(exec).await;
    assert_eq!(done.end.exit_code, Some(7));
    let lines: Vec<_> = done.text().lines().collect();
    assert_eq!(lines, ["30 100", "ready", "41 141"]);
    live.task.stop().await;
}

pub async fn a_command_out_of_time_ends_with_what_it_said(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let done = live
        .run(json!({ "argv": ["sh", "-c", "echo said; sleep 600"], "timeout_seconds": 0.5 }))
        .await;
    assert_eq!((done.end.outcome, done.text()), (ExecOutcome::TimedOut, "said"));
    live.task.stop().await;
}

pub async fn output_beyond_the_limit_is_cut(runtime: Runtime) {
    let live = Live::with(runtime, |args| args.output = Some("100KiB".to_owned())).await;
    let done = live.run(json!({ "argv": ["yes"] })).await;
    assert_eq!(
        (done.end.outcome, done.stdout.len()),
        (ExecOutcome::OutputLimit, 100 << 10)
    );
    live.task.stop().await;
}

pub async fn memory_beyond_the_limit_is_told_apart(runtime: Runtime) {
    if !belljar::sys::cgroup::Cgroups::detect().controls().memory {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "no memory controller");
        eprintln!("skipped: no memory controller");
        return;
    }
    let live = Live::with(runtime, |args| args.memory = Some("128MiB".to_owned())).await;
    // tail keeps all of a line, and this line has no end.
    let done = live.sh("head -c 400M /dev/zero | tail").await;
    assert_eq!(done.end.outcome, ExecOutcome::OomKilled, "{done:?}");
    if runtime.has_own_kernel() {
        // The limit is the kernel's, and that went with its sandbox.
        assert_eq!(live.task.wait().await.outcome, TaskOutcome::Failed);
        return;
    }
    assert!(done.end.usage.oom_kills.unwrap() >= 1);
    // The sandbox lives on.
    assert_eq!(live.sh("echo alive").await.text(), "alive");
    live.task.stop().await;
}

pub async fn counters_come_from_the_kernel(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let done = live.sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").await;
    let usage = done.end.usage;
    assert!(usage.cpu_user_seconds > 0.01, "{usage:?}");
    let cgroups = belljar::sys::cgroup::Cgroups::detect();
    match cgroups.version() {
        // Where the kernel is the sandbox's own, it alone can tell one exec from another.
        _ if runtime.has_own_kernel() => assert_eq!(usage.source, UsageSource::Rusage),
        None => assert_eq!(usage.source, UsageSource::Rusage),
        Some(_) => {
            assert_ne!(usage.source, UsageSource::Rusage);
            if cgroups.controls().memory {
                assert!(usage.memory_peak_bytes.unwrap() > 0);
            }
            if cgroups.controls().pids {
                assert_eq!(usage.pids_peak, Some(1));
            }
        }
    }
    // The second exec's counters are its own.
    let next = live.sh("true").await.end.usage;
    assert!(next.cpu_user_seconds < usage.cpu_user_seconds, "{next:?}");
    live.task.stop().await;
}

pub async fn what_a_command_leaves_running_ends_with_it(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let script = "setsid sh -c 'echo x > up; exec sleep 600' & while [ ! -s up ]; do sleep 0.01; done";
    // Where nothing ended it the exec would last as long as it does.
    let done = live
        .run(json!({ "argv": ["sh", "-c", script], "timeout_seconds": 120 }))
        .await;
    assert_eq!((done.end.outcome, done.end.exit_code), (ExecOutcome::Exited, Some(0)));
    let running = live.sh("cat /proc/[0-9]*/comm | sort -u | tr '\n' ' '").await;
    assert!(!running.text().contains("sleep"), "{}", running.text());
    assert!(running.text().contains("belljar-init"), "{}", running.text());
    live.task.stop().await;
}

pub async fn a_detached_command_answers_before_what_it_leaves_ends(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let done = live
        .run(json!({ "argv": ["/bin/sh", "-c", "yes & sleep 600 & until [ \"$(cat /proc/$!/comm)\" = sleep ]; do :; done; echo said >&2"], "detach": true }))
        .await;
    if runtime.has_own_kernel() {
        // What it leaves could not be told from what others leave, so it is not begun.
        assert_eq!(done.end.exit_code, Some(126), "{done:?}");
        live.task.stop().await;
        return;
    }
    assert_eq!((done.stderr.as_slice(), done.end.exit_code), (&b"said\n"[..], Some(0)));
    let running = live.sh("cat /proc/[0-9]*/comm | sort -u | tr '\n' ' '").await;
    assert!(running.text().contains("sleep"), "{}", running.text());
    live.task.stop().await;
}

pub async fn a_pipe_in_the_hands_of_another_command_holds_nobody_up(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let take = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/tmp/s'); s.listen(); print('there', flush=True); \
                held = socket.recv_fds(s.accept()[0], 1, 1); print('held', flush=True); s.accept()";
    let taker = live.submit(json!({ "argv": ["python3", "-c", take] }));
    until(&taker, "there").await;
    let give = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('/tmp/s'); print('said', flush=True); \
                socket.send_fds(s, [b'x'], [1]); s.recv(1)";
    let done = live.run(json!({ "argv": ["python3", "-c", give] })).await;
    assert_eq!((done.text(), done.end.exit_code), ("said", Some(0)));
    until(&taker, "held").await;
    assert!(taker.info().end.is_none(), "the other command still holds it");
    live.task.stop().await;
}

pub async fn killing_what_watches_over_commands_harms_no_later_one(runtime: Runtime) {
    let live = Live::start(runtime).await;
    // Those that stand ready, each until it is gone, and last the one that this command runs in.
    let script = "for p in /proc/[0-9]*; do p=${p#/proc/}; [ \"$p\" != $PPID ] && [ \"$(cat /proc/$p/comm)\" = belljar-slot ] \
                  && kill -9 $p && while kill -0 $p 2> /dev/null; do :; done; done; kill -9 $PPID; sleep 600";
    let done = live.sh(script).await;
    assert_eq!(
        (done.end.outcome, done.end.signal),
        (ExecOutcome::Signaled, Some(9)),
        "{done:?}"
    );
    for _ in 0..3 {
        assert_eq!(live.sh("echo fine").await.text(), "fine");
    }
    live.task.stop().await;
}

pub async fn two_commands_run_at_once(runtime: Runtime) {
    let live = Live::start(runtime).await;
    // Each ends only when the other has begun.
    let script =
        |own: &str, other: &str| format!("touch {own}; while [ ! -e {other} ]; do sleep 0.01; done; echo {own}");
    let (one, two) = tokio::join!(
        live_sh(&live, script("one", "two")),
        live_sh(&live, script("two", "one"))
    );
    assert_eq!((one.as_str(), two.as_str()), ("one", "two"));
    live.task.stop().await;
}

async fn live_sh(live: &Live, script: String) -> String {
    live.sh(&script).await.text().to_owned()
}

pub async fn the_box_is_sealed(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let status = live
        .sh("grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t ' ' '")
        .await;
    let expected = [
        "CapInh: 0000000000000000",
        "CapPrm: 0000000000000000",
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "CapAmb: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
    ];
    // gVisor's /proc has no line for two of these.
    let has_line =
        |line: &&str| !runtime.has_own_kernel() || !(line.starts_with("CapAmb") || line.starts_with("NoNew"));
    let expected: Vec<_> = expected.into_iter().filter(has_line).collect();
    assert_eq!(status.text(), expected.join("\n"));
    let outside = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        if name == "user" && runtime.shares_ids() {
            continue;
        }
        let inside = live.sh(&format!("readlink /proc/self/ns/{name}")).await;
        if name == "cgroup" && runtime.shares_cgroup_namespace() {
            assert_eq!(inside.text(), outside(name).to_str().unwrap(), "{name}");
            continue;
        }
        assert_ne!(inside.text(), outside(name).to_str().unwrap(), "{name}");
    }
    let rest = live
        .sh(
            "hostname; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; set -- /proc/self/fd/*; echo $#; \
             find /home /root -maxdepth 1 2>&1 | grep -c home/agent; cd /dev; echo *",
        )
        .await;
    let mut devices = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".to_owned();
    if runtime.has_own_kernel() {
        // Its own kernel has a file system for them in it, and no message queues.
        devices = devices.replace("full mqueue", "full fuse net");
    }
    let expected = format!("belljar\nlo\n4\n1\n{devices}");
    // runc leaves a link to the kernel's core, which is masked, as its own specification has it.
    assert_eq!(rest.text().replace("core ", ""), expected);
    // Files of another's are not to be seen, nor is the state folder.
    let state = live.state.path().display().to_string();
    assert_ne!(live.sh(&format!("test -e {state}")).await.end.exit_code, Some(0));
    live.task.stop().await;
}

pub async fn read_only_roots_and_masked_paths_hold(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let script = "for at in /usr/x /dev/x /sys/x /proc/sys/kernel/hostname /run/belljar/guest; do \
                  (echo x > $at) 2> /dev/null && echo $at can be written; done; \
                  cat /proc/kcore /proc/keys /proc/timer_list 2> /dev/null | head -c 1; find /sys/firmware -mindepth 1 2> /dev/null; \
                  touch /tmp/x $HOME/x /workspace/x && echo fine";
    assert_eq!(live.sh(script).await.text(), "fine");
    live.task.stop().await;
}

pub async fn the_way_out_is_the_proxy_alone(runtime: Runtime) {
    let live = Live::with(runtime, |args| {
        args.network = Some("proxy".to_owned());
        args.deny = vec!["refused.example".to_owned()];
    })
    .await;
    let script = "exec 3<>/dev/tcp/127.0.0.1/3128; \
                  printf 'GET http://refused.example/ HTTP/1.1\\r\\nHost: refused.example\\r\\n\\r\\n' >&3; head -1 <&3";
    let refused = live.run(json!({ "argv": ["bash", "-c", script] })).await;
    assert!(refused.text().starts_with("HTTP/1.1 403 "), "{refused:?}");
    // Beside loopback there is no network to reach anything on.
    let direct = live
        .run(json!({ "argv": ["bash", "-c", "exec 3<>/dev/tcp/192.0.2.1/80"] }))
        .await;
    assert_ne!(direct.end.exit_code, Some(0));
    let said = String::from_utf8_lossy(&direct.stderr).to_lowercase();
    assert!(
        said.contains("network is unreachable") || said.contains("no route to host"),
        "{direct:?}"
    );
    live.task.stop().await;
}

pub async fn the_systems_certificates_include_the_tasks_own(runtime: Runtime) {
    // Whatever such a task asks for within TLS is answered by belljar.
    let live = Live::with(runtime, |args| args.network = Some("cached".to_owned())).await;
    // By the bundle, and as OpenSSL looks it up in its folder.
    let done = live
        .sh("openssl verify -no-CAfile /run/belljar/authority.pem; openssl verify -no-CApath -CAfile /etc/ssl/certs/ca-certificates.crt /run/belljar/authority.pem")
        .await;
    let good = "/run/belljar/authority.pem: OK";
    assert_eq!(done.text(), format!("{good}\n{good}"), "{done:?}");
    let others = live.sh("find -L /etc/ssl/certs -name '*.0' | wc -l").await;
    let machines = std::fs::read_dir("/etc/ssl/certs").unwrap();
    let is_hashed = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|end| end == "0");
    let count = machines.filter_map(Result::ok).filter(is_hashed).count();
    assert_eq!(others.text(), (count + 1).to_string(), "{others:?}");
    live.task.stop().await;

    // An image may have none of this, or a link that leads nowhere.
    let Some(image) = busybox_image() else { return };
    if !runtime.shares_ids() {
        std::fs::create_dir_all(image.path().join("etc/ssl")).unwrap();
        std::os::unix::fs::symlink("/nowhere", image.path().join("etc/ssl/certs")).unwrap();
    }
    let live = Live::with(runtime, |args| {
        args.image = Some(image.path().to_str().unwrap().to_owned());
        args.network = Some("cached".to_owned());
    })
    .await;
    let read = live
        .sh("busybox grep -q BEGIN /etc/ssl/certs/ca-certificates.crt && busybox grep -q BEGIN /etc/pki/tls/cert.pem")
        .await;
    assert_eq!(read.end.exit_code, Some(0), "{read:?}");
    live.task.stop().await;
}

/// A root file system with a shell and little else.
fn busybox_image() -> Option<tempfile::TempDir> {
    let Ok(busybox) = belljar::sandbox::outside::find("busybox") else {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "busybox is not installed");
        eprintln!("skipped: busybox is not installed");
        return None;
    };
    let image = tempfile::tempdir().unwrap();
    std::fs::create_dir(image.path().join("bin")).unwrap();
    std::fs::copy(busybox, image.path().join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", image.path().join("bin/sh")).unwrap();
    Some(image)
}

pub async fn an_images_layers_stay_as_they_are(runtime: Runtime) {
    let Some(image) = busybox_image() else { return };
    let live = Live::with(runtime, |args| {
        args.image = Some(image.path().to_str().unwrap().to_owned());
        if !runtime.shares_ids() {
            args.user = Some("root".to_owned());
        }
    })
    .await;
    if runtime.shares_ids() {
        // Root inside would be root outside, so there is none, and the agent changes nothing of the root.
        let done = live
            .sh("busybox id -u; echo new > /tmp/made; busybox cat /tmp/made; busybox rm /bin/sh")
            .await;
        assert_eq!((done.text(), done.end.exit_code), ("1000\nnew", Some(1)), "{done:?}");
    }
    let script = "busybox id -u; echo new > /made; busybox rm /bin/sh; echo other > /bin/sh; busybox cat /made /bin/sh";
    if !runtime.shares_ids() {
        let done = live.sh(script).await;
        assert_eq!(done.text(), "0\nnew\nother", "{done:?}");
    }
    live.task.stop().await;
    let mut names: Vec<_> = std::fs::read_dir(image.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["bin"]);
    assert_eq!(
        std::fs::read_link(image.path().join("bin/sh")).unwrap(),
        std::path::Path::new("busybox")
    );
}

pub async fn nothing_is_left_behind(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let id = live.task.id().to_string();
    let folder = live.task.folder().to_owned();
    assert_eq!(live.sh("echo x").await.text(), "x");
    live.submit(json!({ "argv": ["sleep", "600"] }));
    live.task.stop().await;
    assert!(!folder.exists(), "the task's folder");
    assert_traceless(&id);
}

pub async fn a_killed_sandbox_leaves_nothing_running(runtime: Runtime) {
    let live = Live::start(runtime).await;
    let id = live.task.id().to_string();
    let exec = live.submit(json!({ "argv": ["sh", "-c", "echo ready; exec sleep 600"] }));
    until(&exec, "ready").await;
    // Its first process is the one whose parent is the launcher: with it, all the rest must go.
    let first = processes()
        .into_iter()
        .filter(|one| one.cgroups.contains(&id))
        .min_by_key(|one| one.started)
        .expect("the sandbox has processes in its cgroup");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(first.pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    live.task.wait().await;
    assert_traceless(&id);
}

struct Process {
    pid: i32,
    started: u64,
    cgroups: String,
}

fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let cgroups = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let started = stat.rsplit_once(')')?.1.split(' ').nth(20)?.parse().ok()?;
            Some(Process { pid, started, cgroups })
        })
        .collect()
}

/// No process, no mount and no cgroup of a task is left.
fn assert_traceless(id: &str) {
    assert_eq!(
        processes().iter().filter(|one| one.cgroups.contains(id)).count(),
        0,
        "processes"
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(id), "mounts");
    assert!(
        belljar::sys::cgroup::Cgroups::detect().find_task(id).is_none(),
        "cgroups"
    );
}
