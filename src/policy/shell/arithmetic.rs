//! Arithmetic can run commands: the value of a variable is evaluated again, and a subscript such as `a[$(cmd)]` in it is
//! expanded. So an expression is understood only where every name in it can hold nothing but numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::lexer::{Read, Reader};
use super::word::Draft;

/// What a script puts into its variables, as far as arithmetic cares.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    used: BTreeSet<String>,
    /// Whether every value ever assigned is a number.
    assigned: BTreeMap<String, bool>,
    /// Variables that are arrays at some time.
    arrays: BTreeSet<String>,
    /// Variables that a declaration gives a text which is not known.
    declared: BTreeSet<String>,
}

/// Arrays of bash's own.
const ARRAYS: &[&str] = &["BASH_REMATCH", "COPROC", "DIRSTACK", "GROUPS", "MAPFILE", "PIPESTATUS"];

/// Variables that bash itself keeps to numbers.
const COUNTERS: &[&str] = &[
    "BASHPID",
    "EPOCHSECONDS",
    "EUID",
    "LINENO",
    "OPTIND",
    "PPID",
    "RANDOM",
    "SECONDS",
    "SRANDOM",
    "UID",
];

impl Numbers {
    pub fn assign(&mut self, name: &str, numeric: bool) {
        match self.assigned.get_mut(name) {
            Some(all) => *all &= numeric,
            None => {
                self.assigned.insert(name.to_owned(), numeric);
            }
        }
    }

    /// An expression rests on this variable.
    pub fn uses(&mut self, name: String) {
        self.used.insert(name);
    }

    pub fn array(&mut self, name: &str) {
        self.arrays.insert(name.to_owned());
    }

    /// `declare NAME="$x"`: where NAME is an array, bash reads a text such as `($(cmd))` as its elements, and runs cmd.
    pub fn declares(&mut self, name: &str) {
        self.declared.insert(name.to_owned());
    }

    /// Whether a declaration may read a text as the elements of an array.
    pub fn any_reread(&self) -> bool {
        self.declared
            .iter()
            .any(|name| self.arrays.contains(name) || ARRAYS.contains(&name.as_str()))
    }

    /// Whether some expression rests on a variable that may hold anything.
    pub fn any_unknown(&self) -> bool {
        self.used.iter().any(|name| match self.assigned.get(name) {
            Some(numeric) => !numeric,
            None => !COUNTERS.contains(&name.as_str()),
        })
    }
}

impl Reader<'_, '_> {
    /// At the second parenthesis of `$((` or `((`: reads the expression and the `))`, or says that there is none, which
    /// makes it a subshell within a substitution or another subshell.
    pub(super) fn arithmetic_follows(&mut self) -> Read<bool> {
        if !self.closes_twice() {
            return Ok(false);
        }
        self.at += 1;
        self.arithmetic_until(b")")?;
        if !self.take(")") {
            return self.lost("an arithmetic expression that does not end");
        }
        Ok(true)
    }

    /// Whether the parenthesis here is closed right before another closing one.
    fn closes_twice(&self) -> bool {
        let bytes = self.src.as_bytes();
        let mut at = self.at;
        let mut depth = 0_u32;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'\\' => at += 1,
                b'\'' | b'"' | b'`' => {
                    let Some(length) = bytes[at + 1..].iter().position(|other| other == byte) else {
                        return false;
                    };
                    at += length + 1;
                }
                b'(' => depth += 1,
                b')' => {
                    depth -= 1;
                    if depth == 0 {
                        return bytes.get(at + 1) == Some(&b')');
                    }
                }
                _ => {}
            }
            at += 1;
        }
        false
    }

    /// An expression up to the first of `stops` that stands outside of its brackets, which is taken and returned.
    pub(super) fn arithmetic_until(&mut self, stops: &[u8]) -> Read<u8> {
        self.deeper(|reader| reader.expression(stops))
    }

    /// An expression that is all of this reader's text.
    pub(super) fn expression_to_end(&mut self) -> Read<()> {
        self.expression(b"").map(|_| ())
    }

    fn expression(&mut self, stops: &[u8]) -> Read<u8> {
        let mut depth = 0_u32;
        let mut after_number = false;
        loop {
            let Some(byte) = self.peek() else {
                if stops.is_empty() && depth == 0 {
                    return Ok(0);
                }
                return self.lost("an arithmetic expression that does not end");
            };
            if depth == 0 && stops.contains(&byte) {
                self.at += 1;
                return Ok(byte);
            }
            let number = std::mem::replace(&mut after_number, false);
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'_' => self.arithmetic_name(),
                b'0'..=b'9' => {
                    while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric()) {
                        self.at += 1;
                    }
                    after_number = true;
                }
                b'#' if number => self.at += 1,
                b'$' => self.arithmetic_expansion()?,
                b'(' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b')' | b']' => {
                    let Some(less) = depth.checked_sub(1) else {
                        return self.lost("a bracket too many in an arithmetic expression");
                    };
                    depth = less;
                    self.at += 1;
                }
                b' ' | b'\t' | b'\n' | b'"' | b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' | b'!' | b'&'
                | b'|' | b'^' | b'~' | b'?' | b':' | b',' | b';' => self.at += 1,
                _ => return self.lost("an arithmetic expression that is not understood"),
            }
        }
    }

    fn arithmetic_name(&mut self) {
        let name = self.name();
        let after = self.at;
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
        let plain_assignment = self.take("=") && self.peek() != Some(b'=');
        self.at = after;
        // What an expression assigns is a number, by whichever operator.
        if plain_assignment {
            self.walk.assigned(&name, true);
            self.walk.binds(&name, None);
        } else {
            self.walk.numbers.uses(name);
        }
    }

    fn arithmetic_expansion(&mut self) -> Read<()> {
        let start = self.at;
        self.at += 1;
        let braced = self.take("{");
        let name = self.name();
        if !name.is_empty() && (!braced || self.take("}")) {
            self.walk.numbers.uses(name);
            return Ok(());
        }
        self.at = start;
        let mut value = Draft::new();
        let Some(byte) = self.peek() else { return Ok(()) };
        self.quoted_byte(byte, b"", &mut value)?;
        if !value.numeric {
            self.walk.opaque("arithmetic on a value that is not known");
        }
        Ok(())
    }
}
