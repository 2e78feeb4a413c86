//! The grammar of bash over the words of [`super::lexer`]: lists, pipelines, compounds, redirects. It builds no tree: each
//! simple command is handed to the walk as soon as it is read.
//!
//! It may accept what bash refuses (the command then does not run, and a listing too many harms nobody); it never reads
//! on where bash would read otherwise.

use super::lexer::{Heredoc, Lexed, Mode, Read, Reader};
use super::word::{Draft, Word};
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
    pub fn script(&mut self) -> Read<()> {
        self.list(End::Script)?;
        if self.heredocs.is_empty() {
            Ok(())
        } else {
            self.bodies()
        }
    }

    /// A list up to the byte `end`, which is taken.
    pub fn list_until(&mut self, end: u8) -> Read<()> {
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
    fn skip_separators(&mut self) -> Read<()> {
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
        loop {
            self.deeper(|reader| reader.command(place))?;
            place = Place::Within;
            self.skip_blanks();
            if self.stands("||") || !self.take("|") {
                return Ok(());
            }
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
            "time" if place == Place::Within => self.simple(Some(Word::known("time"))),
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

    fn take_keyword(&mut self, word: &str) -> bool {
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

    fn timed(&mut self) -> Read<()> {
        self.skip_blanks();
        if self.stands("-") {
            if self.dialect != Dialect::Bash || !self.take_keyword("-p") {
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

    fn function_body(&mut self) -> Read<()> {
        self.skip_separators()?;
        if !self.compound_stands() {
            return self.lost("a function without a body");
        }
        self.deeper(|reader| reader.command(Place::Within))
    }

    /// `[[ … ]]`, after the opening word.
    fn condition(&mut self) -> Read<()> {
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

    fn word_required(&mut self, mode: Mode) -> Read<Lexed> {
        let lexed = self.word(mode)?;
        if lexed.start == lexed.end {
            return self.lost("a word is missing");
        }
        Ok(lexed)
    }

    /// A simple command, or a function's definition.
    fn simple(&mut self, first: Option<Word>) -> Read<()> {
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
        self.walk.finish(draught, self.dialect);
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
            if !Self::ends_token(self.peek()) {
                return self.lost("a word that goes on after an array");
            }
            self.walk.assigned(&name, numeric);
            self.walk.binds(&name, None);
            let source = self.src[start..self.at].to_owned();
            if declares {
                draught.argv.push(Word::known(source));
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

    /// One redirect, if one stands here.
    fn redirect(&mut self, draught: &mut Draught) -> Read<bool> {
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
                if name.is_empty() || !self.take("}") || self.dialect != Dialect::Bash {
                    self.at = start;
                    return Ok(false);
                }
                if matches!(self.peek(), Some(b'<' | b'>')) {
                    self.walk.assigned(&name, true);
                }
            }
            _ => {}
        }
        let left = self.at > start;
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
        if self.dialect != Dialect::Bash && matches!(operator, "<<<" | "&>" | "&>>") {
            return self.lost("a redirect that only bash knows");
        }
        self.skip_redirect_blanks();
        if matches!(operator, "<<" | "<<-") {
            self.announce(operator == "<<-", draught)?;
            return Ok(true);
        }
        if matches!(operator, "<&" | ">&") && self.peek() == Some(b'-') {
            // A token of its own: in `>&-x` the x is the next word.
            self.at += 1;
            draught.redirects.push(Redirect {
                operator,
                target: Word::known("-"),
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
    fn announce(&mut self, strip_tabs: bool, draught: &mut Draught) -> Read<()> {
        let start = self.at;
        let lexed = self.word_required(Mode::Single)?;
        let source = &self.src[start..self.at];
        // The delimiter is taken as it is written: `<<$x` ends at a line `$x`. Anything odd is refused.
        let Some(delimiter) = lexed.word.value().filter(|_| !source.contains(['$', '`', '~'])) else {
            return self.lost("a here-document's delimiter that is not plain");
        };
        self.heredocs.push(Heredoc {
            delimiter: delimiter.to_owned(),
            literal: !lexed.bare,
            strip_tabs,
            slot: self.walk.body_slot(),
        });
        draught.redirects.push(Redirect {
            operator: if strip_tabs { "<<-" } else { "<<" },
            target: Word::known(delimiter),
            body: self.heredocs.last().map(|heredoc| heredoc.slot),
        });
        Ok(())
    }

    /// The bodies of the here-documents that were announced before this newline.
    fn bodies(&mut self) -> Read<()> {
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

fn is_plain_name(word: &Word) -> bool {
    word.value()
        .is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
}
