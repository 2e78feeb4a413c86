//! What a judgement costs: an argv and a bash script, against the dangerous rules.
//!
//! Takes the commands of real agents where they are at hand (`../shared/cases/agent-commands.jsonl`), else the cases of the
//! tests. Also tells how many of the scripts that bash accepts are understood, and why the others are not. With
//! `BELLJAR_OPAQUE=N` the first N of those are printed too.

#[path = "table/mod.rs"]
mod table;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use belljar::id::ExecId;
use belljar::path::SandboxPath;
use belljar::policy::{Command, Digest, Policy, RuleText, Stdin};
use belljar::task::Unmatched;
use serde_json::Value;
use table::Row;

const ROUNDS: usize = 3;

fn main() -> anyhow::Result<()> {
    let root = env!("CARGO_MANIFEST_DIR");
    let rules = RuleText {
        name: "dangerous.rules".to_owned(),
        text: std::fs::read_to_string(format!("{root}/config/rules/dangerous.rules"))?,
    };
    let policy = Policy::from_texts(&[rules], Unmatched::Allow)?;
    let (scripts, source) = scripts(root)?;
    let argvs: Vec<Command> = scripts
        .iter()
        .filter_map(|(script, _)| shlex::split(script))
        .filter(|argv| (1..12).contains(&argv.len()) && argv.iter().all(|word| word.len() < 200))
        .map(command)
        .collect::<anyhow::Result<_>>()?;
    understood(
        &policy,
        scripts.iter().filter(|(_, right)| *right).map(|(script, _)| script),
    )?;
    let scripts: Vec<Command> = scripts
        .into_iter()
        .map(|(script, _)| command(vec!["bash".to_owned(), "-lc".to_owned(), script]))
        .collect::<anyhow::Result<_>>()?;
    println!("{source}: {} argvs, {} scripts", argvs.len(), scripts.len());
    let argvs = measure("judge argv", 2e-6, &policy, &argvs);
    let scripts = measure("judge bash script", 60e-6, &policy, &scripts);
    table::report("judge", &[argvs, scripts].concat())?;
    Ok(())
}

/// How many scripts are understood, and the reasons of the others by how often they hold.
fn understood<'s>(policy: &Policy, scripts: impl Iterator<Item = &'s String>) -> anyhow::Result<()> {
    let show: usize = std::env::var("BELLJAR_OPAQUE").map_or(Ok(0), |text| text.parse())?;
    let (mut all, mut reasons) = (0, BTreeMap::<&str, Vec<&str>>::new());
    for script in scripts {
        all += 1;
        let found = policy.explain(&command(vec!["bash".to_owned(), "-lc".to_owned(), script.clone()])?);
        if let Some(reason) = found.opaque_because {
            reasons.entry(reason).or_default().push(script);
        }
    }
    let opaque: usize = reasons.values().map(Vec::len).sum();
    println!(
        "understood {} of {all}: {:.2} %",
        all - opaque,
        100.0 * (all - opaque) as f64 / all as f64
    );
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, scripts)| std::cmp::Reverse(scripts.len()));
    for (reason, scripts) in reasons {
        println!("  {:>5} {reason}", scripts.len());
        for script in scripts.iter().take(show) {
            println!("        {script:?}");
        }
    }
    Ok(())
}

fn measure(name: &str, target: f64, policy: &Policy, commands: &[Command]) -> [Row; 2] {
    let place = Digest::of_bytes(b"a sandbox");
    let exec = ExecId::new();
    let mut times = Vec::with_capacity(commands.len() * ROUNDS);
    for _ in 0..ROUNDS {
        for command in commands {
            let start = Instant::now();
            black_box(policy.judge(exec, black_box(command), &place));
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    let at = |share: f64| {
        times
            .get(((times.len().saturating_sub(1)) as f64 * share) as usize)
            .copied()
    };
    [
        Row::seconds(format!("{name}, p50"), at(0.5)).bound(target),
        Row::seconds(format!("{name}, p99"), at(0.99)),
    ]
}

/// Scripts, with whether bash accepts each.
fn scripts(root: &str) -> anyhow::Result<(Vec<(String, bool)>, &'static str)> {
    for folder in ["../shared", "../../shared"] {
        if let Ok(text) = std::fs::read_to_string(format!("{root}/{folder}/cases/agent-commands.jsonl")) {
            let scripts = text
                .lines()
                .filter_map(|line| {
                    let line = serde_json::from_str::<Value>(line).ok()?;
                    Some((line["command"].as_str()?.to_owned(), line["bash_n_ok"] == true))
                })
                .collect();
            return Ok((scripts, "commands of real agents"));
        }
    }
    let text = std::fs::read_to_string(format!("{root}/tests/data/policy/bash_truth.jsonl"))?;
    let scripts = text
        .lines()
        .filter_map(|line| {
            let line = serde_json::from_str::<Value>(line).ok()?;
            Some((line["argv"][2].as_str()?.to_owned(), true))
        })
        .collect();
    Ok((scripts, "cases of the tests"))
}

fn command(argv: Vec<String>) -> anyhow::Result<Command> {
    Ok(Command {
        argv,
        cwd: SandboxPath::new("/workspace")?,
        env: BTreeMap::new(),
        stdin: Stdin::None,
        tty: None,
    })
}
