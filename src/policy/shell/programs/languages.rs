//! Programs with a little language of their own that can run commands and write files: sed, editors, debuggers. What it plainly
//! says is listed as a shadow, for the rules against it; what it makes up as it goes is opaque.

use super::super::{Dialect, Role, Walk, Word, interpreters};
use super::Found;

/// sed: `e` runs a command, `s///e` runs what was edited, `w` and `s///w` write a file.
pub(super) fn sed(walk: &mut Walk, args: &[Word]) -> Found {
    let mut found = Found::role(Role::Runs);
    let mut scripts: Vec<&str> = Vec::new();
    let (mut given, mut first) = (false, None);
    let mut at = 0;
    while let Some(word) = args.get(at) {
        at += 1;
        let Some(option) = word.value() else {
            first = first.or(Some(word));
            continue;
        };
        let value = |at: usize| args.get(at).and_then(Word::value);
        if let Some(long) = option.strip_prefix("--") {
            let (name, glued) = long
                .split_once('=')
                .map_or((long, None), |(name, glued)| (name, Some(glued)));
            if name.len() > 1 && "expression".starts_with(name) {
                given = true;
                scripts.extend(glued.or_else(|| value(at)));
                at += usize::from(glued.is_none());
            } else if name.len() > 1 && "file".starts_with(name) {
                given = true;
                at += usize::from(glued.is_none());
            }
        } else if let Some(letters) = option.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            // -i and -E take no next word; -e, -f and -l do, unless their value is glued on.
            match letters.find(['e', 'f', 'l', 'i']) {
                Some(place) if letters.as_bytes()[place] == b'i' => {}
                Some(place) => {
                    let glued = &letters[place + 1..];
                    let letter = letters.as_bytes()[place];
                    given |= letter != b'l';
                    if letter == b'e' {
                        scripts.extend(if glued.is_empty() { value(at) } else { Some(glued) });
                    }
                    at += usize::from(glued.is_empty());
                }
                None => {}
            }
        } else {
            first = first.or(Some(word));
        }
    }
    if !given {
        scripts.extend(first.and_then(Word::value));
    }
    for script in scripts {
        sed_script(walk, script, &mut found);
    }
    found
}

/// Reads a script command by command. It stops where the script is not understood: then sed most likely does, too.
fn sed_script(walk: &mut Walk, script: &str, found: &mut Found) {
    let mut rest = script;
    loop {
        rest = after_address(rest.trim_start_matches([' ', '\t', '\n', ';', '}', '{']));
        let Some(command) = rest.chars().next() else { return };
        let after = &rest[command.len_utf8()..];
        let (line, next) = after.split_once('\n').unwrap_or((after, ""));
        match command {
            'e' => {
                let (text, next) = continued(after);
                // sed undoes escapes of its own first: `\n` begins another command.
                if after.split('\n').next().is_some_and(|line| line.contains('\\')) {
                    walk.opaque("a command of sed that is put together when it runs");
                }
                match text.trim() {
                    "" => walk.opaque("a script of sed that runs what it edits"),
                    command => walk.shadowed(command),
                }
                rest = next;
            }
            'w' | 'W' => {
                found.writes.push(Word::known(line.trim()));
                rest = next;
            }
            's' | 'y' => {
                let Some(flags) = after_delimited(after) else { return };
                let end = flags.find(['\n', ';', '}']).unwrap_or(flags.len());
                let (letters, file) = match flags.find('w') {
                    // A file's name goes on to the end of the line.
                    Some(at) if at < end => {
                        let line = flags.split('\n').next().unwrap_or(flags);
                        (&flags[..at], Some(line[at + 1..].trim()))
                    }
                    _ => (&flags[..end], None),
                };
                if command == 's' && letters.contains('e') {
                    walk.opaque("a script of sed that runs what it edits");
                }
                rest = match file {
                    Some(file) => {
                        found.writes.push(Word::known(file));
                        flags.split_once('\n').map_or("", |(_, next)| next)
                    }
                    None => &flags[end..],
                };
            }
            // Text up to the end of a line that no backslash continues.
            'a' | 'i' | 'c' => rest = continued(after).1,
            // Names of labels and files.
            ':' | 'b' | 't' | 'T' | 'r' | 'R' | 'F' => {
                let end = after.find(['\n', ';', '}']).unwrap_or(after.len());
                rest = &after[end..];
            }
            '#' => rest = next,
            _ => rest = after,
        }
    }
}

