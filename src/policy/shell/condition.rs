//! `[[ … ]]`: words and operators of its own, some of which evaluate what they compare.

use super::lexer::{Mode, Read, Reader};
use super::word::Word;

impl Reader<'_, '_> {
    /// `[[ … ]]`, after the opening word.
    pub(super) fn condition(&mut self) -> Read<()> {
        const COMPARES: &[&str] = &["-eq", "-ne", "-lt", "-le", "-gt", "-ge"];
        let mut before: Option<&str> = None;
        let mut left = None;
        loop {
            self.skip_separators()?;
            if self.take_keyword("]]") {
                return Ok(());
            }
            match self.peek() {
                None | Some(b';') => return self.lost("a [[ is not closed"),
                Some(b'(' | b')') => {
                    self.at += 1;
                    before = None;
                    continue;
                }
                Some(b'<' | b'>') if !self.stands("<(") && !self.stands(">(") => {
                    self.at += 1;
                    before = None;
                    continue;
                }
                Some(b'&' | b'|') => {
                    if !self.take("&&") && !self.take("||") {
                        return self.lost("an operator within [[ ]]");
                    }
                    before = None;
                    continue;
                }
                _ => {}
            }
            let regex = before == Some("=~");
            let lexed = self.word_required(if regex { Mode::Regex } else { Mode::Single })?;
            let source = &self.src[lexed.start..lexed.end];
            // Both take a name that may carry a subscript, which is expanded.
            if matches!(before, Some("-v" | "-R")) && !is_plain_name(&lexed.word) {
                self.walk.opaque("a test of a variable whose name is not known");
            }
            if before.is_some_and(|operator| COMPARES.contains(&operator)) {
                self.operand(source)?;
            }
            if lexed.bare && COMPARES.contains(&source) {
                match left {
                    Some(operand) => self.operand(operand)?,
                    None => return self.lost("a comparison without a left side"),
                }
            }
            left = Some(source);
            before = lexed.bare.then_some(source);
        }
    }

    /// Reads a word once more, as the arithmetic that it is to `-eq` and its kin.
    fn operand(&mut self, source: &str) -> Read<()> {
        let dialect = self.dialect;
        self.deeper(|reader| Reader::new(source, reader.walk, dialect).expression_to_end())
    }
}

fn is_plain_name(word: &Word) -> bool {
    word.value()
        .is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
}
