//! `belljar rules check` and `rules test`: what the gate would say, without running anything.
//!
//! `check` asks the same [`Policy`] that judges execs, under the same configuration and requirements, so both always agree: what
//! `run` would refuse to start is refused here too. Its exit code is 0 for a command that is allowed
//! or asked about (the JSON tells which) and 120 for one that is denied. `test` exits 0 where every file loads and all of
//! its examples hold; a fault of the rules is an error of belljar's, exit code 125.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::json;

use crate::path::{HostPath, SandboxPath};
use crate::policy::{Command, Explanation, Policy, RuleText, Stdin, Verdict};
use crate::task::spec::{BUILT_IN, WORKSPACE};
use crate::task::{Gate, Unmatched};

use super::flags::TaskArgs;

/// The exit code of a refusal.
const REFUSED: u8 = 120;
/// One line of a batch; an argv cannot be longer either.
const LINE_LIMIT: usize = 8 << 20;

#[derive(Debug, Args)]
pub struct RulesArgs {
    #[command(subcommand)]
    command: RulesCommand,
}

#[derive(Debug, Subcommand)]
enum RulesCommand {
    /// Says how a command is judged, by which rules, and how it is understood
    Check(CheckArgs),
    /// Loads files of rules and runs the examples in them
    Test(TestArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The task that the command would run in; its rules and its folder count
    #[arg(long, value_name = "SPEC")]
    spec: Option<PathBuf>,
    /// A file of rules, or builtin:dangerous; may be given many times, the strictest answer of all files counts
    #[arg(long = "rules", value_name = "FILE")]
    rules: Vec<PathBuf>,
    /// What follows for a command that no rule matches; else as configured
    #[arg(long, value_enum)]
    unmatched: Option<UnmatchedArg>,
    /// Answers in JSON
    #[arg(long)]
    json: bool,
    /// Reads a JSON object a line ({"id", "argv", "rules"?, "cwd"?, "env"?}) from FILE, or stdin for "-", and answers a line each
    #[arg(long, value_name = "FILE", conflicts_with = "argv")]
    batch: Option<PathBuf>,
    /// Whether the path of a program may stand for its name, as it does when execs are judged
    #[arg(long, value_name = "on|off", action = clap::ArgAction::Set, default_value_t = true, value_parser = clap::builder::BoolishValueParser::new())]
    resolve_host_executables: bool,
    /// The folder that the command would run in; else the task's, /workspace without one
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// The command
    #[arg(last = true, value_name = "CMD", required_unless_present = "batch")]
    argv: Vec<String>,
}

#[derive(Debug, Args)]
struct TestArgs {
    /// Answers in JSON
    #[arg(long)]
    json: bool,
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum UnmatchedArg {
    Allow,
    Ask,
    Deny,
}

impl UnmatchedArg {
    /// As the flag of `run` has it.
    fn word(self) -> &'static str {
        match self {
            UnmatchedArg::Allow => "allow",
            UnmatchedArg::Ask => "ask",
            UnmatchedArg::Deny => "deny",
        }
    }
}

/// Runs the subcommand on the process's own streams; the result is the exit code.
pub fn run(args: RulesArgs) -> anyhow::Result<u8> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let code = run_on(args, &mut io::stdin().lock(), &mut out)?;
    out.flush()?;
    Ok(code)
}

/// The same on streams of the caller's.
pub fn run_on(args: RulesArgs, input: &mut dyn BufRead, out: &mut dyn Write) -> anyhow::Result<u8> {
    match args.command {
        RulesCommand::Check(args) => check(&args, input, out),
        RulesCommand::Test(args) => test(&args, out),
    }
}

