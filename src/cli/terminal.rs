//! The terminal: raw mode that is always undone, its size, text made safe to show, and the question put to the person there.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{self, LocalModes, OptionalActions, QueueSelector, Termios};
use tokio::sync::watch;

use crate::approval::{OpenQuestion, Reply};
use crate::policy::{Scope, TtySize};

pub use super::clean::clean;
use crate::secret::SecretString;

/// Whether a running command has the terminal's input: then no question can be answered there.
static HELD: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

/// The terminal's input belongs to a command while this lives.
#[derive(Debug)]
pub struct Held(());

impl Held {
    pub fn take() -> Self {
        HELD.send_replace(true);
        Self(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.send_replace(false);
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

/// Whether the terminal's input belongs to a command.
pub fn is_held() -> bool {
    *HELD.borrow()
}

/// Returns when the terminal's input is the person's again.
pub async fn let_go() {
    // The sender is never dropped.
    let _ = HELD.subscribe().wait_for(|held| !held).await;
}

/// Says at a terminal whose input belongs to a command that a question waits, and where it can be answered.
pub fn tell_of_question(question: &OpenQuestion) -> io::Result<()> {
    let asked = &question.asked;
    let id = asked.id;
    // The terminal may be raw: lines need their own returns.
    let text = format!(
        "\r\nbelljar: asked for: {}\r\nbelljar: answer from another shell: belljar approvals approve {id} (or deny)\r\n",
        clean(&asked.about)
    );
    OpenOptions::new()
        .write(true)
        .open("/dev/tty")?
        .write_all(text.as_bytes())
}

/// Asks the person at the terminal and waits until there is an answer or `withdrawn` is set. Blocking: call it where waiting is
/// allowed. The answer comes from `/dev/tty`, never from stdin, which may be the agent's.
pub fn ask_at_terminal(
    task: &str,
    purpose: Option<&str>,
    question: &OpenQuestion,
    withdrawn: &AtomicBool,
) -> Result<Reply, NoAnswer> {
    if is_held() {
        return Err(NoAnswer::Held);
    }
    let mut tty = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(NoAnswer::NoTerminal)?;
    // What was typed before the question was there is no answer to it.
    let _ = termios::tcflush(&tty, QueueSelector::IFlush);
    tty.write_all(shown_question(task, purpose, question).as_bytes())
        .map_err(NoAnswer::NoTerminal)?;
    loop {
        tty.write_all(choices(&question.scopes).as_bytes())
            .map_err(NoAnswer::NoTerminal)?;
        let Some(line) = read_line(&mut tty, withdrawn).map_err(NoAnswer::NoTerminal)? else {
            let _ = tty
                .write_all(b"\nbelljar: the question is closed: it was answered elsewhere, or nobody waits any more\n");
            return Err(NoAnswer::Withdrawn);
        };
        if let Some(reply) = understand(&line, &question.scopes) {
            return Ok(reply);
        }
    }
}

/// What is shown of a question, at the terminal and by `belljar approvals`.
pub fn shown_question(task: &str, purpose: Option<&str>, question: &OpenQuestion) -> String {
    let asked = &question.asked;
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
    if question.waiting > 1 {
        row(
            "waiting",
            &format!("{} requests, all for this one answer", question.waiting),
        );
    }
    if let Some((rule, file)) = &question.rule {
        row("[r] adds", &format!("{rule} to {file}"));
    }
    row("id", &asked.id.to_string());
    text
}

fn choices(scopes: &[Scope]) -> String {
    let mut text = String::from("  allow? [y] once  ");
    for (scope, choice) in [
        (Scope::Task, "[t] for this task  "),
        (Scope::Session, "[s] for this session  "),
        (Scope::Rule, "[r] always, as a rule  "),
    ] {
        if scopes.contains(&scope) {
            text.push_str(choice);
        }
    }
    text.push_str("[n] no (a reason may follow): ");
    text
}

/// `None` for what is no answer. An empty line is none either: it may have been typed for something else.
fn understand(line: &str, scopes: &[Scope]) -> Option<Reply> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let scope = match (word.to_ascii_lowercase().as_str(), rest.trim()) {
        ("y" | "yes", "") => Scope::Once,
        ("t" | "task", "") => Scope::Task,
        ("s" | "session", "") => Scope::Session,
        ("r" | "rule", "") => Scope::Rule,
        ("n" | "no", reason) => {
            return Some(Reply::Deny {
                scope: Scope::Once,
                reason: (!reason.is_empty()).then(|| clean(reason)),
            });
        }
        _ => return None,
    };
    scopes.contains(&scope).then_some(Reply::Approve(scope))
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
    use std::sync::Arc;

    use super::*;
    use crate::approval::{Asked, Subject};
    use crate::policy::{Decision, RuleMatch};

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let argv = ["bash", "-c", "echo 'a b'; rm x\n"].map(str::to_owned);
        assert_eq!(shown_command(&argv), "bash -c \"echo 'a b'; rm x\\n\"");
    }

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        let all = [Scope::Once, Scope::Task, Scope::Session, Scope::Rule];
        let understand = |line| super::understand(line, &all);
        assert_eq!(understand("y"), Some(Reply::Approve(Scope::Once)));
        assert_eq!(understand(" T \r"), Some(Reply::Approve(Scope::Task)));
        assert_eq!(understand("session"), Some(Reply::Approve(Scope::Session)));
        for line in ["", " ", "maybe", "yy", "y please", "Y; n"] {
            assert_eq!(understand(line), None, "{line:?}");
        }
        assert_eq!(understand("n use make\u{1b}"), Some(Reply::deny("use make\\u{1b}")));
    }

