//! Answers that are made of many records: `stats`, `triage` and `report`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::second::Second;
use super::{FilterArgs, find_id, moment, text};
use crate::approval::reviewer::Settings;
use crate::audit::journal::{Reader, Seq};
use crate::audit::query::Filter;
use crate::audit::report::{html, report};
use crate::audit::stats::{By, Row, stats};
use crate::audit::triage::{About, Triage, Verdict, triage};
use crate::cli::table;
use crate::config::{Config, Surroundings};

#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// What the sums are of
    #[arg(long, value_enum, default_value = "day")]
    by: ByArg,
    #[command(flatten)]
    filter: FilterArgs,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ByArg {
    Day,
    User,
    Image,
    Executable,
    Rule,
    Host,
}

#[derive(Debug, Args)]
pub(super) struct TriageArgs {
    /// The id of a task or an exec, or the end of one (4 characters or more); or a time, from which on all is looked at:
    /// 2h for two hours ago, or 2026-01-31T12:00:00Z
    #[arg(value_name = "TASK|EXEC|TIME")]
    about: String,
    /// Asks no model, though [reviewer] names one
    #[arg(long)]
    rules_only: bool,
    #[arg(long)]
    json: bool,
}

/// A verdict by rules and, unless it is not wanted, a model; its own is the more urgent of both.
#[derive(Serialize)]
struct Judged {
    #[serde(flatten)]
    triage: Triage,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Second>,
}

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// A task's id, or the end of it; without it all that the filters name
    id: Option<String>,
    /// Writes a page for a browser into this file; else the report is JSON on stdout
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    filter: FilterArgs,
}

pub(super) fn show_stats(args: &StatsArgs, folder: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let reader = Reader::open(folder)?;
    let by = match args.by {
        ByArg::Day => By::Day,
        ByArg::User => By::User,
        ByArg::Image => By::Image,
        ByArg::Executable => By::Executable,
        ByArg::Rule => By::Rule,
        ByArg::Host => By::Host,
    };
    let rows = stats(&reader, &args.filter.parse(&reader)?, by)?;
    if args.json {
        serde_json::to_writer(&mut *out, &rows)?;
        writeln!(out)?;
        return Ok(0);
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header([
        "",
        "execs",
        "failed",
        "asked",
        "refused",
        "cpu",
        "wall",
        "memory",
        "connections",
        "denied",
        "network",
    ]);
    for row in &rows {
        table.add_row(cells(row));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    writeln!(out, "{}", table.trim_fmt())?;
    Ok(0)
}

fn cells(row: &Row) -> [String; 11] {
    [
        text::shown(&row.key),
        row.execs.to_string(),
        row.failed.to_string(),
        row.asked.to_string(),
        row.refused.to_string(),
        table::seconds(row.cpu_seconds),
        table::seconds(row.wall_seconds),
        text::size(row.memory_peak_bytes),
        row.connections.to_string(),
        row.connections_denied.to_string(),
        text::size(row.bytes_sent + row.bytes_received),
    ]
}

pub(super) fn show_triage(args: &TriageArgs, folder: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    if args.rules_only {
        return judge(args, None, folder, out);
    }
    let config = Config::load(&Surroundings::of_process())?;
    let reviewer = config.reviewer.as_ref().map(|reviewer| &reviewer.value);
    judge(args, Some(reviewer), folder, out)
}

/// Without `second` no model is asked; with it that of the settings, if they name one.
pub(super) fn judge(
    args: &TriageArgs,
    second: Option<Option<&Settings>>,
    folder: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let reader = Reader::open(folder)?;
    let mut found = None;
    for about in possible(&reader, &args.about) {
        if found.is_none() {
            found = triage(&reader, about)?.map(|triage| (about, triage));
        }
    }
    let missing = || {
        anyhow!(
            "the journal has no exec, no task and no time \"{}\"",
            text::shown(&args.about)
        )
    };
    let (about, mut triage) = found.ok_or_else(missing)?;
    let model = second
        .map(|settings| Second::look(settings, &reader, about, &triage))
        .transpose()?;
    if let Some(second) = &model {
        triage.verdict = second.verdict(triage.verdict);
    }
    let judged = Judged { triage, model };
    if args.json {
        serde_json::to_writer(&mut *out, &judged)?;
        writeln!(out)?;
        return Ok(0);
    }
    show_findings(&judged.triage, out)?;
    if let Some(second) = &judged.model {
        second.show(out)?;
    }
    Ok(0)
}

/// What a text may stand for: an id alone does not say what it is of, and a short one may as well be a time.
fn possible(reader: &Reader, text: &str) -> Vec<About> {
    const SHORTEST_ID: usize = 4;
    let mut possible = Vec::new();
    if text.len() >= SHORTEST_ID {
        possible.extend(find_id(reader, "exec", text).map(About::Exec));
        possible.extend(find_id(reader, "task", text).map(About::Task));
    }
    possible.extend(moment(text, jiff::Timestamp::now()).map(About::Since));
    possible
}

fn show_findings(found: &Triage, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "{}, by {} records", words(found.verdict), found.records)?;
    for finding in &found.findings {
        writeln!(
            out,
            "  {:<14}  {}  (records {})",
            words(finding.verdict),
            text::shown(&finding.what),
            numbers(&finding.records)
        )?;
    }
    Ok(())
}

pub(super) fn numbers(records: &[Seq]) -> String {
    let numbers: Vec<String> = records.iter().map(Seq::to_string).collect();
    numbers.join(", ")
}

pub(super) fn words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Expected => "expected",
        Verdict::BenignError => "benign error",
        Verdict::NeedsPerson => "needs a person",
    }
}

pub(super) fn write_report(args: &ReportArgs, folder: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let reader = Reader::open(folder)?;
    let mut filter: Filter = args.filter.parse(&reader)?;
    let mut title = "belljar: all tasks".to_owned();
    if let Some(id) = &args.id {
        let task: crate::id::TaskId = find_id(&reader, "task", id)?;
        title = format!("belljar: task {task}");
        filter.task = Some(task);
    }
    let report = report(&reader, &filter, &title)?;
    match &args.html {
        Some(path) => {
            std::fs::write(path, html(&report)).with_context(|| format!("cannot write {}", path.display()))?;
            writeln!(out, "{}", path.display())?;
        }
        None => {
            serde_json::to_writer(&mut *out, &report)?;
            writeln!(out)?;
        }
    }
    Ok(0)
}
