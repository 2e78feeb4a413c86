//! Programs that run other commands: found here, looked through, and what they run is listed.
//!
//! Where an option is not known, where the inner command begins is not known either, and that is opaque.

mod inputs;
mod languages;
mod prefixes;
mod remote;
mod shells;

use super::word::Fit;
use super::{Dialect, Fd, Redirect, Role, SimpleCommand, Walk, Word, builtins, git, interpreters};

use inputs::{fd, find, parallel, watch, xargs};
use languages::{command_options, sed};
use prefixes::{PREFIXES, env, flock, prefixed};
use remote::{ssh, ssh_option};
use shells::{foreign_shell, shell, substitute_user};

pub(super) use prefixes::{assignment, skip_options};
pub(super) use shells::from_input;

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

/// Whether a program that carries another is the image's own. `./env ls` may be anything, and must be allowed as itself.
pub(super) fn is_trusted(argv: &[Word]) -> bool {
    const FOLDERS: &[&str] = &[
        "/bin",
        "/sbin",
        "/usr/bin",
        "/usr/sbin",
        "/usr/local/bin",
        "/usr/local/sbin",
    ];
    argv.first().and_then(Word::value).is_some_and(|head| {
        head.rsplit_once('/')
            .is_none_or(|(folder, _)| FOLDERS.contains(&folder))
    })
}

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
        "zsh" | "fish" | "csh" | "tcsh" | "pwsh" | "powershell" | "nu" | "xonsh" => foreign_shell(walk, args),
        "bash.exe" | "sh.exe" => shell(walk, args, command, Dialect::Posix),
        "busybox" | "toybox" => {
            if args.is_empty() || args[0].value().is_some_and(|word| word.starts_with("--")) {
                return Found::role(Role::Runs);
            }
            carry(walk, args, command)
        }
        "su" | "runuser" | "sg" => substitute_user(walk, name, args),
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
        "unshare" | "nsenter" | "setpriv" if args.iter().all(|word| word.starts_with("-") == Fit::Yes) => {
            walk.opaque("a shell that reads what is typed");
            Found::role(Role::Runs)
        }
        "tmux" | "screen" | "zellij" => {
            walk.opaque("a terminal that runs shells of its own");
            Found::role(Role::Runs)
        }
        "script" if !args.iter().any(|word| word.value().is_some_and(is_script_command)) => {
            walk.opaque("a shell that reads what is typed");
            Found::role(Role::Runs)
        }
        "script" => {
            for (at, word) in args.iter().enumerate() {
                match word.value() {
                    Some(option) if option.starts_with("--") && is_script_command(option) => {
                        match (option.split_once('='), args.get(at + 1)) {
                            (Some((_, script)), _) => walk.nested(script, Dialect::Posix),
                            (None, Some(script)) => walk.script(script, Dialect::Posix),
                            (None, None) => walk.opaque("an option without its value"),
                        }
                    }
                    Some(option) if is_script_command(option) && !option.ends_with('c') => {
                        walk.opaque("an option of script that is not known");
                    }
                    Some(option) if is_script_command(option) => match args.get(at + 1) {
                        Some(script) => walk.script(script, Dialect::Posix),
                        None => walk.opaque("an option without its value"),
                    },
                    Some(_) => {}
                    None => walk.opaque("options of script that are not known"),
                }
            }
            Found::role(Role::Runs)
        }
        "ssh" => ssh(walk, args, command),
        "scp" | "sftp" => {
            option_scripts(walk, args, &["-S"], &[]);
            for pair in args.windows(2).filter(|pair| pair[0].value() == Some("-o")) {
                ssh_option(walk, Some(&pair[1]));
            }
            for word in args.iter().filter_map(|word| word.value()?.strip_prefix("-o")) {
                if !word.is_empty() {
                    ssh_option(walk, Some(&Word::known(word)));
                }
            }
            Found::role(Role::Runs)
        }
        "git" => git::look_through(walk, args),
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
                .filter_map(assignment)
                .filter(|(name, _)| name == "of")
                .map(|(_, file)| file)
                .collect(),
        },
        "curl" => downloads(args, 'o', "--output", "#fgGijklLnNpqRsSvJI0123456"),
        "wget" => {
            option_scripts(walk, args, &["--use-askpass"], &["--use-askpass="]);
            downloads(args, 'O', "--output-document", "bcdFhnNqrSvxEHkKmpL46")
        }
        "tar" | "gtar" => {
            archive(walk, args);
            Found::role(Role::Runs)
        }
        "sed" | "gsed" => sed(walk, args),
        "vi" | "vim" | "nvim" | "view" | "ex" | "gvim" | "vimdiff" => {
            command_options(walk, args, &["-c", "--cmd"], &["+"], &[]);
            Found::role(Role::Runs)
        }
        "gdb" | "lldb" => {
            let apart = &["-ex", "-iex", "--eval-command", "-o", "-O", "--one-line"];
            command_options(
                walk,
                args,
                apart,
                &["-ex=", "-iex=", "--eval-command="],
                &["shell ", "platform shell "],
            );
            Found::role(Role::Runs)
        }
        "expect" => {
            command_options(walk, args, &["-c"], &[], &["spawn ", "exec ", "system "]);
            Found::role(Role::Runs)
        }
        "man" => {
            option_scripts(
                walk,
                args,
                &["-P", "--pager", "-H", "--html"],
                &["--pager=", "--html=", "-P"],
            );
            Found::role(Role::Runs)
        }
        "split" => {
            option_scripts(walk, args, &["--filter"], &["--filter="]);
            Found::role(Role::Runs)
        }
        "zip" => {
            option_scripts(walk, args, &["-TT", "--unzip-command"], &["--unzip-command="]);
            Found::role(Role::Runs)
        }
        "rg" => {
            option_scripts(walk, args, &["--pre", "--hostname-bin"], &["--pre=", "--hostname-bin="]);
            Found::role(Role::Runs)
        }
        "ag" | "ack" => {
            option_scripts(walk, args, &["--pager"], &["--pager="]);
            Found::role(Role::Runs)
        }
        "tcpdump" => {
            option_scripts(walk, args, &["-z"], &[]);
            Found::role(Role::Runs)
        }
        "install" => {
            option_scripts(walk, args, &["--strip-program"], &["--strip-program="]);
            Found::role(Role::Runs)
        }
        "cpio" => {
            option_scripts(walk, args, &["--rsh-command"], &["--rsh-command="]);
            Found::role(Role::Runs)
        }
        "go" => {
            let (apart, glued) = (&["-toolexec", "-exec"], &["-toolexec=", "-exec="]);
            option_scripts(walk, args, apart, glued);
            Found::role(Role::Runs)
        }
        "gcc" | "g++" | "cc" | "c++" => {
            let wrapper = args.windows(2).find(|pair| pair[0].value() == Some("-wrapper"));
            if let Some(words) = wrapper.and_then(|pair| pair[1].value()) {
                let words = words.split(',').map(Word::known).collect();
                walk.run(words, Vec::new(), Vec::new());
            }
            Found::role(Role::Runs)
        }
        "nc" | "ncat" | "netcat" => {
            let apart = &["-e", "-c", "--exec", "--sh-exec"];
            option_scripts(walk, args, apart, &["--exec=", "--sh-exec="]);
            Found::role(Role::Runs)
        }
        "socat" => {
            for address in args.iter().filter_map(Word::value) {
                let (kind, script) = address.split_once(':').unwrap_or((address, ""));
                if ["exec", "system", "shell"]
                    .iter()
                    .any(|known| kind.eq_ignore_ascii_case(known))
                {
                    walk.nested(script.split(',').next().unwrap_or(script), Dialect::Posix);
                }
            }
            Found::role(Role::Runs)
        }
        "hyperfine" | "concurrently" | "pee" | "mispipe" => {
            for script in args
                .iter()
                .filter_map(Word::value)
                .filter(|word| !word.starts_with('-'))
            {
                walk.shadowed(script);
            }
            Found::role(Role::Runs)
        }
        "apt" | "apt-get" | "aptitude" | "cargo" => {
            if let Some(reason) = settings_that_run(name, args) {
                walk.opaque(reason);
            }
            Found::role(Role::Runs)
        }
        "psql" | "mysql" | "mariadb" | "sqlite3" | "ftp" | "gnuplot" => {
            let words = &["\\!", ".shell ", ".system ", "system ", "!"];
            for word in args.iter().filter_map(Word::value) {
                let script = words.iter().find_map(|start| word.trim_start().strip_prefix(start));
                if let Some(script) = script {
                    walk.shadowed(script.trim());
                }
            }
            Found {
                role: Role::Runs,
                writes: interpreters::look_through(walk, name, command),
            }
        }
        "less" | "more" | "most" => {
            command_options(walk, args, &[], &["+"], &[]);
            Found::role(Role::Runs)
        }
        "nix-shell" => {
            option_scripts(walk, args, &["--run", "--command"], &[]);
            Found::role(Role::Runs)
        }
        "sort" => {
            option_scripts(walk, args, &["--compress-program"], &["--compress-program="]);
            Found {
                role: Role::Runs,
                writes: outputs(args, &["-o", "--output"], &["--output="]),
            }
        }
        "make" | "gmake" => {
            // What its file says is the file's affair; these say it on the command line.
            let odd = |word: &Word| {
                let starts = |start| word.starts_with(start) != Fit::No && word.starts_with("-") != Fit::No;
                let shell = word.value().and_then(|word| word.strip_prefix("SHELL="));
                starts("--eval") && word.value().is_some()
                    || shell.is_some_and(|shell| !["/bin/sh", "/bin/bash", "sh", "bash"].contains(&shell))
            };
            if args.iter().any(odd) {
                walk.opaque("a setting of make that changes what it runs");
            }
            Found::role(Role::Runs)
        }
        "rsync" => {
            option_scripts(walk, args, &["-e", "--rsh"], &["--rsh=", "--rsync-path="]);
            Found::role(Role::Runs)
        }
        _ => Found {
            role: Role::Runs,
            writes: interpreters::look_through(walk, name, command),
        },
    }
}

