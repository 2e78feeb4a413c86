//! What a slot says that no slot would say.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::*;
use crate::id::ExecId;
use crate::path::SandboxPath;
use crate::policy::{Command, Judgement, Policy};
use crate::sandbox::channel::played::Played;
use crate::task::Unmatched;

fn request(tty: Option<TtySize>) -> ExecRequest {
    ExecRequest {
        id: ExecId::new(),
        command: Command {
            argv: vec!["true".to_owned()],
            cwd: SandboxPath::new("/").unwrap(),
            env: BTreeMap::new(),
            stdin: Stdin::None,
            tty,
        },
        reason: None,
        call_id: None,
        traceparent: None,
        timeout: None,
        detach: false,
    }
}

/// Runs a command in a sandbox whose slot says these words once it was asked to start it; what came of it, and what
/// stands for PID 1.
async fn run_against(tty: Option<TtySize>, words: &'static [FromSlot]) -> (Ended, Played) {
    let (guest, pid1, played) = Played::greeted().await;
    let sandbox = Sandbox::played(guest, pid1);
    let request = request(tty);
    let policy = Policy::from_texts(&[], Unmatched::Allow).unwrap();
    let Judgement::Allow(permit) = policy.judge(request.id, &request.command, sandbox.place()) else {
        panic!("nothing forbids it")
    };
    let play = tokio::task::spawn_blocking(move || {
        let slot = played.add_slot();
        let say = |word: &FromSlot| packet::send(slot.as_fd(), word, &[]).unwrap();
        say(&FromSlot::Ready);
        let asked = packet::receive::<ToSlot>(slot.as_fd()).unwrap().unwrap();
        assert!(matches!(asked, (ToSlot::Start(_), _)), "{asked:?}");
        words.iter().for_each(say);
        played
    });
    let (_control, control) = mpsc::channel(1);
    let (_stdin, stdin) = mpsc::channel(1);
    let limits = Limits {
        time: None,
        output: 1 << 20,
    };
    let inputs = Inputs { control, stdin };
    let ended = run(&sandbox, &request, permit, limits, inputs, &Log::new(), &|_| {}).await;
    (ended.unwrap(), play.await.unwrap())
}

const EXITED: FromSlot = FromSlot::Exited {
    status: 0,
    usage: Rusage {
        user_micros: 0,
        system_micros: 0,
        max_rss_kib: 0,
        blocks_in: 0,
        blocks_out: 0,
        processes: 1,
    },
    leftovers: 0,
};

#[tokio::test]
async fn a_slot_that_keeps_to_the_words_leaves_its_sandbox_alone() {
    let (ended, mut played) = run_against(None, &[FromSlot::Started { pid: 2 }, EXITED]).await;
    assert_eq!((ended.outcome, ended.exit_code), (ExecOutcome::Exited, Some(0)));
    assert!(played.lives_on());
}

#[tokio::test]
async fn a_slot_that_lies_ends_its_sandbox() {
    let size = Some(TtySize { rows: 24, cols: 80 });
    let lies: [(&str, Option<TtySize>, &'static [FromSlot]); 6] = [
        ("an end before the start", None, &[EXITED]),
        ("ready while it is asked to start", None, &[FromSlot::Ready]),
        ("a terminal that is none", size, &[FromSlot::Started { pid: 2 }]),
        (
            "two starts",
            None,
            &[FromSlot::Started { pid: 2 }, FromSlot::Started { pid: 3 }],
        ),
        (
            "ready while it runs",
            None,
            &[FromSlot::Started { pid: 2 }, FromSlot::Ready],
        ),
        (
            "no start after a start",
            None,
            &[
                FromSlot::Started { pid: 2 },
                FromSlot::NotStarted {
                    step: Step::Exec,
                    errno: 2,
                },
            ],
        ),
    ];
    for (lie, tty, words) in lies {
        println!("{lie}");
        let (ended, mut played) = run_against(tty, words).await;
        assert_eq!(ended.outcome, ExecOutcome::Lost, "{lie}");
        played.is_ended().await;
    }
}
