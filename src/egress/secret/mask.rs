//! Finding values in streams of bytes, and putting something of the same length in their place.
//!
//! Lengths stay, so that a `Content-Length`, a range or a frame around them stays true.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use zeroize::Zeroizing;

use super::Live;
use crate::secret::ExposeSecret;

/// Below this the middle of a value's base64 is too short to be told from other text.
const SHORTEST_BASE64: usize = 12;

/// What is looked for, and what takes its place.
pub(in crate::egress) struct Patterns {
    /// Each with a replacement of its length.
    pairs: Vec<(Zeroizing<Vec<u8>>, Vec<u8>)>,
    /// Which bytes a pattern begins with.
    first: [bool; 256],
    /// What each is called, where none may pass.
    names: Vec<String>,
}

/// A stream that is being looked through. What may be the beginning of a pattern is held back.
pub(in crate::egress) struct Masker {
    patterns: Arc<Patterns>,
    held: Zeroizing<Vec<u8>>,
}

/// What stands at the beginning of some bytes.
struct At {
    /// The longest pattern.
    whole: Option<usize>,
    /// More bytes may make it one, or a longer one.
    partial: bool,
}

impl Patterns {
    /// The values of secrets in the forms that they come back in: as they are, in a URL, in JSON, in base64.
    pub fn masking(live: &[Live]) -> Self {
        let mut patterns = Self::empty();
        for live in live {
            for value in std::iter::once(&live.value).chain(&live.session) {
                patterns.add_forms(value.expose_secret(), &live.placeholder);
            }
        }
        patterns
    }

    /// Texts that must not pass in any of these forms, each with a name.
    pub fn guarding<'a>(named: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut patterns = Self::empty();
        for (text, name) in named {
            patterns.add_forms(text, text);
            patterns.names.resize(patterns.pairs.len(), name.to_owned());
        }
        patterns
    }

    fn empty() -> Self {
        Self {
            pairs: Vec::new(),
            first: [false; 256],
            names: Vec::new(),
        }
    }

    fn add(&mut self, pattern: Vec<u8>, replacement: Vec<u8>) {
        let Some(&first) = pattern.first() else { return };
        let pattern = Zeroizing::new(pattern);
        if self.pairs.iter().any(|(known, _)| *known == pattern) {
            return;
        }
        let replacement = match replacement.len() == pattern.len() {
            true => replacement,
            false => vec![b'*'; pattern.len()],
        };
        self.first[usize::from(first)] = true;
        self.pairs.push((pattern, replacement));
    }

    fn add_forms(&mut self, value: &str, placeholder: &str) {
        let disguise: String = placeholder.chars().cycle().take(value.len()).collect();
        self.add(value.as_bytes().to_vec(), disguise.clone().into_bytes());
        for encode in [percent_upper, percent_lower, json_plain, json_slashes] {
            self.add(encode(value).into_bytes(), encode(&disguise).into_bytes());
        }
        if value.len() < SHORTEST_BASE64 {
            return;
        }
        for before in 0..3 {
            for engine in [&STANDARD, &URL_SAFE] {
                for ends in [false, true] {
                    let own = within_base64(engine, value, before, ends);
                    let other = within_base64(engine, &disguise, before, ends);
                    self.add(own.into_bytes(), other.into_bytes());
                }
            }
        }
    }

    /// The name of the first that stands in a text that is whole, where none may pass.
    pub fn finds(&self, text: &[u8]) -> Option<&str> {
        let begins = |at: &usize| self.first[usize::from(text[*at])];
        let found = (0..text.len())
            .filter(begins)
            .find_map(|at| self.at(&text[at..]).whole)?;
        self.names.get(found).map(String::as_str)
    }

    fn at(&self, bytes: &[u8]) -> At {
        let (mut whole, mut length, mut partial) = (None, 0, false);
        for (n, (pattern, _)) in self.pairs.iter().enumerate() {
            if pattern.len() > length && bytes.starts_with(pattern) {
                (whole, length) = (Some(n), pattern.len());
            }
            partial |= pattern.len() > bytes.len() && pattern.starts_with(bytes);
        }
        At { whole, partial }
    }
}

impl Masker {
    pub fn new(patterns: Arc<Patterns>) -> Self {
        Self {
            patterns,
            held: Zeroizing::default(),
        }
    }

    pub fn patterns(&self) -> &Arc<Patterns> {
        &self.patterns
    }

    /// Whether nothing is held back.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes more bytes, and gives those that are surely none of a pattern, and replacements.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        self.advance(false).0
    }

    /// The rest, at the end of the stream.
    pub fn finish(&mut self) -> Vec<u8> {
        self.advance(true).0
    }

    /// The same where nothing may be found; the error is the name of what was.
    pub fn guard(&mut self, bytes: &[u8], is_end: bool) -> Result<Vec<u8>, String> {
        self.held.extend_from_slice(bytes);
        let (passed, found) = self.advance(is_end);
        match found.and_then(|found| self.patterns.names.get(found)) {
            Some(name) => Err(name.clone()),
            None => Ok(passed),
        }
    }

    fn advance(&mut self, is_end: bool) -> (Vec<u8>, Option<usize>) {
        let (mut at, mut seen) = (0, None);
        while let Some(&byte) = self.held.get(at) {
            if !self.patterns.first[usize::from(byte)] {
                at += 1;
                continue;
            }
            match self.patterns.at(&self.held[at..]) {
                At { partial: true, .. } if !is_end => break,
                At { whole: Some(found), .. } => {
                    let replacement = &self.patterns.pairs[found].1;
                    self.held[at..at + replacement.len()].copy_from_slice(replacement);
                    at += replacement.len();
                    seen = Some(found);
                }
                At { whole: None, .. } => at += 1,
            }
        }
        (self.held.drain(..at).collect(), seen)
    }
}

