//! A program of the admin's or the user's as reviewer: the case as one JSON document on its stdin, its opinion as one JSON object
//! on its stdout.
//!
//! ```text
//! in   {"version":1,"request":{…},"task":{…},"recent_records":[…]}
//! out  {"outcome":"allow"|"deny"|"ask","risk_level":…,"user_authorization":…,"rationale":"…"}     only the outcome must be there
//! ```
//!
//! It runs outside of any sandbox as the user who runs belljar, in `/`, with a small environment. Whatever is not a clear answer
//! (an exit code, a signal, no time left, other output) is a no.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::{
    Authorization, Case, Failed, Failure, Opinion, Outcome, PATIENCE, Review, Reviewed, Risk, prompt, verdict,
};
use crate::policy::{Approver, ApproverKind};
use crate::sys::process::kill_group;

/// The most that it may say.
const ANSWER_LIMIT: u64 = 64 << 10;

/// Variables of belljar's own environment that it gets.
const VARIABLES: [&str; 4] = ["PATH", "HOME", "LANG", "XDG_RUNTIME_DIR"];

/// See the page of the module.
pub struct Program {
    /// The program's path and its arguments.
    pub command: Vec<String>,
    /// At most [`PATIENCE`].
    pub time: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    outcome: Outcome,
    risk_level: Option<Risk>,
    #[serde(default = "unknown")]
    user_authorization: Authorization,
    #[serde(default)]
    rationale: String,
}

fn unknown() -> Authorization {
    Authorization::Unknown
}

