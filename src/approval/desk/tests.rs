use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::*;
use crate::approval::reviewer::{Authorization, Case, Opinion as Thought, Outcome, Review, Reviewed, Risk};
use crate::approval::{Bounds, Nobody, RuleBookError, Session, Subject};
use crate::audit::journal::JournalOptions;
use crate::audit::query::{self, Filter, Take};
use crate::config::{Caller, Config, admit};
use crate::id::ExecId;
use crate::path::SandboxPath;
use crate::policy::amend::{About, Amendment};
use crate::policy::{Decision, RuleMatch, Stdin};
use crate::task::spec::TaskSpec;

/// A desk with a state folder of its own.
struct Fixture {
    desk: Arc<Desk>,
    journal: Journal,
    state: tempfile::TempDir,
}

fn task(state: &Path) -> Task {
    let caller = Caller {
        uid: 0,
        user: "ada".to_owned(),
        home: None,
        state: state.join("state"),
    };
    admit(
        TaskSpec::default(),
        state,
        &Config::built_in(&state.join("state")),
        &caller,
    )
    .unwrap()
}

fn nobody_there() -> Approvers {
    Approvers::from(Arc::new(Nobody {
        why: "a test runs".to_owned(),
    }))
}

fn waiting() -> Approvers {
    Approvers {
        wait: true,
        ..nobody_there()
    }
}

impl Fixture {
    fn new(approvers: Approvers) -> Self {
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::open(&state.path().join("journal"), JournalOptions::default()).unwrap();
        let desk = Desk::new(&task(state.path()), None, approvers, journal.clone());
        Self { desk, journal, state }
    }

    /// Another desk over the same state: a later task of the same user.
    fn again(&self, approvers: Approvers) -> Arc<Desk> {
        Desk::new(&task(self.state.path()), None, approvers, self.journal.clone())
    }

    fn session(&self) -> Session {
        Session::of_boot(self.state.path(), None).unwrap()
    }

    fn put(&self, asked: Asked) -> tokio::task::JoinHandle<Ended> {
        let desk = self.desk.clone();
        tokio::spawn(async move { desk.put(asked).await })
    }

    /// The question that waits, once there is one.
    async fn question(&self) -> OpenQuestion {
        let mut watch = self.desk.watch(ApproverKind::Nobody);
        loop {
            // In `open` before it is in the journal: what was not told yet may still be on its way there.
            if let Some(question) = self.desk.open().into_iter().next()
                && !self.records("approval.asked").is_empty()
            {
                return question;
            }
            watch.next().await.unwrap();
        }
    }

    fn records(&self, kind: &str) -> Vec<Value> {
        let filter = Filter {
            kinds: vec![kind.to_owned()],
            ..Filter::default()
        };
        let found = query::ls(&self.journal.reader().unwrap(), &filter, Take::Oldest(100)).unwrap();
        found.iter().map(|record| record.value()).collect()
    }
}

fn asked(desk: &Desk, word: &str) -> Asked {
    let command = Command {
        argv: vec!["make".to_owned(), word.to_owned()],
        cwd: SandboxPath::new("/workspace").unwrap(),
        env: BTreeMap::new(),
        stdin: Stdin::None,
        tty: None,
    };
    Asked {
        id: ApprovalId::new(),
        task: desk.task,
        exec: Some(ExecId::new()),
        about: format!("make {word}"),
        facts: Vec::new(),
        reason: "no rule allows it".to_owned(),
        rules: Vec::new(),
        files: Vec::new(),
        digest: desk.digest_of_command(&command),
        offer: Some(Amendment {
            about: About::Commands(command.argv.clone()),
            decision: Decision::Allow,
            justification: None,
        }),
        subject: Subject::Command(command),
    }
}

fn for_a_person(asked: Asked) -> Asked {
    let rule = RuleMatch {
        id: "reserved".to_owned(),
        file: "a.rules".to_owned(),
        line: 1,
        decision: Decision::Prompt,
        justification: None,
        person_only: true,
    };
    Asked {
        rules: vec![rule],
        ..asked
    }
}

