//! The closing table: what ran, what it cost, and what was refused. Talk, so on stderr; no colour.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::terminal::{clean, shown_command};
use crate::api::messages::{ExecEnd, ExecInfo, Refused, TaskInfo, TaskSummary};
use crate::audit::record::{ExecFinished, ExecOutcome, TaskOutcome};
use crate::image::Named;
use crate::task::limits::Bytes;

/// The longest command shown whole.
const COMMAND_WIDTH: usize = 44;

/// The table of a task that is over, ending with a line break.
pub fn of_summary(summary: &TaskSummary) -> String {
    let mut text = format!(
        "belljar: task {} {} after {}\n",
        clean(&summary.name),
        task_outcome(summary.outcome),
        seconds(summary.wall_seconds)
    );
    if let Some(reason) = &summary.reason {
        let _ = writeln!(text, "  {}", clean(reason));
    }
    if !summary.execs.is_empty() {
        let _ = writeln!(text, "\n{}", execs(&summary.execs));
    }
    text.push_str(&refusals(summary));
    text
}

/// The names of the local store, one a row.
pub fn images(names: &[Named]) -> String {
    let mut table = plain(&["name", "digest"]);
    for named in names {
        table.add_row([clean(&named.name), named.digest.clone()]);
    }
    table.to_string()
}

/// Execs, one a row.
pub fn execs(execs: &[ExecInfo]) -> String {
    table_of(execs, |_| None)
}

/// The same, with the ids by which they are named.
pub fn execs_with_ids(execs: &[ExecInfo]) -> String {
    table_of(execs, |exec| Some(exec.id.to_string()))
}

fn table_of(execs: &[ExecInfo], id: impl Fn(&ExecInfo) -> Option<String>) -> String {
    let names = [
        "command",
        "judgement",
        "outcome",
        "wall",
        "cpu",
        "memory",
        "output",
        "network",
    ];
    let has_ids = execs.iter().any(|exec| id(exec).is_some());
    let header: Vec<_> = has_ids.then_some("id").into_iter().chain(names).collect();
    let mut table = plain(&header);
    for column in header.len() - 5..header.len() {
        right(&mut table, column);
    }
    for exec in execs {
        let judgement = exec.judgement.clone().unwrap_or_else(|| "-".to_owned());
        let cells = match &exec.end {
            Some(ExecEnd::Finished(finished)) => finished_cells(finished),
            Some(ExecEnd::Refused(_)) => only("refused"),
            Some(ExecEnd::Failed { .. }) => only("failed"),
            None => only("running"),
        };
        let first = id(exec).into_iter().chain([command(&exec.argv), judgement]);
        table.add_row(first.chain(cells).collect::<Vec<_>>());
    }
    table.trim_fmt()
}

/// Live tasks, one a row.
pub fn tasks(tasks: &[TaskInfo]) -> String {
    let mut table = plain(&["id", "name", "state", "created", "image", "runtime", "execs", "running"]);
    for task in tasks {
        let all = task.execs.running + task.execs.finished + task.execs.refused + task.execs.failed;
        table.add_row([
            task.id.to_string(),
            clean(&task.name),
            format!("{:?}", task.state).to_lowercase(),
            task.created.clone(),
            clean(&task.image),
            clean(&task.runtime),
            all.to_string(),
            task.execs.running.to_string(),
        ]);
    }
    table.trim_fmt()
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    table
}

fn right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn only(outcome: &str) -> [String; 6] {
    let none = || "-".to_owned();
    [outcome.to_owned(), none(), none(), none(), none(), none()]
}