    #[test]
    fn what_is_not_offered_is_no_answer() {
        assert_eq!(understand("r", &[Scope::Once, Scope::Task]), None);
        let choices = choices(&[Scope::Once, Scope::Task]);
        assert_eq!(
            choices,
            "  allow? [y] once  [t] for this task  [n] no (a reason may follow): "
        );
    }

    fn question(about: &str) -> OpenQuestion {
        let asked = Asked {
            id: "01920000-0000-7000-8000-000000000000".parse().unwrap(),
            task: crate::id::TaskId::new(),
            exec: None,
            subject: Subject::Host {
                host: "x".to_owned(),
                port: 1,
                protocol: "http".to_owned(),
            },
            about: about.to_owned(),
            facts: vec![
                ("in".to_owned(), "/workspace".to_owned()),
                ("it says".to_owned(), "to share\rit".to_owned()),
            ],
            reason: "a rule wants a person to look".to_owned(),
            files: Vec::new(),
            rules: vec![RuleMatch {
                id: "push".to_owned(),
                file: "agent.rules".to_owned(),
                line: 4,
                decision: Decision::Prompt,
                justification: Some("others see it".to_owned()),
                person_only: false,
            }],
            digest: crate::policy::Digest::of_bytes(b"x"),
            offer: None,
        };
        OpenQuestion {
            asked: Arc::new(asked),
            since: jiff::Timestamp::UNIX_EPOCH,
            until: jiff::Timestamp::UNIX_EPOCH,
            waiting: 2,
            scopes: vec![Scope::Once],
            rule: Some(("prefix_rule(…)".to_owned(), "/home/ada/my.rules".to_owned())),
        }
    }

    #[test]
    fn the_question_shows_all_that_matters_cleaned() {
        let shown = shown_question("fix", Some("make it pass"), &question("git push\u{202e}"));
        let expected = "\nbelljar: task fix asks for\n\n    git push\\u{202e}\n\n  purpose  make it pass\n  in       /workspace\n  \
                        it says  to share\\rit\n  because  a rule wants a person to look\n  rule     agent.rules:4: others see it\n  \
                        waiting  2 requests, all for this one answer\n  [r] adds prefix_rule(…) to /home/ada/my.rules\n  \
                        id       01920000-0000-7000-8000-000000000000\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_held_terminal_is_not_asked_at() {
        let held = Held::take();
        let answer = ask_at_terminal("t", None, &question("x"), &AtomicBool::new(false));
        drop(held);
        assert!(matches!(answer, Err(NoAnswer::Held)), "{answer:?}");
    }
}
