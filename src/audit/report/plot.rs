//! The drawings of the page, as SVG: areas over time, and the time line of commands. All share one axis.

use std::fmt::Write;

use super::html::{clock, duration, escaped, is_good};
use super::{Report, STEPS};

const WIDTH: f64 = 960.0;
/// Room on the left for the names of values.
const LEFT: f64 = 64.0;
const HEIGHT: f64 = 96.0;
const ROW: f64 = 18.0;
/// Rows of the time line; commands beyond share rows with those that ended before.
const ROWS: usize = 40;
/// The width of a letter of a bar's name, at least.
const LETTER: f64 = 6.2;

/// One line of an area plot.
pub(super) struct Line<'a> {
    pub name: &'a str,
    pub class: &'a str,
    /// A value a step.
    pub values: &'a [f64],
}

/// What was so much at what time; the greatest value is named at the top.
pub(super) fn areas(
    page: &mut String,
    report: &Report,
    name: &str,
    lines: &[Line<'_>],
    shown: impl Fn(f64) -> String,
) -> std::fmt::Result {
    let most = lines.iter().flat_map(|line| line.values).copied().fold(0.0, f64::max);
    write!(page, "<figure><figcaption>{name}<small>")?;
    for line in lines.iter().filter(|line| !line.name.is_empty()) {
        // One that is small beside the other is hardly seen.
        let most = line.values.iter().copied().fold(0.0, f64::max);
        write!(
            page,
            " <i class=\"key {}\"></i>{}, at most {}",
            line.class,
            line.name,
            shown(most)
        )?;
    }
    writeln!(page, "</small></figcaption>")?;
    if most <= 0.0 {
        return writeln!(page, "<p class=\"dim\">none was counted</p></figure>");
    }
    let step = (WIDTH - LEFT) / STEPS as f64;
    let x = |n: usize| LEFT + n as f64 * step;
    let y = |value: f64| 8.0 + (1.0 - value / most) * (HEIGHT - 8.0);
    begin(page, HEIGHT + 20.0, name)?;
    for part in [1.0, 0.5, 0.0] {
        let at = y(most * part);
        writeln!(
            page,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 3.5,
            if part > 0.0 { shown(most * part) } else { "0".to_owned() }
        )?;
    }
    for line in lines {
        let mut path = format!("M{LEFT:.1} {:.1}", y(0.0));
        for (n, value) in line.values.iter().enumerate() {
            write!(path, "V{:.1}H{:.1}", y(*value), x(n + 1))?;
        }
        writeln!(
            page,
            "<path class=\"area {}\" d=\"{path}V{:.1}Z\"/>",
            line.class,
            y(0.0)
        )?;
    }
    // What stands under the pointer, without a script.
    for n in 0..STEPS {
        let values: Vec<f64> = lines.iter().map(|line| line.values[n]).collect();
        if values.iter().all(|value| *value <= 0.0) {
            continue;
        }
        let texts: Vec<String> = lines
            .iter()
            .zip(values)
            .map(|(line, value)| format!("{} {}", shown(value), line.name).trim_end().to_owned())
            .collect();
        writeln!(
            page,
            "<rect class=\"touch\" x=\"{:.1}\" y=\"8\" width=\"{step:.1}\" height=\"{:.0}\"><title>{}: {}</title></rect>",
            x(n),
            HEIGHT - 8.0,
            clock(report.from + n as f64 * report.series.step_seconds),
            texts.join(", ")
        )?;
    }
    axis(page, report, HEIGHT)?;
    writeln!(page, "</svg></figure>")
}

/// A bar a command, from its start to its end; those that overlap stand below each other. Above them, what was refused.
pub(super) fn time_line(page: &mut String, report: &Report) -> std::fmt::Result {
    const TOP: f64 = 22.0;
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
        let (left, right) = (at(report, exec.start), at(report, exec.start + exec.wall_seconds));
        let (wide, top) = ((right - left).max(2.0), TOP + row as f64 * ROW);
        let class = match (is_good(exec), exec.outcome.as_str()) {
            (true, _) => "good",
            (false, "exited") => "failed",
            (false, _) => "wrong",
        };
        writeln!(
            marks,
            "<g><title>{} ({}, {})</title><rect class=\"{class}\" rx=\"2\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{wide:.1}\" height=\"{:.1}\"/>",
            escaped(&exec.command),
            escaped(&exec.outcome),
            duration(exec.wall_seconds),
            top + 1.5,
            ROW - 3.0,
        )?;
        let letters = ((wide - 8.0) / LETTER) as usize;
        if letters >= 3 {
            let whole = exec.command.chars().count();
            let mut name: String = exec.command.chars().take(letters).collect();
            if whole > letters {
                name.pop();
                name.push('…');
            }
            write!(
                marks,
                "<text class=\"on\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left + 4.0,
                top + ROW - 5.5,
                escaped(&name)
            )?;
        }
        writeln!(marks, "</g>")?;
    }
    let height = TOP + free_at.len() as f64 * ROW + 4.0;
    writeln!(
        page,
        "<figure><figcaption>Commands<small> <i class=\"key good\"></i>ended well <i class=\"key failed\"></i>ended with an error \
         <i class=\"key wrong\"></i>was ended or lost <i class=\"key deny\"></i>refused or denied</small></figcaption>"
    )?;
    begin(page, height + 20.0, "time line of commands")?;
    grid(page, height)?;
    page.push_str(&marks);
    for moment in report.refused.iter().chain(&report.denied_connections) {
        let x = at(report, moment.time);
        writeln!(
            page,
            "<path class=\"deny\" d=\"M{x:.1} 4l6 6-6 6-6-6z\"><title>{}: {} ({})</title></path>",
            clock(moment.time),
            escaped(&moment.what),
            escaped(&moment.why)
        )?;
    }
    axis(page, report, height)?;
    writeln!(page, "</svg></figure>")
}

/// A part of a span, in the units that suit the whole: `2.5 s`, `1:31` or `2:05 h`.
fn since_begin(span: f64, part: f64) -> String {
    let seconds = (span * part).round() as u64;
    match span {
        short if short < 120.0 => duration(span * part),
        some if some < 7200.0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3600, seconds % 3600 / 60),
    }
}

fn at(report: &Report, time: f64) -> f64 {
    let span = (report.to - report.from).max(1e-3);
    LEFT + ((time - report.from) / span).clamp(0.0, 1.0) * (WIDTH - LEFT)
}

fn begin(page: &mut String, height: f64, name: &str) -> std::fmt::Result {
    writeln!(
        page,
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{name}\">"
    )
}

/// Where the axis has its ticks.
const TICKS: usize = 6;

fn grid(page: &mut String, height: f64) -> std::fmt::Result {
    for tick in 0..=TICKS {
        let x = LEFT + (WIDTH - LEFT) * tick as f64 / TICKS as f64;
        writeln!(
            page,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"18\" y2=\"{height:.0}\"/>"
        )?;
    }
    Ok(())
}

/// Times since the report's beginning.
fn axis(page: &mut String, report: &Report, height: f64) -> std::fmt::Result {
    writeln!(
        page,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{height:.1}\" y2=\"{height:.1}\"/>"
    )?;
    for tick in 0..=TICKS {
        let part = tick as f64 / TICKS as f64;
        let anchor = match tick {
            0 => "start",
            TICKS => "end",
            _ => "middle",
        };
        writeln!(
            page,
            "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"{anchor}\">{}</text>",
            LEFT + (WIDTH - LEFT) * part,
            height + 15.0,
            since_begin(report.to - report.from, part)
        )?;
    }
    Ok(())
}
