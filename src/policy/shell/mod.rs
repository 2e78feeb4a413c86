//! What can a shell command run? [`understand`] answers with every simple command, its redirects and assignments, or says
//! that the answer cannot be known before it runs.
//!
//! ```text
//! argv ──► programs: is it a shell, or something that runs another command?      (env, sudo, xargs, find -exec, …)
//!             │ a script                                        ▲ argv
//!             ▼                                                 │
//!          parser ──► lexer ──► words ──► Walk: lists the command, looks through it, weighs its environment
//! ```
//!
//! Sound before complete: a command that the shell would run is listed, or the whole is opaque. The reader is our own and
//! not a general grammar, for three reasons: it must agree with bash on every byte (what is a blank, what a backslash
//! joins, where a here-document ends), it reads hostile text within a trusted process and so must be safe code of linear
//! cost, and it must give up where shells differ instead of recovering. It makes no tree: what it reads, it lists.
//!
//! Not a boundary: what a listed program does is its own affair. `make`, `python x.py` and `./run.sh` are listed as
//! themselves.

mod arithmetic;
mod builtins;
mod condition;
mod environment;
mod expansion;
mod git;
mod interpreters;
mod lexer;
mod parser;
mod programs;
mod redirect;
mod simple;
mod word;

#[cfg(test)]
mod tests;

pub use word::{Fields, Fit, Unknown, Word};

use arithmetic::Numbers;
use lexer::Reader;
use parser::Draught;

/// How deep scripts, substitutions and wrappers may nest. Ten times what anybody writes, and safe on a small stack.
const DEPTH_LIMIT: u32 = 40;
/// A script longer than this is not read.
const LENGTH_LIMIT: usize = 1 << 20;
/// How many bytes may be read again as scripts within scripts, which keeps the cost linear.
const REREAD_LIMIT: usize = 4 << 20;
/// A script that lists more is opaque.
const COMMAND_LIMIT: usize = 20_000;

/// All that is known of what a command runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Understanding {
    pub commands: Vec<SimpleCommand>,
    /// Why part of it cannot be known, where that is so.
    pub opaque: Option<&'static str>,
}

/// One command that may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimpleCommand {
    /// Empty for assignments and redirects that stand alone.
    pub argv: Vec<Word>,
    pub env: Vec<(String, Word)>,
    pub redirects: Vec<Redirect>,
    pub role: Role,
}

/// What a listed command means for the judgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It runs, and needs a rule of its own to be allowed by rules.
    Runs,
    /// It only carries another one that is listed too: `env X=1 ls`, `bash -c ls`. Rules against it count.
    Carries,
    /// Another spelling of a listed command, for the rules against it: `git push` for `git -C x push`.
    Shadow,
}

/// A redirect; `body` is a here-document's slot while it is being read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    pub operator: &'static str,
    pub target: Word,
    /// The descriptor that it is for.
    fd: Fd,
    body: Option<usize>,
}

/// Which descriptor: all that matters is whether a shell would read its script from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fd {
    Input,
    Other,
}

impl Redirect {
    fn write(target: Word) -> Self {
        Self {
            operator: ">",
            target,
            fd: Fd::Other,
            body: None,
        }
    }

    /// Whether a file may be written, other than the bin and the streams that are open already.
    pub fn writes_file(&self) -> bool {
        if !self.operator.contains('>') {
            return false;
        }
        match self.target.value() {
            Some("/dev/null" | "/dev/stdout" | "/dev/stderr" | "/dev/tty" | "/dev/zero" | "/dev/full") => false,
            Some(target) if target.starts_with("/dev/fd/") => false,
            Some(target) if self.operator == ">&" => {
                !target.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') || target.is_empty()
            }
            _ => true,
        }
    }
}

/// Which shell reads a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Dialect {
    #[default]
    Bash,
    /// `sh`, whichever that is: what shells read differently is opaque.
    Posix,
}

/// What `argv` runs.
pub fn understand(argv: &[String]) -> Understanding {
    let mut walk = Walk::default();
    let words: Vec<Word> = argv.iter().map(Word::known).collect();
    walk.run(words, Vec::new(), Vec::new());
    walk.finished()
}

/// What a script runs when bash reads it.
pub fn understand_script(script: &str) -> Understanding {
    let mut walk = Walk::default();
    walk.nested(script, Dialect::Bash);
    walk.finished()
}

