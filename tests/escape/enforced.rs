//! What is promised and cannot be kept is said, and the task does not start.

use std::process::Output;

use serde_json::Value;

use crate::jail::{Place, callers, row};

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

#[test]
fn every_guarantee_is_in_the_record_as_the_doctor_tells_it() {
    for caller in callers() {
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
            // By default there is no limit of CPUs.
            if name != "limit.cpus" {
                let expected = control["enforced"].as_str().unwrap();
                assert_eq!(kept(&recorded["controls"], name), expected, "{caller:?} {name}");
            }
        }
    }
}

#[test]
fn a_named_limit_that_cannot_be_kept_refuses_the_task_and_a_default_one_is_reported() {
    for caller in callers() {
        let place = Place::new(caller);
        let can = kept(&doctor(&place)["guarantees"], "limit.memory") == "full";
        let default = belljar(&place, &["run", "--quiet", "--", "true"]);
        assert_eq!(default.status.code(), Some(0), "{default:?}");
        let named = belljar(&place, &["run", "--quiet", "--memory", "1GiB", "--", "true"]);
        if can {
            assert_eq!(named.status.code(), Some(0), "{named:?}");
            continue;
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
        let accepted = [
            "run",
            "--quiet",
            "--memory",
            "1GiB",
            "--accept-partial",
            "limit.memory",
            "--",
            "true",
        ];
        let accepted = belljar(&place, &accepted);
        assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
        row("a limit that the machine cannot keep", caller, "refused");
    }
}

#[test]
fn names_that_cannot_be_protected_refuse_the_task_unless_that_is_accepted() {
    for caller in callers() {
        let place = Place::new(caller);
        place.on_host("git init -q -b main .");
        let git = place.work().join(".git");
        let spec = |more: &str| {
            let file = place.path().join("task.toml");
            let text = format!(
                "version = 1\ncommand = [\"true\"]\nruntime = \"{}\"\n{more}\n[[writable_roots]]\nhost = {git:?}\npath = \"/workspace\"\ngit = \"read-only\"\n",
                caller.runtime()
            );
            std::fs::write(&file, text).unwrap();
            belljar(&place, &["run", "--quiet", file.to_str().unwrap()])
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
}
