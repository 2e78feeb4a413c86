//! The grammar of bash over the words of [`super::lexer`]: lists, pipelines, compounds, redirects. It builds no tree: each
//! simple command is handed to the walk as soon as it is read.
//!
//! It may accept what bash refuses (the command then does not run, and a listing too many harms nobody); it never reads
//! on where bash would read otherwise.

use super::lexer::{Lexed, Mode, Read, Reader};
use super::word::Word;
use super::{Dialect, Redirect};

/// A simple command in the making.
#[derive(Debug, Default)]
pub(super) struct Draught {
    pub argv: Vec<Word>,
    pub env: Vec<(String, Word)>,
    pub redirects: Vec<Redirect>,
}

/// Where a command stands. `time` is a keyword only where a pipeline starts; behind a `|` it is the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    PipelineStart,
    Within,
}

/// What ends a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Script,
    Byte(u8),
    /// One of these words in the place of a command.
    Keyword(&'static [&'static str]),
    /// `;;` and its kin, or `esac`.
    Branch,
}

const CLOSERS: &[&str] = &["then", "do", "done", "fi", "else", "elif", "esac", "}", "in"];

impl Reader<'_, '_> {
    /// A whole script.
    pub(super) fn script(&mut self) -> Read<()> {
        self.list(End::Script)?;
        if self.heredocs.is_empty() {
            Ok(())
        } else {
            self.bodies()
        }
    }

    /// A list up to the byte `end`, which is taken.
    pub(super) fn list_until(&mut self, end: u8) -> Read<()> {
        self.list(End::Byte(end))
    }

    fn list(&mut self, end: End) -> Read<()> {
        loop {
            self.skip_separators()?;
            if self.ends(end)? {
                return Ok(());
            }
            self.and_or()?;
            self.skip_blanks();
            match self.peek() {
                Some(b';') if !self.stands(";;") && !self.stands(";&") => self.at += 1,
                Some(b'&') => self.at += 1,
                Some(b'\n') | None => {}
                _ => {
                    if self.ends(end)? {
                        return Ok(());
                    }
                    return self.lost("a syntax that is not understood");
                }
            }
        }
    }

    /// Whether the list ends here; takes the end, but for a keyword or a branch's, which the caller wants to see.
    fn ends(&mut self, end: End) -> Read<bool> {
        self.skip_blanks();
        match end {
            End::Script => Ok(self.peek().is_none()),
            End::Byte(byte) => match self.peek() {
                Some(found) if found == byte => {
                    self.at += 1;
                    Ok(true)
                }
                None => self.lost("a bracket is not closed"),
                _ => Ok(false),
            },
            End::Keyword(words) => Ok(words.iter().any(|word| self.keyword_stands(word))),
            End::Branch => Ok(self.stands(";;") || self.stands(";&") || self.keyword_stands("esac")),
        }
    }

    /// Newlines, with the here-documents that begin after them, blanks and comments.
    pub(super) fn skip_separators(&mut self) -> Read<()> {
        loop {
            self.skip_blanks();
            if self.peek() != Some(b'\n') {
                return Ok(());
            }
            self.newline()?;
        }
    }

    fn newline(&mut self) -> Read<()> {
        self.at += 1;
        if self.heredocs.is_empty() {
            Ok(())
        } else {
            self.bodies()
        }
    }

    fn and_or(&mut self) -> Read<()> {
        loop {
            self.pipeline()?;
            self.skip_blanks();
            if self.take("&&") || self.take("||") {
                self.skip_separators()?;
            } else {
                return Ok(());
            }
        }
    }

    fn pipeline(&mut self) -> Read<()> {
        let mut place = Place::PipelineStart;
        let outside = self.walk.piped;
        loop {
            self.deeper(|reader| reader.command(place))?;
            place = Place::Within;
            self.skip_blanks();
            if self.stands("||") || !self.take("|") {
                self.walk.piped = outside;
                return Ok(());
            }
            self.walk.piped = true;
            if self.take("&") && self.dialect != Dialect::Bash {
                return self.lost("|& outside bash");
            }
            self.skip_separators()?;
        }
    }

