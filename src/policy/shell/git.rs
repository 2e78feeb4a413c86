//! git: its settings can name commands, and its global options hide which subcommand it is.

use super::interpreters::shadow_tree;
use super::programs::{Found, option_scripts, outputs};
use super::word::Fit;
use super::{Dialect, Role, Walk, Word};

/// Settings whose value git runs.
const COMMANDS: &[&str] = &[
    "core.askpass",
    "core.editor",
    "core.fsmonitor",
    "core.gitproxy",
    "core.pager",
    "core.sshcommand",
    "credential.helper",
    "diff.external",
    "gpg.program",
    "gpg.ssh.program",
    "interactive.difffilter",
    "sequence.editor",
    "uploadpack.packobjectshook",
    "web.browser",
];

/// Settings that name files or folders whose content git runs.
const LOADERS: &[&str] = &[
    "core.hookspath",
    "core.attributesfile",
    "core.worktree",
    "include.path",
    "init.templatedir",
];

pub(super) fn look_through(walk: &mut Walk, args: &[Word]) -> Found {
    let mut at = 0;
    while let Some(word) = args.get(at) {
        let Some(option) = word.value() else {
            // Which subcommand follows is not known; rules against any may apply, which a shadow of unknown words says.
            if word.starts_with("-") != Fit::No {
                walk.shadow(vec![Word::known("git"), unknown(word)]);
            }
            return Found::role(Role::Runs);
        };
        if !option.starts_with('-') {
            break;
        }
        at += 1;
        match option {
            "-c" => {
                setting(walk, args.get(at));
                at += 1;
            }
            "-C" | "--git-dir" | "--work-tree" | "--namespace" | "--super-prefix" | "--config-env" | "--exec-path"
            | "--attr-source" => {
                if matches!(option, "--config-env" | "--exec-path") {
                    walk.opaque("an option of git that changes what it runs");
                }
                at += 1;
            }
            _ if option.starts_with("--exec-path=") || option.starts_with("--config-env=") => {
                walk.opaque("an option of git that changes what it runs");
            }
            _ => {}
        }
    }
    let rest = args.get(at..).unwrap_or(&[]);
    if at > 0 && !rest.is_empty() {
        let mut plain = vec![Word::known("git")];
        plain.extend_from_slice(rest);
        walk.shadow(plain);
    }
    subcommand(walk, rest);
    for word in rest.iter().filter_map(|word| word.value()?.strip_prefix("ext::")) {
        shadow_tree(walk, |walk| walk.nested(word, Dialect::Posix));
    }
    Found {
        role: Role::Runs,
        writes: outputs(rest, &[], &["--output="]),
    }
}

fn unknown(word: &Word) -> Word {
    Word {
        text: word.text.clone(),
        unknown: Some(Box::new(super::Unknown {
            prefix: String::new(),
            suffix: String::new(),
            fields: super::Fields::Any,
        })),
    }
}

fn setting(walk: &mut Walk, word: Option<&Word>) {
    let Some(word) = word else { return };
    let known = match &word.unknown {
        None => word.text.as_str(),
        Some(unknown) => unknown.prefix.as_str(),
    };
    let Some((name, value)) = known.split_once('=') else {
        if word.value().is_none() {
            walk.opaque("a setting of git that is not known");
        }
        return;
    };
    let name = name.to_ascii_lowercase();
    let parts = (
        name.split('.').next().unwrap_or(""),
        name.rsplit('.').next().unwrap_or(""),
    );
    let command = COMMANDS.contains(&name.as_str())
        || matches!(
            parts,
            ("alias" | "pager", _)
                | ("credential", "helper")
                | ("diff", "command" | "textconv" | "external")
                | ("difftool" | "mergetool" | "browser" | "man", "cmd" | "path")
                | ("filter", "clean" | "smudge" | "process")
                | ("merge", "driver")
                | ("remote", "receivepack" | "uploadpack" | "vcs")
                | ("submodule", "update")
                | ("trailer", "command" | "cmd")
                | ("gpg", "program")
        );
    if command {
        if word.value().is_none() {
            return walk.opaque("a setting of git that holds an unknown command");
        }
        match (parts.0, value.strip_prefix('!')) {
            ("alias", None) => walk.opaque("an alias of git"),
            ("submodule", None) => {}
            ("core", _) if value == "true" || value == "false" => {}
            ("pager", _) if value == "true" || value == "false" => {}
            (_, Some(script)) => walk.nested(script, Dialect::Posix),
            (_, None) => walk.nested(value, Dialect::Posix),
        }
    } else if LOADERS.contains(&name.as_str()) || parts.0 == "includeif" {
        walk.opaque("a setting of git that loads what it runs");
    }
}

fn subcommand(walk: &mut Walk, rest: &[Word]) {
    let Some(name) = rest.first().and_then(Word::value) else {
        return;
    };
    let args = &rest[1..];
    match name {
        // What is set now runs later.
        "config" => {
            let words: Vec<&str> = args
                .iter()
                .filter_map(Word::value)
                .filter(|word| !word.starts_with('-'))
                .collect();
            if let [.., name, value] = words.as_slice() {
                let opaque = walk.opaque;
                let word = Word::known(format!("{name}={value}"));
                shadow_tree(walk, |walk| setting(walk, Some(&word)));
                walk.opaque = opaque;
            }
        }
        "rebase" => option_scripts(walk, args, &["-x", "--exec"], &["--exec="]),
        "bisect" if args.len() > 1 && args[0].value() == Some("run") => {
            walk.run(args[1..].to_vec(), Vec::new(), Vec::new());
        }
        "submodule" => {
            if let Some(at) = args.iter().position(|word| word.value() == Some("foreach")) {
                let inner: Vec<&Word> = args[at + 1..]
                    .iter()
                    .filter(|word| !matches!(word.value(), Some("--recursive" | "--quiet" | "-q")))
                    .collect();
                match inner.iter().map(|word| word.value()).collect::<Option<Vec<_>>>() {
                    Some(words) => walk.nested(&words.join(" "), Dialect::Posix),
                    None => walk.opaque("a command of git that is not known"),
                }
            }
        }
        "filter-branch" => option_scripts(
            walk,
            args,
            &[
                "--env-filter",
                "--tree-filter",
                "--index-filter",
                "--parent-filter",
                "--msg-filter",
                "--commit-filter",
                "--tag-name-filter",
                "--setup",
            ],
            &[],
        ),
        "difftool" => option_scripts(walk, args, &["-x", "--extcmd"], &["--extcmd="]),
        "grep" => option_scripts(walk, args, &[], &["--open-files-in-pager=", "-O"]),
        "fetch" | "clone" | "ls-remote" | "pull" | "push" | "fetch-pack" | "send-pack" | "archive" => option_scripts(
            walk,
            args,
            if name == "clone" {
                &["--upload-pack", "-u"]
            } else {
                &["--upload-pack", "--receive-pack", "--exec"]
            },
            &["--upload-pack=", "--receive-pack=", "--exec="],
        ),
        _ => {}
    }
    if name == "clone" {
        for pair in args.windows(2) {
            if matches!(pair[0].value(), Some("-c" | "--config")) {
                setting(walk, Some(&pair[1]));
            }
        }
    }
}
