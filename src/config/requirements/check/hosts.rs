//! Patterns that cover others: of images, and of hosts.

/// `*` is any text, also over slashes.
pub(in crate::config) fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

/// Whether every host that `asked` means is meant by `allowed` too. Patterns are those of the gate: a host, `*.x` for what lies
/// below x, `**.x` for x and what lies below it, `*` for all. What is neither is covered only by itself.
pub(super) fn is_covered(asked: &str, allowed: &str) -> bool {
    let plain = |pattern: &str| pattern.trim_end_matches('.').to_ascii_lowercase();
    let (asked, allowed) = (plain(asked), plain(allowed));
    if asked == allowed || allowed == "*" {
        return true;
    }
    let (allowed_base, includes_base) = match (allowed.strip_prefix("**."), allowed.strip_prefix("*.")) {
        (Some(base), _) => (base, true),
        (None, Some(base)) => (base, false),
        (None, None) => return false,
    };
    let (asked_base, asks_base, asks_below) = match (asked.strip_prefix("**."), asked.strip_prefix("*.")) {
        (Some(base), _) => (base, true, true),
        (None, Some(base)) => (base, false, true),
        (None, None) => (asked.as_str(), true, false),
    };
    // What is left of a pattern must be a plain name, or it means hosts that were not thought of.
    if allowed_base.contains('*') || asked_base.contains(['*', '?', '[', '{', ':']) {
        return false;
    }
    let below = asked_base
        .strip_suffix(allowed_base)
        .is_some_and(|rest| rest.ends_with('.') && rest.len() > 1);
    below || asked_base == allowed_base && (includes_base || !asks_base && asks_below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_images_is_any_text_where_the_star_stands() {
        for (pattern, text) in [
            ("host", "host"),
            ("r/*", "r/a/b:1"),
            ("*/x", "a/x"),
            ("a*b*c", "abbc"),
            ("*", ""),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("host", "hosts"),
            ("r/*", "r"),
            ("a*b*c", "acb"),
            ("ab*ba", "aba"),
            ("", "x"),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_of_hosts_is_covered_when_all_its_hosts_are() {
        let covered = [
            ("a.x", "a.x"),
            ("A.X.", "a.x"),
            ("a.x", "*.x"),
            ("b.a.x", "*.x"),
            ("*.a.x", "*.x"),
            ("**.a.x", "*.x"),
            ("x", "**.x"),
            ("*.x", "**.x"),
            ("**.x", "**.x"),
            ("**.a.x", "**.x"),
            ("anything", "*"),
        ];
        for (asked, allowed) in covered {
            assert!(is_covered(asked, allowed), "{asked} by {allowed}");
        }
        let not = [
            ("x", "*.x"),
            ("**.x", "*.x"),
            ("ax", "*.x"),
            ("*.x", "a.x"),
            ("*", "**.x"),
            ("*.y", "*.x"),
            ("a*.x", "*.x"),
            ("a.x:8080", "*.x"),
            (".x", "*.x"),
            ("api.example.com", "**.[*]"),
        ];
        for (asked, allowed) in not {
            assert!(!is_covered(asked, allowed), "{asked} by {allowed}");
        }
    }
}
