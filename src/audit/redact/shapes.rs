//! The built-in rules: how secrets look, and what stands before them.

use std::ops::Range;

/// Tokens that their makers gave a prefix of their own, with the least length of what follows it.
const TOKENS: &[(&str, usize)] = &[
    ("ghp_", 20),
    ("gho_", 20),
    ("ghu_", 20),
    ("ghs_", 20),
    ("ghr_", 20),
    ("github_pat_", 20),
    ("glpat-", 16),
    ("sk-", 16),
    ("sk_live_", 10),
    ("sk_test_", 10),
    ("rk_live_", 10),
    ("AKIA", 16),
    ("ASIA", 16),
    ("xoxa-", 10),
    ("xoxb-", 10),
    ("xoxp-", 10),
    ("xoxr-", 10),
    ("xoxs-", 10),
    ("AIza", 30),
    ("npm_", 30),
    ("pypi-", 16),
    ("hf_", 20),
    ("dckr_pat_", 16),
    ("eyJ", 30),
];

/// A name whose last part is one of these means a secret.
const SECRET_NAMES: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "credential",
    "credentials",
    "authorization",
];

/// Or whose last two parts are these.
const SECRET_PAIRS: &[(&str, &str)] = &[
    ("api", "key"),
    ("access", "key"),
    ("private", "key"),
    ("secret", "key"),
    ("signing", "key"),
    ("encryption", "key"),
];

/// What a word of a command makes of the next one.
pub(super) enum Next {
    Secret,
    UserAndPassword,
    Plain,
}

pub(super) fn next_word_is(word: &str) -> Next {
    if matches!(word, "-u" | "--user" | "--proxy-user") {
        return Next::UserAndPassword;
    }
    match word.strip_prefix("--").or_else(|| word.strip_prefix('-')) {
        Some(name) if names_a_secret(name) => Next::Secret,
        Some(_) | None => Next::Plain,
    }
}

/// Whether `name` (`GITHUB_TOKEN`, `api-key`, `clientSecret`) is one that secrets have.
pub(super) fn names_a_secret(name: &str) -> bool {
    let mut parts = parts_from_the_end(name);
    let Some(last) = parts.next() else { return false };
    if SECRET_NAMES.iter().any(|secret| last.eq_ignore_ascii_case(secret)) {
        return true;
    }
    let Some(before) = parts.next() else { return false };
    SECRET_PAIRS
        .iter()
        .any(|(first, second)| before.eq_ignore_ascii_case(first) && last.eq_ignore_ascii_case(second))
}

/// `GITHUB_TOKEN` has TOKEN and GITHUB, `clientSecret` has Secret and client.
fn parts_from_the_end(name: &str) -> impl Iterator<Item = &str> {
    let mut rest = name;
    std::iter::from_fn(move || {
        rest = rest.trim_end_matches(['_', '-', '.', ' ']);
        if rest.is_empty() {
            return None;
        }
        let bytes = rest.as_bytes();
        let mut start = rest.len() - 1;
        while start > 0 {
            let (before, here) = (bytes[start - 1], bytes[start]);
            let new_word = before.is_ascii_lowercase() && here.is_ascii_uppercase();
            if new_word || !is_name(before) || matches!(before, b'_' | b'-' | b'.') {
                break;
            }
            start -= 1;
        }
        let part = rest.get(start..)?;
        rest = &rest[..start];
        Some(part)
    })
}

/// The ranges of `text` that look like secrets.
pub(super) fn find(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut hidden: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let found = match bytes[at] {
            b'g' | b's' | b'r' | b'A' | b'x' | b'n' | b'p' | b'h' | b'd' | b'e' => token(text, at),
            b'B' | b'b' => bearer(text, at),
            b'=' => assigned(text, at),
            b':' => user_info(text, at).or_else(|| assigned(text, at)),
            b'-' => private_key(text, at).or_else(|| flag(text, at)),
            _ => None,
        };
        match found {
            Some(range) => {
                at = range.end.max(at + 1);
                hidden.push(range);
            }
            None => at += 1,
        }
    }
    hidden
}

/// Where a run of characters as tokens have them ends.
pub(super) fn token_end(bytes: &[u8], start: usize) -> usize {
    let is_token =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'+' | b'/' | b'~' | b'=');
    start + bytes[start..].iter().take_while(|byte| is_token(byte)).count()
}

