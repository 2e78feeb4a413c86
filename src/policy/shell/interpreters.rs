//! Programs that run what they are given in ways of their own: code on the command line (`python -c`, `perl -e`, `awk`), or a
//! command in another world (`uv run`, `docker exec`). What is plainly seen there is listed as a shadow, for the rules
//! against it. More than that is the program's own affair, as with a file.

use super::word::Fit;
use super::{Dialect, Fd, Redirect, SimpleCommand, Walk, Word};

/// Calls that take a command.
const CALLS: &[&str] = &[
    "system",
    "popen",
    "Popen",
    "run",
    "call",
    "check_call",
    "check_output",
    "getoutput",
    "getstatusoutput",
    "exec",
    "execSync",
    "execFileSync",
    "spawn",
    "spawnSync",
    "execvp",
    "execlp",
    "shell_exec",
    "passthru",
    "spawnvp",
    "spawnlp",
];

/// Lists what is seen; the answer is the files that the code writes.
pub(super) fn look_through(walk: &mut Walk, name: &str, command: &SimpleCommand) -> Vec<Word> {
    let args = &command.argv[1..];
    let language = name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    let (options, bare): (&[&str], bool) = match language {
        "python" | "pypy" => (&["-c"], false),
        "perl" | "ruby" => (&["-e", "-E"], false),
        "node" | "nodejs" | "bun" => (&["-e", "--eval", "-p", "--print"], false),
        "deno" => (&["eval"], false),
        "php" => (&["-r"], false),
        "lua" | "luajit" | "Rscript" | "R" | "julia" | "osascript" | "elixir" | "gnuplot" | "ghc" => (&["-e"], false),
        "emacs" | "octave" | "sbcl" => (&["--eval", "-eval", "--execute"], false),
        "erl" => (&["-eval"], false),
        "guile" => (&["-c"], false),
        "swipl" => (&["-g"], false),
        "awk" | "gawk" | "mawk" | "nawk" => (&[], true),
        _ => {
            runner(walk, name, args);
            return Vec::new();
        }
    };
    let mut writes = Vec::new();
    let mut coded = false;
    for (at, word) in args.iter().enumerate() {
        let code = at > 0 && args[at - 1].value().is_some_and(|before| takes_code(options, before));
        coded |= code;
        let Some(text) = word.value() else {
            // `python -c "$x"` is as `bash -c "$x"`; with a part that is known it is what it says it is.
            if code && word.unknown.as_ref().is_some_and(|unknown| unknown.prefix.is_empty()) {
                walk.opaque("code that is put together when it runs");
            }
            continue;
        };
        let glued = options
            .iter()
            .find_map(|option| text.strip_prefix(option))
            .filter(|code| !code.is_empty());
        if code || bare {
            calls(walk, text);
        } else if let Some(text) = glued {
            calls(walk, text);
        }
        if bare {
            awk(walk, text, &mut writes);
        }
    }
    let from_input = !bare && !coded && args.iter().all(|word| word.value() == Some("-"));
    let script = args.iter().find(|word| word.starts_with("-") != Fit::Yes);
    let made = |word: &Word| word.text.starts_with("<(");
    if !coded && !bare && script.is_some_and(made) {
        walk.opaque("code from a substitution");
    }
    let input = command.redirects.iter().rev().find(|redirect| redirect.fd == Fd::Input);
    match input {
        Some(Redirect { body: Some(slot), .. }) if from_input => walk.codes.push(*slot),
        Some(redirect) if from_input && redirect.operator == "<<<" => {
            if let Some(text) = redirect.target.clone().value() {
                calls(walk, text);
            }
        }
        Some(redirect) if from_input && made(&redirect.target) => walk.opaque("code from a substitution"),
        // As with a shell: what comes down the pipe has nobody read.
        None if from_input && walk.piped && !matches!(language, "emacs" | "gnuplot") => {
            walk.opaque("an interpreter that reads its code from a stream");
        }
        _ => {}
    }
    writes
}

/// Whether the word behind this option is code: `-c`, and as the last letter of a cluster, `-uc`, `-lane`.
fn takes_code(options: &[&str], option: &str) -> bool {
    options.contains(&option)
        || option.starts_with('-')
            && !option.starts_with("--")
            && option[1..].bytes().all(|letter| letter.is_ascii_alphanumeric())
            && option
                .chars()
                .last()
                .is_some_and(|last| options.iter().any(|known| known.len() == 2 && known.ends_with(last)))
}

