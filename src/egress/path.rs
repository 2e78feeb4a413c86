//! Paths of requests, where a rule speaks of them.

/// Whether every program reads a request's path in the same way: no dot segments, no backslash, no per cent sign that hides a
/// slash, a backslash, a dot segment or another per cent sign, no escapes that are none. A path that is not so matches no
/// rule about paths.
pub fn is_unambiguous(path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    if rest.contains('\\') || rest.contains("//") || !rest.bytes().all(|b| b.is_ascii_graphic()) {
        return false;
    }
    rest.split('/')
        .all(|segment| decode(segment).is_some_and(|decoded| !is_dot_segment(&decoded)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_can_be_read_in_two_ways_is_told() {
        for path in ["/", "/a/b", "/a..b/.git", "/%2Egit", "/a%20b?x=/../", "/a;v=1/b"] {
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
            "/a/..;x/b",
            "/a/%zz",
            "/a/%2",
            "/a/%00",
            "/a/\u{e9}",
        ] {
            assert!(!is_unambiguous(path), "{path}");
        }
    }
}
