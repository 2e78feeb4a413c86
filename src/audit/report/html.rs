//! The page. No script, nothing from elsewhere, and every text from a record escaped: what a command was called must not run in the
//! browser of whoever looks into it.

use std::fmt::Write;

use jiff::Timestamp;

use super::plot::{self, Line};
use super::{Exec, Moment, Report};
use crate::task::limits::Bytes;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b2430;--dim:#66717f;--line:#e2e6ea;--paper:#f6f7f8;--card:#fff;--good:#3c8f6c;--failed:#c98a2b;\
--wrong:#c2473f;--one:#3d6fb0;--two:#8a63b8;--on:#fff}\
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ee;--dim:#93a0ad;--line:#2b343e;--paper:#10151a;--card:#181f26;--good:#4fa581;\
--failed:#d09a45;--wrong:#dc6a61;--one:#6f9fdb;--two:#b08fda;--on:#0d1216}}\
*{box-sizing:border-box}body{font:14px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:68rem;margin:0 auto;padding:2rem 1.25rem 4rem}\
h1{font-size:1.5rem;line-height:1.25;margin:0;letter-spacing:-.01em}h2{font-size:1rem;margin:2.25rem 0 .6rem}p{margin:.25rem 0}.dim{color:var(--dim)}\
.sums{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.75rem;margin:1.25rem 0}\
.sums div,figure,.sheet{background:var(--card);border:1px solid var(--line);border-radius:.6rem}\
.sums div{padding:.7rem .9rem}.sums b{display:block;font-size:1.35rem;line-height:1.3;font-weight:600;font-variant-numeric:tabular-nums}.sums span{color:var(--dim);font-size:.85rem}\
.sums .alert b{color:var(--wrong)}figure{margin:.75rem 0;padding:.8rem 1rem .6rem}figcaption{font-weight:600;margin-bottom:.35rem}\
.key{display:inline-block;width:.65em;height:.65em;border-radius:2px;margin:0 .35em 0 .8em}.key.deny{transform:rotate(45deg) scale(.85);border-radius:0}small{font-size:.85rem;font-weight:400;color:var(--dim)}\
.sheet{padding:.2rem 1rem;overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:left;padding:.4rem .9rem .4rem 0;border-bottom:1px solid var(--line);vertical-align:top}tr:last-child td{border-bottom:0}\
th{font-weight:600;color:var(--dim);font-size:.85rem}td.n,th.n{text-align:right;white-space:nowrap}td.t{white-space:nowrap;color:var(--dim)}\
code{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}.bad{color:var(--wrong)}\
svg{width:100%;height:auto;display:block}svg text{font:10.5px system-ui,sans-serif;fill:var(--dim)}svg text.on{font:10px ui-monospace,monospace;fill:var(--on)}\
.good{fill:var(--good);background:var(--good)}.failed{fill:var(--failed);background:var(--failed)}.wrong,.deny{fill:var(--wrong);background:var(--wrong)}\
.one{fill:var(--one);stroke:var(--one);background:var(--one)}.two{fill:var(--two);stroke:var(--two);background:var(--two)}\
.area{fill-opacity:.28;stroke-width:1.2;stroke-linejoin:round}.touch{fill:transparent}.touch:hover{fill:var(--dim);fill-opacity:.18}\
.grid{stroke:var(--line)}.axis{stroke:var(--dim);stroke-opacity:.5}\
@media print{body{background:#fff;padding:0}figure,.sheet{break-inside:avoid}}";

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
         <h1>{title}</h1>\n<p class=\"dim\">{from} to {to}, {span}</p>\n",
        title = escaped(&report.title),
        from = time(report.from),
        to = time(report.to),
        span = duration(report.to - report.from),
    )?;
    sums(page, report)?;
    tasks(page, report)?;
    if !report.execs.is_empty() {
        writeln!(page, "<h2>What happened when</h2>")?;
        plot::time_line(page, report)?;
        plots(page, report)?;
        execs(page, report)?;
    }
    moments(page, "Refused", &report.refused)?;
    moments(page, "Denied connections", &report.denied_connections)?;
    moments(page, "Approvals", &report.approvals)?;
    moments(page, "What the harness told", &report.events)?;
    writeln!(page, "</body></html>")
}

