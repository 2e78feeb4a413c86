//! Programs that take a command at their end, behind options of their own: `timeout -k 5 10 cmd`.

use super::super::word::{Fit, Unknown};
use super::super::{Dialect, Role, SimpleCommand, Walk, Word, environment};
use super::{Found, carry_from};

/// The options of a program that takes a command at its end.
pub(super) struct Prefix {
    pub(super) name: &'static str,
    /// Letters of options without a value.
    flags: &'static str,
    /// Letters of options with one.
    values: &'static str,
    /// Long options whose value is the next word, where no `=` is given.
    long_values: &'static [&'static str],
    /// Words between the options and the command.
    operands: usize,
    role: Role,
}

const fn prefix(name: &'static str, flags: &'static str, values: &'static str) -> Prefix {
    Prefix {
        name,
        flags,
        values,
        long_values: &[],
        operands: 0,
        role: Role::Carries,
    }
}

pub(super) const PREFIXES: &[Prefix] = &[
    Prefix {
        long_values: &["adjustment"],
        ..prefix("nice", "0123456789", "n")
    },
    prefix("nohup", "", ""),
    prefix("setsid", "cfw", ""),
    prefix("unbuffer", "p", ""),
    prefix("fakeroot", "u", "lsib"),
    prefix("dbus-run-session", "", ""),
    Prefix {
        long_values: &["input", "output", "error"],
        ..prefix("stdbuf", "", "ioe")
    },
    Prefix {
        long_values: &["class", "classdata", "pid", "pgid", "uid"],
        ..prefix("ionice", "t", "cn")
    },
    Prefix {
        long_values: &["kill-after", "signal"],
        operands: 1,
        ..prefix("timeout", "vpf", "ks")
    },
    Prefix {
        long_values: &["format", "output"],
        ..prefix("time", "pvqa", "fo")
    },
    Prefix {
        operands: 1,
        ..prefix("taskset", "a", "")
    },
    Prefix {
        operands: 1,
        role: Role::Runs,
        long_values: &["groups", "userspec"],
        ..prefix("chroot", "", "")
    },
    Prefix {
        role: Role::Runs,
        ..prefix("strace", "fFqrtTvyCckdiZz", "oesapEuPISX")
    },
    Prefix {
        role: Role::Runs,
        ..prefix("ltrace", "fcCirStTL", "oesalnpuxFA")
    },
    Prefix {
        role: Role::Runs,
        long_values: &["user"],
        ..prefix("doas", "Lns", "aCu")
    },
    Prefix {
        role: Role::Runs,
        long_values: &[
            "chdir",
            "chroot",
            "close-from",
            "group",
            "host",
            "prompt",
            "role",
            "type",
            "user",
            "other-user",
            "command-timeout",
        ],
        ..prefix("sudo", "AbBEHikKlnNPSsvV", "CDghpRrTtUu")
    },
];

pub(super) fn prefixed(walk: &mut Walk, prefix: &Prefix, args: &[Word], command: &SimpleCommand) -> Found {
    let Some(mut at) = skip_options(args, prefix.flags, prefix.values, prefix.long_values) else {
        walk.opaque("a wrapper whose options are not known");
        return Found::role(prefix.role);
    };
    if args[at..].iter().take(prefix.operands).any(|word| !word.is_single()) {
        walk.opaque("a wrapper whose operands are not known");
        return Found::role(prefix.role);
    }
    if matches!(prefix.name, "strace" | "ltrace") && args[..at].iter().any(|word| word.text.contains(['|', '!'])) {
        walk.opaque("a trace that is piped to a command");
    }
    at = (at + prefix.operands).min(args.len());
    if prefix.name == "sudo" {
        while let Some(word) = args.get(at) {
            let Some((name, value)) = assignment(word) else { break };
            environment::weigh(walk, &name, Some(&value));
            at += 1;
        }
        let lone = args[..at]
            .iter()
            .filter_map(Word::value)
            .any(|option| option.starts_with('-') && !option.starts_with("--") && option.contains(['s', 'i']));
        if lone && at >= args.len() {
            walk.opaque("a shell that reads what is typed");
        }
    }
    if at >= args.len() {
        if prefix.name == "chroot" {
            walk.opaque("a shell that reads what is typed");
        }
        return Found::role(Role::Runs);
    }
    carry_from(walk, args, at, command);
    Found::role(prefix.role)
}

/// Where the options of `args` end, or nothing where that is not sure.
pub fn skip_options(args: &[Word], flags: &str, values: &str, long_values: &[&str]) -> Option<usize> {
    let mut at = 0;
    while let Some(word) = args.get(at) {
        let Some(option) = word.value() else {
            // `timeout "$t" cmd`: surely no option only where its start is known.
            return match word.starts_with("-") {
                Fit::No if word.is_single() => Some(at),
                _ => None,
            };
        };
        if option == "--" {
            return Some(at + 1);
        }
        if option == "-" || !option.starts_with('-') {
            return Some(at);
        }
        at += 1;
        if takes_next(option, flags, values, long_values)? {
            if !args.get(at)?.is_single() {
                return None;
            }
            at += 1;
        }
    }
    Some(at)
}

