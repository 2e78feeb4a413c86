//! Text as it may be shown to a person: what is seen is what is there.

/// Writes out as `\u{…}` what is invisible, moves the cursor, turns the order of reading around, or looks like another letter than
/// it is: a person who reads a command before saying yes must not be shown one and approve another.
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for word in text.split_inclusive(|c: char| !c.is_alphanumeric()) {
        let foreign = is_disguised(word);
        for c in word.chars() {
            match c {
                '\n' => clean.push_str("\\n"),
                '\t' => clean.push_str("\\t"),
                '\r' => clean.push_str("\\r"),
                c if c.is_control() || is_deceptive(c) || is_double(c) => clean.extend(c.escape_unicode()),
                c if foreign && !c.is_ascii() && script(c) != Script::Other => clean.extend(c.escape_unicode()),
                c => clean.push(c),
            }
        }
    }
    clean
}

/// Characters that show nothing or change how others show: bidirectional controls, zero-width and filler characters,
/// separators, variation selectors, tags, and what has no meaning of its own.
fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}')
}

/// Doubles of ASCII in any surroundings: other spaces, quotes, dashes and slashes, full-width and mathematical letters, and the few
/// Latin letters that are drawn like others.
fn is_double(c: char) -> bool {
    matches!(c,
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}'
        | '\u{2010}'..='\u{2015}' | '\u{2018}'..='\u{201f}' | '\u{2032}'..='\u{2037}' | '\u{2039}'..='\u{203a}' | '\u{2044}'
        | '\u{2212}' | '\u{2215}'..='\u{2216}' | '\u{2223}' | '\u{2236}' | '\u{2024}' | '\u{29f5}' | '\u{29f8}' | '\u{ff01}'..='\u{ff5e}'
        | '\u{2100}'..='\u{214f}' | '\u{2160}'..='\u{217f}' | '\u{1d400}'..='\u{1d7ff}' | '\u{131}' | '\u{251}' | '\u{261}'
        | '\u{1c0}' | '\u{2c7}' | '\u{37e}' | '\u{589}' | '\u{5c3}' | '\u{60d}' | '\u{66a}' | '\u{a789}')
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Script {
    Latin,
    /// Has letters that are drawn like Latin ones.
    Similar,
    Other,
}

fn script(c: char) -> Script {
    match c {
        'a'..='z' | 'A'..='Z' => Script::Latin,
        // Greek, Cyrillic, Armenian, Cherokee, Lisu and their supplements.
        '\u{370}'..='\u{52f}'
        | '\u{531}'..='\u{58f}'
        | '\u{13a0}'..='\u{13ff}'
        | '\u{1c80}'..='\u{1c8f}'
        | '\u{1f00}'..='\u{1fff}'
        | '\u{2de0}'..='\u{2dff}'
        | '\u{a4d0}'..='\u{a4ff}'
        | '\u{a640}'..='\u{a69f}'
        | '\u{ab70}'..='\u{abbf}' => Script::Similar,
        _ => Script::Other,
    }
}

/// Letters of Greek and Cyrillic that nobody can tell from Latin ones.
const TWINS: &str = "\
    \u{391}\u{392}\u{395}\u{396}\u{397}\u{399}\u{39a}\u{39c}\u{39d}\u{39f}\u{3a1}\u{3a4}\u{3a5}\u{3a7}\u{3bf}\u{3bd}\u{3c1}\u{3f2}\u{3f3}\u{3f9}\
    \u{405}\u{406}\u{408}\u{410}\u{412}\u{415}\u{41a}\u{41c}\u{41d}\u{41e}\u{420}\u{421}\u{422}\u{423}\u{425}\
    \u{430}\u{435}\u{43e}\u{440}\u{441}\u{443}\u{445}\u{455}\u{456}\u{458}\u{4ae}\u{4af}\u{4bb}\u{4c0}\u{4cf}\u{501}\u{51b}\u{51c}\u{51d}";

/// Whether a word passes letters of one script off as those of another: it mixes them with Latin ones, or has none but twins.
fn is_disguised(word: &str) -> bool {
    let letters = || word.chars().filter(|c| c.is_alphabetic());
    let has = |wanted| letters().any(|c| script(c) == wanted);
    has(Script::Similar) && (has(Script::Latin) || letters().all(|c| TWINS.contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deceives_the_eye_is_written_out() {
        assert_eq!(
            clean("a\u{1b}[2Jb\u{202e}c\u{200b}d\ne\u{9b}f"),
            "a\\u{1b}[2Jb\\u{202e}c\\u{200b}d\\ne\\u{9b}f"
        );
        assert_eq!(
            clean("\u{e0041}\u{fe0f}\u{3164}\u{feff}"),
            "\\u{e0041}\\u{fe0f}\\u{3164}\\u{feff}"
        );
        assert_eq!(clean("grün 日本 é"), "grün 日本 é");
    }

    #[test]
    fn letters_that_pass_for_others_are_written_out() {
        // Cyrillic a, Greek omicron, a word of Cyrillic twins, a full-width slash, a no-break space.
        assert_eq!(clean("p\u{430}ypal.com"), "p\\u{430}ypal.com");
        assert_eq!(clean("g\u{3bf}ogle"), "g\\u{3bf}ogle");
        assert_eq!(clean("\u{441}\u{43e}\u{440} x"), "\\u{441}\\u{43e}\\u{440} x");
        assert_eq!(clean("rm\u{a0}\u{ff0f}etc"), "rm\\u{a0}\\u{ff0f}etc");
        assert_eq!(clean("\u{1d41a}pt"), "\\u{1d41a}pt");
    }

    #[test]
    fn honest_words_of_other_scripts_stay() {
        for text in ["привет мир", "γειά σου", "git commit -m 'исправить ошибку'", "naïve"]
        {
            assert_eq!(clean(text), text);
        }
    }
}