impl Program {
    async fn run(&self, case: &Case) -> Result<Opinion, Failed> {
        let document = prompt::document(case)?;
        // The braces of one document, with the version of its shape in front.
        let document = format!("{{\"version\":1,{}\n", &document[1..]);
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| Failed::new(Failure::Rejected, "the command is empty"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(
                VARIABLES
                    .iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // So that what it starts ends with it.
            .process_group(0);
        let child = command
            .spawn()
            .map_err(|error| Failed::new(Failure::Unreachable, format!("it cannot be started: {error}")))?;
        let mut running = Running(child);
        let time = self.time.min(PATIENCE);
        match tokio::time::timeout(time, running.talk(document)).await {
            Ok(answer) => understand(answer?),
            Err(_) => Err(Failed::new(Failure::TimedOut, format!("no answer within {time:?}"))),
        }
    }
}

impl Review for Program {
    fn approver(&self) -> Approver {
        let program = self.command.first().map_or("", String::as_str);
        Approver {
            kind: ApproverKind::Reviewer,
            name: program.rsplit('/').next().unwrap_or(program).to_owned(),
            via: format!("command {program}"),
        }
    }

    fn review<'a>(&'a self, case: &'a Case) -> BoxFuture<'a, Reviewed> {
        Box::pin(async move {
            Reviewed {
                opinion: self.run(case).await,
                attempts: 1,
            }
        })
    }
}

/// A child whose whole group goes with it, however this ends.
struct Running(Child);

impl Running {
    async fn talk(&mut self, document: String) -> Result<Vec<u8>, Failed> {
        let (Some(mut stdin), Some(stdout)) = (self.0.stdin.take(), self.0.stdout.take()) else {
            return Err(Failed::new(Failure::Unreachable, "it has no pipes"));
        };
        let feed = async move {
            // One that answers without reading all has seen enough; its answer says whether.
            let _ = stdin.write_all(document.as_bytes()).await;
        };
        let mut answer = Vec::new();
        let mut limited = stdout.take(ANSWER_LIMIT + 1);
        let (_, read) = tokio::join!(feed, limited.read_to_end(&mut answer));
        read.map_err(|error| Failed::new(Failure::Unreachable, format!("it cannot be read from: {error}")))?;
        if answer.len() as u64 > ANSWER_LIMIT {
            let detail = format!("the answer has more than {ANSWER_LIMIT} bytes");
            return Err(Failed::new(Failure::TooLarge, detail));
        }
        let status = self.0.wait().await;
        let status =
            status.map_err(|error| Failed::new(Failure::Unreachable, format!("it cannot be waited for: {error}")))?;
        match status.success() {
            true => Ok(answer),
            false => Err(Failed::new(Failure::Unreachable, ended(status))),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not reaped yet, or its id would be none.
        if let Some(pid) = self.0.id() {
            // Gone by itself is as good.
            let _ = kill_group(pid);
        }
    }
}

fn ended(status: ExitStatus) -> String {
    format!("it failed ({status})")
}

fn understand(answer: Vec<u8>) -> Result<Opinion, Failed> {
    let said: Said = serde_json::from_slice(&answer)
        .map_err(|error| Failed::new(Failure::Malformed, verdict::short(&error.to_string())))?;
    let risk_level = said.risk_level.unwrap_or(match said.outcome {
        Outcome::Allow => Risk::Low,
        Outcome::Deny | Outcome::Ask => Risk::High,
    });
    Ok(Opinion {
        outcome: said.outcome,
        risk_level,
        user_authorization: said.user_authorization,
        rationale: said.rationale.chars().take(2048).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::case;
    use super::*;

    fn sh(script: &str) -> Program {
        Program {
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            time: PATIENCE,
        }
    }

    async fn failure(script: &str) -> Failure {
        sh(script).run(&case(&["ls"])).await.unwrap_err().failure
    }

    #[tokio::test]
    async fn its_answer_to_the_case_on_its_stdin_is_an_opinion() {
        let script = r#"case "$(cat)" in
            '{"version":1,'*'"argv":["ls","-l"]'*'"purpose_in_the_users_words":"make the tests pass"'*)
                echo '{"outcome":"allow","risk_level":"medium","rationale":"fine"}' ;;
            *) echo '{"outcome":"deny"}' ;;
        esac"#;
        let opinion = sh(script).run(&case(&["ls", "-l"])).await.unwrap();
        assert_eq!(
            (opinion.outcome, opinion.risk_level, opinion.rationale.as_str()),
            (Outcome::Allow, Risk::Medium, "fine")
        );
        let opinion = sh(r#"echo '{"outcome":"ask"}'"#).run(&case(&["ls"])).await.unwrap();
        assert_eq!(opinion.outcome, Outcome::Ask);
    }

    #[tokio::test]
    async fn whatever_is_no_clear_answer_is_a_failure() {
        assert_eq!(
            failure("echo '{\"outcome\":\"allow\"}'; exit 1").await,
            Failure::Unreachable
        );
        assert_eq!(
            failure("echo '{\"outcome\":\"allow\"}'; kill -9 $$").await,
            Failure::Unreachable
        );
        assert_eq!(failure("echo allow").await, Failure::Malformed);
        assert_eq!(failure("true").await, Failure::Malformed);
        assert_eq!(
            failure("echo '{\"outcome\":\"allow\",\"sure\":true}'").await,
            Failure::Malformed
        );
        assert_eq!(
            failure("echo '{\"outcome\":\"allow\"}{\"outcome\":\"deny\"}'").await,
            Failure::Malformed
        );
        assert_eq!(failure("yes").await, Failure::TooLarge);
        let none = Program {
            command: vec!["/no/such/reviewer".to_owned()],
            time: PATIENCE,
        };
        assert_eq!(
            none.run(&case(&["ls"])).await.unwrap_err().failure,
            Failure::Unreachable
        );
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_ended_with_all_that_it_started() {
        let (reader, writer) = std::io::pipe().unwrap();
        let writer = std::os::fd::OwnedFd::from(writer);
        let held = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&writer)
        );
        let slow = Program {
            time: Duration::from_millis(100),
            // Both hold the pipe open until they end.
            ..sh(&format!("exec 3>{held}; sleep 1000 & sleep 1000"))
        };
        let failed = slow.run(&case(&["ls"])).await.unwrap_err();
        assert_eq!(failed.failure, Failure::TimedOut);
        drop(writer);
        let ended = tokio::task::spawn_blocking(move || std::io::read_to_string(reader));
        assert_eq!(ended.await.unwrap().unwrap(), "");
    }

    #[tokio::test]
    async fn it_gets_nothing_of_our_environment_beyond_a_few_names() {
        let script = "env | grep -qv -e ^PATH= -e ^HOME= -e ^LANG= -e ^XDG_RUNTIME_DIR= -e ^PWD= -e ^_= -e ^SHLVL= \
                      -e ^OLDPWD= && exit 1; echo '{\"outcome\":\"deny\"}'";
        assert_eq!(sh(script).run(&case(&["ls"])).await.unwrap().outcome, Outcome::Deny);
    }
}
