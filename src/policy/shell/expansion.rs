//! What stands behind a `$` or a back-quote: values that are not known, and commands that run to get them.

use super::Dialect;
use super::lexer::{Read, Reader};
use super::word::{Draft, Fields};

impl Reader<'_, '_> {
    /// At a `$`. `splits`: whether the value is split into fields; `quoted`: within double quotes or a here-document.
    pub(super) fn dollar(&mut self, draft: &mut Draft, splits: bool, quoted: bool) -> Read<()> {
        self.at += 1;
        let fields = if splits { Fields::Any } else { Fields::One };
        match self.peek() {
            Some(b'(') => {
                self.at += 1;
                if self.peek() == Some(b'(') && self.arithmetic_follows()? {
                    draft.unknown(fields, true);
                    return Ok(());
                }
                let start = self.at;
                self.nested_list(b')')?;
                let numeric = prints_number(self.src[start..self.at - 1].trim());
                draft.unknown(fields, numeric);
            }
            Some(b'{') => {
                self.at += 1;
                let (many, numeric) = self.deeper(|reader| reader.parameter(quoted))?;
                draft.unknown(if many { Fields::Any } else { fields }, numeric);
            }
            Some(b'[') => return self.lost("the old form of arithmetic, $[ ]"),
            Some(b'\'') if !quoted => {
                self.at += 1;
                if self.dialect != Dialect::Bash {
                    return self.lost("$'…' outside bash");
                }
                self.ansi_quoted(draft)?;
            }
            Some(b'"') if !quoted => {
                self.at += 1;
                if self.dialect != Dialect::Bash {
                    return self.lost("$\"…\" outside bash");
                }
                // A translation may say anything.
                self.double_quoted(&mut Draft::new())?;
                draft.unknown(Fields::One, false);
            }
            Some(b'@') => {
                self.at += 1;
                draft.unknown(Fields::Any, false);
            }
            Some(b'*') => {
                self.at += 1;
                draft.unknown(fields, false);
            }
            Some(b'#' | b'?' | b'$' | b'!') => {
                self.at += 1;
                draft.unknown(fields, true);
            }
            Some(b'-') => {
                self.at += 1;
                draft.unknown(fields, false);
            }
            Some(byte) if byte.is_ascii_digit() => {
                self.at += 1;
                draft.unknown(fields, false);
            }
            Some(byte) if byte.is_ascii_alphabetic() || byte == b'_' => {
                let name = self.name();
                debug_assert!(!name.is_empty(), "a letter was seen");
                draft.unknown(fields, false);
            }
            _ => draft.push(b'$'),
        }
        Ok(())
    }

