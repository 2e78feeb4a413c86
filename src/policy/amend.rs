//! An approval that is remembered as a rule: one line at the end of a file that the user owns.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::rules::Protocol;
use super::shell::Redirect;
use super::{Decision, Explanation, Policy, RuleText, RulesError};
use crate::path::HostPath;
use crate::task::Unmatched;

/// Why no rule was added.
#[derive(Debug, thiserror::Error)]
pub enum AmendError {
    #[error("empty prefix")]
    EmptyPrefix,
    #[error("a rule that allows every command starting with \"{prefix}\" would allow everything")]
    Banned { prefix: String },
    #[error("a word of the prefix is longer than {WORD_LIMIT} bytes or holds a control character")]
    Word,
    #[error("cannot change {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a file that its user alone can write")]
    Foreign { path: PathBuf },
    #[error("{path} has faults of its own; nothing was added")]
    Rules {
        path: PathBuf,
        #[source]
        source: RulesError,
    },
}

/// What is added: what it speaks of, what it says, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amendment {
    pub about: About,
    pub decision: Decision,
    pub justification: Option<String>,
}

/// What an added rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// Commands that start with these words.
    Commands(Vec<String>),
    /// A host, on all ports of a protocol.
    Host { host: String, protocol: Protocol },
}

/// What [`append`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The file as it is now.
    pub text: RuleText,
    /// `false` where the rule stood there already.
    pub is_new: bool,
}

const WORD_LIMIT: usize = 4096;

/// Programs that run whatever they are told: alone, or with the option that takes code, they allow everything.
const RUNNERS: &[&str] = &[
    "ash",
    "awk",
    "bash",
    "bun",
    "busybox",
    "cmd",
    "command",
    "csh",
    "dash",
    "deno",
    "doas",
    "env",
    "eval",
    "exec",
    "fish",
    "gawk",
    "git",
    "julia",
    "ksh",
    "lua",
    "mawk",
    "mksh",
    "nice",
    "node",
    "nodejs",
    "nohup",
    "nu",
    "osascript",
    "parallel",
    "perl",
    "php",
    "powershell",
    "pwsh",
    "py",
    "pypy",
    "pypy3",
    "python",
    "python2",
    "python3",
    "pythonw",
    "pyw",
    "rm",
    "Rscript",
    "ruby",
    "runuser",
    "setsid",
    "sh",
    "source",
    "ssh",
    "stdbuf",
    "su",
    "sudo",
    "tclsh",
    "tcsh",
    "time",
    "timeout",
    "toybox",
    "watch",
    "xargs",
    "zsh",
];

/// What may follow such a program and still allow everything.
const CODE_OPTIONS: &[&str] = &[
    "-",
    "-3",
    "-2",
    "-c",
    "-e",
    "-E",
    "-i",
    "-l",
    "-lc",
    "-ic",
    "-cl",
    "-p",
    "-r",
    "-s",
    "-x",
    "--eval",
    "--login",
    "--norc",
    "--print",
    "-Command",
    "-EncodedCommand",
    "-NoProfile",
    "/c",
    "/C",
    "/k",
    "eval",
    "repl",
    "run",
    "-u",
    "-n",
];

/// Two words that run what a project's file says.
const SCRIPT_RUNNERS: &[[&str; 2]] = &[
    ["npm", "run"],
    ["npm", "exec"],
    ["pnpm", "run"],
    ["pnpm", "exec"],
    ["pnpm", "dlx"],
    ["yarn", "run"],
    ["yarn", "exec"],
    ["yarn", "dlx"],
    ["bun", "run"],
    ["bun", "x"],
    ["deno", "run"],
    ["deno", "eval"],
    ["uv", "run"],
    ["poetry", "run"],
    ["docker", "run"],
    ["docker", "exec"],
    ["find", "-exec"],
];

/// Whether an approval of commands with this prefix may be remembered as a rule.
pub fn may_suggest(prefix: &[String]) -> bool {
    check(prefix).is_ok()
}

