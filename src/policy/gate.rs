//! The judgement of commands: what they run, the rules that speak of it, and what follows.

use std::path::Path;

use serde::{Serialize, Serializer};

use super::rules::{Fault, Hit, ManagedRule, NetworkRule, Place, RuleSet, RuleText, RulesError, built_in};
use super::shell::{self, Fit, Redirect, Role, SimpleCommand, Word};
use super::{Basis, Command, Decision, Digest, Judgement, Permit, Question, Refusal, RuleMatch, amend};
use crate::id::ExecId;
use crate::path::HostPath;
use crate::task::{Gate, Unmatched};

/// All rules of a task, ready to judge. Plain data, shared by all execs of the task.
#[derive(Debug)]
pub struct Policy {
    rules: RuleSet,
    unmatched: Unmatched,
    resolve: bool,
    /// Whether any rule says other than allow.
    restricts: bool,
    /// What the rules were loaded from, so that one more can be added to these very ones.
    texts: Vec<RuleText>,
    managed: Vec<ManagedRule>,
    /// Whether a question is a no, for nobody may be asked.
    never_ask: bool,
}

/// How a command was understood and what the rules say of it. `rules check` prints it and [`Policy::judge`] follows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub judgement: Verdict,
    /// What the rules alone say: nothing where a command is left that none of them speaks of.
    pub matched: Option<Decision>,
    pub rules: Vec<RuleMatch>,
    /// Whether part of the command cannot be known before it runs.
    pub opaque: bool,
    /// Why, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opaque_because: Option<&'static str>,
    pub commands: Vec<SimpleCommand>,
    /// Whether this would have been a question, if anybody might be asked.
    #[serde(skip)]
    pub unasked: bool,
    /// Which of the commands run without a rule that allows them in full.
    #[serde(skip)]
    pub uncovered: Vec<usize>,
}

/// The judgement without what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Allow,
    Ask,
    Deny,
}

/// Writing one of these is how a command outlives its task: start-up files, hooks, settings that name commands. A rule that
/// allows a command by its words does not reach so far; a rule with `redirects` does.
const GUARDED: &[&str] = &[
    ".bash_login",
    ".bash_profile",
    ".bashrc",
    ".claude",
    ".codex",
    ".agents",
    ".envrc",
    ".git",
    ".gitconfig",
    ".gitmodules",
    ".mcp.json",
    ".netrc",
    ".npmrc",
    ".profile",
    ".pypirc",
    ".ssh",
    ".vscode",
    ".zprofile",
    ".zshenv",
    ".zshrc",
    "authorized_keys",
    "crontab",
];

impl Policy {
    /// Reads and loads files of rules; every fault of every file is in the error.
    pub fn load(files: &[HostPath], unmatched: Unmatched) -> Result<Self, RulesError> {
        Self::load_beside(Vec::new(), files, unmatched)
    }

    /// The rules of an admitted task: its files, those of belljar's own that it names, and those that the admin demands.
    pub fn of_gate(gate: &Gate) -> Result<Self, RulesError> {
        Self::of_gate_beside(Vec::new(), gate)
    }

    /// The same beside rules that are at hand already.
    pub fn of_gate_beside(mut texts: Vec<RuleText>, gate: &Gate) -> Result<Self, RulesError> {
        let demanded = gate.required.iter().map(|rules| RuleText {
            name: rules.name.clone(),
            text: rules.text.clone(),
        });
        texts.extend(demanded);
        texts.extend(gate.built_in.iter().filter_map(|name| built_in(name)));
        let policy = Self::load_beside(texts, &gate.rules, gate.unmatched)?;
        Ok(Self {
            never_ask: gate.never_ask,
            ..policy
        })
    }

    fn load_beside(mut texts: Vec<RuleText>, files: &[HostPath], unmatched: Unmatched) -> Result<Self, RulesError> {
        let mut faults = Vec::new();
        for file in files {
            match std::fs::read_to_string(file) {
                Ok(text) => texts.push(RuleText {
                    name: file.to_string(),
                    text,
                }),
                Err(error) => faults.push(Fault {
                    file: file.to_string(),
                    line: 0,
                    column: 0,
                    text: format!("cannot be read: {error}"),
                }),
            }
        }
        match Self::from_texts(&texts, unmatched) {
            Ok(policy) if faults.is_empty() => Ok(policy),
            Ok(_) => Err(RulesError { faults }),
            Err(error) => {
                faults.extend(error.faults);
                Err(RulesError { faults })
            }
        }
    }