/// awk's own ways: `print | "cmd"`, `"cmd" | getline` and `print > "file"`.
fn awk(walk: &mut Walk, code: &str, writes: &mut Vec<Word>) {
    let mut rest = code;
    let mut before = "";
    while let Some(at) = rest.find('"') {
        let lead = if at == 0 { before } else { &rest[..at] };
        let Some((text, after)) = string(&rest[at..]) else {
            return;
        };
        let lead = lead.trim_end();
        let read = after
            .trim_start()
            .strip_prefix('|')
            .is_some_and(|after| after.trim_start_matches(['&', ' ']).starts_with("getline"));
        if read || lead.ends_with('|') || lead.ends_with("|&") {
            let opaque = walk.opaque;
            shadow_tree(walk, |walk| walk.nested(&text, Dialect::Posix));
            walk.opaque = opaque;
        } else if lead.ends_with('>') && !text.starts_with("/dev/std") {
            writes.push(Word::known(text));
        }
        before = "";
        rest = after;
    }
}

/// Programs that run the command behind this word of theirs; none where the command follows the name itself.
const RUNNERS: &[(&str, &[&str])] = &[
    ("alacritty", &["-e", "--command"]),
    ("asdf", &["exec"]),
    ("aws-vault", &["exec"]),
    ("bundle", &["exec"]),
    ("bunx", &[]),
    ("bwrap", &[]),
    ("capsh", &["--"]),
    ("catchsegv", &[]),
    ("cgexec", &[]),
    ("chpst", &[]),
    ("chronic", &[]),
    ("chrt", &[]),
    ("cmake", &["-E"]),
    ("conda", &["run"]),
    ("cpulimit", &[]),
    ("cross-env", &[]),
    ("daemonize", &[]),
    ("dbus-launch", &[]),
    ("direnv", &["exec"]),
    ("docker", &["exec", "run"]),
    ("docker-compose", &["exec", "run"]),
    ("doppler", &["run"]),
    ("dotenv", &[]),
    ("dotenvx", &["run"]),
    ("eatmydata", &[]),
    ("fakechroot", &[]),
    ("faketime", &[]),
    ("firejail", &[]),
    ("gnome-terminal", &["--", "-e", "-x"]),
    ("gosu", &[]),
    ("hatch", &["run"]),
    ("ifne", &[]),
    ("ip", &["exec"]),
    ("konsole", &["-e"]),
    ("kubectl", &["exec"]),
    ("linux32", &[]),
    ("linux64", &[]),
    ("mamba", &["run"]),
    ("mise", &["exec", "x"]),
    ("nerdctl", &["exec", "run"]),
    ("nodemon", &["--exec", "-x"]),
    ("npm", &["exec", "x"]),
    ("npx", &[]),
    ("nsenter", &[]),
    ("numactl", &[]),
    ("op", &["run"]),
    ("pdm", &["run"]),
    ("perf", &[]),
    ("pipenv", &["run"]),
    ("pipx", &["run"]),
    ("pixi", &["run"]),
    ("pkexec", &[]),
    ("pnpm", &["exec", "dlx"]),
    ("podman", &["exec", "run"]),
    ("poetry", &["run"]),
    ("prlimit", &[]),
    ("proot", &[]),
    ("proxychains", &[]),
    ("proxychains4", &[]),
    ("pyenv", &["exec"]),
    ("rbenv", &["exec"]),
    ("rlwrap", &[]),
    ("rr", &["record"]),
    ("run0", &[]),
    ("runcon", &[]),
    ("rustup", &["run"]),
    ("rye", &["run"]),
    ("schroot", &[]),
    ("setarch", &[]),
    ("setpriv", &[]),
    ("setuidgid", &[]),
    ("softlimit", &[]),
    ("start-stop-daemon", &["--exec", "-x", "--startas", "-a"]),
    ("su-exec", &[]),
    ("systemd-nspawn", &[]),
    ("systemd-run", &[]),
    ("torify", &[]),
    ("torsocks", &[]),
    ("trickle", &[]),
    ("tsocks", &[]),
    ("unshare", &[]),
    ("uv", &["run"]),
    ("uvx", &[]),
    ("valgrind", &[]),
    ("watchexec", &[]),
    ("wine", &[]),
    ("x-terminal-emulator", &["-e"]),
    ("xterm", &["-e"]),
    ("xvfb-run", &[]),
    ("yarn", &["exec", "dlx"]),
];

