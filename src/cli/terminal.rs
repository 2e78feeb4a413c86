//! The terminal: raw mode that is always undone, its size, text made safe to show, and the question put to the person there.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{self, LocalModes, OptionalActions, QueueSelector, Termios};

use crate::approval::Asked;
use crate::policy::{Answer, Scope, TtySize};
use crate::secret::SecretString;

/// Whether a running command has the terminal's input: then no question can be answered there.
static HELD: AtomicBool = AtomicBool::new(false);

/// The terminal's input belongs to a command while this lives.
#[derive(Debug)]
pub struct Held(());

impl Held {
    pub fn take() -> Self {
        HELD.store(true, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.store(false, Ordering::SeqCst);
    }
}

/// Raw mode of the terminal on stdin. Dropped, also while a panic unwinds, it puts the old mode back; the ways out that drop
/// nothing (`std::process::exit`) are taken only after it is gone.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
    _held: Held,
}

impl RawMode {
    /// `None` where stdin is not a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self {
            before,
            _held: Held::take(),
        }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Asks for a line on stdin, a terminal, without showing what is typed.
pub fn read_hidden(prompt: &str) -> io::Result<SecretString> {
    /// Puts the old mode back, also where reading fails.
    struct Shown(Termios);
    impl Drop for Shown {
        fn drop(&mut self) {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
        }
    }
    let stdin = io::stdin();
    let shown = Shown(termios::tcgetattr(&stdin)?);
    let mut hidden = shown.0.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    termios::tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    let mut err = io::stderr();
    write!(err, "{prompt}")?;
    err.flush()?;
    let mut line = String::with_capacity(crate::secret::LENGTH_LIMIT);
    let read = stdin.read_line(&mut line);
    writeln!(err)?;
    read?;
    if line.ends_with('\n') {
        line.pop();
    }
    Ok(line.into())
}

/// The size of the terminal, or the usual one where there is none.
pub fn size() -> TtySize {
    let size = termios::tcgetwinsize(io::stdout()).or_else(|_| termios::tcgetwinsize(io::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => TtySize {
            rows: size.ws_row,
            cols: size.ws_col,
        },
        _ => TtySize { rows: 24, cols: 80 },
    }
}

/// Text as it may be shown to a person: what is invisible, moves the cursor or turns the order of reading around is written out
/// as `\u{…}`, so that what is seen is what is there.
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => clean.push_str("\\n"),
            '\t' => clean.push_str("\\t"),
            '\r' => clean.push_str("\\r"),
            c if c.is_control() || is_deceptive(c) => clean.extend(c.escape_unicode()),
            c => clean.push(c),
        }
    }
    clean
}

/// Characters that show nothing or change how others show: bidirectional controls, zero-width and filler characters,
/// separators, variation selectors, tags, and what has no meaning of its own.
fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}')
}

/// A command as one would type it, safe to show.
pub fn shown_command(argv: &[String]) -> String {
    let words = argv.iter().map(|word| match shlex::try_quote(word) {
        Ok(quoted) => quoted.into_owned(),
        Err(_) => word.clone(),
    });
    clean(&words.collect::<Vec<_>>().join(" "))
}

/// Why nobody at the terminal answered.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("there is no terminal")]
    NoTerminal(#[source] io::Error),
    #[error("the terminal's input belongs to a running command")]
    Held,
    #[error("the question was withdrawn")]
    Withdrawn,
}

/// Asks the person at the terminal and waits until there is an answer or `withdrawn` is set. Blocking: call it where waiting is
/// allowed. The answer comes from `/dev/tty`, never from stdin, which may be the agent's.
pub fn ask_at_terminal(
    task: &str,
    purpose: Option<&str>,
    asked: &Asked,
    withdrawn: &AtomicBool,
) -> Result<Answer, NoAnswer> {
    if HELD.load(Ordering::SeqCst) {
        return Err(NoAnswer::Held);
    }
    let mut tty = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(NoAnswer::NoTerminal)?;
    // What was typed before the question was there is no answer to it.
    let _ = termios::tcflush(&tty, QueueSelector::IFlush);
    tty.write_all(shown_question(task, purpose, asked).as_bytes())
        .map_err(NoAnswer::NoTerminal)?;
    loop {
        tty.write_all(b"  allow? [y] once  [t] for this task  [n] no (a reason may follow): ")
            .map_err(NoAnswer::NoTerminal)?;
        let Some(line) = read_line(&mut tty, withdrawn).map_err(NoAnswer::NoTerminal)? else {
            let _ = tty.write_all(b"\nbelljar: the question is withdrawn\n");
            return Err(NoAnswer::Withdrawn);
        };
        if let Some(answer) = understand(&line) {
            return Ok(answer);
        }
    }
}