fn finished_cells(finished: &ExecFinished) -> [String; 6] {
    let usage = &finished.usage;
    let network = match (finished.network_bytes_received, finished.network_bytes_sent) {
        (Some(0), Some(0)) => "-".to_owned(),
        (None, _) | (_, None) => "unknown".to_owned(),
        (Some(received), Some(sent)) => format!("{} in, {} out", Bytes(received), Bytes(sent)),
    };
    [
        outcome(finished),
        seconds(finished.wall_seconds),
        seconds(usage.cpu_user_seconds + usage.cpu_system_seconds),
        usage
            .memory_peak_bytes
            .map_or("-".to_owned(), |bytes| Bytes(bytes).to_string()),
        Bytes(finished.stdout_bytes + finished.stderr_bytes).to_string(),
        network,
    ]
}

fn outcome(finished: &ExecFinished) -> String {
    match finished.outcome {
        ExecOutcome::Exited => match finished.exit_code {
            Some(code) => format!("exited {code}"),
            None => "exited".to_owned(),
        },
        ExecOutcome::Signaled => match finished.signal {
            Some(signal) => format!("signal {signal}"),
            None => "signaled".to_owned(),
        },
        ExecOutcome::TimedOut => "timed out".to_owned(),
        ExecOutcome::OomKilled => "out of memory".to_owned(),
        ExecOutcome::OutputLimit => "output limit".to_owned(),
        ExecOutcome::Canceled => "canceled".to_owned(),
        ExecOutcome::Lost => "lost".to_owned(),
    }
}

fn task_outcome(outcome: TaskOutcome) -> &'static str {
    match outcome {
        TaskOutcome::Finished => "finished",
        TaskOutcome::TimedOut => "ran out of time",
        TaskOutcome::Stopped => "was stopped",
        TaskOutcome::Failed => "failed",
        TaskOutcome::Lost => "was lost",
    }
}

fn refusals(summary: &TaskSummary) -> String {
    let mut text = String::new();
    for exec in &summary.execs {
        match &exec.end {
            Some(ExecEnd::Refused(refused)) => {
                let _ = writeln!(text, "  refused  {}", command(&exec.argv));
                let _ = writeln!(text, "           {}{}", clean(&refused.reason), rules(refused));
            }
            Some(ExecEnd::Failed { error }) => {
                let _ = writeln!(text, "  failed   {}", command(&exec.argv));
                let _ = writeln!(text, "           {}", clean(error));
            }
            Some(ExecEnd::Finished(_)) | None => {}
        }
    }
    for host in &summary.refused_egress {
        let times = match host.count {
            0 | 1 => String::new(),
            times => format!(" ({times} times)"),
        };
        let _ = writeln!(text, "  refused  {}:{}{times}", clean(&host.host), host.port);
        let _ = writeln!(text, "           {} (rule {})", clean(&host.reason), clean(&host.rule));
    }
    if !text.is_empty() {
        text.insert(0, '\n');
    }
    text
}

/// Where the rules stand that the reason does not speak of already.
fn rules(refused: &Refused) -> String {
    let untold = refused.rules.iter().filter(|rule| !refused.reason.contains(&rule.id));
    let places: Vec<String> = untold
        .map(|rule| clean(&format!("{}:{}", rule.file, rule.line)))
        .collect();
    match places.as_slice() {
        [] => String::new(),
        places => format!(" ({})", places.join(", ")),
    }
}

fn command(argv: &[String]) -> String {
    let shown = shown_command(argv);
    if shown.chars().count() <= COMMAND_WIDTH {
        return shown;
    }
    let cut: String = shown.chars().take(COMMAND_WIDTH - 1).collect();
    format!("{cut}…")
}

/// A length of time in the unit that suits it: `0.4ms`, `12ms`, `3.20s`, `4m05s`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.1}ms", s * 1000.0),
        s if s < 1.0 => format!("{:.0}ms", s * 1000.0),
        s if s < 60.0 => format!("{s:.2}s"),
        s if s < 3600.0 => format!("{}m{:02}s", s as u64 / 60, s as u64 % 60),
        s => format!("{}h{:02}m", s as u64 / 3600, s as u64 / 60 % 60),
    }
}

#[cfg(test)]
mod tests;
