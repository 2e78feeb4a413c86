//! The one table of all benches: a row a figure, with what stands beside it in the same run, what is to be reached, and whether it is.
//!
//! A bench prints its rows and writes them to `target/bench/rows/NAME.md`; `tools/bench.sh` puts all of them into one table.
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// What a figure counts, and thereby which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Less is better.
    Seconds,
    Bytes,
    /// How many times as much as in the quiet or bare case.
    Times,
    /// More is better: things.
    Count,
    /// More is better: things a second.
    Rate,
    BytesPerSecond,
}

impl Unit {
    fn more_is_better(self) -> bool {
        matches!(self, Unit::Count | Unit::Rate | Unit::BytesPerSecond)
    }

    fn shown(self, value: f64) -> String {
        match self {
            Unit::Seconds if value < 1e-3 => format!("{:.1} µs", value * 1e6),
            Unit::Seconds if value < 1.0 => format!("{:.2} ms", value * 1e3),
            Unit::Seconds => format!("{value:.2} s"),
            Unit::Bytes if value < 100.0 * 1024.0 => format!("{:.1} KiB", value / 1024.0),
            Unit::Bytes => format!("{:.2} MiB", value / (1 << 20) as f64),
            Unit::Times => format!("{value:.2} x"),
            Unit::Count => format!("{value:.0}"),
            Unit::Rate => format!("{value:.0}/s"),
            Unit::BytesPerSecond => format!("{:.2} GB/s", value / 1e9),
        }
    }
}

/// Who did the same beside us, and how many times better we want to be.
#[derive(Clone)]
struct Peer {
    name: &'static str,
    value: Option<f64>,
    factor: Option<f64>,
}

/// One figure.
#[derive(Clone)]
pub struct Row {
    what: String,
    unit: Unit,
    ours: Option<f64>,
    bound: Option<f64>,
    peers: Vec<Peer>,
}

impl Row {
    pub fn new(what: impl Into<String>, unit: Unit, ours: Option<f64>) -> Row {
        Row {
            what: what.into(),
            unit,
            ours,
            bound: None,
            peers: Vec::new(),
        }
    }

    pub fn seconds(what: impl Into<String>, ours: Option<Duration>) -> Row {
        Row::new(what, Unit::Seconds, ours.map(|time| time.as_secs_f64()))
    }

    /// At most this, or at least this for what is better when it is more.
    pub fn bound(mut self, bound: f64) -> Row {
        self.bound = Some(bound);
        self
    }

    /// A peer to be better than by a factor.
    pub fn against(mut self, name: &'static str, value: Option<f64>, factor: f64) -> Row {
        self.peers.push(Peer {
            name,
            value,
            factor: Some(factor),
        });
        self
    }

    /// A peer that is only shown.
    pub fn beside(mut self, name: &'static str, value: Option<f64>) -> Row {
        self.peers.push(Peer {
            name,
            value,
            factor: None,
        });
        self
    }

    /// How many times better we are.
    fn better(&self, peer: f64) -> Option<f64> {
        let ours = self.ours?;
        Some(if self.unit.more_is_better() {
            ours / peer
        } else {
            peer / ours
        })
    }

    fn target(&self) -> String {
        let sign = if self.unit.more_is_better() { "≥" } else { "≤" };
        let bound = self.bound.map(|bound| format!("{sign} {}", self.unit.shown(bound)));
        let factors = self.peers.iter().filter_map(|peer| match peer.factor? {
            1.0 => Some(format!("better than {}", peer.name)),
            factor => Some(format!("{factor} x {}", peer.name)),
        });
        bound.into_iter().chain(factors).collect::<Vec<_>>().join(", ")
    }

    /// Nothing is said about what was not measured, nor about a row without a target.
    fn met(&self) -> &'static str {
        let Some(ours) = self.ours else { return "-" };
        let wanted = self.peers.iter().filter(|peer| peer.factor.is_some());
        if self.bound.is_none() && wanted.clone().count() == 0 {
            return "-";
        }
        let alone = self.bound.is_none_or(|bound| match self.unit.more_is_better() {
            true => ours >= bound,
            false => ours <= bound,
        });
        let mut unmeasured = false;
        let mut against = true;
        for peer in wanted {
            match (peer.value, peer.factor) {
                (Some(value), Some(factor)) => against &= self.better(value).is_some_and(|times| times >= factor),
                _ => unmeasured = true,
            }
        }
        match (alone && against, unmeasured) {
            (false, _) => "NO",
            (true, false) => "yes",
            (true, true) => "yes, but for who was not there",
        }
    }

    fn line(&self) -> String {
        let beside =
            self.peers.iter().map(
                |peer| match (peer.value, peer.value.and_then(|value| self.better(value))) {
                    (Some(value), Some(times)) => format!("{} {} ({times:.1} x)", peer.name, self.unit.shown(value)),
                    (Some(value), None) => format!("{} {}", peer.name, self.unit.shown(value)),
                    (None, _) => format!("{} was not there", peer.name),
                },
            );
        format!(
            "| {} | {} | {} | {} | {} |",
            self.what,
            self.ours.map_or("-".to_owned(), |ours| self.unit.shown(ours)),
            beside.collect::<Vec<_>>().join(", "),
            self.target(),
            self.met(),
        )
    }
}

/// Prints the rows, and leaves them for the table of all.
pub fn report(bench: &str, rows: &[Row]) -> std::io::Result<()> {
    let mut text = String::new();
    for row in rows {
        let _ = writeln!(text, "{}", row.line());
    }
    print!("{text}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench/rows");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(format!("{bench}.md")), text)
}