    /// One command, simple or compound, at the place where keywords count.
    fn command(&mut self, place: Place) -> Read<()> {
        self.skip_blanks();
        match self.peek() {
            Some(b'(') => {
                self.at += 1;
                if self.peek() == Some(b'(') {
                    if self.dialect != Dialect::Bash {
                        return self.lost("(( outside bash");
                    }
                    if self.arithmetic_follows()? {
                        return self.after_compound();
                    }
                }
                self.list_until(b')')?;
                return self.after_compound();
            }
            Some(b'&' | b'|' | b';' | b')' | b'\n') | None => return self.lost("a command is missing"),
            _ => {}
        }
        let Some(keyword) = self.keyword() else {
            return self.simple(None);
        };
        match keyword {
            "!" => {
                self.skip_blanks();
                // A lone `!` is a command of its own in bash.
                match self.peek() {
                    Some(b';' | b'\n' | b'&' | b'|' | b')') | None => Ok(()),
                    _ => self.deeper(|reader| reader.command(Place::PipelineStart)),
                }
            }
            // Elsewhere, and to other shells, it is the program of that name.
            "time" if place == Place::Within => self.simple(Some(Word::known("time"))),
            "time" if self.dialect != Dialect::Bash => self.time_in_sh(),
            "time" => self.timed(),
            "coproc" => self.coprocess(),
            "{" => {
                self.list(End::Keyword(&["}"]))?;
                self.expect("}")?;
                self.after_compound()
            }
            "if" => {
                self.list(End::Keyword(&["then"]))?;
                self.expect("then")?;
                loop {
                    self.list(End::Keyword(&["elif", "else", "fi"]))?;
                    if self.take_keyword("elif") {
                        self.list(End::Keyword(&["then"]))?;
                        self.expect("then")?;
                    } else if self.take_keyword("else") {
                        self.list(End::Keyword(&["fi"]))?;
                    } else {
                        self.expect("fi")?;
                        return self.after_compound();
                    }
                }
            }
            "while" | "until" => {
                self.list(End::Keyword(&["do"]))?;
                self.loop_body()?;
                self.after_compound()
            }
            "for" | "select" => self.for_loop(),
            "case" => self.case(),
            "function" => {
                if self.dialect != Dialect::Bash {
                    return self.lost("the word function outside bash");
                }
                self.skip_blanks();
                self.word(Mode::Single)?;
                self.skip_blanks();
                if self.take("(") {
                    self.skip_blanks();
                    if !self.take(")") {
                        return self.lost("a function's parentheses are not empty");
                    }
                }
                self.function_body()
            }
            "[[" => {
                if self.dialect != Dialect::Bash {
                    return self.lost("[[ outside bash");
                }
                self.condition()?;
                self.after_compound()
            }
            _ => self.lost("a keyword out of place"),
        }
    }

    fn after_compound(&mut self) -> Read<()> {
        let mut draught = Draught::default();
        loop {
            self.skip_blanks();
            if !self.redirect(&mut draught)? {
                break;
            }
        }
        if !draught.redirects.is_empty() {
            self.walk.compound(draught);
        }
        Ok(())
    }

