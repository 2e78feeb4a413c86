//! What is not taken from the guest's word, with a guest that is played.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::process::Child;

use belljar_guest::FromSlot;

use super::*;
use crate::path::SandboxPath;
use crate::policy::{Judgement, Policy, Stdin};
use crate::sandbox::channel::played::{Played, is_killed, sleeper};
use crate::sys::cgroup::Caps;
use crate::task::Unmatched;

fn command(word: &str) -> Command {
    Command {
        argv: vec![word.to_owned()],
        cwd: SandboxPath::new("/").unwrap(),
        env: BTreeMap::new(),
        stdin: Stdin::None,
        tty: None,
    }
}

#[tokio::test]
async fn a_permit_starts_what_it_is_for_where_it_is_for_and_nothing_else() {
    let (guest, pid1, _played) = Played::greeted().await;
    let sandbox = Sandbox::played(guest, pid1);
    let policy = Policy::from_texts(&[], Unmatched::Allow).unwrap();
    let elsewhere = Digest::of_bytes(b"another plan");
    for (asked, place, started) in [
        (command("true"), sandbox.place(), command("false")),
        (command("true"), &elsewhere, command("true")),
    ] {
        let Judgement::Allow(permit) = policy.judge(ExecId::new(), &asked, place) else {
            panic!("nothing forbids it")
        };
        let tty = Stdio::Tty { rows: 24, cols: 80 };
        let refused = sandbox.start_exec(permit, &started, false, tty).await;
        assert!(matches!(refused, Err(SandboxError::PermitMismatch)));
    }
}

/// A sandbox with a cgroup of its own, or none where this process may not make one.
async fn with_cgroup() -> Option<(Sandbox, Played)> {
    let cgroup = Cgroups::detect().create_task(&ExecId::new().to_string(), Caps::default());
    let Ok(Some(cgroup)) = cgroup else {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "no cgroup can be made");
        eprintln!("skipped: no cgroup can be made");
        return None;
    };
    let (guest, pid1, played) = Played::greeted().await;
    let cgroup = Some(Arc::new(Mutex::new(cgroup)));
    Some((Sandbox::without_slots(relay::plan(), guest, pid1, None, cgroup), played))
}

/// Joins cgroups by these files, as somebody outside may do for a process.
fn join(process: &Child, files: &[OwnedFd]) {
    for file in files {
        let pid = process.id().to_string();
        File::from(file.try_clone().unwrap()).write_all(pid.as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn what_a_guest_keeps_quiet_about_ends_with_its_exec() {
    let Some((sandbox, played)) = with_cgroup().await else {
        return;
    };
    let play = tokio::task::spawn_blocking(move || {
        let (process, left) = (sleeper(), sleeper());
        let (slot, joins) = played.add_slot_of(&process);
        join(&process, &joins);
        packet::send(slot.as_fd(), &FromSlot::Ready, &[]).unwrap();
        (played, process, left, slot, joins)
    });
    let (slot, play) = tokio::join!(sandbox.make_slot(), play);
    let (_played, mut process, mut left, _socket, joins) = play.unwrap();
    let slot = slot.unwrap();
    // A command's, of which the guest said that it is over with all that it left.
    join(&left, &joins);
    drop(joins);
    sandbox.give_back(slot);
    is_killed(&mut left).await;
    is_killed(&mut process).await;
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_slot_that_did_not_join_its_cgroup_runs_nothing() {
    let Some((sandbox, played)) = with_cgroup().await else {
        return;
    };
    let play = tokio::task::spawn_blocking(move || {
        let process = sleeper();
        let (slot, _joins) = played.add_slot_of(&process);
        packet::send(slot.as_fd(), &FromSlot::Ready, &[]).unwrap();
        (played, process, slot)
    });
    let (slot, play) = tokio::join!(sandbox.make_slot(), play);
    let (_played, mut process, _socket) = play.unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(matches!(slot, Err(SandboxError::NotInItsCgroup)));
    sandbox.destroy().await;
}