fn check(args: &CheckArgs, input: &mut dyn BufRead, out: &mut dyn Write) -> anyhow::Result<u8> {
    let (built_in, files): (Vec<&PathBuf>, Vec<&PathBuf>) = args
        .rules
        .iter()
        .partition(|file| file.to_string_lossy().starts_with(BUILT_IN));
    let task = TaskArgs {
        spec: args.spec.clone(),
        unmatched: args.unmatched.map(|unmatched| unmatched.word().to_owned()),
        rules: built_in
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect(),
        ..TaskArgs::default()
    };
    let task = task.admit()?.task;
    let loader = Loader {
        gate: task.gate,
        resolve: args.resolve_host_executables,
    };
    let mut gate = loader.gate.clone();
    gate.rules.extend(host_paths(&files)?);
    let policy = loader.finish(Policy::of_gate(&gate)?);
    let cwd = match (&args.cwd, &args.spec) {
        (Some(cwd), _) => SandboxPath::new(cwd).context("--cwd")?,
        (None, Some(_)) => task.workdir,
        (None, None) => SandboxPath::new(WORKSPACE).context("the usual folder")?,
    };
    let Some(batch) = &args.batch else {
        let command = command(args.argv.clone(), cwd, BTreeMap::new())?;
        let explanation = policy.explain(&command);
        if args.json {
            serde_json::to_writer(&mut *out, &answer(&explanation))?;
            writeln!(out)?;
        } else {
            show(&explanation, out)?;
        }
        return Ok(if explanation.judgement == Verdict::Deny {
            REFUSED
        } else {
            0
        });
    };
    let batch_of = Batch {
        loader,
        given: Rc::new(policy),
        cwd,
        others: HashMap::new(),
    };
    if batch == Path::new("-") {
        batch_of.answer(input, out)?;
    } else {
        let file = File::open(batch).with_context(|| format!("cannot open {}", batch.display()))?;
        batch_of.answer(&mut BufReader::new(file), out)?;
    }
    Ok(0)
}

#[derive(Debug, Clone)]
struct Loader {
    /// What the configuration, the requirements and the spec say, without `--rules`.
    gate: Gate,
    resolve: bool,
}

impl Loader {
    fn finish(&self, policy: Policy) -> Policy {
        if self.resolve {
            policy
        } else {
            policy.without_host_executables()
        }
    }
}

/// One line of a batch.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    argv: Vec<String>,
    #[serde(default)]
    rules: Option<Vec<String>>,
    #[serde(default)]
    cwd: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

struct Batch {
    loader: Loader,
    given: Rc<Policy>,
    cwd: SandboxPath,
    /// Rules that lines brought with them: often many lines bring the same.
    others: HashMap<Vec<String>, Result<Rc<Policy>, String>>,
}

