//! Every probe of `tests/data/escape/probes.jsonl` that runs inside, with the answer that its line asks for.

use std::path::Path;

use serde::Deserialize;

use crate::jail::{Caller, Jail, Place, Ran, row};

#[derive(Debug, Deserialize)]
struct Probe {
    id: String,
    title: String,
    category: String,
    phase: String,
    shell: String,
    command: String,
    how_checked: String,
    needs: Vec<String>,
}

fn probes(phase: &str) -> Vec<Probe> {
    let text = include_str!("../data/escape/probes.jsonl");
    let all = text.lines().map(|line| serde_json::from_str::<Probe>(line).unwrap());
    all.filter(|probe| probe.phase == phase).collect()
}

/// A repository with what the probes try to change, and a root without one.
fn furnish(place: &Place) {
    place.on_host(
        "git init -q -b main . && git config user.name t && git config user.email t@example.org
         echo one > file && git add file && git commit -qm one
         printf '#!/bin/sh\\nexit 0\\n' > .git/hooks/pre-commit && chmod +x .git/hooks/pre-commit
         mkdir .vscode && echo '{}' > .vscode/tasks.json && echo 'export A=b' > .envrc
         mkdir nogit",
    );
}

fn start(place: &Place, caller: Caller) -> Jail {
    let nogit = place.work().join("nogit");
    let work = place.work();
    // gVisor's own threads count too, and it does not begin with less.
    let pids = if caller == Caller::Runsc { 1024 } else { 128 };
    place.start_spec(&format!(
        "version = 1\nname = \"escape\"\nworkdir = \"/workspace\"\n\
         accept_partial = [\"exec_isolation\", \"limit.cpus\", \"limit.memory\", \"limit.pids\"]\n\
         [limits]\ndisk = \"256MiB\"\npids = {pids}\nmemory = \"1GiB\"\ncpus = 1.0\n\
         [[writable_roots]]\nhost = {work:?}\npath = \"/workspace\"\n\
         [[writable_roots]]\nhost = {nogit:?}\npath = \"/workspace/nogit\"\n"
    ))
}

/// Probes whose answer in gVisor is about a kernel of the sandbox's own, and why it is no way out.
const OF_GVISOR: [(&str, &str); 3] = [
    (
        "KRN-061",
        "its /proc has no line of ambient capabilities; `contract` looks at the others",
    ),
    (
        "KRN-064",
        "it takes the number for its own architecture's call, which is access(2)",
    ),
    ("RES-009", "a priority in it is none of the host's"),
];

