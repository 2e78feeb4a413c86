//! The calls that files of rules made, as data, to rules: every argument is checked here, every fault gets its place.

use std::sync::Arc;

use serde_json::Value;

use super::network::{self, NetworkRule, Protocol};
use super::path::{self, Pattern};
use super::prefix::{ManagedRule, Place, PrefixRule, Token};
use super::{Fault, RuleSet, RulesError};
use crate::path::SandboxPath;
use crate::policy::shell::{self, Fit, Role, SimpleCommand, Word};
use crate::policy::{Decision, Digest};

/// A load in the making.
#[derive(Debug, Default)]
pub(super) struct Reading {
    set: RuleSet,
    pub faults: Vec<Fault>,
    examples: Vec<Examples>,
}

/// The examples of one rule, until all rules are known.
#[derive(Debug)]
struct Examples {
    at: Location,
    rule: u32,
    matching: Vec<Example>,
    differing: Vec<Example>,
}

#[derive(Debug)]
struct Example {
    shown: String,
    commands: Vec<SimpleCommand>,
}

#[derive(Debug, Clone)]
struct Location {
    file: Arc<str>,
    line: u32,
    column: u32,
}

/// The arguments of one call, and whether something was wrong with them.
struct Call<'c> {
    given: &'c Value,
    at: Location,
    faults: &'c mut Vec<Fault>,
    faulty: bool,
}

impl Reading {
    /// Takes one call as it was noted.
    pub fn call(&mut self, file: &str, note: &str) {
        let note: Value = serde_json::from_str(note).expect("the loader wrote it");
        let number = |name: &str| {
            note[name]
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .unwrap_or(0)
        };
        let at = Location {
            file: Arc::from(file),
            line: number("line"),
            column: number("column"),
        };
        let call = Call {
            given: &note["given"],
            at,
            faults: &mut self.faults,
            faulty: false,
        };
        match note["call"].as_str() {
            Some("prefix_rule") => call.prefix_rule(&mut self.set, &mut self.examples),
            Some("network_rule") => call.network_rule(&mut self.set),
            _ => call.host_executable(&mut self.set),
        }
    }

    /// Checks the examples: they hold with every `host_executable` known, whichever file it stands in.
    pub fn finish(mut self) -> Result<RuleSet, RulesError> {
        self.set.index();
        self.set.examples = self
            .examples
            .iter()
            .map(|rule| rule.matching.len() + rule.differing.len())
            .sum();
        for examples in &self.examples {
            examples.check(&self.set, &mut self.faults);
        }
        if self.faults.is_empty() {
            Ok(self.set)
        } else {
            Err(RulesError { faults: self.faults })
        }
    }
}

impl Location {
    fn fault(&self, text: impl Into<String>) -> Fault {
        Fault {
            file: self.file.to_string(),
            line: self.line,
            column: self.column,
            text: text.into(),
        }
    }
}

impl Examples {
    fn check(&self, set: &RuleSet, faults: &mut Vec<Fault>) {
        let matches = |example: &Example| {
            example.commands.iter().any(|command| {
                let mut hits = Vec::new();
                set.hits(command, Place::Example, true, &mut hits);
                hits.iter()
                    .any(|hit| hit.fit == Fit::Yes && hit.rule.order == self.rule)
            })
        };
        for example in self.differing.iter().filter(|example| matches(example)) {
            faults.push(self.at.fault(format!(
                "the example of not_match \"{}\" matches the rule",
                example.shown
            )));
        }
        for example in self.matching.iter().filter(|example| !matches(example)) {
            faults.push(self.at.fault(format!(
                "the example of match \"{}\" does not match the rule",
                example.shown
            )));
        }
    }
}

