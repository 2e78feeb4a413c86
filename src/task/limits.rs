//! Limits of a task, and the words in which they are written: `"2GiB"`, `"10m"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

/// What one task may use. A `None` means that no limit was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    pub memory: Option<Bytes>,
    /// CPUs at once: 1.5 is one and a half.
    pub cpus: Option<f64>,
    pub pids: Option<u32>,
    /// The disposable part of the file system.
    pub disk: Bytes,
    pub task_time: Option<Duration>,
    pub exec_time: Option<Duration>,
    /// Output per exec, stdout and stderr together; then it is cut, and the record says so.
    pub output: Bytes,
}

/// A number of bytes, written as `512`, `64KiB`, `2GiB`, `1.5MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("\"{0}\" is not a size (expected a number and KiB, MiB, GiB, TiB, kB, MB, GB or TB)")]
    Size(String),
    #[error("\"{0}\" is not a length of time (expected a number and ms, s, m, h or d)")]
    Time(String),
}

impl FromStr for Bytes {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let error = || LimitError::Size(text.to_owned());
        let (number, unit) = split(text).ok_or_else(error)?;
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        let bytes = number * factor as f64;
        if bytes < 1.0 || bytes >= (1u64 << 53) as f64 {
            return Err(error());
        }
        Ok(Bytes(bytes as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if bytes >= 1 << shift {
                let whole = bytes as f64 / (1u64 << shift) as f64;
                return if whole.fract() == 0.0 {
                    write!(f, "{whole}{unit}")
                } else {
                    write!(f, "{whole:.1}{unit}")
                };
            }
        }
        write!(f, "{bytes}B")
    }
}

/// Reads `"10m"`, `"1.5h"`, `"250ms"`; a bare number is refused, for nobody knows its unit.
pub fn parse_time(text: &str) -> Result<Duration, LimitError> {
    let error = || LimitError::Time(text.to_owned());
    let (number, unit) = split(text).ok_or_else(error)?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return Err(error()),
    };
    if seconds <= 0.0 || seconds > 366.0 * 86_400.0 {
        return Err(error());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_with_their_units() {
        assert_eq!("2GiB".parse(), Ok(Bytes(2 << 30)));
        assert_eq!("1.5MB".parse(), Ok(Bytes(1_500_000)));
        assert_eq!("512".parse(), Ok(Bytes(512)));
        assert_eq!(parse_time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("250ms"), Ok(Duration::from_millis(250)));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "GiB", "-1", "0", "2 parsecs", "1e9", "99999999TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        for text in ["", "10", "0s", "-5m", "1y", "9999d"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
