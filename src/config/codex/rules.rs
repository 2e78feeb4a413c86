//! `[rules]`: rules in TOML, which become rules in Starlark.

use crate::document::{Origin, Table, Value};
use crate::task::RulesText;

/// Codex's rules in TOML as rules in Starlark, each in the line in which it stands in the file, so that a judgement names it.
pub(super) fn rules(table: &Table<'_>, file: &str) -> Option<RulesText> {
    let value = table.value("prefix_rules")?;
    let list = value.list()?;
    if list.is_empty() {
        value.fault("rules prefix_rules cannot be empty");
    }
    let mut text = String::new();
    let mut line = 1;
    for (n, value) in list.iter().enumerate() {
        let Some(rule) = value.table().and_then(|table| rule(n, value, &table)) else {
            continue;
        };
        if let Origin::File { line: at, .. } = value.origin() {
            if at == line && !text.is_empty() && !text.ends_with('\n') {
                text.push_str("; ");
            }
            while line < at {
                text.push('\n');
                line += 1;
            }
        }
        text.push_str(&rule);
    }
    text.push('\n');
    Some(RulesText {
        name: file.to_owned(),
        text,
    })
}

fn rule(n: usize, value: &Value<'_>, table: &Table<'_>) -> Option<String> {
    let at = format!("rules prefix_rule at index {n}");
    let canonical = table.flag("canonical_matching").is_some_and(|flag| flag.value);
    let decision = match table.text("decision").map(|decision| decision.value) {
        None => {
            value.fault(format!("{at} is missing a decision"));
            return None;
        }
        Some(decision) => match decision.as_str() {
            "prompt" => "decision = \"prompt\"",
            "prompt-user" => "decision = \"prompt\", reviewer = \"user\"",
            "forbidden" => "decision = \"forbidden\"",
            "allow" => {
                value.fault(format!(
                    "{at} has decision 'allow', which is not permitted in requirements.toml: it may only tighten"
                ));
                return None;
            }
            other => {
                value.fault(format!("{at} has the unknown decision {other:?}"));
                return None;
            }
        },
    };
    let mut pattern = Vec::new();
    for (m, part) in table.tables("pattern").iter().enumerate() {
        let token = part.text("token").map(|token| vec![token.value]);
        let any_of: Option<Vec<String>> = part
            .value("any_of")
            .map(|_| part.list("any_of", |text| Ok(text.to_owned())))
            .map(|words| words.into_iter().map(|word| word.value).collect());
        let words: Result<Vec<String>, &str> = match (token, any_of) {
            (Some(words), None) if words[0].trim().is_empty() => Err("token cannot be empty"),
            (None, Some(words)) if words.is_empty() => Err("any_of cannot be empty"),
            (None, Some(words)) if words.iter().any(|word| word.trim().is_empty()) => {
                Err("any_of cannot include empty tokens")
            }
            (Some(words), None) | (None, Some(words)) => Ok(words),
            (Some(_), Some(_)) => Err("set either token or any_of, not both"),
            (None, None) => Err("set either token or any_of"),
        };
        let words = match words {
            Ok(words) => words,
            Err(what) => {
                value.fault(format!("{at} has an invalid pattern token at index {m}: {what}"));
                return None;
            }
        };
        let words: Vec<String> = words.iter().map(|word| literal(word)).collect();
        pattern.push(format!("[{}]", words.join(", ")));
    }
    if pattern.is_empty() {
        value.fault(format!("{at} has an empty pattern"));
        return None;
    }
    let justification = match table.text("justification").map(|text| text.value) {
        Some(text) if text.trim().is_empty() => {
            value.fault(format!("{at} has an empty justification"));
            return None;
        }
        Some(text) => format!(", justification = {}", literal(&text)),
        None => String::new(),
    };
    Some(format!(
        "prefix_rule(pattern = [{}], {decision}{justification}{})",
        pattern.join(", "),
        if canonical { ", canonical_matching = True" } else { "" },
    ))
}

/// A string of Starlark: JSON's escapes mean the same there.
fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