impl Batch {
    fn answer(mut self, input: &mut dyn BufRead, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut line = Vec::new();
        let mut number = 0_u64;
        loop {
            line.clear();
            number += 1;
            let taken = io::Read::take(&mut *input, LINE_LIMIT as u64).read_until(b'\n', &mut line)?;
            if taken == 0 {
                return Ok(());
            }
            if taken == LINE_LIMIT && line.last() != Some(&b'\n') {
                skip_line(input)?;
                let error = format!("the line is longer than {LINE_LIMIT} bytes");
                writeln!(out, "{}", json!({"id": null, "line": number, "error": error}))?;
                out.flush()?;
                continue;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            serde_json::to_writer(&mut *out, &self.line(number, &line))?;
            writeln!(out)?;
            out.flush()?;
        }
    }

    fn line(&mut self, number: u64, line: &[u8]) -> serde_json::Value {
        let mut object: serde_json::Map<String, serde_json::Value> = match serde_json::from_slice(line) {
            Ok(object) => object,
            Err(error) => return json!({"id": null, "line": number, "error": format!("not a JSON object: {error}")}),
        };
        let id = object.remove("id").unwrap_or_default();
        match self.explain(object.into()) {
            Ok(explanation) => {
                let mut answer = answer(&explanation);
                answer["id"] = id;
                answer
            }
            Err(error) => json!({"id": id, "line": number, "error": format!("{error:#}")}),
        }
    }

    fn explain(&mut self, line: serde_json::Value) -> anyhow::Result<Explanation> {
        let line: Line = serde_json::from_value(line)?;
        let policy = match line.rules {
            None => self.given.clone(),
            Some(rules) => self.policy(rules)?,
        };
        let cwd = match line.cwd {
            Some(cwd) => SandboxPath::new(&cwd).context("cwd")?,
            None => self.cwd.clone(),
        };
        Ok(policy.explain(&command(line.argv, cwd, line.env)?))
    }

    fn policy(&mut self, rules: Vec<String>) -> anyhow::Result<Rc<Policy>> {
        if self.others.len() >= 256 {
            self.others.clear();
        }
        let loader = &self.loader;
        let load = |rules: &Vec<String>| {
            let texts: Vec<RuleText> = rules
                .iter()
                .enumerate()
                .map(|(index, text)| RuleText {
                    name: format!("rules[{index}]"),
                    text: text.clone(),
                })
                .collect();
            match Policy::of_gate_beside(texts, &loader.gate) {
                Ok(policy) => Ok(Rc::new(loader.finish(policy))),
                Err(error) => Err(error.to_string()),
            }
        };
        let policy = self.others.entry(rules).or_insert_with_key(load);
        policy.clone().map_err(anyhow::Error::msg)
    }
}

/// The answer in JSON. A rule without a justification says so, for whoever reads all rules alike.
fn answer(explanation: &Explanation) -> serde_json::Value {
    let mut answer = json!(explanation);
    for rule in answer["rules"].as_array_mut().into_iter().flatten() {
        if let Some(rule) = rule.as_object_mut() {
            rule.entry("justification").or_insert_with(|| json!(null));
        }
    }
    answer
}

/// Reads on to the end of a line, however long.
fn skip_line(input: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let (taken, done) = match end {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        input.consume(taken);
        if done {
            return Ok(());
        }
    }
}

fn command(argv: Vec<String>, cwd: SandboxPath, env: BTreeMap<String, String>) -> anyhow::Result<Command> {
    match argv.first() {
        None => bail!("argv must not be empty"),
        Some(program) if program.is_empty() && argv.len() > 1 => bail!("argv[0] must not be empty"),
        Some(_) => {}
    }
    if argv.iter().any(|word| word.contains('\0')) {
        bail!("argv must not contain a NUL");
    }
    Ok(Command {
        argv,
        cwd,
        env,
        stdin: Stdin::None,
        tty: None,
    })
}

fn host_paths(files: &[impl AsRef<Path>]) -> anyhow::Result<Vec<HostPath>> {
    files
        .iter()
        .map(|file| {
            let file = file.as_ref();
            let absolute = std::path::absolute(file).with_context(|| file.display().to_string())?;
            HostPath::new(absolute).with_context(|| file.display().to_string())
        })
        .collect()
}

fn show(explanation: &Explanation, out: &mut dyn Write) -> io::Result<()> {
    let judgement = match explanation.judgement {
        Verdict::Allow => "allow",
        Verdict::Ask => "ask",
        Verdict::Deny => "deny",
    };
    writeln!(out, "{judgement}: {}", printable(&explanation.reason()))?;
    for rule in &explanation.rules {
        writeln!(
            out,
            "  rule {} {}:{} {}{}",
            rule.id,
            rule.file,
            rule.line,
            format!("{:?}", rule.decision).to_lowercase(),
            rule.justification
                .as_ref()
                .map_or(String::new(), |why| format!(" ({})", printable(why))),
        )?;
    }
    if let Some(because) = explanation.opaque_because {
        writeln!(out, "  opaque: {because}")?;
    }
    for command in &explanation.commands {
        write!(out, "  runs")?;
        for (name, value) in &command.env {
            write!(out, " {}={}", printable(name), printable(&value.text))?;
        }
        for word in &command.argv {
            let quoted = match word.unknown {
                None => shlex::try_quote(&word.text).unwrap_or_default().into_owned(),
                Some(_) => format!("<{}>", word.text),
            };
            write!(out, " {}", printable(&quoted))?;
        }
        for redirect in &command.redirects {
            write!(out, " {} {}", redirect.operator, printable(&redirect.target.text))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// A command is foreign text: nothing of it may steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|letter| {
            let odd = letter.is_control()
                || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
            let escaped: Vec<char> = if odd { letter.escape_default().collect() } else { vec![letter] };
            escaped
        })
        .collect()
}

fn test(args: &TestArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let files = host_paths(&args.files)?;
    let loaded = Policy::load(&files, Unmatched::Allow);
    if args.json {
        let faults: Vec<serde_json::Value> = match &loaded {
            Ok(_) => Vec::new(),
            Err(error) => error
                .faults
                .iter()
                .map(
                    |fault| json!({"file": fault.file, "line": fault.line, "column": fault.column, "text": fault.text}),
                )
                .collect(),
        };
        let (rules, examples) = loaded.as_ref().map_or((0, 0), Policy::counts);
        writeln!(
            out,
            "{}",
            json!({"passed": loaded.is_ok(), "rules": rules, "examples": examples, "faults": faults})
        )?;
        return Ok(if loaded.is_ok() { 0 } else { 125 });
    }
    let (rules, examples) = loaded?.counts();
    writeln!(out, "{} files, {rules} rules, {examples} examples hold", files.len())?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        rules: RulesArgs,
    }