    /// Loads rules that are at hand already.
    pub fn from_texts(texts: &[RuleText], unmatched: Unmatched) -> Result<Self, RulesError> {
        Ok(Self {
            texts: texts.to_vec(),
            ..Self::of(RuleSet::load(texts)?, unmatched)
        })
    }

    /// The same rules with `text` in the place of the file of its name, or beside the others where there is none of that name.
    /// Nothing else is read again.
    pub fn amended(&self, text: RuleText) -> Result<Self, RulesError> {
        let mut texts = self.texts.clone();
        match texts.iter_mut().find(|other| other.name == text.name) {
            Some(other) => *other = text,
            None => texts.push(text),
        }
        let amended = Self {
            resolve: self.resolve,
            never_ask: self.never_ask,
            ..Self::from_texts(&texts, self.unmatched)?
        };
        Ok(amended.with_managed(self.managed.clone()))
    }

    /// The text of a file of rules as it was read.
    pub fn text_of(&self, name: &str) -> Option<&RuleText> {
        self.texts.iter().find(|text| text.name == name)
    }

    /// Names and texts of all its rules, for a digest.
    pub fn texts_as_bytes(&self) -> Vec<u8> {
        let texts = self.texts.iter().flat_map(|text| [&text.name, &text.text]);
        texts.flat_map(|text| text.bytes().chain([0])).collect()
    }

    /// Whether another policy was made of the same rules and settings.
    pub fn says_the_same_as(&self, other: &Policy) -> bool {
        // A file that was added later stands last.
        fn sorted(policy: &Policy) -> Vec<&RuleText> {
            let mut texts: Vec<&RuleText> = policy.texts.iter().collect();
            texts.sort_by_key(|text| &text.name);
            texts
        }
        self.unmatched == other.unmatched
            && self.never_ask == other.never_ask
            && self.resolve == other.resolve
            && self.managed == other.managed
            && sorted(self) == sorted(other)
    }

    fn of(rules: RuleSet, unmatched: Unmatched) -> Self {
        let restricts = rules.rules().iter().any(|rule| rule.decision != Decision::Allow);
        Self {
            rules,
            unmatched,
            resolve: true,
            restricts,
            texts: Vec::new(),
            managed: Vec::new(),
            never_ask: false,
        }
    }

    /// Adds what the admin demands; it can only restrict.
    #[must_use]
    pub fn with_managed(self, rules: Vec<ManagedRule>) -> Self {
        let managed: Vec<ManagedRule> = self.managed.into_iter().chain(rules.iter().cloned()).collect();
        Self {
            resolve: self.resolve,
            texts: self.texts,
            managed,
            never_ask: self.never_ask,
            ..Self::of(self.rules.with_managed(rules), self.unmatched)
        }
    }

    /// Makes `/usr/bin/git` stand for itself only, never for `git`.
    #[must_use]
    pub fn without_host_executables(self) -> Self {
        Self { resolve: false, ..self }
    }

    /// The rules for hosts, in the order of the files, for `egress`.
    pub fn network_rules(&self) -> &[NetworkRule] {
        self.rules.network()
    }

    /// How many rules for commands were loaded, and how many examples of theirs held.
    pub fn counts(&self) -> (usize, usize) {
        (self.rules.rules().len(), self.rules.examples())
    }

    /// MAY this command run in `place`, the digest of its sandbox?
    pub fn judge(&self, exec: ExecId, command: &Command, place: &Digest) -> Judgement {
        let explanation = self.explain(command);
        let offer = match explanation.judgement {
            Verdict::Ask => amend::suggest(&explanation, None),
            Verdict::Allow | Verdict::Deny => None,
        };
        let (reason, how_to_ask) = (explanation.reason(), explanation.how_to_go_on());
        let basis = Basis {
            rules: explanation.rules,
            opaque: explanation.opaque,
            approver: None,
        };
        match explanation.judgement {
            Verdict::Allow => Judgement::Allow(Permit::new(exec, command.digest(place), basis)),
            Verdict::Ask => Judgement::Ask(Question::new(exec, command.digest(place), basis, reason, offer)),
            Verdict::Deny => Judgement::Deny(Refusal {
                basis,
                reason,
                how_to_ask,
            }),
        }
    }

