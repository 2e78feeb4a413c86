//! Characters to words, as bash reads them: quotes, escapes, expansions, line continuations.
//!
//! What an expansion runs is read on the way, by the same reader: `"$(rm x)"` lists `rm x`.

use super::word::{Draft, Fields, Word};
use super::{Dialect, Walk};

/// Reading stopped: the reason stands in the [`Walk`], and the script is opaque from here on.
#[derive(Debug)]
pub(super) struct Lost;

pub(super) type Read<T> = Result<T, Lost>;

/// A place in one script.
pub(super) struct Reader<'s, 'w> {
    pub src: &'s str,
    pub at: usize,
    pub walk: &'w mut Walk,
    pub dialect: Dialect,
    /// Here-documents announced on this line, whose bodies begin after the next newline.
    pub heredocs: Vec<Heredoc>,
    /// How many `$( )` are open around this place.
    pub substitutions: u32,
}

#[derive(Debug)]
pub(super) struct Heredoc {
    pub delimiter: String,
    pub literal: bool,
    pub strip_tabs: bool,
    /// Which redirect of the walk's list gets the body.
    pub slot: usize,
}

/// A word, and what only the parser needs of it.
#[derive(Debug)]
pub(super) struct Lexed {
    pub word: Word,
    /// Written without any quote or expansion: only such a word can be a keyword or an operator's number.
    pub bare: bool,
    pub numeric: bool,
    /// Its source text, line continuations and all.
    pub start: usize,
    pub end: usize,
}

/// How a word is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// An argument: globs, braces and field splitting apply.
    Argument,
    /// The right side of an assignment, a case word, an operand of `[[`: always one field.
    Single,
    /// The right side of `=~`.
    Regex,
}

impl<'s, 'w> Reader<'s, 'w> {
    pub(super) fn new(src: &'s str, walk: &'w mut Walk, dialect: Dialect) -> Self {
        Self {
            src,
            at: 0,
            walk,
            dialect,
            heredocs: Vec::new(),
            substitutions: 0,
        }
    }

