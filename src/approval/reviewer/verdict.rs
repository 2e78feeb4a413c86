//! Reading a model's answer. Anything but one whole object of the shape that was asked for is no opinion.

use serde::Deserialize;
use serde_json::{Value, json};

use super::prompt::cut;
use super::{Authorization, Failed, Failure, Opinion, Outcome, Risk};

/// The longest rationale that is kept, in bytes.
pub const RATIONALE_LIMIT: usize = 2 << 10;

/// What a model must answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Verdict {
    risk_level: Risk,
    user_authorization: Authorization,
    outcome: YesOrNo,
    rationale: String,
}

/// A model may not pass a question on.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum YesOrNo {
    Allow,
    Deny,
}

/// The shape as a JSON Schema, for endpoints that hold a model to it.
pub(super) fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "risk_level": { "type": "string", "enum": ["low", "medium", "high", "critical"] },
            "user_authorization": { "type": "string", "enum": ["unknown", "low", "medium", "high"] },
            "outcome": { "type": "string", "enum": ["allow", "deny"] },
            "rationale": { "type": "string" },
        },
        "required": ["risk_level", "user_authorization", "outcome", "rationale"],
        "additionalProperties": false,
    })
}

/// Reads the text of an answer: the object alone, without prose around it, for prose may hold two of them.
pub(super) fn read(text: &str) -> Result<Opinion, Failed> {
    let verdict: Verdict = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    Ok(Opinion {
        outcome: match verdict.outcome {
            YesOrNo::Allow => Outcome::Allow,
            YesOrNo::Deny => Outcome::Deny,
        },
        risk_level: verdict.risk_level,
        user_authorization: verdict.user_authorization,
        rationale: cut(&verdict.rationale, RATIONALE_LIMIT),
    })
}

/// The text of a chat completion (<https://platform.openai.com/docs/api-reference/chat/object>).
pub(super) fn of_chat(answer: &Value) -> Result<&str, Failed> {
    let [choice] = list(answer, "choices") else {
        return Err(malformed("not exactly one choice"));
    };
    let message = &choice["message"];
    if let Some(refusal) = message["refusal"].as_str() {
        return Err(Failed::new(Failure::Refused, short(refusal)));
    }
    match choice["finish_reason"].as_str() {
        Some("stop") => {}
        Some("length") => return Err(Failed::new(Failure::Truncated, "the answer was cut off")),
        Some("content_filter") => return Err(Failed::new(Failure::Refused, "the endpoint filtered the answer")),
        other => {
            return Err(malformed(format!(
                "it ended with {}",
                short(other.unwrap_or("nothing"))
            )));
        }
    }
    if !list(message, "tool_calls").is_empty() {
        return Err(malformed("it called a tool instead of answering"));
    }
    match message["content"].as_str() {
        Some(text) => Ok(text),
        None => Err(malformed("the answer has no text")),
    }
}

/// The text of a response (<https://platform.openai.com/docs/api-reference/responses/object>).
pub(super) fn of_response(answer: &Value) -> Result<&str, Failed> {
    match answer["status"].as_str() {
        Some("completed") => {}
        Some("incomplete") if answer["incomplete_details"]["reason"] == "content_filter" => {
            return Err(Failed::new(Failure::Refused, "the endpoint filtered the answer"));
        }
        Some("incomplete") => return Err(Failed::new(Failure::Truncated, "the answer was cut off")),
        Some("failed") => {
            let why = answer["error"]["message"].as_str().unwrap_or("without a reason");
            return Err(Failed::new(Failure::Rejected, short(why)));
        }
        other => {
            return Err(malformed(format!(
                "its status is {}",
                short(other.unwrap_or("nothing"))
            )));
        }
    }
    let mut texts = Vec::new();
    for item in list(answer, "output") {
        match item["type"].as_str() {
            Some("reasoning") => {}
            Some("message") => {
                for part in list(item, "content") {
                    match (part["type"].as_str(), part["text"].as_str()) {
                        (Some("output_text"), Some(text)) => texts.push(text),
                        (Some("refusal"), _) => {
                            let why = part["refusal"].as_str().unwrap_or_default();
                            return Err(Failed::new(Failure::Refused, short(why)));
                        }
                        _ => return Err(malformed("a part of the answer is no text")),
                    }
                }
            }
            _ => return Err(malformed("it did something else than answer")),
        }
    }
    match texts.as_slice() {
        [text] => Ok(text),
        _ => Err(malformed("not exactly one text")),
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn malformed(detail: impl Into<String>) -> Failed {
    Failed::new(Failure::Malformed, detail)
}

/// As much of a foreign text as a record needs.
pub(super) fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        r#"{"risk_level":"low","user_authorization":"unknown","outcome":"allow","rationale":"it only reads"}"#;

    fn chat(message: Value, finish: &str) -> Value {
        json!({"choices": [{"index": 0, "finish_reason": finish, "message": message}]})
    }

    fn failure<T: std::fmt::Debug>(read: Result<T, Failed>) -> Failure {
        read.unwrap_err().failure
    }

    #[test]
    fn a_whole_answer_is_an_opinion() {
        let answer = chat(json!({"role": "assistant", "content": GOOD}), "stop");
        let opinion = of_chat(&answer).and_then(read).unwrap();
        assert_eq!((opinion.outcome, opinion.risk_level), (Outcome::Allow, Risk::Low));
        let response = json!({"status": "completed", "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": GOOD}]},
        ]});
        assert_eq!(of_response(&response).and_then(read), Ok(opinion));
    }

    #[test]
    fn whatever_is_not_one_object_of_that_shape_is_malformed() {
        for text in [
            "",
            "allow",
            "{}",
            &format!("Sure! {GOOD}"),
            &format!("{GOOD}{GOOD}"),
            &GOOD.replace("low", "tiny"),
            &GOOD.replace("allow", "ask"),
            &GOOD.replace("\"it only reads\"", "null"),
            &GOOD.replace("{", "{\"outcome\":\"deny\","),
            &GOOD.replace("{", "{\"note\":\"x\","),
        ] {
            assert_eq!(failure(read(text)), Failure::Malformed, "{text}");
        }
    }

    #[test]
    fn each_way_of_not_answering_has_its_name() {
        let of = |message, finish| failure(of_chat(&chat(message, finish)));
        assert_eq!(of(json!({"content": GOOD}), "length"), Failure::Truncated);
        assert_eq!(
            of(json!({"content": null, "refusal": "I will not"}), "stop"),
            Failure::Refused
        );
        assert_eq!(of(json!({"content": GOOD}), "content_filter"), Failure::Refused);
        assert_eq!(
            of(json!({"content": null, "tool_calls": [{}]}), "tool_calls"),
            Failure::Malformed
        );
        assert_eq!(
            of(json!({"content": GOOD, "tool_calls": [{}]}), "stop"),
            Failure::Malformed
        );
        assert_eq!(of(json!({"content": null}), "stop"), Failure::Malformed);
        assert_eq!(failure(of_chat(&json!({"choices": []}))), Failure::Malformed);
        assert_eq!(failure(of_chat(&json!([1]))), Failure::Malformed);
        let response = |status: &str, output| failure(of_response(&json!({"status": status, "output": output})));
        assert_eq!(response("incomplete", json!([])), Failure::Truncated);
        assert_eq!(response("failed", json!([])), Failure::Rejected);
        assert_eq!(response("completed", json!([])), Failure::Malformed);
        assert_eq!(
            response("completed", json!([{"type": "function_call"}])),
            Failure::Malformed
        );
        let refusal = json!([{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]);
        assert_eq!(response("completed", refusal), Failure::Refused);
    }
}