    /// How `command` is understood, which rules speak of it, and what follows.
    ///
    /// - The strictest rule that matches any part wins; a rule that may match counts as a prompt.
    /// - Rules allow only what they allow in full: every command that runs, with all that it writes.
    /// - What no rule speaks of follows `unmatched`. An opaque command is never allowed by rules; with `unmatched` allow it
    ///   is allowed where no rule restricts anything, and asked about where one does, for that rule might be about it.
    pub fn explain(&self, command: &Command) -> Explanation {
        let found = shell::understand_with_env(&command.argv, &command.env);
        let place = if found.commands.iter().any(changes_folder) {
            Place::Anywhere
        } else {
            Place::Folder(&command.cwd)
        };
        let mut tally = Tally::default();
        let mut hits = Vec::new();
        for (index, command) in found.commands.iter().enumerate() {
            hits.clear();
            self.rules.hits(command, place, self.resolve, &mut hits);
            tally.count(index, command, &hits);
        }
        let opaque = found.opaque.is_some();
        let restriction = tally.strictest.filter(|decision| *decision != Decision::Allow);
        let allowed = !opaque && tally.allowed > 0 && tally.uncovered.is_empty();
        let matched = restriction.or(allowed.then_some(Decision::Allow));
        let ruled = match matched {
            Some(Decision::Forbidden) => Verdict::Deny,
            Some(Decision::Prompt) => Verdict::Ask,
            Some(Decision::Allow) | None => Verdict::Allow,
        };
        let rest = match self.unmatched {
            _ if allowed => Verdict::Allow,
            Unmatched::Allow if opaque && self.restricts => Verdict::Ask,
            Unmatched::Allow => Verdict::Allow,
            Unmatched::Ask => Verdict::Ask,
            Unmatched::Deny => Verdict::Deny,
        };
        let judgement = ruled.max(rest);
        let unasked = judgement == Verdict::Ask && self.never_ask;
        Explanation {
            judgement: if unasked { Verdict::Deny } else { judgement },
            unasked,
            matched,
            rules: tally.rules,
            opaque,
            opaque_because: found.opaque,
            commands: found.commands,
            uncovered: tally.uncovered,
        }
    }
}

/// What all commands of one exec come to.
#[derive(Debug, Default)]
struct Tally {
    strictest: Option<Decision>,
    rules: Vec<RuleMatch>,
    /// Commands that run and that a rule allows in full.
    allowed: u32,
    /// Commands that run and that no rule allows in full.
    uncovered: Vec<usize>,
}

impl Tally {
    fn count(&mut self, index: usize, command: &SimpleCommand, hits: &[Hit]) {
        let mut covered = false;
        for hit in hits {
            if hit.rule.decision != Decision::Allow {
                self.note(hit.rule.to_match(hit.fit));
            } else if hit.fit == Fit::Yes && command.role != Role::Shadow {
                match beyond(hit, command) {
                    Reach::All => {
                        covered = true;
                        self.note(hit.rule.to_match(Fit::Yes));
                    }
                    // Nothing is said of the rest, so `unmatched` decides.
                    Reach::NotTheFiles => {}
                    Reach::NotTheGuarded(target) => self.note(RuleMatch {
                        decision: Decision::Prompt,
                        justification: Some(format!("the rule allows the command, but not to write {target}")),
                        ..hit.rule.to_match(Fit::Yes)
                    }),
                }
            }
        }
        if command.role == Role::Runs {
            if covered {
                self.allowed += 1;
            } else {
                self.uncovered.push(index);
            }
        }
    }

    fn note(&mut self, found: RuleMatch) {
        self.strictest = self.strictest.max(Some(found.decision));
        match self
            .rules
            .iter_mut()
            .find(|rule| rule.id == found.id && rule.line == found.line && rule.file == found.file)
        {
            Some(rule) if rule.decision < found.decision => *rule = found,
            Some(_) => {}
            None => self.rules.push(found),
        }
    }
}

/// How much of a command a rule allows.
enum Reach {
    All,
    NotTheFiles,
    NotTheGuarded(String),
}

fn beyond(hit: &Hit, command: &SimpleCommand) -> Reach {
    if !hit.rule.redirects.is_empty() {
        return Reach::All;
    }
    let mut writes = command
        .redirects
        .iter()
        .filter(|redirect| redirect.writes_file())
        .peekable();
    if writes.peek().is_none() {
        return Reach::All;
    }
    match writes.find(|redirect| is_guarded(&redirect.target)) {
        Some(redirect) => Reach::NotTheGuarded(redirect.target.text.clone()),
        None => Reach::NotTheFiles,
    }
}

