//! Simple commands: assignments, words and redirects, in any order; and the definition of a function, which begins like one.

use super::Dialect;
use super::lexer::{Lexed, Mode, Read, Reader};
use super::parser::Draught;
use super::word::{Fields, Unknown, Word};

impl Reader<'_, '_> {
    /// A simple command, or a function's definition.
    pub(super) fn simple(&mut self, first: Option<Word>) -> Read<()> {
        let mut draught = Draught::default();
        draught.argv.extend(first);
        let mut declares = false;
        loop {
            self.skip_blanks();
            if self.redirect(&mut draught)? {
                continue;
            }
            if Self::ends_token(self.peek()) && !self.stands("<(") && !self.stands(">(") {
                if self.peek() == Some(b'(') {
                    return self.function_or_lost(&draught);
                }
                break;
            }
            if (draught.argv.is_empty() || declares) && self.assignment(&mut draught, declares)? {
                continue;
            }
            let lexed = self.word_required(Mode::Argument)?;
            if draught.argv.is_empty() {
                if self.subscript_follows(&lexed) {
                    return self.lost("a subscript in the place of a command");
                }
                declares = self.dialect == Dialect::Bash
                    && matches!(
                        lexed.word.value(),
                        Some("declare" | "typeset" | "local" | "export" | "readonly")
                    );
            }
            // `{ cmd` or `! cmd` behind a word are plain arguments, and so are they for bash.
            draught.argv.push(lexed.word);
        }
        if draught.argv.is_empty() && draught.env.is_empty() && draught.redirects.is_empty() {
            return self.lost("a command is missing");
        }
        self.walk.finish(draught);
        Ok(())
    }

    /// `name[` in the place of a command is read up to its `]`, blanks and all, by bash.
    fn subscript_follows(&self, lexed: &Lexed) -> bool {
        let source = &self.src[lexed.start..lexed.end];
        let name = source
            .find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
            .unwrap_or(source.len());
        name > 0 && source[name..].starts_with('[') && !source[name..].contains(']')
    }

    fn function_or_lost(&mut self, draught: &Draught) -> Read<()> {
        self.at += 1;
        self.skip_blanks();
        let named = draught.argv.len() == 1 && draught.env.is_empty() && draught.redirects.is_empty();
        if !named || draught.argv[0].value().is_none() || !self.take(")") {
            return self.lost("a parenthesis out of place");
        }
        self.function_body()
    }

    /// `NAME=value`, `NAME+=value`, `NAME[i]=value`, `NAME=(…)`, if one stands here.
    fn assignment(&mut self, draught: &mut Draught, declares: bool) -> Read<bool> {
        let start = self.at;
        let name = self.name();
        if name.is_empty() {
            self.at = start;
            return Ok(false);
        }
        let mut element = false;
        if self.dialect != Dialect::Bash && (self.peek() == Some(b'[') || self.stands("+=")) {
            return self.lost("an assignment that only bash knows");
        }
        if self.peek() == Some(b'[') {
            let rest = &self.src[self.at..];
            // Within one word only; blanks in a subscript are for `subscript_follows` to refuse.
            let word = rest.split([' ', '\t', '\n', ';', '|']).next().unwrap_or("");
            if !word.contains("]=") && !word.contains("]+=") {
                self.at = start;
                return Ok(false);
            }
            self.at += 1;
            self.subscript()?;
            self.walk.numbers.array(&name);
            element = true;
        }
        let appends = self.take("+=");
        if !appends && !self.take("=") {
            self.at = start;
            if element {
                return self.lost("a subscript that is not understood");
            }
            return Ok(false);
        }
        if self.peek() == Some(b'(') {
            if self.dialect != Dialect::Bash || element {
                return self.lost("an array outside bash");
            }
            self.at += 1;
            let numeric = self.array()?;
            self.walk.numbers.array(&name);
            if !Self::ends_token(self.peek()) {
                return self.lost("a word that goes on after an array");
            }
            self.walk.assigned(&name, numeric);
            self.walk.binds(&name, None);
            let source = self.src[start..self.at].to_owned();
            if declares {
                // Marked as not known, so that it is told from the same text in quotes.
                draught.argv.push(Word {
                    unknown: Some(Box::new(Unknown {
                        prefix: format!("{name}=("),
                        suffix: ")".to_owned(),
                        fields: Fields::One,
                    })),
                    text: source,
                });
            } else {
                draught.env.push((name, Word::known(source)));
            }
            return Ok(true);
        }
        let value = self.word(Mode::Single)?;
        self.walk.assigned(&name, value.numeric);
        if declares {
            // One argument `NAME=value`; a builtin that declares splits nothing.
            let head = &self.src[start..value.start];
            let mut word = value.word.clone();
            word.text.insert_str(0, head);
            if let Some(unknown) = &mut word.unknown {
                unknown.prefix.insert_str(0, head);
            }
            draught.argv.push(word);
            self.walk.binds(&name, Some(&value.word));
        } else {
            draught.env.push((name, value.word));
        }
        Ok(true)
    }

    /// After `[`, up to `]`: arithmetic, unless it is one quoted or plain key.
    fn subscript(&mut self) -> Read<()> {
        let rest = &self.src[self.at..];
        if let Some(end) = rest.find(']') {
            let key = rest[..end].trim_matches(['"', '\'']);
            let plain = |byte: u8| byte.is_ascii_digit();
            if !key.is_empty() && key.bytes().all(plain) {
                self.at += end + 1;
                return Ok(());
            }
        }
        self.arithmetic_until(b"]").map(|_| ())
    }

    /// After `NAME=(`: the elements. Whether all are numbers.
    fn array(&mut self) -> Read<bool> {
        let mut numeric = true;
        loop {
            self.skip_separators()?;
            if self.take(")") {
                return Ok(numeric);
            }
            if self.peek() == Some(b'[') {
                self.at += 1;
                self.subscript()?;
                if !self.take("=") {
                    return self.lost("an array element that is not understood");
                }
                numeric &= self.word(Mode::Single)?.numeric;
                continue;
            }
            numeric &= self.word_required(Mode::Argument)?.numeric;
        }
    }
}