/// A short text, whole.
pub(in crate::egress) fn masked(patterns: &Arc<Patterns>, bytes: &[u8]) -> Vec<u8> {
    let mut masker = Masker::new(patterns.clone());
    let mut masked = masker.push(bytes);
    masked.extend(masker.finish());
    masked
}

fn percent_upper(text: &str) -> String {
    super::put::percent_encoded(text)
}

fn percent_lower(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match super::put::is_unreserved(byte) {
            true => encoded.push(char::from(byte)),
            false => encoded.push_str(&format!("%{byte:02x}")),
        }
    }
    encoded
}

fn json_plain(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// Some writers of JSON put a backslash before each slash.
fn json_slashes(text: &str) -> String {
    json_plain(text).replace('/', "\\/")
}

/// The signs of the base64 of any text that are the value's alone, where it stands behind so many bytes (counted by threes); to
/// the padding, if the text ends with it.
fn within_base64(engine: &impl Engine, value: &str, before: usize, ends: bool) -> String {
    let mut bytes = Zeroizing::new(vec![0; before]);
    bytes.extend_from_slice(value.as_bytes());
    let code = engine.encode(&*bytes);
    let start = (before * 8).div_ceil(6);
    let end = if ends { code.len() } else { bytes.len() * 8 / 6 };
    code[start..end].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::task::SecretPlace;

    const VALUE: &str = "ghp_aaaaBBBBccccDDDD/\"\\+1";
    const PLACEHOLDER: &str = "ghp_0000111122223333/\"\\+4";

    fn patterns() -> Arc<Patterns> {
        Arc::new(Patterns::masking(&[Live {
            name: "TOKEN".to_owned(),
            place: SecretPlace::Placeholder,
            placeholder: PLACEHOLDER.to_owned(),
            value: VALUE.to_owned().into(),
            session: None,
        }]))
    }

    fn in_pieces(text: &[u8], size: usize) -> Vec<u8> {
        let mut masker = Masker::new(patterns());
        let mut masked: Vec<u8> = text.chunks(size).flat_map(|piece| masker.push(piece)).collect();
        masked.extend(masker.finish());
        masked
    }

    #[test]
    fn a_value_is_masked_in_every_form_and_over_every_border() {
        let basic = STANDARD.encode(format!("user:{VALUE}"));
        let forms = [
            VALUE.to_owned(),
            percent_upper(VALUE),
            percent_lower(VALUE),
            serde_json::to_string(VALUE).unwrap(),
            json_slashes(VALUE),
            basic.clone(),
            STANDARD.encode(VALUE),
            URL_SAFE.encode(format!("a{VALUE}bcd")),
            STANDARD.encode(format!("ab{VALUE}")),
        ];
        for form in &forms {
            let text = format!("ghp_ before {form}{form} and after gh");
            for size in 1..text.len() {
                let masked = in_pieces(text.as_bytes(), size);
                assert_eq!(masked.len(), text.len());
                let masked = String::from_utf8(masked).unwrap();
                assert!(masked.starts_with("ghp_ before ") && masked.ends_with(" and after gh"));
                assert!(!masked.contains("BBBBccccDDDD"), "{masked}");
                assert_ne!(&masked[12..12 + form.len()], form);
            }
        }
        let masked = String::from_utf8(in_pieces(basic.as_bytes(), 7)).unwrap();
        let decoded = STANDARD.decode(masked).unwrap();
        assert!(!super::super::contains(&decoded, &VALUE.as_bytes()[3..20]));
    }

    #[test]
    fn what_must_not_pass_is_told_by_its_name() {
        let patterns = Arc::new(Patterns::guarding([("placeholder", "TOKEN")].into_iter()));
        let mut guard = Masker::new(patterns);
        assert_eq!(guard.guard(b"plain place", false).unwrap(), b"plain ");
        assert_eq!(guard.guard(b"d holder", false).unwrap(), b"placed holder");
        assert_eq!(guard.guard(b"pla", false).unwrap(), b"");
        assert_eq!(guard.guard(b"ceholder", true).unwrap_err(), "TOKEN");
        let named = [("first-placeholder", "A"), ("second+placeholder", "B")];
        let guard = Patterns::guarding(named.into_iter());
        for (text, name) in [
            ("x first-placeholder", Some("A")),
            ("second%2Bplaceholder&y", Some("B")),
            (&STANDARD.encode("user:second+placeholder"), Some("B")),
            (&URL_SAFE.encode("first-placeholder:x"), Some("A")),
            ("first-second", None),
        ] {
            assert_eq!(guard.finds(text.as_bytes()), name, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_the_value_is_not_changed(text in "[a-zA-Z_0-9/\\\\\"+]{0,200}", size in 1usize..50) {
            prop_assume!(!text.contains("BBBB"));
            prop_assert_eq!(in_pieces(text.as_bytes(), size), text.as_bytes());
        }
    }
}
