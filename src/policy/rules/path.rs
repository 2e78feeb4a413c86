//! Paths as text: made normal without asking any file system, and compared with patterns.

use std::borrow::Cow;

/// An absolute path without `.`, `..` and empty parts; nothing for a relative one.
pub(super) fn normal(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

/// A form of paths: `?` is a letter and `*` any text within a name, `**` any text at all. One without a slash is a name in
/// any folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    /// Which bytes must be in a path that matches. Most paths are told apart by this alone: a rule about credentials has
    /// thirty forms, and looks at every argument of every `cat`.
    bytes: u64,
}

/// A path as it is written, made normal once for all patterns.
#[derive(Debug)]
pub struct Written<'p> {
    path: Cow<'p, str>,
    bytes: u64,
}

impl Pattern {
    pub fn new(text: String) -> Self {
        let bytes = text.bytes().filter(|byte| !matches!(byte, b'*' | b'?' | b'/'));
        Self {
            bytes: bytes_of(bytes),
            text,
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn matches(&self, written: &Written) -> bool {
        if self.bytes & written.bytes != self.bytes {
            return false;
        }
        let (pattern, path) = (self.text.as_bytes(), written.path.as_bytes());
        if glob(pattern, path) {
            return true;
        }
        if !self.text.contains('/') {
            let path = written.path.trim_end_matches('/');
            return glob(pattern, path.rsplit('/').next().unwrap_or(path).as_bytes());
        }
        // `**/x` is x at the top, too.
        pattern.strip_prefix(b"**/").is_some_and(|rest| glob(rest, path))
    }
}

impl<'p> Written<'p> {
    pub fn new(path: &'p str) -> Self {
        let odd = path.contains("./") || path.contains("//") || path.contains(['$', '"']) || path.ends_with("/..");
        let path = if odd {
            Cow::Owned(collapse(&home(path)))
        } else {
            Cow::Borrowed(path)
        };
        Self {
            bytes: bytes_of(path.bytes()),
            path,
        }
    }
}

/// A set of bytes, as good as 64 bits can tell them apart.
fn bytes_of(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0, |set, byte| set | 1 << (byte & 63))
}

/// The spellings of the home folder are one.
fn home(path: &str) -> Cow<'_, str> {
    let path = path.trim_matches('"');
    ["$HOME/", "${HOME}/"]
        .iter()
        .find_map(|home| path.strip_prefix(home))
        .map_or(Cow::Borrowed(path), |rest| Cow::Owned(format!("~/{rest}")))
}

/// `a//b/./c/../d` to `a/b/d`.
fn collapse(path: &str) -> String {
    if let Some(normal) = normal(path) {
        return normal;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // The last star, and where it began to match, so that a star can be given one more byte: linear in practice, at worst
    // the product of both lengths.
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize, bool)> = None;
    let mut deep: Option<(usize, usize)> = None;
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            deep = Some((p, t));
            star = None;
            continue;
        }
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, t, true));
            continue;
        }
        let same = |pattern: u8, text: u8| pattern == text || (pattern == b'?' && text != b'/');
        if p < pattern.len() && t < text.len() && same(pattern[p], text[t]) {
            p += 1;
            t += 1;
            continue;
        }
        if p == pattern.len() && t == text.len() {
            return true;
        }
        if let Some((after, from, _)) = star
            && from < text.len()
            && text[from] != b'/'
        {
            star = Some((after, from + 1, true));
            (p, t) = (after, from + 1);
            continue;
        }
        if let Some((after, from)) = deep
            && from < text.len()
        {
            deep = Some((after, from + 1));
            star = None;
            (p, t) = (after, from + 1);
            continue;
        }
        return false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::new(pattern.to_owned()).matches(&Written::new(path))
    }

    #[test]
    fn a_star_stays_within_a_name_and_two_cross_them() {
        assert!(matches("/etc/*", "/etc/passwd"));
        assert!(!matches("/etc/*", "/etc/ssh/key"));
        assert!(matches("/etc/**", "/etc/ssh/key"));
        assert!(matches("**/.ssh/**", "/home/a/.ssh/id"));
        assert!(matches("**/.ssh/**", ".ssh/id"));
        assert!(matches("**/*.pem", "a/b/c.pem"));
        assert!(!matches("**/*.pem", "a/b/c.pem.txt"));
    }

    #[test]
    fn spellings_of_one_path_are_one() {
        assert!(matches("~/.bashrc", "$HOME/.bashrc"));
        assert!(matches("~/.bashrc", "~/x/../.bashrc"));
        assert!(matches(".bashrc", "/root/.bashrc"));
        assert!(matches("/etc/passwd", "/tmp/..//etc/./passwd"));
        assert!(matches(".git/config", "./.git//config"));
    }
}