/// Whether an option of `script` gives it a command: `-c`, `-qec`, `--command`.
fn is_script_command(option: &str) -> bool {
    match option.strip_prefix("--") {
        Some(long) => !long.is_empty() && "command".starts_with(long.split('=').next().unwrap_or(long)),
        None => option.starts_with('-') && option.contains('c'),
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
fn inherited(command: &SimpleCommand) -> Vec<Redirect> {
    command
        .redirects
        .iter()
        .filter(|redirect| redirect.fd == Fd::Input)
        .cloned()
        .collect()
}

fn archive(walk: &mut Walk, args: &[Word]) {
    option_scripts(
        walk,
        args,
        &[
            "-I",
            "--use-compress-program",
            "--to-command",
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
    for word in args.iter().filter_map(Word::value) {
        // Also as the next word, or as `--checkpoint-act=exec=…`.
        let action = match word.split_once("=exec=") {
            Some((option, action)) if option.starts_with("--checkpoint-") => Some(action),
            _ => word.strip_prefix("exec="),
        };
        if let Some(action) = action {
            walk.nested(action, Dialect::Posix);
        }
    }
}

/// Where a download goes: `-o f`, `-sSLo f`, `-of`, `--output=f`. `flags` are the letters that may stand before the one that
/// names the file.
fn downloads(args: &[Word], letter: char, long: &str, flags: &str) -> Found {
    let mut writes = Vec::new();
    for (at, word) in args.iter().enumerate() {
        let Some(option) = word.value().filter(|word| word.starts_with('-')) else {
            continue;
        };
        let glued = match option.strip_prefix(long) {
            Some("") => Some(""),
            Some(rest) => rest.strip_prefix('='),
            None => option[1..]
                .split_once(letter)
                .filter(|(before, _)| before.chars().all(|flag| flags.contains(flag)))
                .map(|(_, glued)| glued),
        };
        match glued {
            Some("") => writes.extend(args.get(at + 1).cloned()),
            Some(file) => writes.push(Word::known(file)),
            None => {}
        }
    }
    writes.retain(|file| file.value() != Some("-"));
    Found {
        role: Role::Runs,
        writes,
    }
}

/// Why a setting on the command line may run a command: `apt-get -o DPkg::Pre-Invoke=…`, `cargo --config build.rustc-wrapper=…`.
fn settings_that_run(name: &str, args: &[Word]) -> Option<&'static str> {
    let (options, keys): (&[&str], &[&str]) = match name {
        "cargo" => (
            &["--config"],
            &["wrapper", "runner", "linker", "rustc", "alias", "credential"],
        ),
        _ => (
            &["-o", "--option"],
            &["invoke", "command", "dir::bin", "dpkg::options", "proxy-auto"],
        ),
    };
    let given = args.iter().enumerate().filter_map(|(at, word)| {
        let text = word.value()?;
        match options.contains(&text) {
            true => args.get(at + 1).map(|value| value.text.as_str()),
            false => options.iter().find_map(|option| text.strip_prefix(option)),
        }
    });
    let runs = |setting: &str| {
        let setting = setting.to_ascii_lowercase();
        keys.iter().any(|key| setting.contains(key))
    };
    given
        .into_iter()
        .any(runs)
        .then_some("a setting that changes what a program runs")
}

/// Files that options name to be written, apart or glued on.
pub(super) fn outputs(args: &[Word], apart: &[&str], glued: &[&str]) -> Vec<Word> {
    let mut files = Vec::new();
    for (at, word) in args.iter().enumerate() {
        let Some(option) = word.value() else { continue };
        if apart.contains(&option) {
            files.extend(args.get(at + 1).cloned());
        } else if let Some(file) = glued.iter().find_map(|start| option.strip_prefix(start)) {
            files.push(Word::known(file));
        }
    }
    files
}

/// Options whose value is a command, apart or glued on. A long one may be cut short, as most programs allow.
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
        } else if let Some(value) = cut_short(option, apart, glued) {
            match (value, args.get(at + 1)) {
                (Some(script), _) => walk.nested(script, Dialect::Posix),
                (None, Some(script)) => walk.script(script, Dialect::Posix),
                (None, None) => {}
            }
        }
    }
}

/// `--compress-prog=x` for `--compress-program=x`: its value, where one is glued on.
fn cut_short<'o>(option: &'o str, apart: &[&str], glued: &[&str]) -> Option<Option<&'o str>> {
    let (name, value) = option
        .split_once('=')
        .map_or((option, None), |(name, value)| (name, Some(value)));
    let names = apart.iter().chain(glued).map(|known| known.trim_end_matches('='));
    let is_cut = name.len() > 4 && name.starts_with("--") && names.into_iter().any(|known| known.starts_with(name));
    is_cut.then_some(value)
}
