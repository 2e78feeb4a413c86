//! Programs that run what they are given in ways of their own: code on the command line (`python -c`, `perl -e`, `awk`), or a
//! command in another world (`uv run`, `docker exec`). What is plainly seen there is listed as a shadow, for the rules
//! against it. More than that is the program's own affair, as with a file.

use super::{Dialect, Walk, Word};

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

pub(super) fn look_through(walk: &mut Walk, name: &str, args: &[Word]) {
    let (options, bare): (&[&str], bool) =
        match name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '.') {
            "python" | "pypy" => (&["-c"], false),
            "perl" | "ruby" => (&["-e", "-E", "-ne", "-pe", "-lane", "-nle", "-i"], false),
            "node" | "nodejs" | "bun" => (&["-e", "--eval", "-p", "--print"], false),
            "deno" => (&["eval"], false),
            "php" => (&["-r"], false),
            "lua" | "Rscript" | "julia" | "osascript" => (&["-e"], false),
            "awk" | "gawk" | "mawk" | "nawk" => (&[], true),
            _ => return runner(walk, name, args),
        };
    for (at, word) in args.iter().enumerate() {
        let Some(text) = word.value() else { continue };
        let code = at > 0 && options.iter().any(|option| args[at - 1].value() == Some(option));
        let glued = options
            .iter()
            .find_map(|option| text.strip_prefix(option))
            .filter(|code| !code.is_empty());
        if code || bare {
            calls(walk, text);
        } else if let Some(text) = glued {
            calls(walk, text);
        }
    }
}

/// Programs that run the command behind this word of theirs; none where the command follows the name itself.
const RUNNERS: &[(&str, &[&str])] = &[
    ("bundle", &["exec"]),
    ("conda", &["run"]),
    ("docker", &["exec", "run"]),
    ("hatch", &["run"]),
    ("kubectl", &["exec"]),
    ("mamba", &["run"]),
    ("npx", &[]),
    ("pdm", &["run"]),
    ("pipenv", &["run"]),
    ("pnpm", &["exec", "dlx"]),
    ("podman", &["exec", "run"]),
    ("poetry", &["run"]),
    ("rustup", &["run"]),
    ("rye", &["run"]),
    ("setpriv", &[]),
    ("systemd-run", &[]),
    ("unshare", &[]),
    ("uv", &["run"]),
    ("uvx", &[]),
    ("valgrind", &[]),
    ("xvfb-run", &[]),
];

/// Their options are many and change, so each word that may begin the command counts as one that does.
fn runner(walk: &mut Walk, name: &str, args: &[Word]) {
    const STARTS: usize = 6;
    // Each level multiplies: nobody nests them, but for cost.
    const NESTED: u32 = 2;
    if walk.runners >= NESTED {
        return;
    }
    let Some((_, words)) = RUNNERS.iter().find(|(runner, _)| *runner == name) else {
        return;
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
    for at in starts.take(STARTS) {
        // What cannot be read there makes nothing here unknown: the program itself is listed.
        let opaque = walk.opaque;
        shadow_tree(walk, |walk| walk.run(args[at..].to_vec(), Vec::new(), Vec::new()));
        walk.opaque = opaque;
    }
    walk.runners -= 1;
}

fn calls(walk: &mut Walk, code: &str) {
    let mut rest = code;
    while let Some(at) = rest.find('(') {
        let name = rest[..at]
            .trim_end()
            .rsplit(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
            .next()
            .unwrap_or("");
        rest = &rest[at + 1..];
        if !CALLS.contains(&name) {
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
fn shadow_tree(walk: &mut Walk, list: impl FnOnce(&mut Walk)) {
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