/// The prefix to offer as a rule to whoever is asked about a command: the one that the agent asked for where it fits, else
/// the command itself. Nothing where one rule would not be enough, or where a rule restricts the command anyway.
pub fn suggest(explanation: &Explanation, requested: Option<&[String]>) -> Option<Vec<String>> {
    if explanation.opaque || explanation.matched.is_some() {
        return None;
    }
    let mut uncovered = explanation.uncovered.iter().map(|index| &explanation.commands[*index]);
    let command = uncovered.next()?;
    if uncovered.any(|other| other.argv != command.argv) || command.redirects.iter().any(Redirect::writes_file) {
        return None;
    }
    let argv: Vec<String> = command
        .argv
        .iter()
        .map(|word| word.value().map(str::to_owned))
        .collect::<Option<_>>()?;
    let fits = |requested: &[String]| {
        let name = argv[0].rsplit('/').next();
        argv.len() >= requested.len()
            && (requested.first() == argv.first() || requested.first().map(String::as_str) == name)
            && requested.iter().skip(1).eq(argv.iter().take(requested.len()).skip(1))
    };
    if let Some(requested) =
        requested.filter(|requested| !requested.is_empty() && fits(requested) && may_suggest(requested))
    {
        return Some(requested.to_vec());
    }
    Some(argv).filter(|argv| may_suggest(argv))
}

impl Amendment {
    /// Whether it may be added. What forbids may be as wide as it likes.
    pub fn check(&self) -> Result<(), AmendError> {
        match (&self.about, self.decision) {
            (About::Commands(prefix), Decision::Allow) => check(prefix),
            (About::Commands(prefix), Decision::Prompt | Decision::Forbidden) => check_words(prefix),
            (About::Host { host, .. }, _) => check_words(std::slice::from_ref(host)),
        }
    }

    /// The rule as one line of Starlark.
    pub fn line(&self) -> String {
        let why = self
            .justification
            .as_ref()
            .filter(|why| !why.trim().is_empty())
            .map_or(String::new(), |why| format!(", justification={}", literal(why)));
        // Codex has two words for it.
        let decision = match (&self.about, self.decision) {
            (About::Host { .. }, Decision::Forbidden) => "deny",
            (_, Decision::Allow) => "allow",
            (_, Decision::Prompt) => "prompt",
            (About::Commands(_), Decision::Forbidden) => "forbidden",
        };
        match &self.about {
            About::Commands(prefix) => {
                let words: Vec<String> = prefix.iter().map(|word| literal(word)).collect();
                format!(
                    "prefix_rule(pattern=[{}], decision=\"{decision}\"{why})",
                    words.join(", ")
                )
            }
            About::Host { host, protocol } => format!(
                "network_rule(host={}, protocol=\"{}\", decision=\"{decision}\"{why})",
                literal(host),
                protocol.name()
            ),
        }
    }
}

fn check_words(words: &[String]) -> Result<(), AmendError> {
    if words.is_empty() {
        return Err(AmendError::EmptyPrefix);
    }
    match words
        .iter()
        .any(|word| word.len() > WORD_LIMIT || word.chars().any(char::is_control))
    {
        true => Err(AmendError::Word),
        false => Ok(()),
    }
}

fn check(prefix: &[String]) -> Result<(), AmendError> {
    check_words(prefix)?;
    let Some(head) = prefix.first() else {
        return Err(AmendError::EmptyPrefix);
    };
    let banned = || AmendError::Banned {
        prefix: prefix.join(" "),
    };
    let name = head.rsplit(['/', '\\']).next().unwrap_or(head);
    let name = name.strip_suffix(".exe").unwrap_or(name);
    let versioned = name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    let runner = head.trim().is_empty() || RUNNERS.contains(&name) || RUNNERS.contains(&versioned);
    if runner && prefix[1..].iter().all(|word| CODE_OPTIONS.contains(&word.as_str())) {
        return Err(banned());
    }
    if prefix.len() == 2
        && SCRIPT_RUNNERS
            .iter()
            .any(|[first, second]| name == *first && prefix[1] == *second)
    {
        return Err(banned());
    }
    Ok(())
}