fn shown_question(task: &str, purpose: Option<&str>, asked: &Asked) -> String {
    let mut text = format!(
        "\nbelljar: task {} asks for\n\n    {}\n\n",
        clean(task),
        clean(&asked.about)
    );
    let mut row = |name: &str, value: &str| text.push_str(&format!("  {:<9}{}\n", clean(name), clean(value)));
    if let Some(purpose) = purpose {
        row("purpose", purpose);
    }
    for (name, value) in &asked.facts {
        row(name, value);
    }
    row("because", &asked.reason);
    for rule in &asked.rules {
        let why = match &rule.justification {
            Some(why) => format!(": {why}"),
            None => String::new(),
        };
        row("rule", &format!("{}:{}{why}", rule.file, rule.line));
    }
    text
}

/// `None` for what is no answer. An empty line is none either: it may have been typed for something else.
fn understand(line: &str) -> Option<Answer> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match (word.to_ascii_lowercase().as_str(), rest.trim()) {
        ("y" | "yes", "") => Some(Answer::Approve(Scope::Once)),
        ("t" | "task", "") => Some(Answer::Approve(Scope::Task)),
        ("n" | "no", "") => Some(Answer::Deny("the person at the terminal said no".to_owned())),
        ("n" | "no", reason) => Some(Answer::Deny(format!(
            "the person at the terminal said no: {}",
            clean(reason)
        ))),
        _ => None,
    }
}

/// A line; `None` once the question is withdrawn or the terminal is gone.
fn read_line(tty: &mut File, withdrawn: &AtomicBool) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    while !withdrawn.load(Ordering::SeqCst) {
        let mut ready = [PollFd::new(tty, PollFlags::IN)];
        match poll(&mut ready, Some(&moment)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut byte = [0];
        if tty.read(&mut byte)? == 0 {
            return Ok(None);
        }
        match byte[0] {
            b'\n' => return Ok(Some(String::from_utf8_lossy(&line).into_owned())),
            byte if line.len() < 1024 => line.push(byte),
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Decision, RuleMatch};

    #[test]
    fn what_deceives_the_eye_is_written_out() {
        assert_eq!(
            clean("a\u{1b}[2Jb\u{202e}c\u{200b}d\ne\u{9b}f"),
            "a\\u{1b}[2Jb\\u{202e}c\\u{200b}d\\ne\\u{9b}f"
        );
        assert_eq!(
            clean("\u{e0041}\u{fe0f}\u{3164}\u{feff}"),
            "\\u{e0041}\\u{fe0f}\\u{3164}\\u{feff}"
        );
        assert_eq!(clean("grün 日本 é"), "grün 日本 é");
    }

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let argv = ["bash", "-c", "echo 'a b'; rm x\n"].map(str::to_owned);
        assert_eq!(shown_command(&argv), "bash -c \"echo 'a b'; rm x\\n\"");
    }

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        assert_eq!(understand("y"), Some(Answer::Approve(Scope::Once)));
        assert_eq!(understand(" T \r"), Some(Answer::Approve(Scope::Task)));
        for line in ["", " ", "maybe", "yy", "y please", "Y; n"] {
            assert_eq!(understand(line), None, "{line:?}");
        }
        let no = Answer::Deny("the person at the terminal said no: use make\\u{1b}".to_owned());
        assert_eq!(understand("n use make\u{1b}"), Some(no));
    }

    fn asked(about: &str) -> Asked {
        Asked {
            id: crate::id::ApprovalId::new(),
            task: crate::id::TaskId::new(),
            exec: None,
            about: about.to_owned(),
            facts: vec![
                ("in".to_owned(), "/workspace".to_owned()),
                ("it says".to_owned(), "to share\rit".to_owned()),
            ],
            reason: "a rule wants a person to look".to_owned(),
            rules: vec![RuleMatch {
                id: "push".to_owned(),
                file: "agent.rules".to_owned(),
                line: 4,
                decision: Decision::Prompt,
                justification: Some("others see it".to_owned()),
                person_only: false,
            }],
            digest: crate::policy::Digest::of_bytes(b"x"),
        }
    }

    #[test]
    fn the_question_shows_all_that_matters_cleaned() {
        let shown = shown_question("fix", Some("make it pass"), &asked("git push\u{202e}"));
        let expected = "\nbelljar: task fix asks for\n\n    git push\\u{202e}\n\n  purpose  make it pass\n  in       /workspace\n  \
                        it says  to share\\rit\n  because  a rule wants a person to look\n  rule     agent.rules:4: others see it\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_held_terminal_is_not_asked_at() {
        let held = Held::take();
        let answer = ask_at_terminal("t", None, &asked("x"), &AtomicBool::new(false));
        drop(held);
        assert!(matches!(answer, Err(NoAnswer::Held)), "{answer:?}");
    }
}