    pub(super) fn lost<T>(&mut self, reason: &'static str) -> Read<T> {
        self.walk.opaque(reason);
        Err(Lost)
    }

    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.src.as_bytes().get(at).copied()
    }

    /// The next byte outside single quotes: a backslash before a newline is nothing at all, even within a word or an
    /// operator.
    pub(super) fn peek(&mut self) -> Option<u8> {
        while self.byte(self.at) == Some(b'\\') && self.byte(self.at + 1) == Some(b'\n') {
            self.at += 2;
        }
        self.byte(self.at)
    }

    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = self.peek();
        if byte.is_some() {
            self.at += 1;
        }
        byte
    }

    /// Takes `text` if it stands here.
    pub(super) fn take(&mut self, text: &str) -> bool {
        let start = self.at;
        for byte in text.bytes() {
            if self.next() != Some(byte) {
                self.at = start;
                return false;
            }
        }
        true
    }

    pub(super) fn stands(&mut self, text: &str) -> bool {
        let start = self.at;
        let found = self.take(text);
        self.at = start;
        found
    }

    /// Blanks and comments up to the next token. Only space and tab are blanks: bash takes `\r`, `\v`, `\f`, a byte-order
    /// mark and every wide space for letters.
    pub(super) fn skip_blanks(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' => self.at += 1,
                b'#' => {
                    while self.byte(self.at).is_some_and(|byte| byte != b'\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    /// Whether a token ends before `byte`.
    pub(super) fn ends_token(byte: Option<u8>) -> bool {
        match byte {
            None => true,
            Some(byte) => matches!(
                byte,
                b' ' | b'\t' | b'\n' | b'|' | b'&' | b';' | b'(' | b')' | b'<' | b'>'
            ),
        }
    }

    /// One word. The caller has seen that a word starts here; an empty one means that none did.
    pub(super) fn word(&mut self, mode: Mode) -> Read<Lexed> {
        self.word_after(mode, Draft::new())
    }

    fn word_after(&mut self, mode: Mode, mut draft: Draft) -> Read<Lexed> {
        let start = self.at;
        let mut bare = true;
        let mut glob = false;
        let mut bracket = false;
        let mut brace = None;
        let mut tilde_may_follow = true;
        let mut parens = 0_u32;
        loop {
            let tilde_here = std::mem::replace(&mut tilde_may_follow, false);
            let Some(byte) = self.peek() else { break };
            match byte {
                b'<' | b'>' if self.is_process_substitution() => {
                    bare = false;
                    self.at += 1;
                    self.next();
                    if self.dialect != Dialect::Bash {
                        return self.lost("process substitution outside bash");
                    }
                    let inside = self.at;
                    self.nested_list(b')')?;
                    // With nothing in it, it becomes nothing.
                    let empty = self.src[inside..self.at - 1].trim().is_empty();
                    draft.unknown(if empty { Fields::Any } else { Fields::One }, false);
                }
                b'(' if mode == Mode::Regex => {
                    parens += 1;
                    draft.push(byte);
                    self.at += 1;
                }
                b')' if mode == Mode::Regex && parens > 0 => {
                    parens -= 1;
                    draft.push(byte);
                    self.at += 1;
                }
                b'|' if mode == Mode::Regex => {
                    draft.push(byte);
                    self.at += 1;
                }
                _ if Self::ends_token(Some(byte)) => {
                    if parens > 0 {
                        return self.lost("an operator within a regular expression");
                    }
                    break;
                }
                b'\\' => {
                    bare = false;
                    self.at += 1;
                    match self.byte(self.at) {
                        // bash keeps it in a script of one line and drops it in longer ones.
                        None => return self.lost("a backslash at the very end"),
                        Some(escaped) => {
                            self.at += 1;
                            draft.push(escaped);
                        }
                    }
                }
                b'\'' => {
                    bare = false;
                    self.at += 1;
                    let quoted = self.single_quoted()?;
                    draft.extend(quoted.as_bytes());
                }
                b'"' => {
                    bare = false;
                    self.at += 1;
                    self.double_quoted(&mut draft)?;
                }
                b'$' => {
                    let known = draft.is_known();
                    let was = self.at;
                    self.dollar(&mut draft, mode == Mode::Argument, false)?;
                    bare &= known && draft.is_known() && self.at == was + 1;
                }
                b'`' => {
                    bare = false;
                    self.at += 1;
                    self.back_quoted(false)?;
                    draft.unknown(
                        if mode == Mode::Argument {
                            Fields::Any
                        } else {
                            Fields::One
                        },
                        false,
                    );
                }
                b'~' if tilde_here && mode != Mode::Regex => {
                    bare = false;
                    self.at += 1;
                    while self
                        .peek()
                        .is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+' | b'.'))
                    {
                        self.at += 1;
                    }
                    draft.unknown(Fields::One, false);
                }
                _ => {
                    if matches!(byte, b'?' | b'*' | b'+' | b'@' | b'!') && mode != Mode::Regex {
                        let was = self.at;
                        self.at += 1;
                        let extended = self.peek() == Some(b'(');
                        self.at = was;
                        if extended {
                            return self.lost("an extended glob, which only some shells read as one");
                        }
                    }
                    match byte {
                        b'*' | b'?' => glob = true,
                        b'[' => bracket = true,
                        b']' => glob |= bracket,
                        b'{' => brace = brace.or(Some(self.at)),
                        _ => {}
                    }
                    tilde_may_follow = matches!(byte, b'=' | b':');
                    draft.push(byte);
                    self.at += 1;
                }
            }
        }
        let end = self.at;
        let source = &self.src[start..end];
        if mode == Mode::Argument {
            let braces = brace.is_some_and(|from| {
                let inside = &source[from - start..];
                inside.contains('}') && (inside.contains(',') || inside.contains("..") || inside.contains("\\\n"))
            });
            if braces && self.dialect == Dialect::Posix {
                return self.lost("a brace expansion, which not every sh makes");
            }
            if braces {
                // Braces come first of all and copy what stands around them: only the text before them is sure.
                draft = Draft::new();
                let from = brace.map_or(0, |from| from - start);
                let head = &source[..from];
                if bare && !head.contains('\\') {
                    draft.extend(head.as_bytes());
                }
                draft.unknown(Fields::Any, is_numeric_range(source));
            } else if glob {
                // The pattern's characters are no characters of the names that it finds.
                let head = source.find(['*', '?', '[']).unwrap_or(0);
                let tail = source.rfind(['*', '?', ']']).map_or(source.len(), |at| at + 1);
                let plain = bare && !source.contains('\\') && !self.walk.nullglob;
                draft = Draft::new();
                if plain {
                    draft.extend(&source.as_bytes()[..head]);
                }
                let fields = if self.walk.nullglob { Fields::Any } else { Fields::Some };
                draft.unknown(fields, false);
                if plain {
                    draft.extend(&source.as_bytes()[tail..]);
                }
            }
        }
        let numeric = draft.numeric && end > start;
        Ok(Lexed {
            word: draft.finish(source),
            bare,
            numeric,
            start,
            end,
        })
    }

    pub(super) fn is_process_substitution(&mut self) -> bool {
        let was = self.at;
        self.at += 1;
        let found = self.peek() == Some(b'(');
        self.at = was;
        found
    }

    /// After the opening quote.
    pub(super) fn single_quoted(&mut self) -> Read<&'s str> {
        let rest = &self.src[self.at..];
        match rest.find('\'') {
            Some(length) => {
                self.at += length + 1;
                Ok(&rest[..length])
            }
            None => self.lost("a single quote is not closed"),
        }
    }

    /// After the opening quote.
    pub(super) fn double_quoted(&mut self, draft: &mut Draft) -> Read<()> {
        loop {
            match self.peek() {
                None => return self.lost("a double quote is not closed"),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(byte) => self.quoted_byte(byte, b"$`\"\\", draft)?,
            }
        }
    }

    /// One step within double quotes or a here-document; `escapable` is what a backslash takes the meaning of.
    pub(super) fn quoted_byte(&mut self, byte: u8, escapable: &[u8], draft: &mut Draft) -> Read<()> {
        match byte {
            b'\\' => {
                self.at += 1;
                match self.byte(self.at) {
                    Some(escaped) if escapable.contains(&escaped) => {
                        self.at += 1;
                        draft.push(escaped);
                    }
                    _ => draft.push(b'\\'),
                }
            }
            b'$' => self.dollar(draft, false, true)?,
            b'`' => {
                self.at += 1;
                self.back_quoted(escapable.contains(&b'"'))?;
                draft.unknown(Fields::One, false);
            }
            _ => {
                draft.push(byte);
                self.at += 1;
            }
        }
        Ok(())
    }

    /// A variable's name, perhaps empty.
    pub(super) fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(byte) = self.peek() {
            if byte.is_ascii_alphabetic() || byte == b'_' || (!name.is_empty() && byte.is_ascii_digit()) {
                name.push(byte as char);
                self.at += 1;
            } else {
                break;
            }
        }
        name
    }

    /// A list up to `end`, as one level deeper: `$( )`, `<( )`.
    pub(super) fn nested_list(&mut self, end: u8) -> Read<()> {
        let start = self.at;
        let outer = std::mem::take(&mut self.heredocs);
        self.substitutions += 1;
        self.deeper(|reader| reader.list_until(end))?;
        self.substitutions -= 1;
        if !self.heredocs.is_empty() {
            return self.lost("a here-document's body lies outside its substitution");
        }
        if !outer.is_empty() && self.src[start..self.at].contains('\n') {
            return self.lost("a substitution spans the line of a here-document");
        }
        self.heredocs = outer;
        Ok(())
    }

    /// Runs `read` one level deeper; too deep is opaque, so that no script can exhaust the stack.
    pub(super) fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        if self.walk.depth >= super::DEPTH_LIMIT {
            return self.lost("nested too deeply");
        }
        self.walk.depth += 1;
        let result = read(self);
        self.walk.depth -= 1;
        result
    }
}

/// `{1..9}`: every word that it becomes is a number.
fn is_numeric_range(source: &str) -> bool {
    source
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .is_some_and(|range| {
            range.contains("..")
                && range
                    .split("..")
                    .all(|end| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit()))
        })
}
