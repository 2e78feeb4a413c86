//! Rules: Starlark files in the form that Codex reads, with extensions of ours, and the index that finds the rules for a
//! command. What a rule's match means for an exec is decided by [`super::Policy`].
//!
//! | word in a file | says |
//! |---|---|
//! | `prefix_rule(pattern, decision, match, not_match, justification, canonical_matching)` | commands that start so |
//! | … `id`, `reviewer` | ours: its name in records, who may answer |
//! | … `options`, `arguments`, `redirects`, `env`, `cwd` | ours: what else must hold: options and arguments in any place, files written, variables set, the folder |
//! | `network_rule(host, protocol, decision, justification)` | a host, for `egress` |
//! | `host_executable(name, paths)` | which files a bare name may stand for |

mod load;
mod network;
mod path;
mod prefix;
mod read;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

pub use network::{NetworkRule, Protocol};
pub use path::{Pattern, Written};
pub use prefix::{ManagedRule, PrefixRule, Token};

pub(in crate::policy) use prefix::Place;

use super::shell::{Fit, SimpleCommand};

/// One file of rules: its name as messages show it, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleText {
    pub name: String,
    pub text: String,
}

/// Rules that are part of belljar, by name: `dangerous`, what a person should see before it runs.
pub fn built_in(name: &str) -> Option<RuleText> {
    (name == "dangerous").then(|| RuleText {
        name: "builtin:dangerous.rules".to_owned(),
        text: include_str!("../../../config/rules/dangerous.rules").to_owned(),
    })
}

/// Everything wrong with the files of one load; none of them is used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct RulesError {
    pub faults: Vec<Fault>,
}

/// One thing wrong, and where. Line and column count from 1; 0 where there is no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub file: String,
    pub line: u32,
    pub column: u32,
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.text),
            _ => write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.text),
        }
    }
}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

/// All rules of one load, indexed by the first word of a command.
#[derive(Debug, Default)]
pub struct RuleSet {
    rules: Vec<PrefixRule>,
    /// Rules by the first word of their pattern.
    heads: HashMap<Arc<str>, Vec<u32>>,
    /// Rules whose first word is compared without regard to case, by that word in lower case.
    canonical: HashMap<String, Vec<u32>>,
    /// Rules without a pattern, which look at redirects or variables of any command.
    headless: Vec<u32>,
    network: Vec<NetworkRule>,
    /// Which files a name may stand for, where a file says so.
    executables: BTreeMap<String, Vec<String>>,
    /// How many examples held.
    examples: usize,
}

/// A rule that matches, or may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::policy) struct Hit<'r> {
    pub rule: &'r PrefixRule,
    pub fit: Fit,
}

/// Folders whose programs are the image's own: only from these may a path stand for its last name in an `allow` rule.
const SYSTEM_FOLDERS: &[&str] = &[
    "/bin",
    "/sbin",
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
];

impl RuleSet {
    /// Reads all files and reports all faults.
    pub fn load(texts: &[RuleText]) -> Result<Self, RulesError> {
        load::load(texts)
    }

    /// Adds rules of the admin's behind the others.
    pub fn with_managed(mut self, rules: Vec<ManagedRule>) -> Self {
        for rule in rules {
            if rule.decision != super::Decision::Allow && !rule.pattern.is_empty() {
                let order = u32::try_from(self.rules.len()).expect("a load is capped far below 2^32 rules");
                self.rules.push(read::managed(rule, order));
            }
        }
        self.index();
        self
    }

    pub fn rules(&self) -> &[PrefixRule] {
        &self.rules
    }

    pub fn examples(&self) -> usize {
        self.examples
    }

    pub fn network(&self) -> &[NetworkRule] {
        &self.network
    }

    /// The rules that match `command`, in the order of the files. `resolve`: whether a path may stand for its last name.
    pub(super) fn hits<'r>(&'r self, command: &SimpleCommand, place: Place, resolve: bool, hits: &mut Vec<Hit<'r>>) {
        let from = hits.len();
        if let Some(head) = command.argv.first().and_then(|word| word.value()) {
            self.named(head, command, place, hits);
            if resolve && hits.len() == from && head.contains('/') {
                self.by_path(head, command, place, hits);
            }
        }
        self.collect(&self.headless, command, place, hits);
        hits[from..].sort_by_key(|hit| hit.rule.order);
    }

    fn named<'r>(&'r self, name: &str, command: &SimpleCommand, place: Place, hits: &mut Vec<Hit<'r>>) {
        if let Some(found) = self.heads.get(name) {
            self.collect(found, command, place, hits);
        }
        if !self.canonical.is_empty()
            && let Some(found) = self.canonical.get(&name.to_lowercase())
        {
            self.collect(found, command, place, hits);
        }
    }

    fn collect<'r>(&'r self, found: &[u32], command: &SimpleCommand, place: Place, hits: &mut Vec<Hit<'r>>) {
        for index in found {
            let rule = &self.rules[*index as usize];
            let fit = rule.fit(command, place);
            if fit != Fit::No {
                hits.push(Hit { rule, fit });
            }
        }
    }

    /// `/usr/bin/git` for `git`. A path that the agent may have put there never stands for a name that is allowed, but it
    /// does for one that is not.
    fn by_path<'r>(&'r self, head: &str, command: &SimpleCommand, place: Place, hits: &mut Vec<Hit<'r>>) {
        let Some(name) = head.rsplit('/').next().filter(|name| !name.is_empty()) else {
            return;
        };
        let normal = path::normal(head);
        let trusted = match (&normal, self.executables.get(name)) {
            (None, _) => false,
            (Some(normal), Some(paths)) => paths.contains(normal),
            (Some(normal), None) => normal
                .rsplit_once('/')
                .is_some_and(|(folder, _)| SYSTEM_FOLDERS.contains(&folder)),
        };
        let from = hits.len();
        self.named(name, command, place, hits);
        if !trusted {
            let mut index = from;
            while index < hits.len() {
                if hits[index].rule.decision == super::Decision::Allow {
                    hits.remove(index);
                } else {
                    index += 1;
                }
            }
        }
    }

    fn index(&mut self) {
        self.heads.clear();
        self.canonical.clear();
        self.headless.clear();
        for (index, rule) in self.rules.iter().enumerate() {
            let index = u32::try_from(index).expect("a load is capped far below 2^32 rules");
            match rule.pattern.first() {
                None => self.headless.push(index),
                Some(token) => {
                    for head in token.texts() {
                        if rule.canonical {
                            self.canonical.entry(head.to_lowercase()).or_default().push(index);
                        } else {
                            self.heads.entry(Arc::from(head.as_str())).or_default().push(index);
                        }
                    }
                }
            }
        }
    }
}