/// What the environment of a request does to the command that it is given to.
pub fn understand_with_env<'a>(
    argv: &[String],
    env: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Understanding {
    let mut walk = Walk::default();
    for (name, value) in env {
        let value = Word::known(value);
        walk.numbers.assign(name, is_number(&value));
        walk.binds(name, Some(&value));
    }
    let words: Vec<Word> = argv.iter().map(Word::known).collect();
    walk.run(words, Vec::new(), Vec::new());
    walk.finished()
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Walk {
    commands: Vec<SimpleCommand>,
    opaque: Option<&'static str>,
    numbers: Numbers,
    /// The shell whose script is being read.
    dialect: Dialect,
    depth: u32,
    /// Whether a glob that finds nothing may become nothing.
    nullglob: bool,
    /// Whether what is being read gets its input from a pipe.
    piped: bool,
    /// How many programs that run others in ways of their own are being looked through.
    runners: u32,
    reread: usize,
    /// Here-documents seen so far; a body's slot is its number.
    slots: usize,
    /// Shells that read a here-document as their script, waiting for its body.
    waiting: Vec<(usize, Dialect)>,
    /// Interpreters that read one as their code, likewise.
    codes: Vec<usize>,
}

impl Walk {
    fn finished(mut self) -> Understanding {
        if self.numbers.any_unknown() {
            self.opaque("arithmetic on a variable that may hold anything");
        }
        if self.numbers.any_reread() {
            self.opaque("a declaration that evaluates what it is given");
        }
        if !self.waiting.is_empty() {
            self.opaque("a script whose text is missing");
        }
        Understanding {
            commands: self.commands,
            opaque: self.opaque,
        }
    }

    fn opaque(&mut self, reason: &'static str) {
        self.opaque.get_or_insert(reason);
    }

    /// Reads a script within the script.
    fn nested(&mut self, script: &str, dialect: Dialect) {
        let outer = std::mem::replace(&mut self.dialect, dialect);
        self.read(script, dialect);
        self.dialect = outer;
    }

    fn read(&mut self, script: &str, dialect: Dialect) {
        self.reread += script.len();
        if self.depth >= DEPTH_LIMIT {
            return self.opaque("nested too deeply");
        }
        if script.len() > LENGTH_LIMIT || self.reread > REREAD_LIMIT {
            return self.opaque("a script too long to read");
        }
        if script.contains('\0') {
            return self.opaque("a script with a NUL");
        }
        self.nullglob |= script.contains("nullglob");
        self.depth += 1;
        let depth = self.depth;
        // A reader that is lost has said why.
        let _ = Reader::new(script, self, dialect).script();
        self.depth = depth - 1;
    }

    fn assigned(&mut self, name: &str, numeric: bool) {
        self.numbers.assign(name, numeric);
    }

    /// A variable gets a value: some names decide what later commands are.
    fn binds(&mut self, name: &str, value: Option<&Word>) {
        environment::weigh(self, name, value);
    }

    fn body_slot(&mut self) -> usize {
        self.slots += 1;
        self.slots
    }

    /// The body of a here-document is there.
    fn fill(&mut self, slot: usize, body: Word) {
        if let Some(at) = self.codes.iter().position(|code| *code == slot) {
            self.codes.swap_remove(at);
            if let Some(code) = body.value() {
                interpreters::calls(self, code);
            }
        }
        let Some(at) = self.waiting.iter().position(|(waiting, _)| *waiting == slot) else {
            return;
        };
        let (_, dialect) = self.waiting.swap_remove(at);
        self.script(&body, dialect);
    }

    /// A word that a shell will read as a script.
    fn script(&mut self, script: &Word, dialect: Dialect) {
        match script.value() {
            Some(text) => self.nested(text, dialect),
            None => self.opaque("a script that is put together when it runs"),
        }
    }

    /// A simple command was read.
    fn finish(&mut self, draught: Draught) {
        for (name, value) in &draught.env {
            self.binds(name, Some(value));
        }
        if draught.argv.is_empty() {
            self.compound(draught);
        } else {
            self.run(draught.argv, draught.env, draught.redirects);
        }
    }

    /// Redirects and assignments that stand alone, or around a compound command.
    fn compound(&mut self, draught: Draught) {
        let role = if draught.redirects.iter().any(Redirect::writes_file) {
            Role::Runs
        } else {
            Role::Carries
        };
        self.list(SimpleCommand {
            argv: draught.argv,
            env: draught.env,
            redirects: draught.redirects,
            role,
        });
    }

    fn list(&mut self, command: SimpleCommand) -> usize {
        if self.commands.len() >= COMMAND_LIMIT {
            self.opaque("too many commands");
            return self.commands.len() - 1;
        }
        self.commands.push(command);
        self.commands.len() - 1
    }

    /// Lists a command and looks through it.
    fn run(&mut self, argv: Vec<Word>, env: Vec<(String, Word)>, redirects: Vec<Redirect>) {
        if self.depth >= DEPTH_LIMIT {
            return self.opaque("nested too deeply");
        }
        if self.commands.len() >= COMMAND_LIMIT {
            return self.opaque("too many commands");
        }
        let index = self.list(SimpleCommand {
            argv,
            env,
            redirects,
            role: Role::Runs,
        });
        let command = self.commands[index].clone();
        self.depth += 1;
        let mut found = programs::look_through(self, &command);
        self.depth -= 1;
        if found.role == Role::Carries && !programs::is_trusted(&command.argv) {
            found.role = Role::Runs;
        }
        let listed = &mut self.commands[index];
        listed.role = found.role;
        listed.redirects.extend(found.writes.into_iter().map(Redirect::write));
    }

    /// Lists another spelling of a command.
    fn shadow(&mut self, argv: Vec<Word>) {
        self.list(SimpleCommand {
            argv,
            env: Vec::new(),
            redirects: Vec::new(),
            role: Role::Shadow,
        });
    }
}

fn is_number(word: &Word) -> bool {
    word.value()
        .is_some_and(|value| value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
}
