//! What stands ready for the next task.

use std::path::Path;

use serde_json::json;

use crate::live::{Live, finish};

/// The processes whose parent is this one.
fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // proc_pid_stat(5): after the name, in parentheses, come the state and the parent.
            let parent_of_it: u32 = stat.rsplit_once(')')?.1.split(' ').nth(2)?.parse().ok()?;
            (parent_of_it == parent).then_some(pid)
        })
        .collect()
}

/// What the launcher of this process keeps ready.
fn waiting() -> u32 {
    let is_launcher = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with(b"belljar-launcher\0"))
    };
    loop {
        let launcher = children(std::process::id()).into_iter().find(is_launcher);
        if let Some(one) = launcher.and_then(|launcher| children(launcher).pop()) {
            return one;
        }
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_starts_though_what_stood_ready_for_it_is_gone() {
    let state = tempfile::tempdir().unwrap();
    let begun = Live::begin_with(
        state.path(),
        "builtin",
        |_| {},
        |supervisor| {
            let one = waiting();
            let pid = rustix::process::Pid::from_raw(one as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            while Path::new(&format!("/proc/{one}")).exists() {
                std::thread::yield_now();
            }
            supervisor
        },
    );
    let (_supervisor, task) = begun.await.unwrap();
    let done = finish(Live::submit_to(&task, json!({ "argv": ["echo", "x"] }))).await;
    assert_eq!(done.text(), "x");
    task.stop().await;
}

/// It is in no task's network, sees none of a task's files, and ends with belljar.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_ready_becomes_one_task_and_ends_with_belljar() {
    let state = tempfile::tempdir().unwrap();
    let network = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let mut first = None;
    let begun = Live::begin_with(
        state.path(),
        "builtin",
        |_| {},
        |supervisor| {
            first = Some(network(waiting()));
            supervisor
        },
    );
    let (supervisor, task) = begun.await.unwrap();
    let inside = finish(Live::submit_to(
        &task,
        json!({ "argv": ["readlink", "/proc/self/ns/net"] }),
    ))
    .await;
    assert_eq!(Some(inside.text()), first.as_deref().and_then(Path::to_str));
    // The next one is another.
    let next = loop {
        let one = waiting();
        if let Ok(of) = std::fs::read_link(format!("/proc/{one}/ns/net"))
            && of.to_str() != Some(inside.text())
        {
            break one;
        }
    };
    task.stop().await;
    drop((task, supervisor));
    while Path::new(&format!("/proc/{next}")).exists() {
        std::thread::yield_now();
    }
}
