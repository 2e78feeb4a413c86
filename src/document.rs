//! A TOML document read by hand, so that one reading finds every fault and knows where each value stands.
//!
//! serde stops at the first fault and forgets places; task specs, configuration and requirements need neither. The shape:
//! [`Document::parse`], [`Document::read`] with a function over the root [`Table`], whose methods take a key each and note what
//! is wrong. A table that goes out of scope reports the keys that nobody asked for: an unknown key cannot slip through.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

/// More than any file written by hand; a guard against being pointed at something else.
const LARGEST: u64 = 1 << 20;

/// Where a value or a fault comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Line and column count from 1; the column counts characters.
    File { file: Arc<str>, line: u32, column: u32 },
    /// A flag of the command line, with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sited<T> {
    pub value: T,
    pub origin: Origin,
}

impl<T> Sited<T> {
    pub fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }
}

/// The schema is the value's own: places are not written down.
impl<T: JsonSchema> JsonSchema for Sited<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

/// One thing wrong: where, under which key, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault {
    pub origin: Origin,
    /// The path of the key, `limits.memory`; empty where the file as a whole is meant.
    pub key: String,
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// All that is wrong, never empty; prints a line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// `Ok` when nothing is wrong. The faults are put in the order in which they stand in their files.
    pub fn check(mut faults: Vec<Fault>) -> Result<(), Faults> {
        if faults.is_empty() {
            return Ok(());
        }
        faults.sort();
        faults.dedup();
        Err(Faults(faults))
    }

    pub fn one(origin: Origin, key: impl Into<String>, what: impl Into<String>) -> Faults {
        Faults(vec![Fault {
            origin,
            key: key.into(),
            what: what.into(),
        }])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    pub fn into_vec(self) -> Vec<Fault> {
        self.0
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A closed set of words that a key may hold.
pub trait Word: Copy + 'static {
    const WORDS: &'static [(&'static str, Self)];

    fn read(text: &str) -> Result<Self, String> {
        Self::WORDS
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let words: Vec<String> = Self::WORDS.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                format!("\"{text}\" is not one of {}", words.join(", "))
            })
    }

    fn word(self) -> &'static str
    where
        Self: PartialEq,
    {
        Self::WORDS
            .iter()
            .find(|(_, value)| *value == self)
            .map(|(word, _)| *word)
            .expect("every arm has its word")
    }
}

/// A parsed document.
pub struct Document<'t> {
    file: Arc<str>,
    text: &'t str,
    root: Spanned<DeTable<'t>>,
}

/// Reads a whole file, or says why not, as a fault of that file.
pub fn read_file(path: &Path) -> Result<String, Faults> {
    let origin = || Origin::File {
        file: path.display().to_string().into(),
        line: 1,
        column: 1,
    };
    let failed = |error: std::io::Error| Faults::one(origin(), "", format!("the file cannot be read: {error}"));
    let found = std::fs::metadata(path).map_err(failed)?;
    if !found.is_file() {
        return Err(Faults::one(origin(), "", "this is not a file"));
    }
    if found.len() > LARGEST {
        return Err(Faults::one(origin(), "", "the file is larger than 1 MiB"));
    }
    std::fs::read_to_string(path).map_err(failed)
}

impl<'t> Document<'t> {
    /// Reads the TOML syntax; `file` is the name under which faults are reported.
    pub fn parse(text: &'t str, file: &str) -> Result<Self, Faults> {
        let file: Arc<str> = file.into();
        let (root, errors) = DeTable::parse_recoverable(text);
        let faults = errors.iter().map(|error| Fault {
            origin: place(&file, text, error.span().map_or(0, |span| span.start)),
            key: String::new(),
            what: error.message().trim().replace('\n', "; "),
        });
        Faults::check(faults.collect())?;
        Ok(Self { file, text, root })
    }

    /// Runs `read` over the root table; its value counts only when nothing was found wrong.
    pub fn read<T>(&self, read: impl FnOnce(&Table<'_>) -> T) -> Result<T, Faults> {
        let (value, faults) = self.read_all(read);
        Faults::check(faults)?;
        Ok(value)
    }

    /// The value with all that was found wrong, for a reader that goes on to look for more.
    pub fn read_all<T>(&self, read: impl FnOnce(&Table<'_>) -> T) -> (T, Vec<Fault>) {
        let faults = RefCell::new(Vec::new());
        let root = Table {
            document: self,
            entries: self.root.get_ref(),
            at: 0,
            key: String::new(),
            known: RefCell::default(),
            open: false,
            faults: &faults,
        };
        let value = read(&root);
        drop(root);
        (value, faults.into_inner())
    }
}

fn place(file: &Arc<str>, text: &str, at: usize) -> Origin {
    let before = &text[..text.floor_char_boundary(at)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Origin::File {
        file: file.clone(),
        line: 1 + before.matches('\n').count() as u32,
        column: 1 + before[line_start..].chars().count() as u32,
    }
}

/// One table of a document, being read.
pub struct Table<'d> {
    document: &'d Document<'d>,
    entries: &'d DeTable<'d>,
    at: usize,
    key: String,
    known: RefCell<Vec<&'static str>>,
    /// Whether the keys are the writer's to choose.
    open: bool,
    faults: &'d RefCell<Vec<Fault>>,
}

/// One value of a document, being read.
pub struct Value<'d> {
    value: &'d Spanned<DeValue<'d>>,
    document: &'d Document<'d>,
    key: String,
    faults: &'d RefCell<Vec<Fault>>,
}

impl<'d> Table<'d> {
    /// Where the table begins.
    pub fn origin(&self) -> Origin {
        place(&self.document.file, self.document.text, self.at)
    }