fn is_guarded(target: &Word) -> bool {
    target
        .text
        .split(['/', '"', '\''])
        .any(|part| GUARDED.iter().any(|name| part.eq_ignore_ascii_case(name)))
}

/// After one of these, where a command runs is not known.
fn changes_folder(command: &SimpleCommand) -> bool {
    let Some(name) = command.argv.first().and_then(Word::value) else {
        return false;
    };
    let options: &[&str] = match name.rsplit('/').next().unwrap_or(name) {
        "cd" | "pushd" | "popd" | "su" | "runuser" | "doas" | "chroot" | "nsenter" | "unshare" | "ssh" => return true,
        "sudo" => &["-i", "-D", "-R", "--login", "--chdir", "--chroot"],
        "env" | "git" | "make" => &["-C", "--chdir", "--directory"],
        "find" | "gfind" => &["-execdir", "-okdir"],
        _ => return false,
    };
    let may_be = |word: &Word| options.iter().any(|option| word.starts_with(option) != Fit::No);
    command.argv.iter().skip(1).any(may_be)
}

impl Explanation {
    /// Why the answer is what it is, for the agent and for whoever is asked.
    pub fn reason(&self) -> String {
        match self.unasked {
            true => format!("nobody may be asked, by the requirements; {}", self.cause()),
            false => self.cause(),
        }
    }

    fn cause(&self) -> String {
        let by = |decision: Decision, verb: &str| {
            self.rules.iter().find(|rule| rule.decision == decision).map(|rule| {
                let file = Path::new(&rule.file)
                    .file_name()
                    .map_or(rule.file.as_str().into(), |name| name.to_string_lossy());
                let why = rule
                    .justification
                    .as_ref()
                    .map_or(String::new(), |why| format!(": {why}"));
                format!("{verb} by rule {} ({file}:{}){why}", rule.id, rule.line)
            })
        };
        let cause = match self.matched {
            Some(Decision::Forbidden) => by(Decision::Forbidden, "forbidden"),
            Some(Decision::Prompt) => by(Decision::Prompt, "to be approved"),
            Some(Decision::Allow) => by(Decision::Allow, "allowed"),
            None => None,
        };
        if let Some(cause) = cause {
            return cause;
        }
        match self.opaque_because {
            Some(because) => format!("what the command runs cannot be known before it runs: {because}"),
            None => "no rule allows the command".to_owned(),
        }
    }

    fn how_to_go_on(&self) -> String {
        if self.matched == Some(Decision::Forbidden) {
            "no approval can lift this rule: use a command that it does not speak of, or ask the owner of the rules to change it"
        } else if self.opaque {
            "write the command so that every program and file in it can be read, or ask the owner of the rules"
        } else {
            "use a command that the rules allow, or ask the owner of the rules to add one for it"
        }
        .to_owned()
    }
}

impl Serialize for SimpleCommand {
    /// `argv` is texts; the places of those that are not known before the command runs stand in `unknown`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;

        let argv: Vec<&str> = self.argv.iter().map(|word| word.text.as_str()).collect();
        let unknown: Vec<usize> = (0..self.argv.len())
            .filter(|at| self.argv[*at].unknown.is_some())
            .collect();
        let env: std::collections::BTreeMap<&str, &str> = self
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.text.as_str()))
            .collect();
        let mut fields = serializer.serialize_struct("SimpleCommand", 5)?;
        fields.serialize_field("argv", &argv)?;
        fields.serialize_field("redirects", &self.redirects)?;
        fields.serialize_field("env", &env)?;
        if unknown.is_empty() {
            fields.skip_field("unknown")?;
        } else {
            fields.serialize_field("unknown", &unknown)?;
        }
        match self.role {
            Role::Runs => fields.skip_field("role")?,
            Role::Carries => fields.serialize_field("role", "carries")?,
            Role::Shadow => fields.serialize_field("role", "shadow")?,
        }
        fields.end()
    }
}

impl Serialize for Redirect {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;

        let mut fields = serializer.serialize_struct("Redirect", 3)?;
        fields.serialize_field("operator", self.operator)?;
        fields.serialize_field("target", &self.target.text)?;
        if self.target.unknown.is_some() {
            fields.serialize_field("unknown", &true)?;
        } else {
            fields.skip_field("unknown")?;
        }
        fields.end()
    }
}