fn token(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    if at > 0 && bytes[at - 1].is_ascii_alphanumeric() {
        return None;
    }
    let rest = &bytes[at..];
    let (prefix, least) = TOKENS.iter().find(|(prefix, _)| rest.starts_with(prefix.as_bytes()))?;
    let is_body = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let has_dots = *prefix == "eyJ";
    let body = rest[prefix.len()..]
        .iter()
        .take_while(|byte| is_body(byte) || (has_dots && **byte == b'.'))
        .count();
    (body >= *least).then(|| at..at + prefix.len() + body)
}

/// `Bearer abc`, with or without its header's name.
fn bearer(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let word = bytes.get(at..at + 7)?;
    if !word.eq_ignore_ascii_case(b"bearer ") || (at > 0 && bytes[at - 1].is_ascii_alphanumeric()) {
        return None;
    }
    let start = at + 7;
    let end = token_end(bytes, start);
    (end - start >= 8).then_some(start..end)
}

/// `NAME=value`, `name: value`, `"name": "value"`, where the name means a secret.
fn assigned(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let before = text[..at].trim_end_matches(['"', '\'', ' ']);
    let length = before.bytes().rev().take_while(|byte| is_name(*byte)).count();
    let name = before.get(before.len() - length..)?;
    if !names_a_secret(name) {
        return None;
    }
    let is_header = name.to_ascii_lowercase().ends_with("authorization");
    // `name: value` may have a space, `NAME= value` in a shell is an empty value.
    let mut start = at + 1;
    while bytes[at] == b':' && bytes.get(start) == Some(&b' ') {
        start += 1;
    }
    value(text, start, is_header)
}

/// `--password value` within a longer text, where a shell would see two words.
fn flag(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    if bytes.get(at + 1) != Some(&b'-') || (at > 0 && !bytes[at - 1].is_ascii_whitespace()) {
        return None;
    }
    let length = bytes[at + 2..].iter().take_while(|byte| is_name(**byte)).count();
    let end = at + 2 + length;
    if bytes.get(end) != Some(&b' ') || !names_a_secret(&text[at + 2..end]) {
        return None;
    }
    if bytes.get(end + 1) == Some(&b'-') {
        return None;
    }
    value(text, end + 1, false)
}

/// The value that begins at `start`: to the closing quote, or to what ends a word. A variable is a name, no secret.
fn value(text: &str, start: usize, to_end_of_line: bool) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let first = *bytes.get(start)?;
    let quoted = matches!(first, b'"' | b'\'');
    let from = if quoted { start + 1 } else { start };
    let is_variable = bytes.get(from) == Some(&b'$')
        && first != b'\''
        && bytes
            .get(from + 1)
            .is_some_and(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'{' | b'(' | b'_'));
    if is_variable || text[from..].starts_with(super::MARK) {
        return None;
    }
    let ends = |byte: u8| {
        if quoted {
            byte == first
        } else if to_end_of_line {
            matches!(byte, b'"' | b'\'' | b'\n' | b'\r')
        } else {
            byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'&' | b';' | b',' | b'|' | b')' | b'}')
        }
    };
    let length = bytes[from..].iter().take_while(|byte| !ends(**byte)).count();
    (length > 0).then(|| from..from + length)
}

/// `scheme://user:password@host` loses the password, `https://token@host` the token.
fn user_info(text: &str, at: usize) -> Option<Range<usize>> {
    let rest = text[at..].strip_prefix("://")?;
    let start = at + 3;
    let end = rest
        .find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '<' | '>'))
        .unwrap_or(rest.len());
    let host = rest[..end].rfind('@')?;
    match rest[..host].find(':') {
        Some(colon) if colon + 1 < host => Some(start + colon + 1..start + host),
        Some(_) => None,
        // A name alone is usual with ssh, and with http it is a token.
        None if text[..at].ends_with("http") || text[..at].ends_with("https") => {
            (host > 0).then_some(start..start + host)
        }
        None => None,
    }
}

/// A private key in PEM, from its first line to its last, or to the end of a text that was cut.
fn private_key(text: &str, at: usize) -> Option<Range<usize>> {
    let rest = text[at..].strip_prefix("-----BEGIN ")?;
    let label = rest.split("-----").next()?;
    if !label.ends_with("PRIVATE KEY") {
        return None;
    }
    let end = match text[at..].find("-----END ") {
        Some(end) => {
            let after = at + end + "-----END ".len();
            text[after..]
                .find("-----")
                .map_or(text.len(), |dashes| after + dashes + 5)
        }
        None => text.len(),
    };
    Some(at..end)
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}