impl Call<'_> {
    fn fault(&mut self, text: impl Into<String>) {
        self.faulty = true;
        self.faults.push(self.at.fault(text));
    }

    fn prefix_rule(mut self, set: &mut RuleSet, all_examples: &mut Vec<Examples>) {
        let pattern = self.pattern();
        let decision = self.decision(false);
        let justification = self.text("justification");
        let canonical = self.flag("canonical_matching");
        let person_only = self.person_only();
        let cwd = self.folder();
        let options = self.options();
        let arguments = self.patterns("arguments");
        let redirects = self.patterns("redirects");
        let env = self.texts("env");
        if decision == Decision::Allow && !(options.is_empty() && arguments.is_empty()) {
            self.fault("options and arguments restrict: a rule that allows cannot have them");
        }
        if pattern.is_empty() && !self.faulty {
            if redirects.is_empty() && env.is_empty() {
                self.fault("a rule needs a pattern, or redirects or env");
            } else if decision == Decision::Allow {
                self.fault("a rule that allows needs a pattern");
            }
        }
        let scripts = !(redirects.is_empty() && env.is_empty());
        let differing = self.examples("not_match", scripts);
        let matching = self.examples("match", scripts);
        let mut meaning = vec![format!("{decision:?} {canonical} {person_only} {cwd:?}")];
        meaning.extend(spelled(&pattern));
        meaning.extend(options.iter().map(|option| format!("- {option}")));
        meaning.extend(arguments.iter().map(|argument| format!("* {}", argument.as_str())));
        meaning.extend(redirects.iter().map(|redirect| format!("> {}", redirect.as_str())));
        meaning.extend(env.iter().map(|name| format!("$ {name}")));
        let id = self.id("prefix", &meaning);
        if self.faulty {
            return;
        }
        let order = u32::try_from(set.rules.len()).expect("the number of calls is capped");
        set.rules.push(PrefixRule {
            id,
            file: self.at.file.clone(),
            line: self.at.line,
            pattern,
            decision,
            justification,
            canonical,
            person_only,
            cwd,
            options,
            arguments,
            redirects,
            env,
            order,
        });
        all_examples.push(Examples {
            at: self.at,
            rule: order,
            matching,
            differing,
        });
    }

    fn network_rule(mut self, set: &mut RuleSet) {
        let host = match self.given["host"].as_str().map(network::host) {
            Some(Ok(host)) => Some(host),
            Some(Err(fault)) => {
                self.fault(fault);
                None
            }
            None => {
                self.fault("network_rule host must be a string");
                None
            }
        };
        let named = self.given["protocol"].as_str().unwrap_or_default().to_owned();
        let protocol = Protocol::read(&named);
        if protocol.is_none() {
            self.fault(format!(
                "network_rule protocol must be http, https, socks5_tcp or socks5_udp, not \"{named}\""
            ));
        }
        let decision = self.decision(true);
        let justification = self.text("justification");
        let person_only = self.person_only();
        let (Some(host), Some(protocol)) = (host, protocol) else {
            return;
        };
        let meaning = [
            host.clone(),
            protocol.name().to_owned(),
            format!("{decision:?} {person_only}"),
        ];
        let id = self.id("network", &meaning);
        if !self.faulty {
            set.network.push(NetworkRule {
                id,
                file: self.at.file,
                line: self.at.line,
                host,
                protocol,
                decision,
                justification,
                person_only,
            });
        }
    }

    fn host_executable(mut self, set: &mut RuleSet) {
        let name = self.given["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            self.fault("host_executable name cannot be empty");
        } else if name.contains(['/', '\\']) || name == "." || name == ".." {
            self.fault(format!(
                "host_executable name must be a bare executable name, not \"{name}\""
            ));
        }
        let mut known: Vec<String> = Vec::new();
        for given in self.texts_called("paths", "host_executable paths") {
            let Some(path) = path::normal(&given) else {
                self.fault(format!("host_executable path must be absolute: \"{given}\""));
                continue;
            };
            if path.rsplit('/').next() != Some(name.as_str()) {
                self.fault(format!("host_executable path \"{given}\" must have basename `{name}`"));
            } else if !known.contains(&path) {
                known.push(path);
            }
        }
        if !self.faulty {
            set.executables.insert(name, known);
        }
    }

    fn pattern(&mut self) -> Vec<Token> {
        let pattern = match &self.given["pattern"] {
            Value::Null => return Vec::new(),
            Value::Array(pattern) => pattern,
            other => {
                self.fault(format!("pattern must be a list, not {}", kind(other)));
                return Vec::new();
            }
        };
        if pattern.is_empty() {
            self.fault("pattern cannot be empty");
        }
        let mut tokens = Vec::new();
        for item in pattern {
            match item {
                Value::String(word) => tokens.push(Token::Word(word.clone())),
                Value::Array(choices) => {
                    let mut words: Vec<String> = Vec::new();
                    for choice in choices {
                        match choice {
                            Value::String(word) => words.push(word.clone()),
                            other => self.fault(format!("pattern alternative must be a string, not {}", kind(other))),
                        }
                    }
                    match words.len() {
                        0 => self.fault("pattern alternatives cannot be empty"),
                        1 => tokens.push(Token::Word(words.remove(0))),
                        _ => tokens.push(Token::AnyOf(words)),
                    }
                }
                other => self.fault(format!(
                    "pattern element must be a string or a list of strings, not {}",
                    kind(other)
                )),
            }
        }
        tokens
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match &self.given[name] {
            Value::Null => None,
            Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
            Value::String(_) => {
                self.fault(format!("{name} cannot be empty"));
                None
            }
            other => {
                self.fault(format!("{name} must be a string, not {}", kind(other)));
                None
            }
        }
    }

    fn flag(&mut self, name: &str) -> bool {
        match &self.given[name] {
            Value::Null => false,
            Value::Bool(flag) => *flag,
            other => {
                self.fault(format!("{name} must be True or False, not {}", kind(other)));
                false
            }
        }
    }

    fn texts(&mut self, name: &str) -> Vec<String> {
        self.texts_called(name, name)
    }

    fn texts_called(&mut self, name: &str, called: &str) -> Vec<String> {
        let given = &self.given[name];
        self.strings(given, called)
    }

    fn strings(&mut self, given: &Value, called: &str) -> Vec<String> {
        let items = match given {
            Value::Null => return Vec::new(),
            Value::Array(items) => items,
            other => {
                self.fault(format!("{called} must be a list, not {}", kind(other)));
                return Vec::new();
            }
        };
        let mut texts = Vec::new();
        for item in items {
            match item {
                Value::String(text) => texts.push(text.clone()),
                other => self.fault(format!("{called} must be strings, not {}", kind(other))),
            }
        }
        texts
    }

    fn decision(&mut self, network: bool) -> Decision {
        match self.text("decision").as_deref() {
            None | Some("allow") => Decision::Allow,
            Some("prompt") => Decision::Prompt,
            Some("forbidden") => Decision::Forbidden,
            Some("deny") if network => Decision::Forbidden,
            Some(other) => {
                self.fault(format!(
                    "invalid decision: \"{other}\" (expected allow, prompt or forbidden)"
                ));
                Decision::Forbidden
            }
        }
    }

    fn person_only(&mut self) -> bool {
        match self.text("reviewer").as_deref() {
            None => false,
            Some("user") => true,
            Some(other) => {
                self.fault(format!("invalid reviewer: \"{other}\" (expected user)"));
                true
            }
        }
    }

    fn patterns(&mut self, name: &str) -> Vec<Pattern> {
        self.texts(name).into_iter().map(Pattern::new).collect()
    }

    fn options(&mut self) -> Vec<String> {
        let options = self.texts("options");
        for option in &options {
            let letter = option.len() == 2 && option.starts_with('-') && option != "--";
            let word = option.len() > 3 && option.starts_with("--");
            if !letter && !word {
                self.fault(format!("options must be like -f or --force, not \"{option}\""));
            }
        }
        options
    }

    fn folder(&mut self) -> Option<SandboxPath> {
        match SandboxPath::new(&self.text("cwd")?) {
            Ok(folder) => Some(folder),
            Err(error) => {
                self.fault(format!("cwd: {error}"));
                None
            }
        }
    }

    /// The id that is given, or one that stays as long as the meaning does, whatever file or line the rule moves to.
    fn id(&mut self, kind: &str, meaning: &[String]) -> String {
        if let Some(id) = self.text("id") {
            if id.len() > 64
                || !id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte))
            {
                self.fault("id must be at most 64 letters, digits and -_.:/");
            }
            return id;
        }
        let digest = Digest::of_parts(meaning.iter().map(String::as_bytes));
        let short: String = digest.as_bytes()[..6]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{kind}:{short}")
    }

    /// Examples: a text that is split like a shell's words, or a list of words. For a rule about redirects or variables the
    /// text is read as a script, for there they stand.
    fn examples(&mut self, name: &str, scripts: bool) -> Vec<Example> {
        let items = match &self.given[name] {
            Value::Null => return Vec::new(),
            Value::Array(items) => items,
            other => {
                self.fault(format!("{name} must be a list, not {}", kind(other)));
                return Vec::new();
            }
        };
        let mut examples = Vec::new();
        for item in items {
            match item {
                Value::String(text) if scripts => {
                    let found = shell::understand_script(text);
                    if found.opaque.is_some() || found.commands.is_empty() {
                        self.fault(format!("example has invalid shell syntax: \"{text}\""));
                    }
                    examples.push(Example {
                        shown: text.clone(),
                        commands: found.commands,
                    });
                }
                Value::String(text) => match shlex::split(text) {
                    Some(words) if !words.is_empty() => examples.push(Example::plain(text.clone(), words)),
                    Some(_) => self.fault("example cannot be an empty string"),
                    None => self.fault(format!("example string has invalid shell syntax: \"{text}\"")),
                },
                Value::Array(_) => {
                    let words = self.strings(item, "example words");
                    if words.is_empty() {
                        self.fault("example cannot be an empty list");
                    } else {
                        examples.push(Example::plain(words.join(" "), words));
                    }
                }
                other => self.fault(format!(
                    "example must be a string or a list of strings, not {}",
                    kind(other)
                )),
            }
        }
        examples
    }
}

