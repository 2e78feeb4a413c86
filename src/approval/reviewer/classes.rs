//! The admin's own classes of risk as reviewer, where there is no model: what is known is judged the same every time.
//!
//! A class names commands by how they begin, or hosts by a pattern, and says how risky they are. A request is as risky as the
//! riskiest thing in it, by the same understanding of shells and wrappers that rules have; what no class names is `high`, and so
//! is what cannot be known before it runs. Whatever is not riskier than the admin lets pass, passes.

use futures_util::future::BoxFuture;

use super::{Authorization, Case, Opinion, Outcome, Review, Reviewed, Risk};
use crate::approval::Subject;
use crate::egress::host::Host;
use crate::egress::pattern::{List, Pattern, PatternError};
use crate::policy::{Approver, ApproverKind, Command, Decision, Policy, RuleText, RulesError, Verdict};
use crate::task::Unmatched;

/// One class, as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    pub risk: Risk,
    pub what: Named,
}

/// What a class names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// Commands that begin with these words.
    Commands(Vec<String>),
    /// Hosts, by a pattern as in `network.allow`.
    Hosts(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ClassesError {
    #[error("the reviewer's classes do not load")]
    Rules(#[from] RulesError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

/// See the page of the module.
pub struct Classes {
    commands: Policy,
    hosts: Vec<(Pattern, Risk)>,
    /// The most that passes: `low` or `medium`.
    pass: Risk,
}

impl Classes {
    /// `pass` above `medium` counts as `medium`: nobody here can say what the user wants.
    pub fn new(classes: &[Class], pass: Risk) -> Result<Self, ClassesError> {
        let mut text = String::new();
        let mut hosts = Vec::new();
        for class in classes {
            match &class.what {
                Named::Commands(prefix) => text.push_str(&rule(prefix, class.risk)),
                Named::Hosts(pattern) => hosts.push((Pattern::parse(pattern, List::Allow)?, class.risk)),
            }
        }
        let rules = RuleText {
            name: "reviewer.classes".to_owned(),
            text,
        };
        Ok(Self {
            commands: Policy::from_texts(&[rules], Unmatched::Ask)?,
            hosts,
            pass: pass.min(Risk::Medium),
        })
    }

    fn of_command(&self, command: &Command) -> (Risk, String) {
        let found = self.commands.explain(command);
        let classes = found
            .rules
            .iter()
            .filter_map(|rule| Some((risk_of(&rule.id)?, &rule.id)));
        let named = classes.map(|(risk, _)| risk).max();
        if found.judgement != Verdict::Allow {
            // Something in it is in no class, or in one of the two that never pass.
            let why = match (named, found.opaque_because) {
                (Some(Risk::Critical), _) => "something in it is critical".to_owned(),
                (Some(Risk::High), _) => "something in it is of high risk".to_owned(),
                (_, Some(because)) => format!("what it runs cannot be known: {because}"),
                _ => "something in it is in no class".to_owned(),
            };
            return (named.unwrap_or(Risk::High).max(Risk::High), why);
        }
        match named {
            Some(risk) => (risk, format!("all of it is in classes of {} risk at most", word(risk))),
            None => (Risk::High, "it is in no class".to_owned()),
        }
    }

    fn of_host(&self, host: &str, port: u16) -> (Risk, String) {
        let Ok(host) = Host::parse(host) else {
            return (Risk::High, "the host cannot be read".to_owned());
        };
        let named = self.hosts.iter().filter(|(pattern, _)| pattern.allows(&host, port));
        match named.map(|(_, risk)| *risk).max() {
            Some(risk) => (risk, format!("the host is in a class of {} risk", word(risk))),
            None => (Risk::High, "the host is in no class".to_owned()),
        }
    }
}

impl Review for Classes {
    fn approver(&self) -> Approver {
        Approver {
            kind: ApproverKind::Reviewer,
            name: "classes".to_owned(),
            via: "configuration".to_owned(),
        }
    }

    fn review<'a>(&'a self, case: &'a Case) -> BoxFuture<'a, Reviewed> {
        let (risk_level, rationale) = match &case.asked.subject {
            Subject::Command(command) => self.of_command(command),
            Subject::Host { host, port, .. } => self.of_host(host, *port),
        };
        let outcome = match risk_level <= self.pass {
            true => Outcome::Allow,
            false => Outcome::Deny,
        };
        let opinion = Opinion {
            outcome,
            risk_level,
            user_authorization: Authorization::Unknown,
            rationale,
        };
        Box::pin(async move {
            Reviewed {
                opinion: Ok(opinion),
                attempts: 1,
            }
        })
    }
}

/// A class as a rule: what may pass is one that allows, so that rules' own care for the whole of a command holds here too.
fn rule(prefix: &[String], risk: Risk) -> String {
    let decision = match risk {
        Risk::Low | Risk::Medium => Decision::Allow,
        Risk::High => Decision::Prompt,
        Risk::Critical => Decision::Forbidden,
    };
    let decision = match decision {
        Decision::Allow => "allow",
        Decision::Prompt => "prompt",
        Decision::Forbidden => "forbidden",
    };
    // JSON's texts and lists mean the same in Starlark.
    let pattern = serde_json::Value::from(prefix.to_vec());
    // Each rule has a name of its own, which begins with its risk.
    let name = crate::policy::Digest::of_bytes(pattern.to_string().as_bytes()).to_string();
    format!(
        "prefix_rule(pattern = {pattern}, decision = \"{decision}\", id = \"{}-{}\")\n",
        word(risk),
        &name[7..23]
    )
}

fn risk_of(id: &str) -> Option<Risk> {
    match id.split_once('-')?.0 {
        "low" => Some(Risk::Low),
        "medium" => Some(Risk::Medium),
        "high" => Some(Risk::High),
        "critical" => Some(Risk::Critical),
        _ => None,
    }
}

fn word(risk: Risk) -> &'static str {
    match risk {
        Risk::Low => "low",
        Risk::Medium => "medium",
        Risk::High => "high",
        Risk::Critical => "critical",
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{case, host_case};
    use super::*;

    fn commands(risk: Risk, words: &[&str]) -> Class {
        Class {
            risk,
            what: Named::Commands(words.iter().map(|word| (*word).to_owned()).collect()),
        }
    }

    fn classes() -> Classes {
        let hosts = |risk, pattern: &str| Class {
            risk,
            what: Named::Hosts(pattern.to_owned()),
        };
        let all = [
            commands(Risk::Low, &["ls"]),
            commands(Risk::Low, &["git"]),
            commands(Risk::Medium, &["git", "commit"]),
            commands(Risk::High, &["git", "push"]),
            commands(Risk::Critical, &["rm"]),
            hosts(Risk::Low, "*.example.org"),
            hosts(Risk::Critical, "paste.example.org"),
        ];
        Classes::new(&all, Risk::Medium).unwrap()
    }

    async fn judged(case: Case) -> (Risk, bool) {
        let reviewed = classes().review(&case).await;
        let opinion = reviewed.opinion.unwrap();
        (opinion.risk_level, opinion.outcome == Outcome::Allow)
    }

    #[tokio::test]
    async fn a_command_is_as_risky_as_the_riskiest_thing_in_it() {
        let sh = |script: &str| case(&["bash", "-c", script]);
        for (case, expected) in [
            (case(&["ls", "-l"]), (Risk::Low, true)),
            (sh("ls && git status"), (Risk::Low, true)),
            (sh("git add . && git commit -m x"), (Risk::Medium, true)),
            (sh("ls; git push"), (Risk::High, false)),
            (sh("ls; timeout 5 rm x"), (Risk::Critical, false)),
            (sh("ls; unknown-tool"), (Risk::High, false)),
            (sh("ls; $tool"), (Risk::High, false)),
            (sh("ls > ~/.bashrc"), (Risk::High, false)),
            (case(&["unknown-tool"]), (Risk::High, false)),
        ] {
            assert_eq!(judged(case.clone()).await, expected, "{:?}", case.asked.subject);
        }
    }

    #[tokio::test]
    async fn a_host_is_as_risky_as_the_riskiest_class_that_names_it() {
        assert_eq!(judged(host_case("docs.example.org", 443)).await, (Risk::Low, true));
        assert_eq!(
            judged(host_case("paste.example.org", 443)).await,
            (Risk::Critical, false)
        );
        assert_eq!(judged(host_case("docs.example.org", 22)).await, (Risk::High, false));
        assert_eq!(judged(host_case("elsewhere.test", 443)).await, (Risk::High, false));
    }

    #[tokio::test]
    async fn what_is_high_passes_in_no_configuration() {
        let push = [commands(Risk::High, &["git", "push"])];
        let reviewed = Classes::new(&push, Risk::Critical).unwrap();
        let reviewed = reviewed.review(&case(&["git", "push"])).await;
        assert_ne!(reviewed.ruling(), super::super::Ruling::Approve);
    }

    #[test]
    fn words_of_a_class_are_words_and_no_code() {
        let odd = [commands(Risk::Low, &["a\"b\\c\n", "]) #"])];
        assert!(Classes::new(&odd, Risk::Low).is_ok());
    }
}