    /// Notes that something of this table is wrong, at a place known from reading it.
    pub fn fault(&self, origin: &Origin, key: &str, what: impl Into<String>) {
        self.faults.borrow_mut().push(Fault {
            origin: origin.clone(),
            key: self.path(key),
            what: what.into(),
        });
    }

    /// The value under a key, if it is there.
    pub fn value(&self, key: &'static str) -> Option<Value<'d>> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        let (_, value) = self.entries.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(self.child(key, value))
    }

    /// The value under a key that must be there.
    pub fn required(&self, key: &'static str, expected: &str) -> Option<Value<'d>> {
        let value = self.value(key);
        if value.is_none() {
            self.faults.borrow_mut().push(Fault {
                origin: self.origin(),
                key: self.path(key),
                what: format!("the key is missing (expected {expected})"),
            });
        }
        value
    }

    pub fn text(&self, key: &'static str) -> Option<Sited<String>> {
        self.value(key)?.text()
    }

    pub fn flag(&self, key: &'static str) -> Option<Sited<bool>> {
        self.value(key)?.flag()
    }

    /// A string, read further by `read`.
    pub fn parsed<T>(&self, key: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Option<Sited<T>> {
        self.value(key)?.parsed(read)
    }

    /// A string out of a closed set.
    pub fn word<T: Word>(&self, key: &'static str) -> Option<Sited<T>> {
        self.parsed(key, T::read)
    }

    /// A list of strings, each read further; an absent key is an empty list.
    pub fn list<T>(&self, key: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Vec<Sited<T>> {
        let values = self.value(key).and_then(|value| value.list()).unwrap_or_default();
        values.iter().filter_map(|value| value.parsed(&read)).collect()
    }

    /// The table under a key, its keys fixed.
    pub fn table(&self, key: &'static str) -> Option<Table<'d>> {
        self.value(key)?.table()
    }

    /// The list of tables under a key: `[[key]]`.
    pub fn tables(&self, key: &'static str) -> Vec<Table<'d>> {
        let values = self.value(key).and_then(|value| value.list()).unwrap_or_default();
        values.into_iter().filter_map(|value| value.table()).collect()
    }

    /// The names and values of a table whose keys are the writer's to choose.
    pub fn open(mut self) -> Vec<(Sited<String>, Value<'d>)> {
        self.open = true;
        self.entries
            .iter()
            .map(|(name, value)| {
                let origin = place(&self.document.file, self.document.text, name.span().start);
                (
                    Sited::new(name.get_ref().to_string(), origin),
                    self.child(name.get_ref(), value),
                )
            })
            .collect()
    }

    fn child(&self, key: &str, value: &'d Spanned<DeValue<'d>>) -> Value<'d> {
        Value {
            value,
            document: self.document,
            key: self.path(key),
            faults: self.faults,
        }
    }

    fn path(&self, key: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let key = if !key.is_empty() && key.chars().all(plain) {
            key.to_owned()
        } else {
            format!("{key:?}")
        };
        match self.key.as_str() {
            "" => key,
            above => format!("{above}.{key}"),
        }
    }
}

impl Drop for Table<'_> {
    /// The keys that nobody asked for are unknown.
    fn drop(&mut self) {
        if self.open {
            return;
        }
        let known = self.known.borrow();
        for name in self.entries.keys() {
            let key: &str = name.get_ref();
            if known.contains(&key) {
                continue;
            }
            let nearest = known
                .iter()
                .map(|known| (strsim::damerau_levenshtein(known, key), known))
                .min()
                .filter(|(distance, known)| *distance <= 1 + known.len() / 4);
            let hint = match nearest {
                Some((_, known)) => format!("did you mean \"{known}\"?"),
                None => format!("expected {}", known.join(", ")),
            };
            self.faults.borrow_mut().push(Fault {
                origin: place(&self.document.file, self.document.text, name.span().start),
                key: self.path(key),
                what: format!("unknown key ({hint})"),
            });
        }
    }
}

impl<'d> Value<'d> {
    pub fn origin(&self) -> Origin {
        place(&self.document.file, self.document.text, self.value.span().start)
    }

    /// Notes that this value is wrong.
    pub fn fault(&self, what: impl Into<String>) {
        self.faults.borrow_mut().push(Fault {
            origin: self.origin(),
            key: self.key.clone(),
            what: what.into(),
        });
    }

    fn unexpected<T>(&self, expected: &str) -> Option<T> {
        self.fault(format!("expected {expected}, found {}", kind(self.value.get_ref())));
        None
    }

    fn sited<T>(&self, value: T) -> Option<Sited<T>> {
        Some(Sited::new(value, self.origin()))
    }

    pub fn text(&self) -> Option<Sited<String>> {
        match self.value.get_ref() {
            DeValue::String(text) => self.sited(text.to_string()),
            _ => self.unexpected("a string"),
        }
    }

    pub fn flag(&self) -> Option<Sited<bool>> {
        match self.value.get_ref() {
            DeValue::Boolean(flag) => self.sited(*flag),
            _ => self.unexpected("true or false"),
        }
    }

    pub fn parsed<T>(&self, read: impl Fn(&str) -> Result<T, String>) -> Option<Sited<T>> {
        let text = self.text()?;
        match read(&text.value) {
            Ok(value) => self.sited(value),
            Err(what) => {
                self.fault(what);
                None
            }
        }
    }

    /// A whole number within a range.
    pub fn integer(&self, range: std::ops::RangeInclusive<i64>) -> Option<Sited<i64>> {
        let DeValue::Integer(number) = self.value.get_ref() else {
            return self.unexpected("a whole number");
        };
        match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if range.contains(&number) => self.sited(number),
            _ => {
                let (low, high) = range.into_inner();
                self.fault(format!("{number} is not a whole number from {low} to {high}"));
                None
            }
        }
    }

    /// A number, whole or not, within a range.
    pub fn number(&self, range: std::ops::RangeInclusive<f64>) -> Option<Sited<f64>> {
        let text = match self.value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => return self.unexpected("a number"),
        };
        match text.parse::<f64>() {
            Ok(number) if range.contains(&number) => self.sited(number),
            _ => {
                let (low, high) = range.into_inner();
                self.fault(format!("{text} is not a number from {low} to {high}"));
                None
            }
        }
    }

    /// The elements of a list.
    /// Whether it is a list, where it may be something else as well.
    pub fn is_list(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Array(_))
    }

