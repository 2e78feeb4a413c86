//! Redirects and the bodies of here-documents.

use super::lexer::{Heredoc, Mode, Read, Reader};
use super::parser::Draught;
use super::word::{Draft, Word};
use super::{Dialect, Fd, Redirect};

impl Reader<'_, '_> {
    /// One redirect, if one stands here.
    pub(super) fn redirect(&mut self, draught: &mut Draught) -> Read<bool> {
        let start = self.at;
        match self.peek() {
            Some(b'0'..=b'9') => {
                while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                    self.at += 1;
                }
            }
            Some(b'{') => {
                self.at += 1;
                let name = self.name();
                if name.is_empty() || !self.take("}") {
                    self.at = start;
                    return Ok(false);
                }
                if matches!(self.peek(), Some(b'<' | b'>')) {
                    // bash takes it for one in its POSIX mode too, other shells for a word.
                    if self.dialect != Dialect::Bash {
                        return self.lost("a redirect that only bash knows");
                    }
                    self.walk.assigned(&name, true);
                    self.walk.binds(&name, None);
                }
            }
            _ => {}
        }
        let left = self.at > start;
        let number = self.src[start..self.at].replace("\\\n", "");
        let operator = match self.peek() {
            Some(b'<' | b'>') if self.stands("<(") || self.stands(">(") => None,
            Some(b'<' | b'>') => ["<<<", "<<-", "<<", "<&", "<>", "<", ">>", ">&", ">|", ">"]
                .into_iter()
                .find(|operator| self.take(operator)),
            Some(b'&') if !left => ["&>>", "&>"].into_iter().find(|operator| self.take(operator)),
            _ => None,
        };
        let Some(operator) = operator else {
            self.at = start;
            return Ok(false);
        };
        if self.dialect != Dialect::Bash && (matches!(operator, "<<<" | "&>" | "&>>") || number.len() > 1) {
            return self.lost("a redirect that only bash knows");
        }
        let fd = match number.parse::<u32>() {
            Ok(0) => Fd::Input,
            Ok(_) => Fd::Other,
            Err(_) if number.starts_with('{') => Fd::Other,
            Err(_) if !number.is_empty() => return self.lost("a redirect of a descriptor that cannot be"),
            Err(_) if operator.starts_with('<') => Fd::Input,
            Err(_) => Fd::Other,
        };
        self.skip_redirect_blanks();
        if matches!(operator, "<<" | "<<-") {
            self.announce(operator == "<<-", fd, draught)?;
            return Ok(true);
        }
        if matches!(operator, "<&" | ">&") && self.peek() == Some(b'-') {
            // A token of its own: in `>&-x` the x is the next word.
            self.at += 1;
            draught.redirects.push(Redirect {
                operator,
                target: Word::known("-"),
                fd,
                body: None,
            });
            return Ok(true);
        }
        let mode = if operator == "<<<" {
            Mode::Single
        } else {
            Mode::Argument
        };
        let target = self.word_required(mode)?.word;
        if matches!(operator, "<&" | ">&") {
            self.duplicate(&target);
        }
        draught.redirects.push(Redirect {
            operator,
            target,
            fd,
            body: None,
        });
        Ok(true)
    }

    /// `>&word` with a word that is no number is expanded by bash a second time, quotes or not: `>&'$(rm x)'` runs rm.
    fn duplicate(&mut self, target: &Word) {
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./+,%:".contains(&byte);
        match target.value() {
            Some(word) if word.bytes().all(harmless) => {}
            None if is_variable(&target.text) => self.walk.numbers.uses(variable(&target.text).to_owned()),
            _ => self.walk.opaque("a redirect that is expanded twice"),
        }
    }

    fn skip_redirect_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
    }

    /// The delimiter of a here-document; its body comes after the next newline.
    fn announce(&mut self, strip_tabs: bool, fd: Fd, draught: &mut Draught) -> Read<()> {
        let start = self.at;
        let lexed = self.word_required(Mode::Single)?;
        let source = &self.src[start..self.at];
        // The delimiter is taken as it is written: `<<$x` ends at a line `$x`. Anything odd is refused.
        let Some(delimiter) = lexed.word.value().filter(|_| !source.contains(['$', '`', '~'])) else {
            return self.lost("a here-document's delimiter that is not plain");
        };
        if strip_tabs && delimiter.starts_with('\t') {
            return self.lost("a here-document's delimiter that is not plain");
        }
        self.heredocs.push(Heredoc {
            delimiter: delimiter.to_owned(),
            literal: !lexed.bare,
            strip_tabs,
            slot: self.walk.body_slot(),
        });
        draught.redirects.push(Redirect {
            operator: if strip_tabs { "<<-" } else { "<<" },
            target: Word::known(delimiter),
            fd,
            body: self.heredocs.last().map(|heredoc| heredoc.slot),
        });
        Ok(())
    }

    /// The bodies of the here-documents that were announced before this newline.
    pub(super) fn bodies(&mut self) -> Read<()> {
        for heredoc in std::mem::take(&mut self.heredocs) {
            self.body(&heredoc)?;
        }
        Ok(())
    }

    fn body(&mut self, heredoc: &Heredoc) -> Read<()> {
        let mut text = String::new();
        loop {
            if self.at >= self.src.len() {
                // bash warns and takes the end of the script for the end of the body.
                if self.substitutions > 0 {
                    return self.lost("a here-document that does not end");
                }
                break;
            }
            let rest = &self.src[self.at..];
            let length = rest.find('\n').unwrap_or(rest.len());
            let mut line = &rest[..length];
            self.at = (self.at + length + 1).min(self.src.len());
            if heredoc.strip_tabs {
                line = line.trim_start_matches('\t');
            }
            if line == heredoc.delimiter {
                break;
            }
            if self.substitutions > 0 && line.starts_with(&heredoc.delimiter) {
                // `EOF)` ends both in some versions of bash.
                return self.lost("a line that may end a here-document");
            }
            // In an expanded body a line that ends in a backslash swallows the next, even the delimiter.
            let odd = line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
            if !heredoc.literal && odd {
                let next = &self.src[self.at..];
                let next = &next[..next.find('\n').unwrap_or(next.len())];
                let next = if heredoc.strip_tabs {
                    next.trim_start_matches('\t')
                } else {
                    next
                };
                if next == heredoc.delimiter {
                    return self.lost("a here-document whose end is hidden by a backslash");
                }
            }
            text.push_str(line);
            text.push('\n');
        }
        if heredoc.literal {
            self.walk.fill(heredoc.slot, Word::known(text));
            return Ok(());
        }
        let dialect = self.dialect;
        let word = {
            let mut inner = Reader::new(&text, self.walk, dialect);
            let mut draft = Draft::new();
            while let Some(byte) = inner.peek() {
                inner.quoted_byte(byte, b"$`\\", &mut draft)?;
            }
            draft.finish(&text)
        };
        self.walk.fill(heredoc.slot, word);
        Ok(())
    }
}

/// Whether a word is one variable and nothing else: `$x`, `"$x"`, `${x}`.
fn is_variable(text: &str) -> bool {
    text.contains('$')
        && !variable(text).is_empty()
        && variable(text)
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn variable(text: &str) -> &str {
    text.trim_matches('"').trim_start_matches('$').trim_matches(['{', '}'])
}
