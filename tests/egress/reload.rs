//! Policy that changes while a task runs: at once for new connections, and for those that it forbids.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::jail::{Caller, Jail};
use crate::world::{ALLOWED, World};

const OTHER: &str = "other.outside.example";

/// A world with a folder for belljar's configuration, of the user's and of the machine's.
fn world() -> Option<(World, PathBuf)> {
    let world = World::make(Caller::Root)?;
    let etc = world.place.make_folder("etc-belljar");
    // What the machine itself has there stays where it is.
    world.on_host(&format!(
        "cp -a /etc {folder}/etc && mount --bind {folder}/etc /etc && rm -rf /etc/belljar && mkdir /etc/belljar
         mount --bind {etc} /etc/belljar && mount --bind {folder}/resolv.conf /etc/resolv.conf
         mount --bind {folder}/hosts /etc/hosts && mount --bind {folder}/trust /etc/ssl/certs",
        folder = world.folder().display(),
        etc = etc.display()
    ));
    Some((world, etc))
}

/// What a plain request to a host comes to: what is served, or the rule that refuses it.
fn fetch(task: &mut Jail, host: &str) -> String {
    let ran = task.sh(&format!("curl -sS -m 20 http://{host}/hello"));
    match serde_json::from_str::<Value>(&ran.stdout) {
        Ok(told) => told["rule"].as_str().unwrap_or("?").to_owned(),
        Err(_) => ran.stdout.trim().to_owned(),
    }
}

/// Whether a request was refused by a rule of a file, and not for want of one.
fn is_by_a_rule(found: &str) -> bool {
    !["hello from outside", "unknown", "policy.changed", ""].contains(&found)
}

/// Tries until a request comes to this.
fn until(task: &mut Jail, host: &str, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = fetch(task, host);
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{host}: wanted {wanted:?}, still {found:?}");
    }
}

/// The records of what was loaded for the task, oldest first: why it was refused, or nothing.
fn loaded(world: &World) -> Vec<Option<String>> {
    let journal = world.belljar(&["audit", "ls", "--json", "--kind", "config.loaded"]);
    let records = journal.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records
        .filter(|record| !record["task"].is_null())
        .map(|record| record["error"].as_str().map(str::to_owned))
        .collect()
}

/// Tries until that many were recorded.
fn until_loaded(world: &World, count: usize) -> Vec<Option<String>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = loaded(world);
        if found.len() >= count {
            return found;
        }
        assert!(Instant::now() < deadline, "{found:?}");
    }
}