fn by(kind: ApproverKind, name: &str) -> Approver {
    Approver {
        kind,
        name: name.to_owned(),
        via: "socket (uid 0, pid 7)".to_owned(),
    }
}

fn ada() -> Approver {
    by(ApproverKind::Person, "ada")
}

const YES: Reply = Reply::Approve(Scope::Once);

#[tokio::test]
async fn a_yes_is_recorded_with_who_gave_it_and_holds_once() {
    let fixture = Fixture::new(waiting());
    let put = fixture.put(asked(&fixture.desk, "test"));
    let question = fixture.question().await;
    let settled = fixture.desk.answer(question.asked.id, YES, ada()).await.unwrap();
    assert_eq!((settled.scope, settled.note), (Scope::Once, None));
    assert_eq!(put.await.unwrap().unwrap(), (Answer::Approve(Scope::Once), ada()));
    let answered = &fixture.records("approval.answered")[0];
    assert_eq!(answered["approver"]["name"], "ada");
    assert_eq!(answered["approver"]["via"], "socket (uid 0, pid 7)");
    assert_eq!(
        (&answered["answer"], &answered["scope"]),
        (&"approve".into(), &"once".into())
    );
    assert!(answered["wait_seconds"].as_f64().is_some());
    // The next one is a question again.
    let again = fixture.put(asked(&fixture.desk, "test"));
    let question = fixture.question().await;
    fixture.desk.answer(question.asked.id, YES, ada()).await.unwrap();
    again.await.unwrap().unwrap();
    assert_eq!(fixture.records("approval.asked").len(), 2);
}

#[tokio::test]
async fn a_yes_for_the_task_holds_for_the_same_command_only() {
    let fixture = Fixture::new(waiting());
    let put = fixture.put(asked(&fixture.desk, "test"));
    let id = fixture.question().await.asked.id;
    fixture
        .desk
        .answer(id, Reply::Approve(Scope::Task), ada())
        .await
        .unwrap();
    put.await.unwrap().unwrap();
    let (answer, approver) = fixture.desk.put(asked(&fixture.desk, "test")).await.unwrap();
    assert_eq!(answer, Answer::Approve(Scope::Task));
    assert_eq!((approver.kind, approver.name.as_str()), (ApproverKind::Grant, "ada"));
    let other = fixture.put(asked(&fixture.desk, "deploy"));
    assert_eq!(fixture.question().await.asked.about, "make deploy");
    fixture.desk.close().await;
    assert!(matches!(other.await.unwrap().unwrap().0, Answer::Deny(_)));
}

#[test]
fn what_an_answer_is_bound_to_tells_all_apart() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _in = runtime.enter();
    let fixture = Fixture::new(waiting());
    let Subject::Command(command) = asked(&fixture.desk, "test").subject else {
        unreachable!()
    };
    let changed = |change: &dyn Fn(&mut Command)| {
        let mut command = command.clone();
        change(&mut command);
        fixture.desk.digest_of_command(&command)
    };
    let elsewhere = |change: &dyn Fn(&mut Task), image| {
        let mut task = task(fixture.state.path());
        change(&mut task);
        Desk::new(&task, image, waiting(), fixture.journal.clone()).digest_of_command(&command)
    };
    let same = fixture.desk.digest_of_command(&command);
    assert_eq!(elsewhere(&|task| task.name = "other".to_owned(), None), same);
    let different = [
        changed(&|command| command.argv[1] = "deploy".to_owned()),
        changed(&|command| command.cwd = SandboxPath::new("/").unwrap()),
        changed(&|command| drop(command.env.insert("CI".to_owned(), "1".to_owned()))),
        changed(&|command| command.stdin = Stdin::Stream),
        elsewhere(&|_| {}, Some("sha256:01")),
        elsewhere(&|task| task.user = crate::task::User::Root, None),
        elsewhere(&|task| drop(task.env.insert("A".to_owned(), "b".to_owned())), None),
        elsewhere(
            &|task| {
                task.roots.push(crate::task::Root {
                    host: crate::path::HostPath::new("/srv").unwrap(),
                    path: SandboxPath::new("/srv").unwrap(),
                    access: crate::task::Access::Read,
                    git: crate::task::GitMode::Safe,
                    protect: Vec::new(),
                });
            },
            None,
        ),
    ];
    let all: std::collections::HashSet<Digest> = different.into_iter().chain([same]).collect();
    assert_eq!(all.len(), 9);
}