    pub fn list(&self) -> Option<Vec<Value<'d>>> {
        let DeValue::Array(values) = self.value.get_ref() else {
            return self.unexpected("a list");
        };
        let element = |(n, value)| Value {
            value,
            document: self.document,
            key: format!("{}[{n}]", self.key),
            faults: self.faults,
        };
        Some(values.iter().enumerate().map(element).collect())
    }

    /// What stands in a list or a table, with the last name of each; nothing where it is neither. For a reader that looks through
    /// what others may define.
    pub fn inside(&self) -> Vec<(String, Value<'d>)> {
        match self.value.get_ref() {
            DeValue::Array(_) => {
                let list = self.list().unwrap_or_default();
                list.into_iter().map(|value| (String::new(), value)).collect()
            }
            DeValue::Table(_) => {
                let entries = self.table().map(Table::open).unwrap_or_default();
                entries.into_iter().map(|(name, value)| (name.value, value)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self.value.get_ref() {
            DeValue::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn table(&self) -> Option<Table<'d>> {
        let DeValue::Table(entries) = self.value.get_ref() else {
            return self.unexpected("a table");
        };
        Some(Table {
            document: self.document,
            entries,
            at: self.value.span().start,
            key: self.key.clone(),
            known: RefCell::default(),
            open: false,
            faults: self.faults,
        })
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> String {
        let read = |root: &Table<'_>| {
            root.text("name");
            root.flag("loud");
            let limits = root.table("limits");
            limits.map(|limits| limits.value("pids").map(|pids| pids.integer(1..=9)));
        };
        match Document::parse(text, "a.toml").and_then(|document| document.read(read)) {
            Ok(()) => String::new(),
            Err(faults) => faults.to_string(),
        }
    }

    #[test]
    fn every_fault_is_found_in_one_reading_and_in_the_order_of_the_file() {
        let text = "loud = 1\nnane = \"x\"\n\n[limits]\n  pids = 10\n  \"ä ö\" = 1\n[\"\"]\n";
        let expected = "a.toml:1:8: loud: expected true or false, found a whole number\n\
            a.toml:2:1: nane: unknown key (did you mean \"name\"?)\n\
            a.toml:5:10: limits.pids: 10 is not a whole number from 1 to 9\n\
            a.toml:6:3: limits.\"ä ö\": unknown key (expected pids)\n\
            a.toml:7:2: \"\": unknown key (expected name, loud, limits)";
        assert_eq!(faults(text), expected);
    }

    #[test]
    fn broken_syntax_is_reported_with_its_place() {
        let text = faults("name = \"x\nloud = true\nname = 2\n");
        assert!(text.starts_with("a.toml:1:"), "{text}");
        assert!(faults("loud = true\nloud = false").contains("a.toml:2:1"));
    }

    #[test]
    fn a_right_document_has_no_faults() {
        assert_eq!(faults("name = \"x\"\nloud = true\n[limits]\npids = 0x9\n"), "");
    }
}