/// The rule that stands for one of the admin's.
pub(super) fn managed(rule: ManagedRule, order: u32) -> PrefixRule {
    let mut meaning = vec![format!("{:?} {} {}", rule.decision, rule.canonical, rule.person_only)];
    meaning.extend(spelled(&rule.pattern));
    PrefixRule {
        id: stable_id("managed", &meaning),
        file: rule.file.into(),
        line: rule.line,
        pattern: rule.pattern,
        decision: rule.decision,
        justification: rule.justification,
        canonical: rule.canonical,
        person_only: rule.person_only,
        cwd: None,
        options: Vec::new(),
        arguments: Vec::new(),
        redirects: Vec::new(),
        env: Vec::new(),
        order,
    }
}

/// A pattern as a list that no other pattern has.
fn spelled(pattern: &[Token]) -> impl Iterator<Item = String> {
    pattern.iter().flat_map(|token| {
        let texts = token.texts();
        std::iter::once(texts.len().to_string()).chain(texts.iter().cloned())
    })
}

fn stable_id(kind: &str, meaning: &[String]) -> String {
    let digest = Digest::of_parts(meaning.iter().map(String::as_bytes));
    let short: String = digest.as_bytes()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{kind}:{short}")
}

impl Example {
    fn plain(shown: String, words: Vec<String>) -> Self {
        Self {
            shown,
            commands: vec![SimpleCommand {
                argv: words.into_iter().map(Word::known).collect(),
                env: Vec::new(),
                redirects: Vec::new(),
                role: Role::Runs,
            }],
        }
    }
}

/// What Starlark calls a value of this kind.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "None",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}
