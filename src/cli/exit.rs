//! Every exit code, in one place.
//!
//! | code | means |
//! |---|---|
//! | 0 to 255 | the command's own |
//! | 120 | refused by policy, a person or requirements: nothing was started |
//! | 124 | the command or the task ran out of time |
//! | 125 | belljar failed, or what it was given is wrong |
//! | 126, 127 | the command is not executable, was not found |
//! | 128 + n | the command was ended by signal n |
//!
//! A command may use 120 to 127 itself; what really happened stands in the closing table, in `--json` and in the record.

use crate::api::messages::{ExecEnd, TaskSummary};
use crate::audit::record::{ExecFinished, ExecOutcome, TaskOutcome};

pub const REFUSED: u8 = 120;
pub const TIMED_OUT: u8 = 124;
pub const FAILED: u8 = 125;
/// SIGKILL, where the kernel or belljar ended the command and no other signal is known.
const KILLED: u8 = 128 + 9;

/// The code for how a command ended.
pub fn of_exec(end: &ExecEnd) -> u8 {
    match end {
        ExecEnd::Refused(_) => REFUSED,
        ExecEnd::Failed { .. } => FAILED,
        ExecEnd::Finished(finished) => of_finished(finished),
    }
}

fn of_finished(finished: &ExecFinished) -> u8 {
    let by_signal = finished.signal.and_then(|signal| u8::try_from(128 + signal).ok());
    match finished.outcome {
        // The launcher's own codes for a command that could not be started, 126 and 127, stand here too.
        ExecOutcome::Exited => match finished.exit_code {
            Some(code) => (code & 0xff) as u8,
            None => FAILED,
        },
        ExecOutcome::Signaled | ExecOutcome::Canceled => by_signal.unwrap_or(KILLED),
        ExecOutcome::OomKilled | ExecOutcome::OutputLimit => KILLED,
        ExecOutcome::TimedOut => TIMED_OUT,
        ExecOutcome::Lost => FAILED,
    }
}

/// The code for a task: its command's, unless it was the task that ran out of time or failed.
pub fn of_task(summary: &TaskSummary, command: Option<&ExecEnd>) -> u8 {
    match (summary.outcome, command) {
        (TaskOutcome::TimedOut, _) => TIMED_OUT,
        (TaskOutcome::Failed | TaskOutcome::Lost, None) => FAILED,
        (TaskOutcome::Finished | TaskOutcome::Stopped, None) => 0,
        (_, Some(end)) => of_exec(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::messages::Refused;
    use crate::audit::record::Usage;

    fn finished(outcome: ExecOutcome, exit_code: Option<i32>, signal: Option<i32>) -> ExecEnd {
        ExecEnd::Finished(Box::new(ExecFinished {
            argv: vec!["a".to_owned()],
            cwd: "/".to_owned(),
            env_names: vec![],
            outcome,
            exit_code,
            signal,
            error: None,
            wall_seconds: 0.0,
            usage: Usage::NONE,
            network_bytes_sent: Some(0),
            network_bytes_received: Some(0),
            stdout_bytes: 0,
            stderr_bytes: 0,
            stdout_digest: None,
            stderr_digest: None,
            image_digest: None,
            plan_digest: None,
            requirements_digest: None,
            rules: vec![],
            approver: None,
            reason: None,
            call_id: None,
            traceparent: None,
        }))
    }

    #[test]
    fn each_end_has_its_code() {
        let refused = ExecEnd::Refused(Refused {
            reason: String::new(),
            how_to_ask: String::new(),
            rules: vec![],
            approver: None,
        });
        let failed = ExecEnd::Failed { error: String::new() };
        for (end, code) in [
            (refused, 120),
            (failed, 125),
            (finished(ExecOutcome::Exited, Some(0), None), 0),
            (finished(ExecOutcome::Exited, Some(255), None), 255),
            (finished(ExecOutcome::Exited, Some(126), None), 126),
            (finished(ExecOutcome::Signaled, None, Some(15)), 143),
            (finished(ExecOutcome::Canceled, None, Some(9)), 137),
            (finished(ExecOutcome::Canceled, None, None), 137),
            (finished(ExecOutcome::OomKilled, None, Some(9)), 137),
            (finished(ExecOutcome::OutputLimit, None, None), 137),
            (finished(ExecOutcome::TimedOut, None, Some(9)), 124),
            (finished(ExecOutcome::Lost, None, None), 125),
        ] {
            assert_eq!(of_exec(&end), code, "{end:?}");
        }
    }

    #[test]
    fn a_task_that_ran_out_of_time_says_so_whatever_its_command_did() {
        let summary = |outcome| TaskSummary {
            id: crate::id::TaskId::new(),
            name: String::new(),
            outcome,
            reason: None,
            wall_seconds: 0.0,
            execs: vec![],
            refused_egress: vec![],
        };
        let killed = finished(ExecOutcome::Canceled, None, Some(9));
        assert_eq!(of_task(&summary(TaskOutcome::TimedOut), Some(&killed)), 124);
        assert_eq!(of_task(&summary(TaskOutcome::Stopped), Some(&killed)), 137);
        assert_eq!(of_task(&summary(TaskOutcome::Stopped), None), 0);
        assert_eq!(of_task(&summary(TaskOutcome::Failed), None), 125);
    }
}
