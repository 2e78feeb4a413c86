//! What stands for a secret inside: of its shape, so that programs which look at it before they use it are content, and random.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};

/// How well-known tokens begin, the longer before the shorter: public, and looked at by programs.
const PREFIXES: [&str; 44] = [
    "github_pat_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "glpat-",
    "gldt-",
    "sk-ant-api03-",
    "sk-ant-",
    "sk-proj-",
    "sk-svcacct-",
    "sk-or-v1-",
    "sk-",
    "sk_live_",
    "sk_test_",
    "rk_live_",
    "rk_test_",
    "pk_live_",
    "pk_test_",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xapp-",
    "npm_",
    "pypi-",
    "cio",
    "hf_",
    "gsk_",
    "r8_",
    "dop_v1_",
    "dckr_pat_",
    "hvs.",
    "glsa_",
    "lin_api_",
    "ntn_",
    "figd_",
    "shpat_",
    "SG.",
    "AKIA",
    "ASIA",
    "AIza",
    "ya29.",
    "rubygems_",
];

const DIGITS: &[u8] = b"0123456789";
const HEX_LOWER: &[u8] = b"0123456789abcdef";
const HEX_UPPER: &[u8] = b"0123456789ABCDEF";
const LOWER: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const UPPER: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const ALL: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// A placeholder for a value: same length, same known prefix, same signs between, and of the alphabet that the rest is of. `None`
/// where the machine has no randomness.
pub(super) fn like(value: &str) -> Option<String> {
    let random = SystemRandom::new();
    if let Some(token) = like_jwt(value, &random) {
        return Some(token);
    }
    let prefix = PREFIXES
        .iter()
        .find(|prefix| value.starts_with(**prefix))
        .copied()
        .unwrap_or_default();
    let rest = &value[prefix.len()..];
    Some(format!("{prefix}{}", like_text(rest, &random)?))
}

/// Which signs stand between is told, which letters is not: they are drawn from the alphabet of the whole.
fn like_text(text: &str, random: &SystemRandom) -> Option<String> {
    let within = |alphabet: &&[u8]| {
        text.bytes()
            .all(|b| !b.is_ascii_alphanumeric() || alphabet.contains(&b))
    };
    let alphabet = [DIGITS, HEX_LOWER, HEX_UPPER, LOWER, UPPER]
        .into_iter()
        .find(within)
        .unwrap_or(ALL);
    let mut like = String::with_capacity(text.len());
    for sign in text.chars() {
        match sign.is_ascii_alphanumeric() {
            true => like.push(char::from(draw(alphabet, random)?)),
            false => like.push(sign),
        }
    }
    Some(like)
}

fn draw(alphabet: &[u8], random: &SystemRandom) -> Option<u8> {
    // Bytes beyond the last whole turn through the alphabet are drawn again, or its first signs would come more often.
    let turn = 256 - 256 % alphabet.len();
    loop {
        let mut byte = [0];
        random.fill(&mut byte).ok()?;
        if usize::from(byte[0]) < turn {
            return alphabet.get(usize::from(byte[0]) % alphabet.len()).copied();
        }
    }
}

/// A JSON Web Token keeps its header, which says how to read it; its claims are made up, and do not expire.
fn like_jwt(value: &str, random: &SystemRandom) -> Option<String> {
    let parts: Vec<&str> = value.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else {
        return None;
    };
    let decoded = URL_SAFE_NO_PAD.decode(header).ok()?;
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&decoded).ok()?;
    let bytes = claims.len() * 3 / 4;
    let made = |pad: &str| format!(r#"{{"sub":"belljar","exp":4102444800,"pad":"{pad}"}}"#);
    let claims = match bytes.checked_sub(made("").len()) {
        Some(room) => URL_SAFE_NO_PAD.encode(made(&like_text(&"a0Z".repeat(room)[..room], random)?)),
        None => like_text(claims, random)?,
    };
    Some(format!("{header}.{claims}.{}", like_text(signature, random)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_has_the_shape_of_its_value_and_nothing_else_of_it() {
        let values = [
            "ghp_0123456789abcdefABCDEF0123456789abcd",
            "sk-ant-api03-AAAA_bbbb-CCCC1234567890",
            "0123456789abcdef0123456789abcdef",
            "1234567890123456",
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            "123e4567-e89b-12d3-a456-426614174000",
        ];
        for value in values {
            let like = like(value).unwrap();
            assert_eq!(like.len(), value.len());
            assert_ne!(like, value);
            assert_ne!(super::like(value).unwrap(), like, "it is another one each time");
            let signs = |text: &str| {
                text.chars()
                    .map(|c| if c.is_ascii_alphanumeric() { 'a' } else { c })
                    .collect::<String>()
            };
            assert_eq!(signs(&like), signs(value));
        }
        assert!(like(values[0]).unwrap().starts_with("ghp_"));
        assert!(like(values[2]).unwrap().bytes().all(|b| HEX_LOWER.contains(&b)));
        assert!(like(values[3]).unwrap().bytes().all(|b| b.is_ascii_digit()));
    }

    #[test]
    fn the_placeholder_of_a_token_can_be_read_as_one() {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let claims = r#"{"iss":"https://login.example.org/","sub":"1234567890","name":"A B","exp":1}"#;
        let value = format!(
            "{}.{}.c2lnbmF0dXJl",
            part(r#"{"alg":"RS256","typ":"JWT"}"#),
            part(claims)
        );
        let like = like(&value).unwrap();
        assert_eq!(like.len(), value.len());
        let parts: Vec<&str> = like.split('.').collect();
        assert_eq!(parts[0], part(r#"{"alg":"RS256","typ":"JWT"}"#));
        let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        assert_eq!(claims["exp"], 4_102_444_800u64);
        assert!(!like.contains("c2lnbmF0dXJl"));
    }
}
