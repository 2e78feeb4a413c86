//! Git's settings files, read only as far as safety needs: which of their settings run or fetch something.
//!
//! Two readings of one text. [`leads`] is generous: whatever might name another file is taken to. [`is_harmless`] is strict:
//! whatever is not a plain line of a known, harmless setting makes the whole file suspect.

/// A file that settings lead to, as it is written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lead {
    /// More settings, relative to the file itself.
    Settings(String),
    /// A folder of hooks, relative to the work tree.
    Hooks(String),
}

/// Where a text of settings leads to.
pub fn leads(text: &str) -> Vec<Lead> {
    let mut section = String::new();
    let mut leads = Vec::new();
    for line in text.lines() {
        let mut line = line.trim();
        if let Some(rest) = line.strip_prefix('[') {
            let (name, rest) = rest.split_once(']').unwrap_or((rest, ""));
            section = name.split_whitespace().next().unwrap_or("").to_ascii_lowercase();
            line = rest.trim();
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let value = value.trim().trim_matches('"').to_owned();
        match (section.as_str(), key.trim().to_ascii_lowercase().as_str()) {
            ("core", "hookspath") => leads.push(Lead::Hooks(value)),
            ("include" | "includeif", "path") => leads.push(Lead::Settings(value)),
            _ => {}
        }
    }
    leads
}

/// Settings with which git runs nothing and reads no settings from elsewhere, by section and name.
const HARMLESS: [(&str, &[&str]); 12] = [
    (
        "core",
        &[
            "abbrev",
            "autocrlf",
            "bare",
            "eol",
            "filemode",
            "ignorecase",
            "logallrefupdates",
            "precomposeunicode",
            "repositoryformatversion",
            "safecrlf",
            "symlinks",
            // Where a submodule's work tree lies; see [`work_tree`].
            "worktree",
        ],
    ),
    ("advice", &["detachedhead"]),
    ("branch", &["description", "merge", "rebase", "remote"]),
    ("extensions", &["objectformat"]),
    ("fetch", &["prune"]),
    ("gc", &["auto"]),
    ("init", &["defaultbranch"]),
    ("pull", &["ff", "rebase"]),
    ("push", &["default"]),
    ("remote", &["fetch", "prune", "pushurl", "tagopt", "url"]),
    ("submodule", &["active", "url"]),
    ("user", &["email", "name"]),
];

/// Whether a text of settings is all plain lines of harmless ones.
pub fn is_harmless(text: &str) -> bool {
    let mut section: Option<&[&str]> = None;
    text.lines().all(|line| {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            return true;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let (name, sub) = name.split_once(' ').unwrap_or((name, "\"\""));
            let is_plain = sub.len() >= 2
                && sub.starts_with('"')
                && sub.ends_with('"')
                && !sub[1..sub.len() - 1].contains(['"', '\\', ']']);
            let name = name.to_ascii_lowercase();
            section = HARMLESS.iter().find(|(known, _)| *known == name).map(|(_, keys)| *keys);
            return is_plain && section.is_some();
        }
        let Some((key, value)) = line.split_once('=') else {
            return false;
        };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        // A line that goes on, a quote, and an address that names a program to run ("ext::…").
        !value.contains(['\\', '"', ';', '#'])
            && !value.contains("::")
            && !value.starts_with('-')
            && section.is_some_and(|keys| keys.contains(&key.as_str()))
    })
}

/// The work tree that a text of harmless settings names; the last one counts.
pub fn work_tree(text: &str) -> Option<&str> {
    let settings = text.lines().filter_map(|line| line.split_once('='));
    settings
        .filter(|(key, _)| key.trim().eq_ignore_ascii_case("worktree"))
        .map(|(_, value)| value.trim())
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_clone_writes_is_harmless() {
        assert!(is_harmless(
            "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\
             [remote \"origin\"]\n\turl = https://example.org/a.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
             [branch \"main\"]\n\tremote = origin\n\tmerge = refs/heads/main\n[user]\n\tname = A B\n"
        ));
    }

    #[test]
    fn whatever_could_run_something_is_not() {
        for text in [
            "[core]\n\tfsmonitor = x",
            "[core]\n\tFsMonitor = x",
            "[core] fsmonitor = x",
            "[core]\n\tbare = false \\\n\tfsmonitor = x",
            "[core]\n\tpager = x",
            "[alias]\n\tst = !x",
            "[include]\n\tpath = x",
            "[includeIf \"gitdir:/\"]\n\tpath = x",
            "[filter \"x\"]\n\tclean = x",
            "[remote \"x\"]\n\turl = ext::sh -c x",
            "[remote \"x\"]\n\tuploadpack = x",
            "[remote \"a]\\nb\"]\n\turl = x",
            "[extensions]\n\tworktreeConfig = true",
            "[submodule \"x\"]\n\tupdate = !x",
            "[core]\n\tfsmonitor",
            "fsmonitor = x",
        ] {
            assert!(!is_harmless(text), "{text}");
        }
    }

    #[test]
    fn leads_are_found_however_they_are_written() {
        assert_eq!(
            leads(
                "[core]\n\thooksPath = .husky/_\n[include]\n\tpath = ../.gitconfig\n[includeIf \"gitdir:x\"] path = \"y\""
            ),
            [
                Lead::Hooks(".husky/_".to_owned()),
                Lead::Settings("../.gitconfig".to_owned()),
                Lead::Settings("y".to_owned())
            ]
        );
        assert_eq!(leads("[remote \"path\"]\n\turl = x\n# path = y\n"), []);
    }
}