/// Their options are many and change, so each word that may begin the command counts as one that does.
fn runner(walk: &mut Walk, name: &str, args: &[Word]) {
    // Each level multiplies: nobody nests them, but for cost.
    let starts_looked_at = match walk.runners {
        0 => 12,
        1 => 4,
        _ => return,
    };
    // The dynamic loader starts what it is given, under whatever name a C library gives it.
    let loader = name == "ld.so" || name.starts_with("ld-linux") || name.starts_with("ld-musl");
    let words = match RUNNERS.iter().find(|(runner, _)| *runner == name) {
        Some((_, words)) => *words,
        None if loader => &[],
        None => return,
    };
    let from = match words {
        [] => 0,
        _ => match args
            .iter()
            .position(|word| word.value().is_some_and(|word| words.contains(&word)))
        {
            Some(at) => at + 1,
            None => return,
        },
    };
    let starts = (from..args.len()).filter(|at| args[*at].value().is_some_and(|word| !word.starts_with('-')));
    walk.runners += 1;
    // `npx -c 'rm x'`, `xterm -e 'rm x'`: a script in one word.
    let scripts = (from..args.len()).filter_map(|at| args[at].value().filter(|word| word.contains(' ')));
    for script in scripts.take(starts_looked_at) {
        let opaque = walk.opaque;
        shadow_tree(walk, |walk| walk.nested(script, Dialect::Posix));
        walk.opaque = opaque;
    }
    for at in starts.take(starts_looked_at) {
        // What cannot be read there makes nothing here unknown: the program itself is listed.
        let opaque = walk.opaque;
        shadow_tree(walk, |walk| walk.run(args[at..].to_vec(), Vec::new(), Vec::new()));
        walk.opaque = opaque;
    }
    walk.runners -= 1;
}

/// Calls and strings in code that run what they are given: `system("x")`, `system "x"`, `` `x` ``.
pub(super) fn calls(walk: &mut Walk, code: &str) {
    let mut rest = code;
    for name in ["system", "exec", "shell-command"] {
        let found = code.match_indices(name).filter_map(|(at, _)| {
            let after = code[at + name.len()..].trim_start_matches(' ');
            after.starts_with(['"', '\'']).then(|| string(after)).flatten()
        });
        for (script, _) in found {
            shadow_tree(walk, |walk| walk.nested(&script, Dialect::Posix));
        }
    }
    let mut quotes = code.split('`').skip(1);
    // In Python and JavaScript these are something else; a shadow only adds to what rules may match.
    while let (Some(script), Some(_)) = (quotes.next(), quotes.next()) {
        let opaque = walk.opaque;
        shadow_tree(walk, |walk| walk.nested(script, Dialect::Posix));
        walk.opaque = opaque;
    }
    while let Some(at) = rest.find('(') {
        let name = rest[..at]
            .trim_end()
            .rsplit(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
            .next()
            .unwrap_or("");
        let of_lua = rest[..at].trim_end().ends_with("os.execute");
        rest = &rest[at + 1..];
        if !CALLS.contains(&name) && !of_lua {
            continue;
        }
        let argument = rest.trim_start();
        if let Some(list) = argument.strip_prefix('[') {
            let argv = strings(list);
            if !argv.is_empty() {
                shadow_tree(walk, |walk| walk.run(argv, Vec::new(), Vec::new()));
            }
        } else if let Some((script, _)) = string(argument) {
            shadow_tree(walk, |walk| walk.nested(&script, Dialect::Posix));
        }
    }
}

/// Lists what `list` lists as shadows: seen in code that may never run.
pub(super) fn shadow_tree(walk: &mut Walk, list: impl FnOnce(&mut Walk)) {
    let from = walk.commands.len();
    list(walk);
    for command in &mut walk.commands[from..] {
        command.role = super::Role::Shadow;
    }
}

/// The string literals of a list up to its end or to what is no literal.
fn strings(mut list: &str) -> Vec<Word> {
    let mut words = Vec::new();
    loop {
        list = list.trim_start_matches([' ', ',', '\n', '\t']);
        let Some((text, rest)) = string(list) else { return words };
        words.push(Word::known(text));
        list = rest;
    }
}

/// A string literal at the start of `code`, with the commonest escapes, and what follows.
fn string(code: &str) -> Option<(String, &str)> {
    let code = code.trim_start_matches(['r', 'b', 'f', 'u']);
    let quote = code
        .chars()
        .next()
        .filter(|letter| matches!(letter, '"' | '\'' | '`'))?;
    let mut text = String::new();
    let mut letters = code.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => match letters.next()?.1 {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                other => text.push(other),
            },
            _ if letter == quote => return Some((text, &code[at + 1..])),
            _ => text.push(letter),
        }
    }
    None
}
