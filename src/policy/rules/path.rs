//! Paths as text: made normal without asking any file system, and compared with patterns.

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

/// Whether `path` has the form of `pattern`: `*` is any text within a name, `**` any text at all. A pattern without a slash
/// is a name in any folder.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let path = path.strip_prefix("./").unwrap_or(path);
    let path = home(path);
    if !pattern.contains('/') {
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(&path);
        return glob(pattern.as_bytes(), name.as_bytes());
    }
    let collapsed = collapse(&path);
    if let Some(rest) = pattern.strip_prefix("**/") {
        // `**/x` is x at the top, too.
        if glob(rest.as_bytes(), collapsed.as_bytes()) {
            return true;
        }
    }
    glob(pattern.as_bytes(), collapsed.as_bytes())
}

/// The spellings of the home folder are one.
fn home(path: &str) -> String {
    let path = path.trim_matches('"');
    ["$HOME/", "${HOME}/"]
        .iter()
        .find_map(|home| path.strip_prefix(home))
        .map_or_else(|| path.to_owned(), |rest| format!("~/{rest}"))
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
        if p < pattern.len() && t < text.len() && pattern[p] == text[t] {
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