fn sums(page: &mut String, report: &Report) -> std::fmt::Result {
    let totals = &report.totals;
    let denied = report.denied_connections.len() as u64;
    writeln!(page, "<section class=\"sums\">")?;
    for (value, name, alert) in [
        (totals.execs.to_string(), "commands", false),
        (totals.failed.to_string(), "did not end well", false),
        (totals.refused.to_string(), "refused", totals.refused > 0),
        (denied.to_string(), "connections denied", denied > 0),
        (duration(totals.cpu_seconds), "CPU time", false),
        (Bytes(totals.network_bytes).to_string(), "through the proxy", false),
    ] {
        let class = if alert { " class=\"alert\"" } else { "" };
        writeln!(page, "<div{class}><b>{value}</b><span>{name}</span></div>")?;
    }
    writeln!(page, "</section>")
}

fn tasks(page: &mut String, report: &Report) -> std::fmt::Result {
    if report.tasks.is_empty() {
        return Ok(());
    }
    writeln!(
        page,
        "<h2>Tasks</h2>\n<div class=\"sheet\"><table><tr><th>task</th><th>purpose</th><th>user</th><th>image</th><th>outcome</th></tr>"
    )?;
    for task in &report.tasks {
        let bad = if matches!(task.outcome.as_str(), "failed" | "lost" | "timed_out") {
            " class=\"bad\""
        } else {
            ""
        };
        writeln!(
            page,
            "<tr><td title=\"{}\">{}</td><td>{}</td><td>{}</td><td>{}</td><td{bad}>{}</td></tr>",
            escaped(&task.id),
            escaped(&task.name),
            escaped(&task.purpose),
            escaped(&task.user),
            escaped(&task.image),
            escaped(&task.outcome)
        )?;
    }
    writeln!(page, "</table></div>")
}

fn plots(page: &mut String, report: &Report) -> std::fmt::Result {
    let series = &report.series;
    let bytes = |bytes: f64| Bytes(bytes as u64).to_string();
    let line = |values| Line {
        name: "",
        class: "one",
        values,
    };
    let cores = |cores: f64| format!("{cores:.2}");
    plot::areas(page, report, "CPUs at work", &[line(&series.cpus)], cores)?;
    plot::areas(
        page,
        report,
        "Memory, the peaks of what ran added up",
        &[line(&series.memory_bytes)],
        bytes,
    )?;
    let network = [
        Line {
            name: "received",
            class: "one",
            values: &series.received_bytes_per_second,
        },
        Line {
            name: "sent",
            class: "two",
            values: &series.sent_bytes_per_second,
        },
    ];
    plot::areas(page, report, "Network", &network, |rate| format!("{}/s", bytes(rate)))
}

fn execs(page: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(
        page,
        "<h2>Commands</h2>\n<div class=\"sheet\"><table><tr><th>start</th><th>command</th><th>outcome</th><th class=\"n\">wall</th>\
         <th class=\"n\">CPU</th><th class=\"n\">memory</th><th class=\"n\">network</th></tr>"
    )?;
    for exec in &report.execs {
        let outcome = match exec.exit_code {
            Some(code) if exec.outcome == "exited" => format!("exited {code}"),
            Some(_) | None => exec.outcome.clone(),
        };
        let why = match exec.reason.as_str() {
            "" => String::new(),
            reason => format!("<br><span class=\"dim\">{}</span>", escaped(reason)),
        };
        writeln!(
            page,
            "<tr><td class=\"t\" title=\"record {}\">{}</td><td><code>{}</code>{why}</td><td{}>{}</td><td class=\"n\">{}</td>\
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
    writeln!(page, "</table></div>")?;
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
    writeln!(page, "<h2>{name}</h2>\n<div class=\"sheet\"><table>")?;
    for moment in moments {
        writeln!(
            page,
            "<tr><td class=\"t\" title=\"record {}\">{}</td><td><code>{}</code></td><td>{}</td></tr>",
            moment.seq,
            clock(moment.time),
            escaped(&moment.what),
            escaped(&moment.why)
        )?;
    }
    writeln!(page, "</table></div>")
}

pub(super) fn is_good(exec: &Exec) -> bool {
    exec.outcome == "exited" && exec.exit_code == Some(0)
}

fn timestamp(seconds: f64) -> Timestamp {
    Timestamp::from_millisecond((seconds * 1e3) as i64).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn time(seconds: f64) -> String {
    timestamp(seconds).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

pub(super) fn clock(seconds: f64) -> String {
    timestamp(seconds).strftime("%H:%M:%S").to_string()
}

pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        none if none <= 0.0 => "0".to_owned(),
        short if short < 1.0 => format!("{:.0} ms", short * 1e3),
        some if some < 120.0 => format!("{some:.1} s"),
        long if long < 7200.0 => format!("{:.0} min", long / 60.0),
        long => format!("{:.1} h", long / 3600.0),
    }
}

/// Safe between tags and in quotes; control characters and those that turn text around show as what they are.
pub(super) fn escaped(text: &str) -> String {
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