    /// After `${`. Whether it may become many fields even in quotes, and whether it is surely a number.
    fn parameter(&mut self, quoted: bool) -> Read<(bool, bool)> {
        if self.take("!") {
            // `${!x}` takes the value of x for a name, and a name such as `a[$(cmd)]` runs cmd. Only the forms that list
            // names are harmless.
            let name = self.name();
            let lists_names = !name.is_empty() && ["*}", "@}", "[@]}", "[*]}"].iter().any(|end| self.take(end));
            if lists_names {
                return Ok((true, false));
            }
            return self.lost("an indirect expansion");
        }
        let mut length = false;
        if self.stands("#") && !self.stands("#}") {
            length = true;
            self.at += 1;
        }
        let mut many = false;
        let name = self.name();
        if name.is_empty() {
            match self.next() {
                Some(b'@') => many = true,
                Some(b'*' | b'#' | b'?' | b'$' | b'!' | b'-') => {}
                Some(byte) if byte.is_ascii_digit() => {
                    while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                        self.at += 1;
                    }
                }
                // `${ cmd; }` and `${| cmd; }` of newer shells, or nonsense.
                _ => return self.lost("an unknown form of ${ }"),
            }
        } else if self.stands("[") {
            self.at += 1;
            if self.take("@]") {
                many = true;
            } else if !self.take("*]") {
                self.arithmetic_until(b"]")?;
            }
        }
        if length {
            return if self.take("}") {
                Ok((false, true))
            } else {
                self.lost("an unknown form of ${# }")
            };
        }
        match self.next() {
            Some(b'}') => return Ok((many, false)),
            Some(b':') => match self.peek() {
                Some(b'-' | b'=' | b'?' | b'+') => {
                    if self.next() == Some(b'=') {
                        self.walk.assigned(&name, false);
                        self.walk.binds(&name, None);
                    }
                    self.brace_word(quoted)?;
                }
                _ => {
                    if self.arithmetic_until(b":}")? == b':' {
                        self.arithmetic_until(b"}")?;
                    }
                }
            },
            Some(b'=') => {
                self.walk.assigned(&name, false);
                self.walk.binds(&name, None);
                self.brace_word(quoted)?;
            }
            Some(b'-' | b'?' | b'+' | b'#' | b'%' | b'/' | b'^' | b',') => self.brace_word(quoted)?,
            Some(b'@') => match self.next() {
                // `@P` expands its value as a prompt, which runs what is in it.
                Some(b'U' | b'u' | b'L' | b'Q' | b'E' | b'A' | b'K' | b'a' | b'k') if self.take("}") => {}
                _ => return self.lost("an expansion that runs what the variable holds"),
            },
            _ => return self.lost("an unknown form of ${ }"),
        }
        Ok((many, false))
    }

    /// The word of `${x:-word}` and its kin, with the closing brace.
    fn brace_word(&mut self, quoted: bool) -> Read<()> {
        let mut inside = Draft::new();
        loop {
            match self.peek() {
                None => return self.lost("a ${ is not closed"),
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                // Whether a single quote quotes here depends on the operator and on the shell.
                Some(b'\'') if quoted => return self.lost("a single quote within \"${ }\""),
                Some(b'\'') => {
                    self.at += 1;
                    self.single_quoted()?;
                }
                Some(b'"') => {
                    self.at += 1;
                    self.double_quoted(&mut inside)?;
                }
                Some(b'\\') => {
                    self.at = self.src.len().min(self.at + 2);
                }
                Some(b'$') => self.dollar(&mut inside, false, quoted)?,
                Some(b'`') => {
                    self.at += 1;
                    self.back_quoted(quoted)?;
                }
                Some(b'<' | b'>') if self.is_process_substitution() => {
                    return self.lost("a process substitution within ${ }");
                }
                Some(_) => self.at += 1,
            }
        }
    }

    /// After the opening back-quote: undoes one level of backslashes and reads what is left as a script of its own.
    pub(super) fn back_quoted(&mut self, in_double_quotes: bool) -> Read<()> {
        let mut script = Vec::new();
        loop {
            match self.byte(self.at) {
                None => return self.lost("a back-quote is not closed"),
                Some(b'`') => {
                    self.at += 1;
                    break;
                }
                Some(b'\\') => {
                    match self.byte(self.at + 1) {
                        Some(escaped @ (b'$' | b'`' | b'\\')) => script.push(escaped),
                        Some(b'"') if in_double_quotes => script.push(b'"'),
                        Some(other) => script.extend([b'\\', other]),
                        None => return self.lost("a back-quote is not closed"),
                    }
                    self.at += 2;
                }
                Some(byte) => {
                    script.push(byte);
                    self.at += 1;
                }
            }
        }
        let Ok(script) = String::from_utf8(script) else {
            return self.lost("a command that is not text");
        };
        self.walk.nested(&script, self.dialect);
        Ok(())
    }

    /// After `$'`.
    fn ansi_quoted(&mut self, draft: &mut Draft) -> Read<()> {
        loop {
            let Some(byte) = self.byte(self.at) else {
                return self.lost("a $' is not closed");
            };
            self.at += 1;
            match byte {
                b'\'' => return Ok(()),
                b'\\' => {
                    let Some(escape) = self.byte(self.at) else {
                        return self.lost("a $' is not closed");
                    };
                    self.at += 1;
                    match escape {
                        b'a' => draft.push(0x07),
                        b'b' => draft.push(0x08),
                        b'e' | b'E' => draft.push(0x1b),
                        b'f' => draft.push(0x0c),
                        b'n' => draft.push(b'\n'),
                        b'r' => draft.push(b'\r'),
                        b't' => draft.push(b'\t'),
                        b'v' => draft.push(0x0b),
                        b'\\' | b'\'' | b'"' | b'?' => draft.push(escape),
                        b'0'..=b'7' => {
                            self.at -= 1;
                            let value = self.digits(8, 3)?;
                            self.ansi_byte(draft, value)?;
                        }
                        b'x' if self.byte(self.at) != Some(b'{') => {
                            let value = self.digits(16, 2)?;
                            self.ansi_byte(draft, value)?;
                        }
                        b'u' | b'U' => {
                            let value = self.digits(16, if escape == b'u' { 4 } else { 8 })?;
                            match char::from_u32(value) {
                                Some(letter) if letter != '\0' => {
                                    draft.extend(letter.encode_utf8(&mut [0; 4]).as_bytes());
                                }
                                _ => return self.lost("an escape of $' ' that is no letter"),
                            }
                        }
                        _ => return self.lost("an unusual escape in $' '"),
                    }
                }
                _ => draft.push(byte),
            }
        }
    }

    fn ansi_byte(&mut self, draft: &mut Draft, value: u32) -> Read<()> {
        // A NUL ends the text in bash; what is after it is dropped.
        match u8::try_from(value & 0xff) {
            Ok(byte) if byte != 0 => {
                draft.push(byte);
                Ok(())
            }
            _ => self.lost("a NUL in $' '"),
        }
    }

    fn digits(&mut self, radix: u32, most: usize) -> Read<u32> {
        let mut value = 0_u32;
        let mut count = 0;
        while count < most {
            let Some(digit) = self.byte(self.at).and_then(|byte| (byte as char).to_digit(radix)) else {
                break;
            };
            value = value.wrapping_mul(radix).wrapping_add(digit);
            self.at += 1;
            count += 1;
        }
        if count == 0 {
            return self.lost("an escape of $' ' without digits");
        }
        Ok(value)
    }
}

/// Commands that print one number or a list of them and nothing else, whatever the machine holds.
fn prints_number(script: &str) -> bool {
    if script == "nproc" || script == "date +%s" || script == "date +%s%N" {
        return true;
    }
    script.strip_prefix("seq ").is_some_and(|rest| {
        rest.split(' ')
            .all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    })
}
