//! Programs that run a command for each input: its last words, or those in the place of a mark, are not known.

use super::super::word::{Fit, Unknown};
use super::super::{Dialect, Fields, Role, SimpleCommand, Walk, Word};
use super::Found;
use super::prefixes::{skip_options, takes_next};

/// A word that the program makes up: a file name, a line of input.
fn made_up(fields: Fields) -> Word {
    Word {
        text: "{}".to_owned(),
        unknown: Some(Box::new(Unknown {
            prefix: String::new(),
            suffix: String::new(),
            fields,
        })),
    }
}

/// Puts what is not known in the place of `mark`.
fn replace(word: &Word, mark: &str) -> Word {
    if !word.text.contains(mark) {
        return word.clone();
    }
    let prefix = word.text.split(mark).next().unwrap_or("").to_owned();
    let suffix = word.text.rsplit(mark).next().unwrap_or("").to_owned();
    Word {
        text: word.text.clone(),
        unknown: Some(Box::new(match &word.unknown {
            None => Unknown {
                prefix,
                suffix,
                fields: Fields::One,
            },
            Some(unknown) => Unknown {
                prefix: String::new(),
                suffix: String::new(),
                fields: unknown.fields,
            },
        })),
    }
}

pub(super) fn xargs(walk: &mut Walk, args: &[Word], command: &SimpleCommand) -> Found {
    const LONG: &[&str] = &[
        "arg-file",
        "delimiter",
        "max-args",
        "max-chars",
        "max-procs",
        "process-slot-var",
    ];
    let mut mark = None;
    // After a mark, a number of lines or words for each command takes the mark's meaning away again.
    let mut counts = false;
    let mut at = 0;
    // `-i`, `-e` and `-l` take a value only when it is glued on, and `-I` changes what follows.
    while let Some(option) = args.get(at).and_then(Word::value) {
        let short = option.starts_with('-') && !option.starts_with("--") && option.contains(['l', 'L', 'n']);
        counts |= short || option.starts_with("--max-");
        if option == "-I" {
            mark = args.get(at + 1).and_then(Word::value).map(str::to_owned);
            if mark.is_none() {
                walk.opaque("a mark of xargs that is not known");
            }
            at += 2;
        } else if let Some(glued) = option.strip_prefix("-I").or(option.strip_prefix("--replace=")) {
            mark = Some(glued.to_owned());
            at += 1;
        } else if option == "-i" || option == "--replace" {
            mark = Some("{}".to_owned());
            at += 1;
        } else if option.starts_with("-i") || option.starts_with("-e") || option.starts_with("-l") {
            if let Some(glued) = option.strip_prefix("-i") {
                mark = Some(glued.to_owned());
            }
            at += 1;
        } else if option.starts_with('-') && option != "--" && option.len() > 1 {
            match takes_next(option, "0rtpxo", "adELnPs", LONG) {
                Some(next) if !next || args.get(at + 1).is_some_and(Word::is_single) => at += 1 + usize::from(next),
                _ => {
                    walk.opaque("an option of xargs that is not known");
                    return Found::role(Role::Carries);
                }
            }
        } else {
            at += usize::from(option == "--");
            break;
        }
    }
    let mut inner: Vec<Word> = args.get(at..).unwrap_or(&[]).to_vec();
    if inner.is_empty() {
        return Found::role(Role::Runs);
    }
    match mark {
        Some(mark) if !mark.is_empty() => {
            for word in &mut inner {
                *word = replace(word, &mark);
            }
            if counts {
                inner.push(made_up(Fields::Any));
            }
        }
        _ => inner.push(made_up(Fields::Any)),
    }
    walk.run(inner, command.env.clone(), Vec::new());
    Found::role(Role::Carries)
}

