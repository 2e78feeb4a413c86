//! Programs that run other commands: found here, looked through, and what they run is listed.
//!
//! Where an option is not known, where the inner command begins is not known either, and that is opaque.

use super::word::{Fit, Unknown};
use super::{Dialect, Fields, Role, SimpleCommand, Walk, Word, builtins, environment, interpreters};

/// What looking through a command found.
pub(super) struct Found {
    pub role: Role,
    /// Files that the command is told to write, other than by redirect.
    pub writes: Vec<Word>,
}

impl Found {
    pub fn role(role: Role) -> Self {
        Self {
            role,
            writes: Vec::new(),
        }
    }
}

/// The options of a program that takes a command at its end.
struct Prefix {
    name: &'static str,
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

const PREFIXES: &[Prefix] = &[
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

pub(super) fn look_through(walk: &mut Walk, command: &SimpleCommand) -> Found {
    let Some(head) = command.argv.first() else {
        return Found::role(Role::Carries);
    };
    let Some(head) = head.value() else {
        walk.opaque("a command whose name is not known before it runs");
        return Found::role(Role::Runs);
    };
    if !head.contains('/')
        && let Some(found) = builtins::look_through(walk, head, command)
    {
        return found;
    }
    let name = head.rsplit('/').next().unwrap_or(head);
    let args = &command.argv[1..];
    if let Some(prefix) = PREFIXES.iter().find(|prefix| prefix.name == name) {
        return prefixed(walk, prefix, args, command);
    }
    match name {
        "env" => env(walk, args, command),
        "bash" | "rbash" => shell(walk, args, command, Dialect::Bash),
        "sh" | "dash" | "ash" | "ksh" | "mksh" => shell(walk, args, command, Dialect::Posix),
        "zsh" | "fish" | "csh" | "tcsh" | "pwsh" | "powershell" | "nu" | "xonsh" => foreign_shell(walk, name, args),
        "bash.exe" | "sh.exe" => shell(walk, args, command, Dialect::Posix),
        "busybox" | "toybox" => {
            if args.is_empty() || args[0].value().is_some_and(|word| word.starts_with("--")) {
                return Found::role(Role::Runs);
            }
            carry(walk, args, command)
        }
        "su" | "runuser" => substitute_user(walk, args),
        "xargs" => xargs(walk, args, command),
        "find" | "gfind" => find(walk, args),
        "fd" | "fdfind" => fd(walk, args),
        "parallel" => parallel(walk, args),
        "watch" => watch(walk, args),
        "entr" => {
            if let Some(at) = skip_options(args, "acdnprsxz", "", &[]) {
                carry_from(walk, args, at, command);
            } else {
                walk.opaque("options of entr that are not known");
            }
            Found::role(Role::Runs)
        }
        "flock" => flock(walk, args, command),
        "script" => {
            for (at, word) in args.iter().enumerate() {
                match word.value() {
                    Some("-c" | "-qc" | "-ec" | "-qec" | "-eqc" | "--command") => match args.get(at + 1) {
                        Some(script) => walk.script(script, Dialect::Posix),
                        None => walk.opaque("an option without its value"),
                    },
                    Some(_) => {}
                    None => walk.opaque("options of script that are not known"),
                }
            }
            Found::role(Role::Runs)
        }
        "ssh" => ssh(walk, args),
        "git" => super::git::look_through(walk, args),
        "tee" => Found {
            role: Role::Runs,
            writes: args
                .iter()
                .filter(|word| word.starts_with("-") != Fit::Yes)
                .cloned()
                .collect(),
        },
        "dd" => Found {
            role: Role::Runs,
            writes: args
                .iter()
                .filter_map(|word| word.value()?.strip_prefix("of=").map(Word::known))
                .collect(),
        },
        "curl" | "wget" => Found {
            role: Role::Runs,
            writes: args
                .windows(2)
                .filter(|pair| matches!(pair[0].value(), Some("-o" | "--output" | "-O" | "--output-document")))
                .filter(|pair| !(name == "curl" && pair[0].value() == Some("-O")))
                .filter(|pair| pair[1].value() != Some("-"))
                .map(|pair| pair[1].clone())
                .collect(),
        },
        "tar" | "gtar" => {
            archive(walk, args);
            Found::role(Role::Runs)
        }
        "rsync" => {
            option_scripts(walk, args, &["-e", "--rsh"], &["--rsh=", "--rsync-path="]);
            Found::role(Role::Runs)
        }
        _ => {
            interpreters::look_through(walk, name, args);
            Found::role(Role::Runs)
        }
    }
}

/// Lists `args` as a command of its own, with the redirects and variables that it inherits left to the outer one.
pub(super) fn carry(walk: &mut Walk, args: &[Word], command: &SimpleCommand) -> Found {
    if args.is_empty() {
        return Found::role(Role::Runs);
    }
    walk.run(args.to_vec(), command.env.clone(), inherited(command));
    Found::role(Role::Carries)
}

fn carry_from(walk: &mut Walk, args: &[Word], at: usize, command: &SimpleCommand) -> Found {
    carry(walk, args.get(at..).unwrap_or(&[]), command)
}

/// A here-document reaches the inner command: `sudo sh <<EOF`.
fn inherited(command: &SimpleCommand) -> Vec<super::Redirect> {
    command
        .redirects
        .iter()
        .filter(|redirect| redirect.operator.starts_with('<'))
        .cloned()
        .collect()
}

fn prefixed(walk: &mut Walk, prefix: &Prefix, args: &[Word], command: &SimpleCommand) -> Found {
    let Some(mut at) = skip_options(args, prefix.flags, prefix.values, prefix.long_values) else {
        walk.opaque("a wrapper whose options are not known");
        return Found::role(prefix.role);
    };
    if args[at..].iter().take(prefix.operands).any(|word| !word.is_single()) {
        walk.opaque("a wrapper whose operands are not known");
        return Found::role(prefix.role);
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
        return Found::role(Role::Runs);
    }
    carry_from(walk, args, at, command);
    Found::role(prefix.role)
}

/// Where the options of `args` end, or nothing where that is not sure.
pub(super) fn skip_options(args: &[Word], flags: &str, values: &str, long_values: &[&str]) -> Option<usize> {
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
fn takes_next(option: &str, flags: &str, values: &str, long_values: &[&str]) -> Option<bool> {
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
pub(super) fn assignment(word: &Word) -> Option<(String, Word)> {
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

fn env(walk: &mut Walk, args: &[Word], command: &SimpleCommand) -> Found {
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

/// A shell: its script is read, wherever it comes from; a script file is a program like any other.
fn shell(walk: &mut Walk, args: &[Word], command: &SimpleCommand, mut dialect: Dialect) -> Found {
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
        if args[at].value().is_some_and(|file| file.starts_with("/dev/fd/")) || args[at].text.starts_with("<(") {
            walk.opaque("a script from a substitution");
        }
        return Found::role(Role::Runs);
    }
    from_input(walk, command, dialect)
}

/// A script from standard input: the last redirect decides which.
pub(super) fn from_input(walk: &mut Walk, command: &SimpleCommand, dialect: Dialect) -> Found {
    let input = command
        .redirects
        .iter()
        .rev()
        .find(|redirect| redirect.operator.starts_with('<'));
    match input {
        Some(redirect) if redirect.operator == "<<<" => {
            let script = redirect.target.clone();
            walk.script(&script, dialect);
        }
        Some(super::Redirect { body: Some(slot), .. }) => walk.waiting.push((*slot, dialect)),
        // `bash < file` is `bash file`.
        Some(redirect)
            if redirect.operator == "<" && redirect.target.value().is_some_and(|file| !file.starts_with("/dev/")) => {}
        _ => walk.opaque("a shell that reads its script from a stream"),
    }
    Found::role(Role::Runs)
}

fn foreign_shell(walk: &mut Walk, name: &str, args: &[Word]) -> Found {
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
            // Read as if it were sh, for the rules against what is seen. Only the plainest text means the same everywhere.
            walk.script(word, Dialect::Posix);
            let plain = word.value().is_some_and(|text| {
                text.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b" ./_-,:&|;'\"\n".contains(&byte))
                    && !text
                        .split_ascii_whitespace()
                        .any(|word| word.starts_with("-:") || word.contains("!"))
            });
            if name != "zsh" || !plain {
                walk.opaque("a script of a shell whose language is not read");
            }
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

fn substitute_user(walk: &mut Walk, args: &[Word]) -> Found {
    let mut at = 0;
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

fn xargs(walk: &mut Walk, args: &[Word], command: &SimpleCommand) -> Found {
    const LONG: &[&str] = &[
        "arg-file",
        "delimiter",
        "max-args",
        "max-chars",
        "max-procs",
        "process-slot-var",
    ];
    let mut mark = None;
    let mut at = 0;
    // `-i`, `-e` and `-l` take a value only when it is glued on, and `-I` changes what follows.
    while let Some(option) = args.get(at).and_then(Word::value) {
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
        }
        _ => inner.push(made_up(Fields::Any)),
    }
    walk.run(inner, command.env.clone(), Vec::new());
    Found::role(Role::Carries)
}

fn find(walk: &mut Walk, args: &[Word]) -> Found {
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

fn fd(walk: &mut Walk, args: &[Word]) -> Found {
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

fn parallel(walk: &mut Walk, args: &[Word]) -> Found {
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
    joined(walk, &template, "commands of parallel that are not known");
    Found::role(Role::Runs)
}

/// Words that a program joins to a script for a shell.
fn joined(walk: &mut Walk, words: &[&Word], reason: &'static str) {
    let known: Option<Vec<&str>> = words.iter().map(|word| word.value()).collect();
    match known {
        // A `{` in the place of a command is what the program puts there.
        Some(known) if !known.first().is_some_and(|first| first.contains('{')) => {
            walk.nested(&known.join(" "), Dialect::Posix);
        }
        _ => walk.opaque(reason),
    }
}

fn watch(walk: &mut Walk, args: &[Word]) -> Found {
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

fn flock(walk: &mut Walk, args: &[Word], command: &SimpleCommand) -> Found {
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

fn ssh(walk: &mut Walk, args: &[Word]) -> Found {
    let mut at = 0;
    while let Some(word) = args.get(at) {
        let Some(option) = word.value() else {
            if word.starts_with("-") == Fit::No && word.is_single() {
                break;
            }
            walk.opaque("arguments of ssh that are not known");
            return Found::role(Role::Runs);
        };
        if !option.starts_with('-') {
            break;
        }
        at += 1;
        if option == "--" {
            break;
        }
        let Some(letter) = option[1..]
            .chars()
            .find(|letter| "BbcDEeFIiJLlmOopQRSWw".contains(*letter))
        else {
            continue;
        };
        let glued = option.split_once(letter).map_or("", |(_, rest)| rest);
        let value = if glued.is_empty() {
            at += 1;
            args.get(at - 1).cloned()
        } else {
            Some(Word::known(glued))
        };
        if letter == 'o' {
            ssh_option(walk, value.as_ref());
        }
    }
    let remote: Vec<&Word> = args.iter().skip(at + 1).collect();
    if !remote.is_empty() {
        joined(walk, &remote, "a command for another machine that is not known");
    }
    Found::role(Role::Runs)
}

fn ssh_option(walk: &mut Walk, option: Option<&Word>) {
    let Some(option) = option.and_then(Word::value) else {
        return walk.opaque("an option of ssh that is not known");
    };
    let (name, value) = option.split_once(['=', ' ']).unwrap_or((option, ""));
    match name.trim().to_ascii_lowercase().as_str() {
        "proxycommand" | "localcommand" | "knownhostscommand" => walk.nested(value, Dialect::Posix),
        "include" | "pkcs11provider" | "securitykeyprovider" => walk.opaque("an option of ssh that loads code"),
        _ => {}
    }
}

fn archive(walk: &mut Walk, args: &[Word]) {
    option_scripts(
        walk,
        args,
        &[
            "-I",
            "--use-compress-program",
            "--to-command",
            "--checkpoint-action",
            "-F",
            "--info-script",
            "--rsh-command",
        ],
        &[
            "--use-compress-program=",
            "--to-command=",
            "--info-script=",
            "--new-volume-script=",
            "--rsh-command=",
        ],
    );
    for word in args {
        if let Some(action) = word
            .value()
            .and_then(|word| word.strip_prefix("--checkpoint-action=exec="))
        {
            walk.nested(action, Dialect::Posix);
        }
    }
}

/// Options whose value is a command, apart or glued on.
pub(super) fn option_scripts(walk: &mut Walk, args: &[Word], apart: &[&str], glued: &[&str]) {
    for (at, word) in args.iter().enumerate() {
        let Some(option) = word.value() else {
            if glued.iter().any(|name| word.starts_with(name) == Fit::Yes) {
                walk.opaque("an option that holds an unknown command");
            }
            continue;
        };
        if apart.contains(&option) {
            if let Some(script) = args.get(at + 1) {
                walk.script(script, Dialect::Posix);
            }
        } else if let Some(script) = glued.iter().find_map(|name| option.strip_prefix(name)) {
            walk.nested(script, Dialect::Posix);
        }
    }
}