    fn rules(args: &[&str], input: &str) -> (anyhow::Result<u8>, String) {
        let cli = Cli::try_parse_from(["rules"].iter().chain(args)).unwrap();
        let mut out = Vec::new();
        let code = run_on(cli.rules, &mut input.as_bytes(), &mut out);
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_denied_command_exits_120_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.rules");
        std::fs::write(
            &file,
            "prefix_rule(pattern=[\"rm\"], decision=\"forbidden\", justification=\"use git clean\", id=\"no-rm\")",
        )
        .unwrap();
        let (code, out) = rules(
            &[
                "check",
                "--rules",
                file.to_str().unwrap(),
                "--",
                "bash",
                "-lc",
                "ls; rm x",
            ],
            "",
        );
        assert_eq!(code.unwrap(), 120);
        assert!(
            out.starts_with("deny: forbidden by rule no-rm (a.rules:1): use git clean\n"),
            "{out}"
        );
    }

    #[test]
    fn a_check_in_json_has_the_documented_shape() {
        let (code, out) = rules(
            &[
                "check",
                "--json",
                "--unmatched",
                "ask",
                "--",
                "sh",
                "-c",
                "A=1 ls >x \"$y\"",
            ],
            "",
        );
        assert_eq!(code.unwrap(), 0);
        let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            answer,
            json!({
                "judgement": "ask",
                "matched": null,
                "rules": [],
                "opaque": false,
                "commands": [
                    {"argv": ["sh", "-c", "A=1 ls >x \"$y\""], "redirects": [], "env": {}, "role": "carries"},
                    {
                        "argv": ["ls", "\"$y\""],
                        "redirects": [{"operator": ">", "target": "x"}],
                        "env": {"A": "1"},
                        "unknown": [1],
                    },
                ],
            })
        );
    }

    #[test]
    fn a_batch_answers_every_line_and_survives_bad_ones() {
        let input = concat!(
            "{\"id\": 1, \"argv\": [\"rm\", \"x\"], \"rules\": [\"prefix_rule(pattern=['rm'], decision='forbidden')\"]}\n",
            "{\"id\": \"two\", \"argv\": []}\n",
            "nonsense\n",
            "{\"id\": 4, \"argv\": [\"ls\"], \"rules\": [\"prefix_rule(\"]}\n",
            "{\"id\": 5, \"argv\": [\"ls\"]}\n",
        );
        let (code, out) = rules(&["check", "--batch", "-"], input);
        assert_eq!(code.unwrap(), 0);
        let answers: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let ids: Vec<_> = answers.iter().map(|answer| answer["id"].clone()).collect();
        assert_eq!(ids, [json!(1), json!("two"), json!(null), json!(4), json!(5)]);
        assert_eq!(answers[0]["judgement"], "deny");
        assert_eq!(answers[1]["error"], "argv must not be empty");
        assert!(
            answers[3]["error"].as_str().unwrap().starts_with("rules[0]:1:"),
            "{}",
            answers[3]
        );
        assert_eq!(answers[4]["judgement"], "allow");
    }

    #[test]
    fn examples_that_do_not_hold_fail_the_test_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.rules");
        std::fs::write(
            &file,
            "\nprefix_rule(pattern=[\"ls\"], match=[\"la\"], not_match=[\"ls -l\"])",
        )
        .unwrap();
        let (code, _) = rules(&["test", file.to_str().unwrap()], "");
        let error = code.unwrap_err().to_string();
        let path = file.display();
        assert_eq!(
            error,
            format!(
                "{path}:2:1: the example of not_match \"ls -l\" matches the rule\n\
                 {path}:2:1: the example of match \"la\" does not match the rule"
            )
        );
    }
}