#[tokio::test]
async fn an_answer_for_the_session_survives_a_restart_and_holds_for_the_next_task() {
    let fixture = Fixture::new(waiting());
    let with_session = || Approvers {
        session: Some(fixture.session()),
        ..nobody_there()
    };
    let first = fixture.again(Approvers {
        wait: true,
        ..with_session()
    });
    let put = tokio::spawn({
        let first = first.clone();
        async move { first.put(asked(&first, "test")).await }
    });
    let mut watch = first.watch(ApproverKind::Nobody);
    let Some(Change::Asked(question)) = watch.next().await else {
        panic!("nothing was asked");
    };
    let session = Reply::Approve(Scope::Session);
    first.answer(question.asked.id, session, ada()).await.unwrap();
    put.await.unwrap().unwrap();
    drop(first);
    let later = fixture.again(with_session());
    let (answer, approver) = later.put(asked(&later, "test")).await.unwrap();
    assert_eq!(answer, Answer::Approve(Scope::Session));
    assert_eq!(
        (approver.name.as_str(), approver.via.as_str()),
        ("ada", "granted for the session")
    );
    // Where nothing was kept, nobody can be asked.
    assert!(matches!(
        later.put(asked(&later, "deploy")).await.unwrap().0,
        Answer::Deny(_)
    ));
    assert_eq!(fixture.records("approval.asked").len(), 2);
}