#[test]
fn a_changed_file_of_rules_holds_at_once_and_ends_what_it_forbids() {
    let Some((world, _)) = world() else { return };
    let rules = world.place.path().join("agent.rules");
    let rule = |decision: &str| {
        format!(
            "network_rule(host = \"{OTHER}\", protocol = \"http\", decision = \"{decision}\")\nprefix_rule(pattern = [\"hostname\"], decision = \"{decision}\")\n"
        )
    };
    std::fs::write(&rules, rule("allow")).unwrap();
    let mut task = world
        .place
        .start(&format!("{}[gate]\nrules = [{rules:?}]\n", world.network(&[])));
    assert_eq!(fetch(&mut task, OTHER), "hello from outside");
    assert_eq!(task.run(&["hostname"]).stdout, "belljar\n");
    let held = task.begin(json!({"argv": ["python3", "-uc", format!(
        "import socket
s = socket.create_connection(('127.0.0.1', 3128))
s.sendall(b'GET http://{OTHER}/slow HTTP/1.1\\r\\nHost: {OTHER}\\r\\n\\r\\n')
print('asked')
while s.recv(4096):
    pass
print('ended')")]}));
    assert_eq!(task.output(&held).trim(), "asked");
    std::fs::write(&rules, rule("forbidden")).unwrap();
    let ended = task.finish(&held);
    assert!(ended.stdout.ends_with("ended\n"), "{ended:?}");
    assert!(is_by_a_rule(&fetch(&mut task, OTHER)));
    let refused = task.run(&["hostname"]);
    assert_eq!(
        refused.end["kind"], "refused",
        "rules for commands change with them: {refused:?}"
    );
    assert_eq!(loaded(&world), [None]);
    task.end();
}

#[test]
fn what_cannot_be_read_changes_nothing_and_is_told() {
    let Some((world, _)) = world() else { return };
    let rules = world.place.path().join("agent.rules");
    std::fs::write(&rules, "").unwrap();
    let mut task = world
        .place
        .start(&format!("{}[gate]\nrules = [{rules:?}]\n", world.network(&[])));
    assert_eq!(fetch(&mut task, ALLOWED), "hello from outside");
    std::fs::write(&rules, "network_rule(host = \n").unwrap();
    let refused = until_loaded(&world, 1);
    assert!(
        refused[0].as_ref().is_some_and(|why| why.contains("agent.rules")),
        "{refused:?}"
    );
    assert_eq!(fetch(&mut task, ALLOWED), "hello from outside");
    std::fs::write(
        &rules,
        format!("network_rule(host = \"{ALLOWED}\", protocol = \"http\", decision = \"forbidden\")\n"),
    )
    .unwrap();
    assert_eq!(until_loaded(&world, 2)[1], None);
    assert!(is_by_a_rule(&fetch(&mut task, ALLOWED)));
    task.end();
}

#[test]
fn the_users_configuration_and_the_spec_are_read_again() {
    let Some((world, _)) = world() else { return };
    let mut task = world.place.start(&world.network(&[]));
    assert_eq!(fetch(&mut task, OTHER), "unknown");
    // A file that was not there before.
    let folder = world.place.make_folder("home/.config/belljar");
    std::fs::write(
        folder.join("config.toml"),
        format!("version = 1\n[task.network]\nallow = [{OTHER:?}]\n"),
    )
    .unwrap();
    until(&mut task, OTHER, "hello from outside");
    let spec = world.place.path().join("task.toml");
    let text = std::fs::read_to_string(&spec).unwrap();
    let changed = text.replace("deny = [", &format!("deny = [{ALLOWED:?}, "));
    assert_ne!(text, changed);
    std::fs::write(&spec, changed).unwrap();
    until(&mut task, ALLOWED, &format!("network.deny {ALLOWED}"));
    task.end();
}

#[test]
fn a_task_that_asks_for_more_than_changed_requirements_allow_runs_and_reaches_nothing() {
    let Some((world, etc)) = world() else { return };
    let mut task = world.place.start(&world.network(&[]));
    // It runs already, and may go on; but it reaches nothing any more.
    let begun = task.begin(json!({"argv": ["sh", "-c", format!(
        "curl -sS http://{ALLOWED}/hello; while :; do found=$(curl -sS -m 20 http://{ALLOWED}/hello); case $found in *policy.changed*) echo closed; exit;; esac; done"
    )]}));
    assert_eq!(task.output(&begun).trim(), "hello from outside");
    let demands = etc.join("requirements.toml");
    // In one step, or it might be read half written: that closes the way out too, for another reason.
    let draft = etc.join("draft");
    std::fs::write(&draft, "version = 1\n[network]\nmodes = [\"none\"]\n").unwrap();
    std::fs::rename(&draft, &demands).unwrap();
    let ended = task.finish(&begun);
    assert_eq!(
        (ended.code(), ended.stdout.as_str()),
        (Some(0), "closed\n"),
        "{ended:?}"
    );
    let refused = task.run(&["hostname"]);
    assert_eq!(refused.end["kind"], "refused", "{refused:?}");
    assert!(
        loaded(&world)[0]
            .as_ref()
            .is_some_and(|why| why.contains("network.mode"))
    );
    let journal = world.belljar(&["audit", "ls", "--json", "--kind", "exec.refused"]);
    assert!(
        journal.contains("the requirements changed, and this task asks for more"),
        "{journal}"
    );
    std::fs::remove_file(&demands).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while task.run(&["hostname"]).end["kind"] == "refused" {
        assert!(Instant::now() < deadline, "what was put right does not hold");
    }
    assert_eq!(fetch(&mut task, ALLOWED), "hello from outside");
    task.end();
}

/// Else a task would write its own leave.
#[test]
fn what_the_sandbox_can_write_is_never_read_again() {
    let Some((world, _)) = world() else { return };
    let work = world.place.work();
    std::fs::write(work.join("agent.rules"), "").unwrap();
    let spec = format!(
        "version = 1\nname = \"own\"\nworkdir = \"/workspace\"\n{}[gate]\nrules = [\"agent.rules\"]\n[[writable_roots]]\nhost = \".\"\npath = \"/workspace\"\n",
        world.network(&[])
    );
    std::fs::write(work.join("task.toml"), spec).unwrap();
    let program = world.place.program();
    let mut task = world.place.start_by(&format!(
        "cd {} && exec {} run task.toml --stdio --quiet",
        work.display(),
        program.display()
    ));
    let wrote = task.sh(&format!(
        "cd /workspace && sed -i 's/allow = \\[/allow = [\"{OTHER}\", /' task.toml && grep -c {OTHER} task.toml
         echo 'network_rule(host = \"{OTHER}\", protocol = \"http\", decision = \"allow\")' > agent.rules"
    ));
    assert_eq!(wrote.stdout, "1\n", "{wrote:?}");
    // A change of ours has all be read again.
    let folder = world.place.make_folder("home/.config/belljar");
    let third = "third.outside.example";
    std::fs::write(
        folder.join("config.toml"),
        format!("version = 1\n[task.network]\nallow = [{third:?}]\n"),
    )
    .unwrap();
    until(&mut task, third, "hello from outside");
    assert_eq!(fetch(&mut task, OTHER), "unknown");
    task.end();
}