pub(super) fn find(walk: &mut Walk, args: &[Word]) -> Found {
    let mut found = Found::role(Role::Runs);
    let mut at = 0;
    while let Some(word) = args.get(at) {
        at += 1;
        let Some(option) = word.value() else {
            // It may hold `-exec` and all; a lone quoted one may be `-delete` at most.
            let value_of_a_test = at >= 2
                && args[at - 2].value().is_some_and(|before| {
                    before.starts_with('-') && !matches!(before, "-o" | "-a" | "-not" | "-H" | "-L" | "-P" | "-depth")
                });
            if word.fits("-exec") == Fit::Maybe && !word.is_single() {
                walk.opaque("arguments of find that may run commands");
            } else if word.fits("-delete") == Fit::Maybe && !value_of_a_test {
                walk.shadow(vec![Word::known("rm"), made_up(Fields::Any)]);
            }
            continue;
        };
        match option {
            "-exec" | "-execdir" | "-ok" | "-okdir" => {
                let mut inner = Vec::new();
                let mut closed = false;
                while let Some(word) = args.get(at) {
                    at += 1;
                    match word.value() {
                        Some(";") => closed = true,
                        Some("+") if inner.last().is_some_and(|last: &Word| last.text == "{}") => closed = true,
                        _ => inner.push(replace(word, "{}")),
                    }
                    if closed {
                        break;
                    }
                }
                if !inner.is_empty() {
                    walk.run(inner, Vec::new(), Vec::new());
                }
            }
            "-delete" => walk.shadow(vec![Word::known("rm"), made_up(Fields::Any)]),
            "-fprint" | "-fprint0" | "-fprintf" | "-fls" => {
                if let Some(file) = args.get(at) {
                    found.writes.push(file.clone());
                }
            }
            _ => {}
        }
    }
    found
}

pub(super) fn fd(walk: &mut Walk, args: &[Word]) -> Found {
    let start = args
        .iter()
        .position(|word| matches!(word.value(), Some("-x" | "-X" | "--exec" | "--exec-batch")));
    if let Some(start) = start {
        let inner: Vec<Word> = args[start + 1..]
            .iter()
            .take_while(|word| word.value() != Some(";"))
            .map(|word| {
                if word.text.contains('{') {
                    replace(word, "{")
                } else {
                    word.clone()
                }
            })
            .chain([made_up(Fields::Any)])
            .collect();
        if inner.len() > 1 {
            walk.run(inner, Vec::new(), Vec::new());
        }
    }
    Found::role(Role::Runs)
}

pub(super) fn parallel(walk: &mut Walk, args: &[Word]) -> Found {
    const LONG: &[&str] = &[
        "jobs", "joblog", "timeout", "retries", "delay", "results", "colsep", "halt", "arg-file",
    ];
    let Some(at) = skip_options(args, "0kmqtuvX", "aCIjLnNPS", LONG) else {
        walk.opaque("options of parallel that are not known");
        return Found::role(Role::Runs);
    };
    let template: Vec<&Word> = args[at..]
        .iter()
        .take_while(|word| !word.text.starts_with(":::"))
        .collect();
    if template.is_empty() {
        walk.opaque("commands that parallel reads");
        return Found::role(Role::Runs);
    }
    let known: Option<Vec<&str>> = template.iter().map(|word| word.value()).collect();
    let script = known.map(|words| words.join(" ")).and_then(|text| with_inputs(&text));
    match script {
        Some(script) => walk.nested(&script, Dialect::Posix),
        None => walk.opaque("commands of parallel that are not known"),
    }
    Found::role(Role::Runs)
}

/// A template with a variable in the place of each input: `rm {}`, `mv {1} {.}`; without a place the input comes last.
fn with_inputs(template: &str) -> Option<String> {
    if !template.contains('{') {
        return Some(format!("{template} \"$1\""));
    }
    // Within quotes an input becomes part of another script.
    if template.contains(['"', '\'', '\\']) {
        return None;
    }
    let mut script = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (_, after) = after.split_once('}')?;
        script.push_str(before);
        script.push_str("\"$1\"");
        rest = after;
    }
    script.push_str(rest);
    Some(script)
}

/// Words that a program joins to a script for a shell.
pub(super) fn joined(walk: &mut Walk, words: &[&Word], reason: &'static str) {
    let known: Option<Vec<&str>> = words.iter().map(|word| word.value()).collect();
    match known {
        Some(known) => walk.nested(&known.join(" "), Dialect::Posix),
        None => walk.opaque(reason),
    }
}

pub(super) fn watch(walk: &mut Walk, args: &[Word]) -> Found {
    match skip_options(args, "bcCdegprtwxf", "nqs", &["interval", "equexit", "shotsdir"]) {
        Some(at) if at < args.len() => {
            let words: Vec<&Word> = args[at..].iter().collect();
            joined(walk, &words, "a command of watch that is not known");
        }
        Some(_) => {}
        None => walk.opaque("options of watch that are not known"),
    }
    Found::role(Role::Runs)
}
