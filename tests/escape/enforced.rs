//! What is promised and cannot be kept is said, and the task does not start.

use std::process::Output;

use serde_json::Value;

use crate::jail::{Caller, Place, row};

fn belljar(place: &Place, words: &[&str]) -> Output {
    place.command(&place.program()).args(words).output().unwrap()
}

fn records(place: &Place) -> Vec<Value> {
    let text = String::from_utf8(belljar(place, &["audit", "ls", "--json"]).stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How far a guarantee is kept, as a list of controls says it.
fn kept(controls: &Value, name: &str) -> String {
    let mut controls = controls.as_array().unwrap().iter();
    let control = controls.find(|control| control["control"] == name);
    control.unwrap()["enforced"].as_str().unwrap().to_owned()
}

fn doctor(place: &Place) -> Value {
    serde_json::from_slice(&belljar(place, &["doctor", "--json"]).stdout).unwrap()
}

pub fn every_guarantee_is_in_the_record_as_the_doctor_tells_it(caller: Caller) {
    let place = Place::new(caller);
    let guarantees = doctor(&place)["guarantees"].clone();
    place.start("").end();
    let records = records(&place);
    let recorded = records
        .iter()
        .find(|record| record["kind"] == "sandbox.enforced")
        .unwrap();
    for control in guarantees.as_array().unwrap() {
        let name = control["control"].as_str().unwrap();
        // By default there is no limit of CPUs, and gVisor has one of its own kind for processes.
        if name != "limit.cpus" && (name != "limit.pids" || caller != Caller::Runsc) {
            let is_less = caller.lacks().contains(&name) || name == "exec_isolation" && !caller.isolates_execs();
            let expected = match is_less {
                true => "partial",
                false => control["enforced"].as_str().unwrap(),
            };
            assert_eq!(kept(&recorded["controls"], name), expected, "{caller:?} {name}");
        }
    }
}

pub fn a_named_limit_that_cannot_be_kept_refuses_the_task_and_a_default_one_is_reported(caller: Caller) {
    let place = Place::new(caller);
    let can = kept(&doctor(&place)["guarantees"], "limit.memory") == "full";
    let run = |more: &[&str]| {
        let words = [&["run", "--quiet"], caller.flags().as_slice(), more, &["--", "true"]].concat();
        belljar(&place, &words)
    };
    let default = run(&[]);
    assert_eq!(default.status.code(), Some(0), "{default:?}");
    let named = run(&["--memory", "1GiB"]);
    if can {
        assert_eq!(named.status.code(), Some(0), "{named:?}");
        row(
            "a limit that the machine cannot keep",
            caller,
            "not tried: this one can",
        );
        return;
    }
    let said = String::from_utf8(named.stderr).unwrap();
    assert_eq!(named.status.code(), Some(120), "{said}");
    assert!(
        said.contains("limit.memory can be enforced not at all here: "),
        "{said}"
    );
    assert!(said.contains("accept_partial = [\"limit.memory\"]"), "{said}");
    let records = records(&place);
    let refused = records.iter().find(|record| record["kind"] == "task.refused").unwrap();
    assert!(
        refused["reasons"][0].as_str().unwrap().starts_with("limit.memory"),
        "{refused}"
    );
    let accepted = run(&["--memory", "1GiB", "--accept-partial", "limit.memory"]);
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    row("a limit that the machine cannot keep", caller, "refused");
}

pub fn names_that_cannot_be_protected_refuse_the_task_unless_that_is_accepted(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("git init -q -b main .");
    let git = place.work().join(".git");
    let spec = |more: &str| {
        let file = place.path().join("task.toml");
        let text = format!(
            "version = 1\ncommand = [\"true\"]\n{more}\n[[writable_roots]]\nhost = {git:?}\npath = \"/workspace\"\ngit = \"read-only\"\n"
        );
        std::fs::write(&file, text).unwrap();
        let words = [&["run", "--quiet", file.to_str().unwrap()], caller.flags().as_slice()].concat();
        belljar(&place, &words)
    };
    let refused = spec("");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(120), "{said}");
    assert!(
        said.contains("protected_names can be enforced only in part here"),
        "{said}"
    );
    assert_eq!(place.on_host("ls .git/commondir 2>&1 || true").lines().count(), 1);
    let accepted = spec("accept_partial = [\"exec_isolation\", \"protected_names\"]");
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
}

/// Each backend's own shortfalls, and no others: the builtin launcher has none.
pub fn what_a_backend_cannot_keep_refuses_the_task_unless_it_is_accepted(caller: Caller) {
    let place = Place::new(caller);
    let run = |more: &[&str]| {
        let words = [&["run", "--quiet"], caller.choice(), more, &["--", "true"]].concat();
        belljar(&place, &words)
    };
    let bare = run(&[]);
    let said = String::from_utf8(bare.stderr).unwrap();
    let code = if caller.lacks().is_empty() { 0 } else { 120 };
    assert_eq!(bare.status.code(), Some(code), "{said}");
    let refused = said
        .lines()
        .filter_map(|line| line.split_once(" can be enforced only in part here: "));
    let mut named: Vec<_> = refused
        .map(|(control, _)| control.rsplit(' ').next().unwrap())
        .collect();
    named.sort_unstable();
    assert_eq!(named, caller.lacks(), "{said}");
    // The plan tells it before anything is started.
    let plan = belljar(
        &place,
        &[&["plan", "--json"], caller.choice(), &["--", "true"]].concat(),
    );
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    let refused = plan["refused"].as_array().unwrap().iter();
    let mut planned: Vec<_> = refused.map(|control| control["control"].as_str().unwrap()).collect();
    planned.sort_unstable();
    assert_eq!(planned, caller.lacks());
    // Any one of them alone is enough to refuse.
    for left in caller.lacks() {
        let others = caller.lacks().iter().filter(|other| *other != left);
        let accepted: Vec<&str> = others.flat_map(|other| ["--accept-partial", other]).collect();
        let refused = run(&accepted);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(120), "{left}: {said}");
        assert!(said.contains(&format!("accept_partial = [\"{left}\"]")), "{said}");
        row(&format!("a task that does not accept less: {left}"), caller, "refused");
    }
    let accepted = belljar(
        &place,
        &[&["run", "--quiet"], caller.flags().as_slice(), &["--", "true"]].concat(),
    );
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
}
