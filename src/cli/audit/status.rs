//! `belljar audit status`: how large the journal is, how far it is signed, and how far each collector is behind.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::text;
use crate::audit::journal::{Reader, Summary};
use crate::audit::otlp::{OtlpConfig, SignalLag, lag};
use crate::cli::{journal, table};
use crate::config::{Config, Surroundings};

#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    journal: Summary,
    /// A line for each collector of the configuration and each signal.
    export: Vec<SignalLag>,
}

pub(super) fn show(json: bool, folder: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let config = Config::load(&Surroundings::of_process())?;
    show_for(&journal::collectors(&config, None)?, json, folder, out)
}

fn show_for(collectors: &[OtlpConfig], json: bool, folder: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let status = Status {
        journal: Reader::open(folder)?.summary()?,
        export: lag(folder, collectors)?.signals,
    };
    if json {
        serde_json::to_writer(&mut *out, &status)?;
        writeln!(out)?;
        return Ok(0);
    }
    let about = &status.journal;
    writeln!(
        out,
        "records   {} to {}, {}",
        about.first_seq,
        about.last_seq,
        text::size(about.bytes)
    )?;
    writeln!(out, "archives  {}, {}", about.archives, text::size(about.archive_bytes))?;
    writeln!(out, "signed    up to record {}", about.signed_seq)?;
    writeln!(out, "open      {} starts without an end", about.open_starts)?;
    for signal in &status.export {
        let behind = match signal.records {
            0 => "has everything".to_owned(),
            records => format!("{records} records behind, since {}", table::seconds(signal.seconds)),
        };
        writeln!(
            out,
            "export    {} {:8} {behind}",
            text::shown(&signal.endpoint),
            signal.signal
        )?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::FOLDER;
    use super::super::tests::Fixture;
    use super::*;

    #[test]
    fn status_says_what_the_journal_has_and_what_each_collector_lacks() {
        let fixture = Fixture::new();
        let shown = |json| {
            let mut out = Vec::new();
            let collectors = [OtlpConfig::new("http://127.0.0.1:9")];
            show_for(&collectors, json, &fixture.state.path().join(FOLDER), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = shown(false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("records   1 to 5, "), "{text}");
        assert_eq!(
            lines[1..4],
            [
                "archives  0, 0B",
                "signed    up to record 0",
                "open      0 starts without an end"
            ]
        );
        let logs = "export    http://127.0.0.1:9 logs     5 records behind, since ";
        assert!(lines[4].starts_with(logs), "{text}");
        assert_eq!(lines.len(), 7, "a line for each signal: {text}");
        let status: Value = serde_json::from_str(&shown(true)).unwrap();
        assert_eq!((&status["first_seq"], &status["last_seq"]), (&json!(1), &json!(5)));
        let logs = &status["export"][0];
        assert_eq!((&logs["signal"], &logs["records"]), (&json!("logs"), &json!(5)));
    }
}
