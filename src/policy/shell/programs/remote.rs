//! Commands for other machines, and the local ones that a connection is made with.

use super::super::word::Fit;
use super::super::{Dialect, Role, SimpleCommand, Walk, Word};
use super::inputs::joined;
use super::{Found, from_input};

pub(super) fn ssh(walk: &mut Walk, args: &[Word], command: &SimpleCommand) -> Found {
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
        return Found::role(Role::Runs);
    }
    // A shell over there reads what it is sent; without a host there is none.
    if args.get(at).is_none() {
        return Found::role(Role::Runs);
    }
    from_input(walk, command, Dialect::Posix)
}

pub(super) fn ssh_option(walk: &mut Walk, option: Option<&Word>) {
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