    /// The keyword that stands here, taken.
    fn keyword(&mut self) -> Option<&'static str> {
        const OPENERS: &[&str] = &[
            "!", "{", "[[", "if", "for", "case", "time", "while", "until", "select", "coproc", "function",
        ];
        let first = self.peek()?;
        if !matches!(
            first,
            b'!' | b'{' | b'}' | b'[' | b'i' | b'f' | b'c' | b't' | b'w' | b'u' | b's' | b'd' | b'e'
        ) {
            return None;
        }
        OPENERS
            .iter()
            .chain(CLOSERS)
            .find(|word| self.take_keyword(word))
            .copied()
    }

    fn keyword_stands(&mut self, word: &str) -> bool {
        let was = self.at;
        let found = self.take_keyword(word);
        self.at = was;
        found
    }

    pub(super) fn take_keyword(&mut self, word: &str) -> bool {
        let was = self.at;
        if self.take(word) && Self::ends_token(self.peek()) {
            return true;
        }
        self.at = was;
        false
    }

    fn expect(&mut self, word: &'static str) -> Read<()> {
        self.skip_blanks();
        if self.take_keyword(word) {
            Ok(())
        } else {
            self.lost("a keyword is missing")
        }
    }

    /// A keyword to bash and a program to others: both run what follows, if that is a plain command.
    fn time_in_sh(&mut self) -> Read<()> {
        self.skip_blanks();
        let was = self.at;
        let assigns = !self.name().is_empty() && (self.stands("=") || self.stands("+=") || self.stands("["));
        self.at = was;
        if self.keyword().is_some() || self.peek() == Some(b'(') || assigns {
            return self.lost("time before what only a keyword may stand before");
        }
        self.simple(Some(Word::known("time")))
    }

    fn timed(&mut self) -> Read<()> {
        self.skip_blanks();
        if self.stands("-") {
            if !self.take_keyword("-p") {
                // `time -f …`: the program of that name.
                return self.simple(Some(Word::known("time")));
            }
            self.skip_blanks();
            if self.take_keyword("--") {
                self.skip_blanks();
            }
        }
        match self.peek() {
            Some(b';' | b'\n' | b'&' | b'|' | b')') | None => Ok(()),
            _ => self.deeper(|reader| reader.command(Place::PipelineStart)),
        }
    }

    fn coprocess(&mut self) -> Read<()> {
        if self.dialect != Dialect::Bash {
            return self.lost("coproc outside bash");
        }
        self.skip_blanks();
        let was = self.at;
        if !self.compound_stands() {
            // `coproc NAME { … }`: a name only where a compound follows it.
            let name = self.name();
            let blank = matches!(self.peek(), Some(b' ' | b'\t'));
            self.skip_blanks();
            if name.is_empty() || !blank || !self.compound_stands() {
                self.at = was;
            } else {
                self.walk.assigned(&name, false);
                self.walk.numbers.array(&name);
                self.walk.binds(&name, None);
            }
        }
        self.deeper(|reader| reader.command(Place::Within))
    }

    fn compound_stands(&mut self) -> bool {
        const COMPOUNDS: &[&str] = &["{", "if", "for", "case", "while", "until", "select", "[["];
        self.peek() == Some(b'(') || COMPOUNDS.iter().any(|word| self.keyword_stands(word))
    }

    fn loop_body(&mut self) -> Read<()> {
        self.expect("do")?;
        self.list(End::Keyword(&["done"]))?;
        self.expect("done")
    }

    fn for_loop(&mut self) -> Read<()> {
        self.skip_blanks();
        if self.stands("((") {
            if self.dialect != Dialect::Bash {
                return self.lost("for (( outside bash");
            }
            self.at += 1;
            if !self.arithmetic_follows()? {
                return self.lost("a for (( that is not understood");
            }
            self.skip_blanks();
            if self.peek() == Some(b';') {
                self.at += 1;
            }
        } else {
            let name = self.name();
            if name.is_empty() || !Self::ends_token(self.peek()) {
                return self.lost("a for without a name");
            }
            self.skip_separators()?;
            let mut numeric = true;
            if self.take_keyword("in") {
                loop {
                    self.skip_blanks();
                    if Self::ends_token(self.peek()) && !self.stands("<(") && !self.stands(">(") {
                        break;
                    }
                    numeric &= self.word(Mode::Argument)?.numeric;
                }
                match self.peek() {
                    Some(b';') if !self.stands(";;") => self.at += 1,
                    Some(b'\n') => {}
                    _ => return self.lost("a for without an end to its words"),
                }
            } else {
                // Without words it goes over the arguments.
                numeric = false;
                self.skip_blanks();
                if self.peek() == Some(b';') {
                    self.at += 1;
                }
            }
            self.walk.assigned(&name, numeric);
            self.walk.binds(&name, None);
        }
        self.skip_separators()?;
        if self.take_keyword("{") {
            self.list(End::Keyword(&["}"]))?;
            self.expect("}")?;
        } else {
            self.loop_body()?;
        }
        self.after_compound()
    }

    fn case(&mut self) -> Read<()> {
        self.skip_blanks();
        self.word_required(Mode::Single)?;
        self.skip_separators()?;
        self.expect("in")?;
        loop {
            self.skip_separators()?;
            if self.take_keyword("esac") {
                return self.after_compound();
            }
            if self.take("(") {
                self.skip_blanks();
            }
            loop {
                self.skip_blanks();
                self.word_required(Mode::Single)?;
                self.skip_blanks();
                if !self.take("|") {
                    break;
                }
            }
            if !self.take(")") {
                return self.lost("a case pattern that does not end");
            }
            self.list(End::Branch)?;
            self.skip_blanks();
            let ended = self.take(";;&") || self.take(";;") || self.take(";&") || self.keyword_stands("esac");
            if !ended {
                return self.lost("a case branch that does not end");
            }
        }
    }

    pub(super) fn function_body(&mut self) -> Read<()> {
        self.skip_separators()?;
        if !self.compound_stands() {
            return self.lost("a function without a body");
        }
        // It may be called where a pipe leads to it.
        let outside = std::mem::replace(&mut self.walk.piped, true);
        self.deeper(|reader| reader.command(Place::Within))?;
        self.walk.piped = outside;
        Ok(())
    }

    pub(super) fn word_required(&mut self, mode: Mode) -> Read<Lexed> {
        let lexed = self.word(mode)?;
        if lexed.start == lexed.end {
            return self.lost("a word is missing");
        }
        Ok(lexed)
    }
}
