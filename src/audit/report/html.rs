//! The page. No script, nothing from elsewhere, and every text from a record escaped: what a command was called must not run in the
//! browser of whoever looks into it.

use std::fmt::Write;

use jiff::Timestamp;

use super::{Exec, Moment, Report};
use crate::task::limits::Bytes;

const WIDTH: f64 = 960.0;
const ROW: f64 = 14.0;
/// Rows of the time line; commands beyond share rows with those that ended before.
const ROWS: usize = 40;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2733;--dim:#647180;--line:#d8dee4;--paper:#fff;--good:#2f7d5b;--bad:#b3403a;--bar:#3d6ea8}\
@media(prefers-color-scheme:dark){:root{--ink:#e3e9ef;--dim:#94a1ae;--line:#36424e;--paper:#151b21;--good:#5cb08a;--bad:#e0736c;--bar:#76a5da}}\
body{font:14px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:62rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}p{margin:.25rem 0}.dim{color:var(--dim)}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{text-align:left;padding:.2rem .6rem .2rem 0;border-bottom:1px solid var(--line);vertical-align:top}\
th{font-weight:600}td.n,th.n{text-align:right}code{font:12px/1.4 ui-monospace,monospace;overflow-wrap:anywhere}.bad{color:var(--bad)}\
svg{width:100%;height:auto;display:block}svg text{font:10px system-ui,sans-serif;fill:var(--dim)}\
.good{fill:var(--good)}.wrong{fill:var(--bad)}.bar{fill:var(--bar)}.axis{stroke:var(--line)}";

/// The report as one HTML file.
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    // Writing into a String cannot fail.
    let _ = write(&mut page, report);
    page
}

fn write(page: &mut String, report: &Report) -> std::fmt::Result {
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}</style></head><body>\n\
         <h1>{title}</h1>\n<p class=\"dim\">{from} to {to}</p>\n",
        title = escaped(&report.title),
        from = time(report.from),
        to = time(report.to),
    )?;
    let totals = &report.totals;
    writeln!(
        page,
        "<p>{} commands, {} of them failed, {} refused; {} CPU, {} network</p>",
        totals.execs,
        totals.failed,
        totals.refused,
        duration(totals.cpu_seconds),
        Bytes(totals.network_bytes)
    )?;
    tasks(page, report)?;
    if !report.execs.is_empty() {
        writeln!(page, "<h2>When commands ran</h2>")?;
        time_line(page, report)?;
        bars(page, report, "CPU time", |exec| exec.cpu_seconds, duration)?;
        bars(
            page,
            report,
            "Memory at most",
            |exec| exec.memory_peak_bytes as f64,
            |bytes| Bytes(bytes as u64).to_string(),
        )?;
        bars(
            page,
            report,
            "Network",
            |exec| exec.network_bytes as f64,
            |bytes| Bytes(bytes as u64).to_string(),
        )?;
        execs(page, report)?;
    }
    moments(page, "Refused", &report.refused)?;
    moments(page, "Approvals", &report.approvals)?;
    moments(page, "Denied connections", &report.denied_connections)?;
    writeln!(page, "</body></html>")
}

fn tasks(page: &mut String, report: &Report) -> std::fmt::Result {
    if report.tasks.is_empty() {
        return Ok(());
    }
    writeln!(
        page,
        "<h2>Tasks</h2>\n<table><tr><th>task</th><th>purpose</th><th>user</th><th>image</th><th>outcome</th></tr>"
    )?;
    for task in &report.tasks {
        writeln!(
            page,
            "<tr><td title=\"{}\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(&task.id),
            escaped(&task.name),
            escaped(&task.purpose),
            escaped(&task.user),
            escaped(&task.image),
            escaped(&task.outcome)
        )?;
    }
    writeln!(page, "</table>")
}

/// A bar a command, from its start to its end; those that overlap stand below each other.
fn time_line(page: &mut String, report: &Report) -> std::fmt::Result {
    let span = (report.to - report.from).max(1e-3);
    let x = |at: f64| ((at - report.from) / span * WIDTH).clamp(0.0, WIDTH);
    let mut free_at: Vec<f64> = Vec::new();
    let mut marks = String::new();
    for exec in &report.execs {
        let row = free_at.iter().position(|free| *free <= exec.start).unwrap_or_else(|| {
            if free_at.len() < ROWS {
                free_at.push(0.0);
            }
            free_at.len() - 1
        });
        free_at[row] = exec.start + exec.wall_seconds;
        let (left, right) = (x(exec.start), x(exec.start + exec.wall_seconds));
        writeln!(
            marks,
            "<rect class=\"{}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{} ({})</title></rect>",
            if is_good(exec) { "good" } else { "wrong" },
            row as f64 * ROW + 2.0,
            (right - left).max(1.5),
            ROW - 4.0,
            escaped(&exec.command),
            duration(exec.wall_seconds)
        )?;
    }
    let height = free_at.len() as f64 * ROW;
    writeln!(
        page,
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"time line\">\n{marks}\
         <line class=\"axis\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{height}\" y2=\"{height}\"/>\
         <text x=\"0\" y=\"{:.0}\">0</text><text x=\"{WIDTH}\" y=\"{:.0}\" text-anchor=\"end\">{}</text></svg>",
        height + 16.0,
        height + 12.0,
        height + 12.0,
        duration(span)
    )
}

