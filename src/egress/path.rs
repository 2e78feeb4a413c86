//! Paths of requests, where a rule speaks of them.

/// The paths that a rule speaks of: `/v1/` is what lies below it, `/v1` also the path itself, a `*` is any one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Vec<u8>>,
    below_only: bool,
}

impl PathPattern {
    /// Reads a path that was checked where it was written: absolute and plain.
    pub fn new(path: &str) -> Self {
        let below_only = path.ends_with('/');
        let path = path.trim_matches('/');
        let segments = match path {
            "" => Vec::new(),
            path => path.split('/').map(|segment| segment.as_bytes().to_vec()).collect(),
        };
        Self { segments, below_only }
    }

    /// Whether it matches the path of a request. One that can be read in two ways is matched by nothing, and neither is one with
    /// parameters in a segment, which some servers cut off before they look.
    pub fn matches(&self, path: &str) -> bool {
        if !is_unambiguous(path) {
            return false;
        }
        let path = path.split(['?', '#']).next().unwrap_or(path);
        let asked: Option<Vec<Vec<u8>>> = path[1..].split('/').map(decode).collect();
        let Some(asked) = asked else { return false };
        if asked.iter().any(|segment| segment.contains(&b';')) || asked.len() < self.segments.len() {
            return false;
        }
        let (head, rest) = asked.split_at(self.segments.len());
        let own = self.segments.iter().zip(head);
        let equal = own.clone().all(|(own, asked)| match own.as_slice() {
            b"*" => !asked.is_empty(),
            own => own == asked,
        });
        equal && (!self.below_only || !rest.is_empty())
    }
}

/// Whether every program reads a request's path in the same way: no dot segments, no backslash, no per cent sign that hides a
/// slash, a backslash, a dot segment or another per cent sign, no escapes that are none or make no text, no signs that some take
/// for a dot or a slash. A path that is not so matches no rule about paths.
pub fn is_unambiguous(path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    if rest.contains('\\') || path.contains("//") || !rest.bytes().all(|b| b.is_ascii_graphic()) {
        return false;
    }
    rest.split('/')
        .all(|segment| decode(segment).is_some_and(|decoded| !is_dot_segment(&decoded) && is_plain_text(&decoded)))
}

/// Signs that become a dot, a slash or a backslash where text is brought to one form (Unicode's NFKC, Windows' best fit).
const LOOKALIKES: [char; 10] = [
    '\u{2024}', '\u{2025}', '\u{2026}', '\u{2044}', '\u{2215}', '\u{2216}', '\u{fe52}', '\u{ff0e}', '\u{ff0f}',
    '\u{ff3c}',
];

/// Overlong forms of UTF-8 are no text: servers that read them all the same found "../" in them.
fn is_plain_text(segment: &[u8]) -> bool {
    std::str::from_utf8(segment).is_ok_and(|text| !text.contains(LOOKALIKES))
}

/// A path as it may stand in a record or an answer: without its query, which may hold a secret, and not endless.
pub fn shown(path: &str) -> String {
    const MOST: usize = 512;
    let path = path.split(['?', '#']).next().unwrap_or(path);
    match path.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &path[..end]),
        None => path.to_owned(),
    }
}

/// `..;a` is a dot segment to servers that cut parameters off segments.
fn is_dot_segment(segment: &[u8]) -> bool {
    let name = segment.split(|&b| b == b';').next().unwrap_or(segment);
    name == b"." || name == b".."
}

fn decode(segment: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |b: u8| char::from(b).to_digit(16);
        let value = digit(bytes.next()?)? << 4 | digit(bytes.next()?)?;
        let value = u8::try_from(value).ok()?;
        if matches!(value, b'/' | b'\\' | b'%') || value.is_ascii_control() {
            return None;
        }
        decoded.push(value);
    }
    Some(decoded)
}

/// Escapes that are none stay as they are.
pub(super) fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digit = |n: usize| bytes.get(at + n).and_then(|&b| char::from(b).to_digit(16));
        match (byte, digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high << 4 | low).unwrap_or_default());
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_segments() {
        let cases = [
            ("/", &["/", "/a", "/a/b?x=/../"][..], &["/a/../b", "//a", "/a//b"][..]),
            (
                "/v1/",
                &["/v1/", "/v1/a", "/%761/a"],
                &["/v1", "/v10/a", "/V1/a", "/v1/%2e%2e/a", "/a/v1/"],
            ),
            (
                "/v1",
                &["/v1", "/v1/a", "/v1?x"],
                &["/v10", "/v1;x", "/v1%2fa", "/v1/..;/a", "/v1/a;b", "/v1/a%3bb"],
            ),
            (
                "/r/*/issues",
                &["/r/a/issues", "/r/a/issues/1"],
                &["/r/issues", "/r/a/b/issues", "/r//issues", "/r/a"],
            ),
        ];
        for (pattern, good, bad) in cases {
            let pattern = PathPattern::new(pattern);
            for path in good {
                assert!(pattern.matches(path), "{pattern:?} {path}");
            }
            for path in bad {
                assert!(!pattern.matches(path), "{pattern:?} {path}");
            }
        }
    }

    #[test]
    fn a_path_that_can_be_read_in_two_ways_is_told() {
        for path in [
            "/",
            "/a/b",
            "/a..b/.git",
            "/%2Egit",
            "/a%20b?x=/../",
            "/a;v=1/b",
            "/caf%c3%a9/%e6%97%a5",
        ] {
            assert!(is_unambiguous(path), "{path}");
        }
        for path in [
            "",
            "a/b",
            "*",
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/a/%2e%2E/b",
            "/a/.%2e",
            "/a/%2f..%2fb",
            "/a/%5c",
            "/a\\b",
            "/a/%252e%252e/b",
            "/a//b",
            "//a",
            "/a/..;x/b",
            "/a/%zz",
            "/a/%2",
            "/a/%00",
            "/a/\u{e9}",
            "/a/%c0%ae%c0%ae/b",
            "/a/%e0%80%ae%e0%80%ae/b",
            "/a/%ff",
            "/a/%ef%bc%8e%ef%bc%8e/b",
            "/a%ef%bc%8fb",
            "/a/%e2%80%a5/b",
            "/a%EF%BC%BCb",
        ] {
            assert!(!is_unambiguous(path), "{path}");
        }
    }
}