/// Appends a rule to `file`, which is made where it is missing and must be a file that nobody but its user can write. Two
/// writers take turns, a last line without its newline is closed first, a rule that stands there already is not added again, and
/// a file that would not load is left as it is.
pub fn append(file: &HostPath, amendment: &Amendment) -> Result<Appended, AmendError> {
    amendment.check()?;
    let path = file.as_path();
    let failed = |source| AmendError::File {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut handle = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    // Held until the handle is closed.
    handle.lock().map_err(failed)?;
    // What was opened counts, not its name: the name may lead elsewhere by now.
    let found = handle.metadata().map_err(failed)?;
    let own = fs::metadata("/proc/self").map_err(failed)?.uid();
    // A link at the end of the path: admission follows none, so what it leads to would never be read as rules.
    let named = fs::symlink_metadata(path).map_err(failed)?;
    let is_named = (named.dev(), named.ino()) == (found.dev(), found.ino());
    if !is_named || !found.is_file() || found.uid() != own || found.mode() & 0o022 != 0 {
        return Err(AmendError::Foreign { path: path.to_owned() });
    }
    let mut text = String::new();
    handle.seek(SeekFrom::Start(0)).map_err(failed)?;
    handle.read_to_string(&mut text).map_err(failed)?;
    let line = amendment.line();
    let whole = |text: String| RuleText {
        name: file.to_string(),
        text,
    };
    if text.lines().any(|other| other == line) {
        return Ok(Appended {
            text: whole(text),
            is_new: false,
        });
    }
    let newline = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let addition = format!("{newline}{line}\n");
    let whole = whole(format!("{text}{addition}"));
    Policy::from_texts(std::slice::from_ref(&whole), Unmatched::Ask).map_err(|source| AmendError::Rules {
        path: path.to_owned(),
        source,
    })?;
    write(&mut handle, &addition).map_err(failed)?;
    Ok(Appended {
        text: whole,
        is_new: true,
    })
}

fn write(handle: &mut File, addition: &str) -> io::Result<()> {
    // One write in append mode: a crash leaves all of it or none, as far as the file system can promise.
    handle.write_all(addition.as_bytes())?;
    handle.sync_data()
}

/// A string of Starlark that is always one line.
fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => literal.push_str("\\\""),
            '\\' => literal.push_str("\\\\"),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            _ if letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}') => {
                literal.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            _ => literal.push(letter),
        }
    }
    literal.push('"');
    literal
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn amendment(words: &[&str]) -> Amendment {
        commands(words.iter().map(|word| (*word).to_owned()).collect())
    }

    fn commands(prefix: Vec<String>) -> Amendment {
        Amendment {
            about: About::Commands(prefix),
            decision: Decision::Allow,
            justification: None,
        }
    }

    fn file(folder: &tempfile::TempDir) -> HostPath {
        HostPath::new(folder.path().join("rules/default.rules")).unwrap()
    }

    #[test]
    fn the_cases_of_codex_are_refused() {
        let path = format!("{}/tests/data/policy/amend.jsonl", env!("CARGO_MANIFEST_DIR"));
        for line in fs::read_to_string(path).unwrap().lines() {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            if case["kind"] == "amend_suggestion" {
                let prefix: Vec<String> = serde_json::from_value(case["requested_prefix"].clone()).unwrap();
                assert_eq!(
                    may_suggest(&prefix),
                    case["expected"]["accepted"].as_bool().unwrap(),
                    "{prefix:?}"
                );
            } else {
                let folder = tempfile::tempdir().unwrap();
                let prefix: Vec<String> = serde_json::from_value(case["append"][0].clone()).unwrap();
                let error = append(&file(&folder), &commands(prefix)).unwrap_err();
                assert_eq!(error.to_string(), case["expected"]["error"].as_str().unwrap());
            }
        }
    }

    #[test]
    fn a_prefix_that_allows_everything_is_banned() {
        for words in [
            &["bash"][..],
            &["/usr/bin/python3.11"],
            &["python3", "-c"],
            &["sudo"],
            &["git"],
            &["npm", "run"],
            &["env"],
            &["node", "-e"],
            &["bash", "-l", "-c"],
        ] {
            assert!(
                matches!(amendment(words).check(), Err(AmendError::Banned { .. })),
                "{words:?}"
            );
        }
        for words in [
            &["git", "status"][..],
            &["npm", "run", "build"],
            &["python3", "-m", "pip"],
            &["cargo", "test"],
        ] {
            assert!(amendment(words).check().is_ok(), "{words:?}");
        }
    }

    #[test]
    fn a_rule_is_added_once_after_a_repaired_newline_and_loads() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder);
        assert!(append(&file, &amendment(&["ls"])).unwrap().is_new);
        let unfinished = "prefix_rule(pattern=[\"pwd\"], decision=\"allow\")";
        fs::write(&file, unfinished).unwrap();
        let odd = Amendment {
            justification: Some("two\nlines".into()),
            ..amendment(&["echo", "a\"b\\c\u{2028}{x}"])
        };
        assert!(append(&file, &odd).unwrap().is_new);
        assert!(!append(&file, &odd).unwrap().is_new);
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.starts_with(&format!("{unfinished}\nprefix_rule(")) && text.ends_with(")\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2);
        assert_eq!(Policy::load(&[file], Unmatched::Ask).unwrap().counts().0, 2);
    }

    #[test]
    fn a_file_that_does_not_load_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = HostPath::new(folder.path().join("a.rules")).unwrap();
        fs::write(&file, "prefix_rule(").unwrap();
        assert!(matches!(
            append(&file, &amendment(&["ls"])),
            Err(AmendError::Rules { .. })
        ));
        assert_eq!(fs::read_to_string(&file).unwrap(), "prefix_rule(");
    }

    #[test]
    fn a_file_that_others_can_write_or_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = HostPath::new(folder.path().join("open.rules")).unwrap();
        fs::write(&open, "").unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
        let link = HostPath::new(folder.path().join("link.rules")).unwrap();
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let elsewhere = HostPath::new(folder.path().join("elsewhere.rules")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("real.rules"), &elsewhere).unwrap();
        for file in [open, link, elsewhere] {
            let refused = append(&file, &amendment(&["ls"]));
            assert!(matches!(refused, Err(AmendError::Foreign { .. })), "{refused:?}");
        }
    }

    #[test]
    fn hosts_and_prohibitions_are_rules_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder);
        let host = Amendment {
            about: About::Host {
                host: "docs.example.org".to_owned(),
                protocol: Protocol::Https,
            },
            decision: Decision::Allow,
            justification: None,
        };
        // A shell may be forbidden, though never allowed.
        let shell = Amendment {
            decision: Decision::Forbidden,
            ..amendment(&["bash"])
        };
        append(&file, &host).unwrap();
        let policy = Policy::from_texts(&[append(&file, &shell).unwrap().text], Unmatched::Allow).unwrap();
        assert_eq!((policy.counts().0, policy.network_rules().len()), (1, 1));
        let rule = &policy.network_rules()[0];
        assert_eq!(
            (rule.host.as_str(), rule.decision),
            ("docs.example.org", Decision::Allow)
        );
    }

    #[test]
    fn writers_at_once_lose_no_rule() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder);
        std::thread::scope(|scope| {
            for index in 0..8 {
                let file = &file;
                scope.spawn(move || append(file, &amendment(&["tool", &format!("sub{index}")])).unwrap());
            }
        });
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 8);
    }
}
