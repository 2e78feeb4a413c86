//! Shells: their script is read, wherever it comes from.

use super::super::word::Fit;
use super::super::{Dialect, Fd, Redirect, Role, SimpleCommand, Walk, Word};
use super::Found;

/// A shell: its script is read, wherever it comes from; a script file is a program like any other.
pub(super) fn shell(walk: &mut Walk, args: &[Word], command: &SimpleCommand, mut dialect: Dialect) -> Found {
    let mut script = false;
    let mut reads_input = false;
    let mut at = 0;
    while let Some(word) = args.get(at) {
        let Some(option) = word.value() else {
            // A script's file by a name that is not known, or an option.
            if !script && word.starts_with("-") == Fit::No && word.is_single() {
                return Found::role(Role::Runs);
            }
            walk.opaque("a shell whose options are not known");
            return Found::role(Role::Runs);
        };
        if option == "--" || option == "-" {
            at += 1;
            break;
        }
        let Some(letters) = option.strip_prefix('-').or(option.strip_prefix('+')) else {
            break;
        };
        at += 1;
        match letters {
            "-posix" => dialect = Dialect::Posix,
            "-login" | "-noprofile" | "-norc" | "-noediting" | "-verbose" | "-restricted" => {}
            "-version" | "-help" => return Found::role(Role::Runs),
            _ if letters.starts_with('-') || letters.is_empty() => {
                walk.opaque("an option of a shell that is not known");
                return Found::role(Role::Runs);
            }
            _ => {
                for letter in letters.chars() {
                    match letter {
                        'c' => script = true,
                        's' => reads_input = true,
                        'o' => {
                            let name = args.get(at).and_then(Word::value);
                            let harmless = [
                                "errexit",
                                "pipefail",
                                "nounset",
                                "xtrace",
                                "verbose",
                                "noglob",
                                "allexport",
                            ];
                            if !name.is_some_and(|name| harmless.contains(&name)) {
                                walk.opaque("an option of a shell that is not known");
                            }
                            at += 1;
                        }
                        'e' | 'u' | 'x' | 'v' | 'f' | 'a' | 'l' | 'r' | 'b' | 'h' | 'm' | 'p' | 'B' | 'C' | 'E'
                        | 'T' => {}
                        // -i reads start-up files and expands aliases, -O changes the grammar, -k the assignments.
                        _ => {
                            walk.opaque("an option of a shell that changes how it reads");
                        }
                    }
                }
            }
        }
    }
    if script {
        let Some(text) = args.get(at) else {
            return Found::role(Role::Runs);
        };
        walk.script(text, dialect);
        return Found::role(Role::Carries);
    }
    if !reads_input && at < args.len() {
        if matches!(args[at].value(), Some("/dev/stdin" | "/proc/self/fd/0" | "/dev/fd/0")) {
            return from_input(walk, command, dialect);
        }
        if args[at].text.contains("/fd/") || args[at].text.starts_with("<(") {
            walk.opaque("a script from a substitution");
        }
        return Found::role(Role::Runs);
    }
    from_input(walk, command, dialect)
}

/// A script from standard input: the last redirect decides which.
pub fn from_input(walk: &mut Walk, command: &SimpleCommand, dialect: Dialect) -> Found {
    let input = command.redirects.iter().rev().find(|redirect| redirect.fd == Fd::Input);
    match input {
        Some(redirect) if redirect.operator == "<<<" => {
            let script = redirect.target.clone();
            walk.script(&script, dialect);
        }
        Some(Redirect { body: Some(slot), .. }) => walk.waiting.push((*slot, dialect)),
        // `bash < file` is `bash file`.
        Some(redirect)
            if redirect.operator == "<" && redirect.target.value().is_some_and(|file| !file.starts_with("/dev/")) => {}
        _ => walk.opaque("a shell that reads its script from a stream"),
    }
    Found::role(Role::Runs)
}

pub(super) fn foreign_shell(walk: &mut Walk, args: &[Word]) -> Found {
    let script = args
        .iter()
        .position(|word| {
            word.value().is_some_and(|option| {
                (option.starts_with('-') && !option.starts_with("--") && option.contains('c'))
                    || matches!(option, "-Command" | "--command")
            })
        })
        .and_then(|at| args.get(at + 1));
    match script {
        Some(word) => {
            // Read as if it were sh, for the rules against what is seen; zsh alone has a dozen words that run the next one.
            walk.script(word, Dialect::Posix);
            walk.opaque("a script of a shell whose language is not read");
            Found::role(Role::Carries)
        }
        None => {
            if !args
                .iter()
                .any(|word| word.value().is_some_and(|word| !word.starts_with('-')))
            {
                walk.opaque("a shell that reads its script from a stream");
            }
            Found::role(Role::Runs)
        }
    }
}

pub(super) fn substitute_user(walk: &mut Walk, name: &str, args: &[Word]) -> Found {
    let mut at = 0;
    let usual = |shell: Option<&Word>| {
        let shell = shell.and_then(Word::value);
        shell.is_some_and(|shell| ["/bin/sh", "/bin/bash", "/usr/bin/bash", "/bin/dash"].contains(&shell))
    };
    for (at, option) in args
        .iter()
        .enumerate()
        .filter_map(|(at, word)| Some((at, word.value()?)))
    {
        let given = match option.strip_prefix("--shell").or(option.strip_prefix("-s")) {
            Some("") => args.get(at + 1).cloned(),
            Some(glued) => Some(Word::known(glued.trim_start_matches('='))),
            None => continue,
        };
        if !usual(given.as_ref()) {
            walk.opaque("a shell that su is told to use");
        }
    }
    // `sg GROUP 'rm x'`, with or without -c.
    if name == "sg" && args.get(1).is_some_and(|word| word.value() != Some("-c")) {
        walk.script(&args[1], Dialect::Posix);
        return Found::role(Role::Runs);
    }
    while let Some(word) = args.get(at) {
        let Some(option) = word.value() else {
            walk.opaque("arguments of su that are not known");
            return Found::role(Role::Runs);
        };
        if let Some(script) = option.strip_prefix("--command=") {
            walk.nested(script, Dialect::Posix);
            return Found::role(Role::Runs);
        }
        match option {
            "-c" | "--command" | "--session-command" | "-lc" => {
                match args.get(at + 1) {
                    Some(script) => walk.script(&script.clone(), Dialect::Posix),
                    None => walk.opaque("an option without its value"),
                }
                return Found::role(Role::Runs);
            }
            // runuser -u USER -- CMD
            "--" if args[..at]
                .iter()
                .any(|word| word.value().is_some_and(|word| word == "-u")) =>
            {
                let inner = args[at + 1..].to_vec();
                if !inner.is_empty() {
                    walk.run(inner, Vec::new(), Vec::new());
                }
                return Found::role(Role::Runs);
            }
            _ => at += 1,
        }
    }
    walk.opaque("a shell that reads what is typed");
    Found::role(Role::Runs)
}