/// A bar a command, in the order of their starts.
fn bars(
    page: &mut String,
    report: &Report,
    name: &str,
    value: impl Fn(&Exec) -> f64,
    shown: impl Fn(f64) -> String,
) -> std::fmt::Result {
    const HEIGHT: f64 = 90.0;
    let most = report.execs.iter().map(&value).fold(0.0, f64::max);
    writeln!(page, "<h2>{name}</h2>")?;
    if most <= 0.0 {
        return writeln!(page, "<p class=\"dim\">none was counted</p>");
    }
    let step = WIDTH / report.execs.len() as f64;
    writeln!(
        page,
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{name} of each command\">",
        HEIGHT + 16.0
    )?;
    for (n, exec) in report.execs.iter().enumerate() {
        let height = value(exec) / most * HEIGHT;
        writeln!(
            page,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{}: {}</title></rect>",
            n as f64 * step,
            HEIGHT + 14.0 - height,
            (step * 0.8).clamp(0.5, 40.0),
            escaped(&exec.command),
            shown(value(exec))
        )?;
    }
    writeln!(page, "<text x=\"0\" y=\"10\">{}</text></svg>", shown(most))
}

fn execs(page: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(
        page,
        "<h2>Commands</h2>\n<table><tr><th>start</th><th>command</th><th>outcome</th><th class=\"n\">wall</th>\
         <th class=\"n\">CPU</th><th class=\"n\">memory</th><th class=\"n\">network</th></tr>"
    )?;
    for exec in &report.execs {
        let outcome = match exec.exit_code {
            Some(code) if exec.outcome == "exited" => format!("exited {code}"),
            Some(_) | None => exec.outcome.clone(),
        };
        writeln!(
            page,
            "<tr><td title=\"record {}\">{}</td><td><code>{}</code></td><td{}>{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            exec.seq,
            clock(exec.start),
            escaped(&exec.command),
            if is_good(exec) { "" } else { " class=\"bad\"" },
            escaped(&outcome),
            duration(exec.wall_seconds),
            duration(exec.cpu_seconds),
            Bytes(exec.memory_peak_bytes),
            Bytes(exec.network_bytes)
        )?;
    }
    writeln!(page, "</table>")?;
    if report.execs_left_out > 0 {
        writeln!(
            page,
            "<p class=\"dim\">{} commands with less CPU time are left out here</p>",
            report.execs_left_out
        )?;
    }
    Ok(())
}

fn moments(page: &mut String, name: &str, moments: &[Moment]) -> std::fmt::Result {
    if moments.is_empty() {
        return Ok(());
    }
    writeln!(page, "<h2>{name}</h2>\n<table>")?;
    for moment in moments {
        writeln!(
            page,
            "<tr><td title=\"record {}\">{}</td><td><code>{}</code></td><td>{}</td></tr>",
            moment.seq,
            clock(moment.time),
            escaped(&moment.what),
            escaped(&moment.why)
        )?;
    }
    writeln!(page, "</table>")
}

fn is_good(exec: &Exec) -> bool {
    exec.outcome == "exited" && exec.exit_code == Some(0)
}

fn timestamp(seconds: f64) -> Timestamp {
    Timestamp::from_millisecond((seconds * 1e3) as i64).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn time(seconds: f64) -> String {
    timestamp(seconds).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn clock(seconds: f64) -> String {
    timestamp(seconds).strftime("%H:%M:%S").to_string()
}

fn duration(seconds: f64) -> String {
    match seconds {
        short if short < 1.0 => format!("{:.0} ms", short * 1e3),
        some if some < 120.0 => format!("{some:.1} s"),
        long => format!("{:.0} min", long / 60.0),
    }
}

/// Safe between tags and in quotes; control characters and those that turn text around show as what they are.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                safe.extend(c.escape_unicode());
            }
            c if c.is_control() => safe.extend(c.escape_unicode()),
            c => safe.push(c),
        }
    }
    safe
}