#[tokio::test]
async fn the_same_question_is_asked_once_however_often_it_is_put() {
    let fixture = Fixture::new(waiting());
    let puts: Vec<_> = (0..5).map(|_| fixture.put(asked(&fixture.desk, "test"))).collect();
    let question = loop {
        let question = fixture.question().await;
        if question.waiting == 5 {
            break question;
        }
        tokio::task::yield_now().await;
    };
    fixture.desk.answer(question.asked.id, YES, ada()).await.unwrap();
    for put in puts {
        assert_eq!(put.await.unwrap().unwrap().0, Answer::Approve(Scope::Once));
    }
    assert_eq!(fixture.records("approval.asked").len(), 1);
    assert_eq!(fixture.records("approval.answered").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_answers_at_once_the_first_counts_and_the_others_hear_whose_it_was() {
    let fixture = Fixture::new(waiting());
    for round in 0..20 {
        let put = fixture.put(asked(&fixture.desk, &format!("round{round}")));
        let id = fixture.question().await.asked.id;
        let barrier = Arc::new(std::sync::Barrier::new(8));
        let answers: Vec<_> = (0..8)
            .map(|n| {
                let (desk, barrier) = (fixture.desk.clone(), barrier.clone());
                let runtime = tokio::runtime::Handle::current();
                std::thread::spawn(move || {
                    let reply = if n % 2 == 0 { YES } else { Reply::deny("no") };
                    let who = by(ApproverKind::Person, &format!("person {n}"));
                    barrier.wait();
                    (n, runtime.block_on(desk.answer(id, reply, who)))
                })
            })
            .collect();
        let answers = tokio::task::spawn_blocking(move || {
            answers
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect::<Vec<_>>()
        });
        let answers = answers.await.unwrap();
        let winners: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_ok()).collect();
        let [(winner, _)] = winners.as_slice() else {
            panic!("{answers:?}");
        };
        let name = format!("person {winner}");
        for (n, answer) in answers.iter().filter(|(n, _)| n != winner) {
            let Err(AnswerError::AlreadyAnswered { by, .. }) = answer else {
                panic!("{n}: {answer:?}");
            };
            assert_eq!(by.name, name);
        }
        let (answer, approver) = put.await.unwrap().unwrap();
        assert_eq!(
            (matches!(answer, Answer::Approve(_)), approver.name),
            (winner % 2 == 0, name)
        );
    }
    assert_eq!(fixture.records("approval.answered").len(), 20);
}

#[tokio::test]
async fn with_nobody_to_ask_the_answer_is_no_at_once_and_says_why() {
    let fixture = Fixture::new(nobody_there());
    let (answer, approver) = fixture.desk.put(asked(&fixture.desk, "test")).await.unwrap();
    let reason = "this needs an approval, and nobody can be asked (a test runs)".to_owned();
    assert_eq!((answer, approver.kind), (Answer::Deny(reason), ApproverKind::Nobody));
    assert_eq!(fixture.records("approval.answered")[0]["answer"], "deny");
}

#[tokio::test]
async fn as_long_as_somebody_watches_who_may_answer_a_question_waits() {
    let fixture = Fixture::new(nobody_there());
    let watch = fixture.desk.watch(ApproverKind::Person);
    let put = fixture.put(asked(&fixture.desk, "test"));
    fixture.question().await;
    drop(watch);
    assert!(matches!(put.await.unwrap().unwrap().0, Answer::Deny(_)));
    // A harness that may not say yes is nobody to wait for.
    let _watch = fixture.desk.watch(ApproverKind::Harness);
    assert!(matches!(
        fixture.desk.put(asked(&fixture.desk, "deploy")).await.unwrap().0,
        Answer::Deny(_)
    ));
}

#[tokio::test]
async fn an_unanswered_question_becomes_a_no() {
    let fixture = Fixture::new(waiting());
    let mut task = task(fixture.state.path());
    task.gate.approval_time = Duration::from_millis(20);
    let desk = Desk::new(&task, None, waiting(), fixture.journal.clone());
    let (answer, approver) = desk.put(asked(&desk, "test")).await.unwrap();
    assert_eq!(answer, Answer::Deny("nobody answered within 20ms".to_owned()));
    assert_eq!(approver.via, "time ran out");
}

#[tokio::test]
async fn a_question_goes_with_the_last_who_waits_and_its_end_is_recorded() {
    let fixture = Fixture::new(waiting());
    let (one, other) = (
        fixture.put(asked(&fixture.desk, "test")),
        fixture.put(asked(&fixture.desk, "test")),
    );
    let question = fixture.question().await;
    let id = question.asked.id;
    one.abort();
    assert!(one.await.unwrap_err().is_cancelled());
    assert_eq!(fixture.desk.open().len(), 1);
    other.abort();
    assert!(other.await.unwrap_err().is_cancelled());
    assert!(fixture.desk.open().is_empty());
    let late = fixture.desk.answer(id, YES, ada()).await.unwrap_err();
    assert!(
        matches!(
            late,
            AnswerError::AlreadyAnswered {
                answer: "withdrawn",
                ..
            }
        ),
        "{late}"
    );
    fixture.desk.close().await;
    assert_eq!(fixture.records("approval.answered")[0]["answer"], "withdrawn");
}

#[tokio::test]
async fn a_closed_desk_has_taken_every_question_back() {
    let fixture = Fixture::new(waiting());
    let put = fixture.put(asked(&fixture.desk, "test"));
    fixture.question().await;
    fixture.desk.close().await;
    assert!(matches!(put.await.unwrap().unwrap().0, Answer::Deny(_)));
    assert_eq!(fixture.records("approval.answered").len(), 1);
    assert!(matches!(
        fixture.desk.put(asked(&fixture.desk, "test")).await.unwrap().0,
        Answer::Deny(_)
    ));
}

#[tokio::test]
async fn a_person_is_not_asked_more_than_they_can_bear() {
    let bounds = Bounds {
        open: 2,
        ..Bounds::default()
    };
    let fixture = Fixture::new(Approvers { bounds, ..waiting() });
    let held = [
        fixture.put(asked(&fixture.desk, "a")),
        fixture.put(asked(&fixture.desk, "b")),
    ];
    while fixture.records("approval.asked").len() < 2 {
        tokio::task::yield_now().await;
    }
    let (answer, approver) = fixture.desk.put(asked(&fixture.desk, "c")).await.unwrap();
    let reason = "this needs an approval, and 2 other questions wait for an answer already".to_owned();
    assert_eq!((answer, approver.kind), (Answer::Deny(reason), ApproverKind::Nobody));
    fixture.desk.close().await;
    for put in held {
        put.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_one_task_asks_and_hears_counts_for_the_next_one_of_the_same_person() {
    let fixture = Fixture::new(waiting());
    let bounds = Bounds {
        asked: 2,
        ..Bounds::default()
    };
    let limited = || {
        fixture.again(Approvers {
            bounds,
            state: Some(fixture.state.path().to_owned()),
            ..waiting()
        })
    };
    let answered = async |desk: Arc<Desk>, word: &'static str, reply| {
        let mut waiting = desk.enter(asked(&desk, word));
        let id = waiting.asked().await.unwrap();
        desk.answer(id, reply, ada()).await.unwrap();
        waiting.end().await.unwrap()
    };
    answered(limited(), "test", Reply::deny("use make check")).await;
    let (answer, approver) = limited().put(asked(&limited(), "test")).await.unwrap();
    assert!(matches!(answer, Answer::Deny(reason) if reason.contains("use make check (")));
    assert_eq!(approver.via, "denied a moment ago");
    answered(limited(), "deploy", YES).await;
    let (answer, approver) = limited().put(asked(&limited(), "clean")).await.unwrap();
    let reason = "this needs an approval, and 2 questions were asked within 600 s already".to_owned();
    assert_eq!((answer, approver.kind), (Answer::Deny(reason), ApproverKind::Nobody));
    assert_eq!(fixture.records("approval.asked").len(), 2);
}

#[tokio::test]
async fn whoever_waits_hears_which_question_it_is_also_where_another_asked_before() {
    let fixture = Fixture::new(waiting());
    let (mut one, mut other) = (
        fixture.desk.enter(asked(&fixture.desk, "test")),
        fixture.desk.enter(asked(&fixture.desk, "test")),
    );
    let id = one.asked().await;
    assert_eq!((other.asked().await, id), (id, Some(fixture.question().await.asked.id)));
    let task = Reply::Approve(Scope::Task);
    fixture.desk.answer(id.unwrap(), task, ada()).await.unwrap();
    one.end().await.unwrap();
    other.end().await.unwrap();
    // Nobody is asked what is known.
    let mut again = fixture.desk.enter(asked(&fixture.desk, "test"));
    assert_eq!(again.asked().await, None);
    assert!(matches!(again.end().await.unwrap().0, Answer::Approve(_)));
}

/// Never comes to an end.
struct Broods;

impl Review for Broods {
    fn approver(&self) -> Approver {
        by(ApproverKind::Reviewer, "model")
    }

    fn review<'a>(&'a self, _: &'a Case) -> BoxFuture<'a, Reviewed> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_review_ends_when_its_time_is_over_whatever_the_reviewer_does() {
    assert_eq!(nobody_there().review_time, Duration::from_secs(90));
    let fixture = Fixture::new(Approvers {
        reviewer: Some(Arc::new(Broods)),
        review_time: Duration::from_millis(20),
        ..nobody_there()
    });
    let (answer, _) = fixture.desk.put(asked(&fixture.desk, "test")).await.unwrap();
    assert_eq!(answer, Answer::Deny("the review failed (timed_out)".to_owned()));
    assert_eq!(
        fixture.records("approval.answered")[0]["opinion"]["failure"],
        "timed_out"
    );
}

#[tokio::test]
async fn what_was_answered_for_the_session_wears_nobody_out() {
    let fixture = Fixture::new(waiting());
    let session = fixture.session();
    let digest = asked(&fixture.desk, "test").digest;
    let reply = Reply::Approve(Scope::Session);
    session
        .keep(ApprovalId::new(), &digest, "make test", &reply, &ada())
        .unwrap();
    let desk = fixture.again(Approvers {
        session: Some(session),
        bounds: Bounds {
            asked: 1,
            ..Bounds::default()
        },
        ..nobody_there()
    });
    for _ in 0..3 {
        let (answer, _) = desk.put(asked(&desk, "test")).await.unwrap();
        assert_eq!(answer, Answer::Approve(Scope::Session));
    }
}

#[tokio::test]
async fn an_answer_that_is_forgotten_holds_nowhere_any_more() {
    let fixture = Fixture::new(waiting());
    let desk = fixture.again(Approvers {
        session: Some(fixture.session()),
        ..waiting()
    });
    let mut watch = desk.watch(ApproverKind::Nobody);
    for _ in 0..2 {
        let put = tokio::spawn({
            let desk = desk.clone();
            async move { desk.put(asked(&desk, "test")).await }
        });
        let question = loop {
            match watch.next().await {
                Some(Change::Asked(question)) => break question,
                Some(_) => continue,
                None => panic!("the desk is closed"),
            }
        };
        let reply = Reply::Approve(Scope::Session);
        desk.answer(question.asked.id, reply, ada()).await.unwrap();
        put.await.unwrap().unwrap();
        // The same desk asks again for what was forgotten.
        assert_eq!(fixture.session().forget(|_| true).unwrap(), 1);
    }
}

#[tokio::test]
async fn what_was_denied_a_moment_ago_is_not_asked_again() {
    let fixture = Fixture::new(waiting());
    let put = fixture.put(asked(&fixture.desk, "test"));
    let id = fixture.question().await.asked.id;
    fixture
        .desk
        .answer(id, Reply::deny("use make check"), ada())
        .await
        .unwrap();
    put.await.unwrap().unwrap();
    let (answer, approver) = fixture.desk.put(asked(&fixture.desk, "test")).await.unwrap();
    let Answer::Deny(reason) = answer else {
        panic!("{answer:?}");
    };
    assert!(
        reason.starts_with("a person said no: use make check (0 s ago"),
        "{reason}"
    );
    assert_eq!(
        (approver.name.as_str(), approver.via.as_str()),
        ("ada", "denied a moment ago")
    );
    assert_eq!(fixture.records("approval.asked").len(), 1);
}

#[tokio::test]
async fn what_a_rule_reserves_for_a_person_no_harness_approves() {
    let fixture = Fixture::new(Approvers {
        harness: true,
        ..waiting()
    });
    let harness = by(ApproverKind::Harness, "codex");
    let put = fixture.put(asked(&fixture.desk, "test"));
    let id = fixture.question().await.asked.id;
    let for_the_task = Reply::Approve(Scope::Task);
    fixture.desk.answer(id, for_the_task, harness.clone()).await.unwrap();
    put.await.unwrap().unwrap();
    // Its yes for the task is none where the same is reserved.
    let put = fixture.put(for_a_person(asked(&fixture.desk, "test")));
    let id = loop {
        match fixture.desk.open().first() {
            Some(open) => break open.asked.id,
            None => tokio::task::yield_now().await,
        }
    };
    let refused = fixture.desk.answer(id, YES, harness.clone()).await.unwrap_err();
    assert!(matches!(refused, AnswerError::NotYours { .. }), "{refused}");
    // A no is anybody's.
    fixture.desk.answer(id, Reply::deny("no"), harness).await.unwrap();
    assert!(matches!(put.await.unwrap().unwrap().0, Answer::Deny(_)));
}

#[tokio::test]
async fn a_harness_approves_only_where_it_may() {
    let fixture = Fixture::new(waiting());
    let _put = fixture.put(asked(&fixture.desk, "test"));
    let id = fixture.question().await.asked.id;
    let harness = by(ApproverKind::Harness, "codex");
    let refused = fixture.desk.answer(id, YES, harness).await.unwrap_err();
    assert!(refused.to_string().contains("gate.approvers"), "{refused}");
    assert_eq!(fixture.desk.open().len(), 1);
}

#[tokio::test]
async fn a_scope_that_is_not_offered_is_refused_and_the_question_stays() {
    let fixture = Fixture::new(Approvers {
        scopes: vec![Scope::Once],
        ..waiting()
    });
    let _put = fixture.put(asked(&fixture.desk, "test"));
    let question = fixture.question().await;
    assert_eq!(question.scopes, [Scope::Once]);
    for scope in [Scope::Task, Scope::Session, Scope::Rule] {
        let refused = fixture
            .desk
            .answer(question.asked.id, Reply::Approve(scope), ada())
            .await;
        assert!(matches!(refused, Err(AnswerError::Scope { .. })), "{refused:?}");
    }
    assert_eq!(fixture.desk.open().len(), 1);
}

struct Book {
    works: bool,
    added: Mutex<Vec<String>>,
}

impl RuleBook for Book {
    fn file(&self) -> String {
        "/home/ada/approved.rules".to_owned()
    }

    fn add(&self, amendment: &Amendment) -> Result<(), RuleBookError> {
        if !self.works {
            return Err(RuleBookError::Reload("it is broken".into()));
        }
        lock(&self.added).push(amendment.line());
        Ok(())
    }
}

async fn with_rule(works: bool, reply: Reply) -> (Fixture, Arc<Book>, Settled) {
    let fixture = Fixture::new(waiting());
    let book = Arc::new(Book {
        works,
        added: Mutex::default(),
    });
    fixture.desk.remember_rules_in(book.clone());
    let put = fixture.put(asked(&fixture.desk, "test"));
    let question = fixture.question().await;
    assert_eq!(
        question.rule,
        Some((
            "prefix_rule(pattern=[\"make\", \"test\"], decision=\"allow\")".to_owned(),
            "/home/ada/approved.rules".to_owned()
        ))
    );
    let settled = fixture.desk.answer(question.asked.id, reply, ada()).await.unwrap();
    put.await.unwrap().unwrap();
    (fixture, book, settled)
}

#[tokio::test]
async fn a_yes_as_a_rule_is_recorded_and_added() {
    let (fixture, book, settled) = with_rule(true, Reply::Approve(Scope::Rule)).await;
    assert_eq!((settled.scope, settled.note), (Scope::Rule, None));
    let line = "prefix_rule(pattern=[\"make\", \"test\"], decision=\"allow\")";
    assert_eq!(*lock(&book.added), [line]);
    let added = &fixture.records("rule.added")[0];
    assert_eq!(
        (&added["rule"], &added["approver"]["name"]),
        (&line.into(), &"ada".into())
    );
}

#[tokio::test]
async fn a_no_as_a_rule_forbids() {
    let no = Reply::Deny {
        scope: Scope::Rule,
        reason: None,
    };
    let (_fixture, book, _) = with_rule(true, no).await;
    assert_eq!(
        *lock(&book.added),
        ["prefix_rule(pattern=[\"make\", \"test\"], decision=\"forbidden\")"]
    );
}

#[tokio::test]
async fn a_rule_that_cannot_be_added_leaves_a_yes_for_once_that_says_so() {
    let (fixture, _, settled) = with_rule(false, Reply::Approve(Scope::Rule)).await;
    assert_eq!(settled.scope, Scope::Once);
    assert!(settled.note.unwrap().starts_with("no rule was added"));
    let answered = &fixture.records("approval.answered")[0];
    assert_eq!(answered["scope"], "once");
    assert!(answered["reason"].as_str().unwrap().starts_with("no rule was added"));
}

#[tokio::test]
async fn where_no_rule_is_offered_none_can_be_asked_for() {
    let fixture = Fixture::new(waiting());
    fixture.desk.remember_rules_in(Arc::new(Book {
        works: true,
        added: Mutex::default(),
    }));
    let _put = fixture.put(Asked {
        offer: None,
        ..asked(&fixture.desk, "test")
    });
    let id = fixture.question().await.asked.id;
    let refused = fixture.desk.answer(id, Reply::Approve(Scope::Rule), ada()).await;
    assert!(matches!(refused, Err(AnswerError::NoRule)), "{refused:?}");
}

#[tokio::test]
async fn without_a_journal_nothing_is_approved() {
    let fixture = Fixture::new(waiting());
    let put = fixture.put(asked(&fixture.desk, "test"));
    let id = fixture.question().await.asked.id;
    std::fs::remove_dir_all(fixture.state.path().join("journal")).unwrap();
    let refused = fixture.desk.answer(id, YES, ada()).await;
    assert!(matches!(refused, Err(AnswerError::NotRecorded)), "{refused:?}");
    assert!(put.await.unwrap().is_err());
}

/// Says the same to everything, and counts.
struct Says(Outcome, Risk, AtomicUsize);

impl Review for Says {
    fn approver(&self) -> Approver {
        by(ApproverKind::Reviewer, "model")
    }

    fn review<'a>(&'a self, case: &'a Case) -> BoxFuture<'a, Reviewed> {
        self.2.fetch_add(1, Ordering::SeqCst);
        assert!(!case.records.is_empty(), "it sees what happened");
        Box::pin(async {
            Reviewed {
                opinion: Ok(Thought {
                    outcome: self.0,
                    risk_level: self.1,
                    user_authorization: Authorization::Unknown,
                    rationale: "because".to_owned(),
                }),
                attempts: 1,
            }
        })
    }
}

fn reviewed_by(outcome: Outcome, risk: Risk) -> (Fixture, Arc<Says>) {
    let says = Arc::new(Says(outcome, risk, AtomicUsize::new(0)));
    let fixture = Fixture::new(Approvers {
        reviewer: Some(says.clone()),
        ..nobody_there()
    });
    (fixture, says)
}

#[tokio::test]
async fn a_reviewers_yes_holds_once_and_its_opinion_is_recorded() {
    let (fixture, says) = reviewed_by(Outcome::Allow, Risk::Medium);
    for _ in 0..2 {
        let (answer, approver) = fixture.desk.put(asked(&fixture.desk, "test")).await.unwrap();
        assert_eq!(
            (answer, approver.kind),
            (Answer::Approve(Scope::Once), ApproverKind::Reviewer)
        );
    }
    assert_eq!(says.2.load(Ordering::SeqCst), 2);
    let opinion = &fixture.records("approval.answered")[0]["opinion"];
    assert_eq!(
        (&opinion["risk_level"], &opinion["failure"]),
        (&"medium".into(), &Value::Null)
    );
}

#[tokio::test]
async fn a_yes_to_what_is_critical_is_a_contradiction_and_a_no() {
    let (fixture, _) = reviewed_by(Outcome::Allow, Risk::Critical);
    let (answer, _) = fixture.desk.put(asked(&fixture.desk, "test")).await.unwrap();
    assert_eq!(answer, Answer::Deny("the review failed (contradictory)".to_owned()));
    assert_eq!(
        fixture.records("approval.answered")[0]["opinion"]["failure"],
        "contradictory"
    );
}

#[tokio::test]
async fn a_reviewer_is_not_asked_what_a_rule_reserves_for_a_person() {
    let (fixture, says) = reviewed_by(Outcome::Allow, Risk::Low);
    let reserved = for_a_person(asked(&fixture.desk, "test"));
    let (answer, approver) = fixture.desk.put(reserved).await.unwrap();
    assert!(matches!(answer, Answer::Deny(_)));
    assert_eq!(
        (approver.kind, says.2.load(Ordering::SeqCst)),
        (ApproverKind::Nobody, 0)
    );
}

#[tokio::test]
async fn after_three_denials_in_a_row_the_reviewer_is_not_asked_any_more() {
    let (fixture, says) = reviewed_by(Outcome::Deny, Risk::High);
    for n in 0..5 {
        let (answer, _) = fixture.desk.put(asked(&fixture.desk, &format!("{n}"))).await.unwrap();
        assert!(matches!(answer, Answer::Deny(_)));
    }
    assert_eq!(says.2.load(Ordering::SeqCst), 3);
    let failures: Vec<Value> = fixture
        .records("approval.answered")
        .iter()
        .map(|record| record["opinion"]["failure"].clone())
        .collect();
    let open = Value::from("breaker_open");
    assert_eq!(failures, [Value::Null, Value::Null, Value::Null, open.clone(), open]);
}

#[tokio::test]
async fn a_reviewer_without_an_opinion_leaves_it_to_a_person() {
    let says = Arc::new(Says(Outcome::Ask, Risk::High, AtomicUsize::new(0)));
    let fixture = Fixture::new(Approvers {
        reviewer: Some(says),
        ..waiting()
    });
    let put = fixture.put(asked(&fixture.desk, "test"));
    let id = fixture.question().await.asked.id;
    fixture.desk.answer(id, YES, ada()).await.unwrap();
    assert_eq!(put.await.unwrap().unwrap().1, ada());
}
