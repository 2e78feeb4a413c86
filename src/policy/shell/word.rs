//! A word of a command line: what is known of it before the script runs.

/// One word. Where all of it is known, `text` is its value after quotes and escapes; where not, `text` is how the script
/// writes it, and [`Unknown`] tells what can still be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub unknown: Option<Box<Unknown>>,
}

/// What can be said of a word with an expansion in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// Its value starts with this.
    pub prefix: String,
    /// Its value ends with this.
    pub suffix: String,
    pub fields: Fields,
}

/// How many arguments a word may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fields {
    One,
    /// One or more: a glob, a brace expansion, `a$x`.
    Some,
    /// Perhaps none: `$x`, `"$@"`.
    Any,
}

/// How a word and a text compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    No,
    Maybe,
    Yes,
}

impl Word {
    pub fn known(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            unknown: None,
        }
    }

    pub fn value(&self) -> Option<&str> {
        match self.unknown {
            None => Some(&self.text),
            Some(_) => None,
        }
    }

    /// Whether this is surely one argument.
    pub fn is_single(&self) -> bool {
        self.unknown
            .as_ref()
            .is_none_or(|unknown| unknown.fields == Fields::One)
    }

    /// Whether the word starts with `prefix`, as far as that is known.
    pub fn starts_with(&self, prefix: &str) -> Fit {
        if self.is_home() && prefix.starts_with('-') {
            return Fit::No;
        }
        match &self.unknown {
            None if self.text.starts_with(prefix) => Fit::Yes,
            None => Fit::No,
            Some(unknown) if unknown.prefix.starts_with(prefix) && unknown.fields != Fields::Any => Fit::Yes,
            Some(unknown) if prefix.starts_with(&unknown.prefix) || unknown.prefix.starts_with(prefix) => Fit::Maybe,
            Some(_) => Fit::No,
        }
    }

    /// A home folder is a path or stays `~`: whatever it is, no option. A variable is one only where it stays one word; nothing may
    /// set it unseen.
    pub fn is_home(&self) -> bool {
        let quoted = ["\"$HOME/", "\"${HOME}/"];
        self.unknown.is_some()
            && (self.text.starts_with('~')
                || self.is_single() && quoted.iter().any(|start| self.text.starts_with(start)))
    }

    /// Whether the first argument that this word becomes is `text`.
    pub fn fits(&self, text: &str) -> Fit {
        let Some(unknown) = &self.unknown else {
            return if self.text == text { Fit::Yes } else { Fit::No };
        };
        if self.is_home() && text.starts_with('-') {
            return Fit::No;
        }
        let starts = text.starts_with(&unknown.prefix);
        let ends = unknown.fields != Fields::One
            || (text.ends_with(&unknown.suffix) && text.len() >= unknown.prefix.len() + unknown.suffix.len());
        if unknown.fields == Fields::Any || (starts && ends) {
            Fit::Maybe
        } else {
            Fit::No
        }
    }
}

/// Puts a word together piece by piece.
#[derive(Debug, Default)]
pub(super) struct Draft {
    text: Vec<u8>,
    unknown: Option<(Vec<u8>, Fields)>,
    /// Whether every part is an integer, which decides what arithmetic may do with it.
    pub numeric: bool,
}

impl Draft {
    pub fn new() -> Self {
        Self {
            numeric: true,
            ..Self::default()
        }
    }

    pub fn push(&mut self, byte: u8) {
        self.numeric &= is_number_byte(&byte);
        self.text.push(byte);
    }

    pub fn extend(&mut self, bytes: &[u8]) {
        self.numeric &= bytes.iter().all(is_number_byte);
        self.text.extend_from_slice(bytes);
    }

    /// A part whose value is not known.
    pub fn unknown(&mut self, fields: Fields, numeric: bool) {
        self.numeric &= numeric;
        let tail = std::mem::take(&mut self.text);
        match &mut self.unknown {
            None => self.unknown = Some((tail, fields)),
            Some((_, known)) => *known = (*known).max(fields),
        }
    }

    pub fn is_known(&self) -> bool {
        self.unknown.is_none()
    }

    /// The finished word; `source` is how the script writes it.
    pub fn finish(self, source: &str) -> Word {
        let text = match String::from_utf8(self.text) {
            Ok(text) => text,
            // `$'\xff'`: bytes that are no text. Nothing is claimed of them.
            Err(_) => {
                return Word {
                    text: source.to_owned(),
                    unknown: Some(Box::new(Unknown {
                        prefix: String::new(),
                        suffix: String::new(),
                        fields: self.unknown.map_or(Fields::One, |(_, fields)| fields),
                    })),
                };
            }
        };
        let Some((prefix, mut fields)) = self.unknown else {
            return Word { text, unknown: None };
        };
        let prefix = String::from_utf8(prefix).unwrap_or_default();
        if fields == Fields::Any && !(prefix.is_empty() && text.is_empty()) {
            fields = Fields::Some;
        }
        Word {
            text: source.to_owned(),
            unknown: Some(Box::new(Unknown {
                prefix,
                suffix: text,
                fields,
            })),
        }
    }
}

fn is_number_byte(byte: &u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'-' | b'+')
}
