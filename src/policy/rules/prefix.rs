//! One rule for commands: what it looks at and whether it matches.

use std::sync::Arc;

use super::path::{Pattern, Written};
use crate::path::SandboxPath;
use crate::policy::shell::{Fields, Fit, Redirect, SimpleCommand, Word};
use crate::policy::{Decision, RuleMatch};

/// A rule as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixRule {
    pub id: String,
    pub file: Arc<str>,
    pub line: u32,
    /// The commands that start with these words; empty where the rule looks at redirects or variables alone.
    pub pattern: Vec<Token>,
    pub decision: Decision,
    pub justification: Option<String>,
    /// Whether the first word is compared without regard to case.
    pub canonical: bool,
    /// Only a person may answer.
    pub person_only: bool,
    /// Holds only for commands that run in this folder or below.
    pub cwd: Option<SandboxPath>,
    /// Holds only where one of these options is given, in whatever place: `-f` also within `-rf`, `--force` also as `--forc`.
    pub options: Vec<String>,
    /// Holds only where an argument has one of these forms, as it is written.
    pub arguments: Vec<Pattern>,
    /// Holds only where a file of this form is written, or read by a rule that restricts.
    pub redirects: Vec<Pattern>,
    /// Holds only where one of these variables is set for the command.
    pub env: Vec<String>,
    /// Its place among all rules of the load.
    pub(super) order: u32,
}

/// A rule of the admin's, from requirements instead of a file of rules. It restricts; what it says to allow is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedRule {
    pub file: String,
    pub line: u32,
    pub pattern: Vec<Token>,
    pub decision: Decision,
    pub justification: Option<String>,
    pub canonical: bool,
    pub person_only: bool,
}

/// One place of a pattern: a word, or one of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    Word(String),
    AnyOf(Vec<String>),
}

impl Token {
    pub(super) fn texts(&self) -> &[String] {
        match self {
            Token::Word(word) => std::slice::from_ref(word),
            Token::AnyOf(words) => words,
        }
    }

    fn fits(&self, word: &Word) -> Fit {
        match self {
            Token::Word(text) => word.fits(text),
            Token::AnyOf(texts) => texts.iter().map(|text| word.fits(text)).max().unwrap_or(Fit::No),
        }
    }
}

/// Where a command runs, as far as that is known.
#[derive(Debug, Clone, Copy)]
pub(in crate::policy) enum Place<'p> {
    /// In this folder.
    Folder(&'p SandboxPath),
    /// Somewhere: a `cd` went before, or it is an example.
    Anywhere,
    /// For examples: a rule's folder counts as met.
    Example,
}

impl PrefixRule {
    /// Whether the rule speaks of `command`, whose first word the index has compared already.
    pub(super) fn fit(&self, command: &SimpleCommand, place: Place) -> Fit {
        let mut fit = self.prefix(&command.argv);
        if fit == Fit::No {
            return Fit::No;
        }
        if let Some(folder) = &self.cwd {
            fit = fit.min(match place {
                Place::Folder(cwd) if cwd.is_within(folder) => Fit::Yes,
                Place::Folder(_) => Fit::No,
                Place::Anywhere => Fit::Maybe,
                Place::Example => Fit::Yes,
            });
        }
        if !self.options.is_empty() {
            fit = fit.min(self.has_option(&command.argv));
        }
        if !self.arguments.is_empty() && !self.has_argument(&command.argv) {
            return Fit::No;
        }
        if !self.redirects.is_empty() {
            fit = fit.min(self.redirected(&command.redirects));
        }
        if !self.env.is_empty() && !command.env.iter().any(|(name, _)| self.env.contains(name)) {
            fit = Fit::No;
        }
        fit
    }

    fn prefix(&self, argv: &[Word]) -> Fit {
        let mut fit = Fit::Yes;
        for (index, token) in self.pattern.iter().enumerate().skip(1) {
            let Some(word) = argv.get(index) else { return Fit::No };
            match token.fits(word) {
                Fit::No => return Fit::No,
                Fit::Yes => {}
                Fit::Maybe => {
                    fit = Fit::Maybe;
                    if word
                        .unknown
                        .as_ref()
                        .is_some_and(|unknown| unknown.fields != Fields::One)
                    {
                        return fit;
                    }
                }
            }
        }
        fit
    }

    /// A word that is put together when the command runs may be an option, unless `--` stands before it.
    fn has_option(&self, argv: &[Word]) -> Fit {
        let mut fit = Fit::No;
        for word in argv.iter().skip(1) {
            let written = match &word.unknown {
                None if word.text == "--" => break,
                None => word.text.as_str(),
                Some(_) if word.is_home() => continue,
                Some(unknown) if unknown.prefix.is_empty() => {
                    fit = Fit::Maybe;
                    continue;
                }
                Some(unknown) => unknown.prefix.as_str(),
            };
            if self.options.iter().any(|option| is_option(written, option)) {
                return Fit::Yes;
            }
        }
        fit
    }

    fn has_argument(&self, argv: &[Word]) -> bool {
        argv.iter().skip(1).any(|word| {
            let written = Written::new(&word.text);
            self.arguments.iter().any(|pattern| pattern.matches(&written))
        })
    }

    fn redirected(&self, redirects: &[Redirect]) -> Fit {
        let fits = redirects
            .iter()
            .filter(|redirect| redirect.writes_file() || (self.decision != Decision::Allow && redirect.operator == "<"))
            .map(|redirect| {
                if self.decision == Decision::Allow && redirect.target.unknown.is_some() {
                    return Fit::Maybe;
                }
                let written = Written::new(&redirect.target.text);
                if self.redirects.iter().any(|pattern| pattern.matches(&written)) {
                    return Fit::Yes;
                }
                match &redirect.target.unknown {
                    Some(unknown) if unknown.prefix.is_empty() && unknown.suffix.is_empty() => Fit::Maybe,
                    _ => Fit::No,
                }
            });
        // A rule against a file looks for one, a rule that allows files must know them all.
        let fit = match self.decision {
            Decision::Allow => fits.min(),
            Decision::Prompt | Decision::Forbidden => fits.max(),
        };
        fit.unwrap_or(Fit::No)
    }

    pub(in crate::policy) fn to_match(&self, fit: Fit) -> RuleMatch {
        RuleMatch {
            id: self.id.clone(),
            file: self.file.to_string(),
            line: self.line,
            // A rule that may match cannot forbid what may be something else: somebody has to look.
            decision: if fit == Fit::Yes {
                self.decision
            } else {
                Decision::Prompt
            },
            justification: match fit {
                Fit::Yes => self.justification.clone(),
                _ => Some(match &self.justification {
                    Some(text) => format!("the command may be one of these: {text}"),
                    None => "the command may be one that this rule is about".to_owned(),
                }),
            },
            person_only: self.person_only,
        }
    }
}

/// Whether `written` gives `option`: a letter may stand within a cluster, a long one may be cut short or carry a value.
fn is_option(written: &str, option: &str) -> bool {
    if let Some(long) = option.strip_prefix("--") {
        let name = written
            .strip_prefix("--")
            .map(|rest| rest.split('=').next().unwrap_or(rest));
        return name.is_some_and(|name| name.len() >= 2 && long.starts_with(name));
    }
    let letter = &option[1..];
    written.starts_with('-') && !written.starts_with("--") && written[1..].contains(letter)
}
