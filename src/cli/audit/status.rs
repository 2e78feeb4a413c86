//! `belljar audit status`: how large the journal is, how far it is signed, and how far each collector is behind.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::text;
use crate::audit::journal::{Reader, Summary};
use crate::audit::otlp::{SignalLag, lag};
use crate::cli::journal;
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
    let status = Status {
        journal: Reader::open(folder)?.summary()?,
        export: lag(folder, &journal::collectors(&config, None)?)?.signals,
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
            records => format!("{records} records behind, since {}", text::duration(signal.seconds)),
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