/// Whether the answer is the good one; the text says what was wanted.
fn judge(probe: &Probe, ran: &Ran, caller: Caller) -> Result<(), String> {
    // A call of another architecture may as well end the process: SIGSYS.
    if ran.end["signal"] == 31 && probe.category == "kernel-syscall" {
        return Ok(());
    }
    let line = ran.last_line();
    let starts = |words: &[&str]| match words.iter().any(|word| line.starts_with(word)) {
        true => Ok(()),
        false => Err(format!("wanted {words:?}, got {line:?} ({})", ran.stderr.trim())),
    };
    let how = probe.how_checked.as_str();
    if how.starts_with("host: status equals") {
        let wanted = probe.command.strip_prefix("exit ").and_then(|code| code.parse().ok());
        return match ran.code() == wanted {
            true => Ok(()),
            false => Err(format!("wanted {wanted:?}, got {:?}", ran.code())),
        };
    }
    if how.starts_with("EROFS/EACCES preferred") {
        // The caller's one id owns the disposable layer of an ordinary user's sandbox: there a write goes nowhere.
        let path = probe
            .command
            .split("touch ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        assert!(!Path::new(path.unwrap()).exists(), "{} reached the host", probe.id);
        return starts(&["BLOCKED", "EXPOSED"]);
    }
    if how.contains("starts with WORKS") {
        return starts(&["WORKS"]);
    }
    if how == "list must equal the documented set" && matches!(caller, Caller::Runsc | Caller::Docker(..)) {
        // The guest's own, to which it connected before anything else ran; it takes nobody any more (see `neighbours`).
        return match line {
            "INFO ['/run/belljar/channel']" => Ok(()),
            _ => starts(&["BLOCKED"]),
        };
    }
    if probe.id == "RES-008" && limits_cpus(caller) {
        let used = line.strip_prefix("INFO cpu ").and_then(|used| used.parse::<f64>().ok());
        return match used {
            // Five seconds at one processor; the kernel gives it out in pieces of up to a tenth.
            Some(used) if used < 6.0 => Ok(()),
            _ => Err(format!("wanted 5 s of one processor at most, got {line:?}")),
        };
    }
    if probe.id == "RES-010" {
        let fields = line.trim_end_matches(')').rsplit_once(", ");
        let hard = fields.and_then(|(_, hard)| hard.parse::<u64>().ok());
        return match hard {
            Some(hard) if hard <= 8 << 20 => Ok(()),
            _ => Err(format!("wanted a bound of 8 MiB, got {line:?}")),
        };
    }
    // Figures for whoever compares them; that the command was held is enough here, and what it used is in its record.
    if how.starts_with("INFO") || how.starts_with("host: port not reachable") {
        return starts(&["INFO", "BLOCKED"]);
    }
    starts(&["BLOCKED"])
}

/// What the table says of a probe that was answered well.
fn result(probe: &Probe, ran: &Ran) -> String {
    match ran.last_line() {
        _ if probe.how_checked.starts_with("host: status equals") => "WORKS".to_owned(),
        "" => "BLOCKED".to_owned(),
        "EXPOSED" => "disposable".to_owned(),
        "INFO ['/run/belljar/channel']" => "harmless: the guest's own, which takes nobody any more".to_owned(),
        line if line.starts_with("INFO") => format!("held: {}", line.trim_start_matches("INFO ")),
        line => line.split(' ').next().unwrap_or("").to_owned(),
    }
}

/// Whether the limit of one processor is kept and can be seen inside: gVisor's kernel counts by itself.
fn limits_cpus(caller: Caller) -> bool {
    !matches!(caller, Caller::Ordinary | Caller::Runsc)
}

/// Every name that the probes go for, and what stands in it.
const WITNESS: &str = "git config --list --local; ls -A . .git .git/hooks nogit .vscode; git status --porcelain; sha256sum .git/config .git/hooks/* .vscode/* .envrc";

/// The command of one probe.
pub fn command_of(id: &str) -> String {
    let mut all = probes("lifecycle").into_iter();
    all.find(|probe| probe.id == id).unwrap().command
}

pub fn every_probe_from_inside_is_blocked(caller: Caller) {
    all_are_blocked(caller, |_| true);
}

/// The same for some.
pub fn those_are_blocked(caller: Caller, ids: &[&str]) {
    all_are_blocked(caller, |probe| ids.contains(&probe.id.as_str()));
}

fn all_are_blocked(caller: Caller, is_wanted: impl Fn(&Probe) -> bool) {
    let place = Place::new(caller);
    furnish(&place);
    let before = place.on_host(WITNESS);
    let mut jail = start(&place, caller);
    let mut faults = Vec::new();
    for probe in probes("exec").into_iter().filter(is_wanted) {
        let needs: Vec<_> = probe.needs.iter().filter(|need| *need != "python3").collect();
        assert!(needs.is_empty(), "{}: this harness has no {needs:?}", probe.id);
        let ran = match probe.shell.as_str() {
            "python3" => jail.python(&probe.command),
            _ => jail.sh(&probe.command),
        };
        let attack = format!("{} {}", probe.id, probe.title);
        // gVisor's kernel is a process of the host's within the task's limits, and goes down at them with all that is in it.
        if caller == Caller::Runsc && probe.category == "resources" && ran.end["outcome"] == "lost" {
            row(&attack, caller, "its sandbox ends");
            jail = start(&place, caller);
            continue;
        }
        if let (Caller::Runsc, Some((_, why))) = (caller, OF_GVISOR.iter().find(|(id, _)| *id == probe.id)) {
            row(&attack, caller, &format!("harmless: {why}"));
            continue;
        }
        match judge(&probe, &ran, caller) {
            Ok(()) => row(&attack, caller, &result(&probe, &ran)),
            Err(fault) => {
                row(&attack, caller, "EXPOSED");
                faults.push(format!("{} {}: {fault}", probe.id, probe.category));
            }
        }
    }
    jail.end();
    place.on_host("rm -rf many .acc-im");
    let after = place.on_host(WITNESS);
    if before != after {
        faults.push(format!("the host's folder changed:\n{before}\n{after}"));
    }
    assert!(faults.is_empty(), "{caller:?}:\n{}", faults.join("\n"));
}
