//! What a file says of things that belljar does not have. It demands nothing, but a file that Codex would refuse is refused here
//! too: whoever wrote it meant something else.

use crate::document::Value;

/// Looks through a value for regular expressions that are none: `{ match = "regex", expression = "[" }`.
pub(super) fn check(value: &Value<'_>) {
    let inside = value.inside();
    let text = |name: &str| {
        let found = inside.iter().find(|(key, _)| key == name);
        found.and_then(|(_, value)| value.as_text())
    };
    if let (Some("regex"), Some(expression)) = (text("match"), text("expression"))
        && let Err(what) = brackets(expression)
    {
        value.fault(format!("invalid regex `{expression}`: {what}"));
    }
    for (_, value) in &inside {
        check(value);
    }
}

/// Whether the brackets of an expression are closed and each repetition has what it repeats. An expression that is wrong in another
/// way demands nothing here, as a right one does.
fn brackets(expression: &str) -> Result<(), &'static str> {
    let mut groups = 0_u32;
    let mut repeatable = false;
    let mut letters = expression.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => {
                letters.next().ok_or("incomplete escape sequence")?;
                repeatable = true;
            }
            '[' => {
                letters.next_if_eq(&'^');
                // A bracket right at the start is one of the letters.
                letters.next_if_eq(&']');
                let mut closed = false;
                while let Some(letter) = letters.next() {
                    match letter {
                        '\\' => {
                            letters.next();
                        }
                        ']' => {
                            closed = true;
                            break;
                        }
                        _ => {}
                    }
                }
                if !closed {
                    return Err("unclosed character class");
                }
                repeatable = true;
            }
            '(' => {
                groups += 1;
                // `(?:`, `(?i)` and their kin begin with what repeats nothing.
                repeatable = letters.next_if_eq(&'?').is_some();
            }
            ')' => {
                groups = groups.checked_sub(1).ok_or("unopened group")?;
                repeatable = true;
            }
            '*' | '+' | '?' if !repeatable => return Err("repetition operator missing expression"),
            '|' => repeatable = false,
            _ => repeatable = true,
        }
    }
    match groups {
        0 => Ok(()),
        _ => Err("unclosed group"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_must_be_closed() {
        for right in ["", "^a[]b]+$", "(?:a|b)*?", "\\[", "[^\\]]", "https://[a-z.]+/(x)?"] {
            assert_eq!(brackets(right), Ok(()), "{right}");
        }
        for wrong in ["[", "(", "a)", "*a", "a|+", "(?:a", "[^]", "\\"] {
            assert!(brackets(wrong).is_err(), "{wrong}");
        }
    }
}