/// The text up to the end of a line that no backslash continues, without those backslashes, and what follows.
fn continued(text: &str) -> (String, &str) {
    let mut whole = String::new();
    let mut rest = text;
    loop {
        let (line, next) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = next;
        match line.strip_suffix('\\') {
            Some(line) if !rest.is_empty() => {
                whole.push_str(line);
                whole.push('\n');
            }
            Some(line) => {
                whole.push_str(line);
                return (whole, rest);
            }
            None => {
                whole.push_str(line);
                return (whole, rest);
            }
        }
    }
}

/// What follows `1,$!`, `/x/I,+3` and the like.
fn after_address(mut script: &str) -> &str {
    loop {
        let plain = script.trim_start_matches(|c: char| c.is_ascii_digit() || " \t$,~+!".contains(c));
        let custom = plain.strip_prefix('\\').map(|rest| (rest, rest.chars().next()));
        script = match (plain.strip_prefix('/'), custom) {
            (Some(_), _) => match after_one(plain) {
                Some(rest) => rest.trim_start_matches(['I', 'M']),
                None => return "",
            },
            (None, Some((rest, Some(_)))) => match after_one(rest) {
                Some(rest) => rest.trim_start_matches(['I', 'M']),
                None => return "",
            },
            _ => return plain,
        };
    }
}

/// What follows `/x/`: up to the second of its first letter that no backslash and no bracket hides.
fn after_one(text: &str) -> Option<&str> {
    let mut letters = text.char_indices();
    let (_, delimiter) = letters.next()?;
    let (mut escaped, mut bracket) = (false, None);
    for (at, letter) in letters {
        if escaped {
            escaped = false;
        } else if let Some(start) = bracket {
            // `[]x]` and `[^]x]` hold the bracket.
            if letter == ']' && at > start + 1 && !text[start..at].eq("[^") {
                bracket = None;
            }
        } else if letter == '\\' {
            escaped = true;
        } else if letter == delimiter {
            return Some(&text[at + letter.len_utf8()..]);
        } else if letter == '[' {
            bracket = Some(at);
        }
    }
    None
}

/// What follows `/a/b/`.
fn after_delimited(text: &str) -> Option<&str> {
    let delimiter = text.chars().next()?;
    let rest = after_one(text)?;
    let mut escaped = false;
    for (at, letter) in rest.char_indices() {
        if escaped {
            escaped = false;
        } else if letter == '\\' {
            escaped = true;
        } else if letter == delimiter {
            return Some(&rest[at + letter.len_utf8()..]);
        }
    }
    None
}

/// Editors and debuggers: `-c` and `+` give commands of theirs, in which `!` and words like `shell` run one of the machine's.
pub(super) fn command_options(walk: &mut Walk, args: &[Word], apart: &[&str], glued: &[&str], words: &[&str]) {
    for (at, word) in args.iter().enumerate() {
        let Some(text) = word.value() else { continue };
        let given = match apart.contains(&text) {
            true => args.get(at + 1).and_then(Word::value),
            false => glued.iter().find_map(|start| text.strip_prefix(start)),
        };
        let Some(given) = given else { continue };
        interpreters::calls(walk, given);
        for line in given.split(['\n', '|']) {
            let line = line.trim_start_matches([':', ' ', '\t', '%', '.', '$', ',', '0', '1']);
            let line = line.trim_start_matches("silent").trim_start_matches(['!', ' ']);
            let started = words.iter().find_map(|start| line.strip_prefix(start));
            let bang = given.split_once('!').map(|(_, script)| script);
            if let Some(script) = started.or(bang) {
                walk.shadowed(script.trim());
            }
        }
    }
}

impl Walk {
    /// Lists what a script runs as shadows, with nothing of it said to be unknown: the program that runs it is listed itself.
    pub(super) fn shadowed(&mut self, script: &str) {
        let opaque = self.opaque;
        interpreters::shadow_tree(self, |walk| walk.nested(script, Dialect::Posix));
        self.opaque = opaque;
    }
}