/// Whether an option's value is the next word; nothing for a letter that is not known.
pub(super) fn takes_next(option: &str, flags: &str, values: &str, long_values: &[&str]) -> Option<bool> {
    if let Some(long) = option.strip_prefix("--") {
        // GNU takes any clear beginning of a long option for the whole.
        return Some(!long.contains('=') && long_values.iter().any(|name| name.starts_with(long)));
    }
    let mut letters = option[1..].chars();
    while let Some(letter) = letters.next() {
        if values.contains(letter) {
            return Some(letters.as_str().is_empty());
        }
        if !flags.contains(letter) {
            return None;
        }
    }
    Some(false)
}

/// `NAME=value` as an argument: env, sudo, declare.
pub fn assignment(word: &Word) -> Option<(String, Word)> {
    let text = match &word.unknown {
        None => word.text.as_str(),
        Some(unknown) => unknown.prefix.as_str(),
    };
    let (name, value) = text.split_once('=')?;
    let value = match &word.unknown {
        None => Word::known(value),
        Some(unknown) => Word {
            text: word
                .text
                .split_once('=')
                .map_or(&*word.text, |(_, value)| value)
                .to_owned(),
            unknown: Some(Box::new(Unknown {
                prefix: value.to_owned(),
                suffix: unknown.suffix.clone(),
                fields: unknown.fields,
            })),
        },
    };
    Some((name.to_owned(), value))
}

pub(super) fn env(walk: &mut Walk, args: &[Word], command: &SimpleCommand) -> Found {
    let mut at = 0;
    let mut inner_env = command.env.clone();
    while let Some(word) = args.get(at) {
        let Some(option) = word.value() else { break };
        if let Some(script) = option.strip_prefix("-S").or(option.strip_prefix("--split-string=")) {
            let script = if script.is_empty() && option == "-S" {
                at += 1;
                args.get(at).and_then(Word::value).map(str::to_owned)
            } else {
                Some(script.to_owned())
            };
            // Its own little language; only plain words of it are read.
            let plain = script.filter(|script| !script.contains(['\\', '$', '"', '\'', '#']));
            let Some(plain) = plain else {
                walk.opaque("env -S with a text that is not plain");
                return Found::role(Role::Carries);
            };
            let mut words: Vec<Word> = plain.split_ascii_whitespace().map(Word::known).collect();
            words.extend_from_slice(&args[at + 1..]);
            let inner = SimpleCommand {
                env: inner_env,
                ..command.clone()
            };
            return env(walk, &words, &inner);
        }
        match option {
            "-" | "-i" | "-v" | "-0" | "-iv" | "-vi" | "--ignore-environment" | "--null" | "--debug" => at += 1,
            "-u" | "-C" | "-a" | "--unset" | "--chdir" | "--argv0" => at += 2,
            "--" => {
                at += 1;
                break;
            }
            _ if [
                "--unset=",
                "--chdir=",
                "--argv0=",
                "-u",
                "-C",
                "--block-signal",
                "--default-signal",
            ]
            .iter()
            .any(|known| option.starts_with(known)) =>
            {
                at += 1;
            }
            _ if option.starts_with('-') => {
                walk.opaque("an option of env that is not known");
                return Found::role(Role::Carries);
            }
            _ => break,
        }
    }
    while let Some(word) = args.get(at) {
        match assignment(word) {
            Some((name, value)) => {
                if !word.is_single() {
                    walk.opaque("an argument of env that may become several");
                }
                environment::weigh(walk, &name, Some(&value));
                inner_env.push((name, value));
                at += 1;
            }
            None if word.value().is_some() => break,
            None => {
                walk.opaque("an argument of env that may be the command");
                return Found::role(Role::Carries);
            }
        }
    }
    let inner = SimpleCommand {
        env: inner_env,
        ..command.clone()
    };
    carry_from(walk, args, at, &inner)
}

pub(super) fn flock(walk: &mut Walk, args: &[Word], command: &SimpleCommand) -> Found {
    let options = skip_options(args, "senuoFx", "wE", &["timeout", "wait", "conflict-exit-code"]);
    let Some(file) = options.filter(|at| args.get(*at).is_none_or(Word::is_single)) else {
        walk.opaque("options of flock that are not known");
        return Found::role(Role::Carries);
    };
    match args.get(file + 1).map(Word::value) {
        None => Found::role(Role::Runs),
        Some(Some("-c" | "--command")) => {
            match args.get(file + 2) {
                Some(script) => walk.script(script, Dialect::Posix),
                None => walk.opaque("an option without its value"),
            }
            Found::role(Role::Carries)
        }
        Some(_) => carry_from(walk, args, file + 1, command),
    }
}
