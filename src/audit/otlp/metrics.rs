//! Metrics, summed up over the journal from its first record on.
//!
//! The sums are kept beside the cursor and advance with it, so that they are those of the journal whichever process
//! exports it; a data point that is sent twice says the same thing twice.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum, metric,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::convert::{pair, text};
use super::names::{self, Instrument, Scale};
use crate::audit::journal::Stored;

/// All sums so far, by metric and by the value of its label.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Totals {
    /// Nanoseconds since 1970 of the first and of the last record that went in.
    since: i64,
    until: i64,
    sums: BTreeMap<String, BTreeMap<String, f64>>,
    histograms: BTreeMap<String, BTreeMap<String, Distribution>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Distribution {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    buckets: Vec<u64>,
}

/// What is not summed up but as it is now.
#[derive(Debug, Clone, Default)]
pub(super) struct Now {
    /// Undelivered records by signal.
    pub lag: Vec<(&'static str, u64)>,
    pub journal_bytes: u64,
}

impl Totals {
    pub fn add(&mut self, record: &Stored) {
        if self.since == 0 {
            self.since = record.time;
        }
        self.until = self.until.max(record.time);
        let value = record.value();
        let word = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = |pointer: &str| value.pointer(pointer).and_then(Value::as_f64);
        match record.kind.as_str() {
            "exec.judged" => self.sum(names::EXEC_JUDGED, word("judgement"), 1.0),
            "exec.refused" => self.sum(names::EXEC_REFUSED, "", 1.0),
            "exec.finished" => {
                self.sum(names::EXEC_FINISHED, word("outcome"), 1.0);
                if let Some(seconds) = number("/wall_seconds") {
                    self.observe(names::EXEC_DURATION, word("outcome"), seconds);
                }
                self.sum(
                    names::EXEC_CPU_TIME,
                    "user",
                    number("/usage/cpu_user_seconds").unwrap_or(0.0),
                );
                self.sum(
                    names::EXEC_CPU_TIME,
                    "system",
                    number("/usage/cpu_system_seconds").unwrap_or(0.0),
                );
                if let Some(bytes) = number("/usage/memory_peak_bytes") {
                    self.observe(names::EXEC_MEMORY_PEAK, "", bytes);
                }
            }
            "task.started" => {
                if let Some(seconds) = number("/start_seconds") {
                    self.observe(names::TASK_START_DURATION, "", seconds);
                }
            }
            "task.finished" => self.sum(names::TASK_FINISHED, word("outcome"), 1.0),
            "task.refused" => self.sum(names::TASK_REFUSED, "", 1.0),
            "approval.answered" => {
                if let Some(seconds) = number("/wait_seconds") {
                    self.observe(names::APPROVAL_WAIT, word("answer"), seconds);
                }
            }
            "egress.judged" => self.sum(names::EGRESS_JUDGED, word("decision"), 1.0),
            "egress.finished" => {
                self.sum(names::EGRESS_IO, "transmit", number("/bytes_sent").unwrap_or(0.0));
                self.sum(names::EGRESS_IO, "receive", number("/bytes_received").unwrap_or(0.0));
            }
            _ => {}
        }
    }

    fn sum(&mut self, name: &str, label: &str, by: f64) {
        let label = closed(name, label);
        let sums = self.sums.entry(name.to_owned()).or_default();
        *sums.entry(label.to_owned()).or_default() += by.max(0.0);
    }

    fn observe(&mut self, name: &str, label: &str, value: f64) {
        let label = closed(name, label);
        let bounds = bounds(name);
        let histograms = self.histograms.entry(name.to_owned()).or_default();
        let seen = histograms.entry(label.to_owned()).or_default();
        // Bounds that a newer program changed: the old counts cannot be told apart by the new ones.
        if seen.buckets.len() != bounds.len() + 1 {
            *seen = Distribution {
                min: value,
                max: value,
                buckets: vec![0; bounds.len() + 1],
                ..Distribution::default()
            };
        }
        seen.count += 1;
        seen.sum += value;
        seen.min = seen.min.min(value);
        seen.max = seen.max.max(value);
        let bucket = bounds.iter().take_while(|bound| value > **bound).count();
        seen.buckets[bucket] += 1;
    }

    /// All metrics as they stand, with the gauges of this moment.
    pub fn metrics(&self, now: &Now) -> Vec<Metric> {
        let mut made: Vec<Metric> = names::METRICS.iter().filter_map(|metric| self.metric(metric)).collect();
        let time = unsigned(jiff::Timestamp::now().as_nanosecond());
        let gauge = |label: Option<(&str, &str)>, value: u64| NumberDataPoint {
            attributes: label.iter().map(|(key, value)| text(key, value)).collect(),
            time_unix_nano: time,
            value: Some(Number::AsInt(value as i64)),
            ..NumberDataPoint::default()
        };
        let lag = now
            .lag
            .iter()
            .map(|(signal, records)| gauge(Some((names::SIGNAL, signal)), *records));
        for (name, unit, description, data_points) in [
            (
                names::EXPORT_LAG,
                "{record}",
                "Records that are not yet delivered",
                lag.collect(),
            ),
            (
                names::JOURNAL_SIZE,
                "By",
                "Size of the journal on the disk",
                vec![gauge(None, now.journal_bytes)],
            ),
        ] {
            made.push(Metric {
                name: name.to_owned(),
                unit: unit.to_owned(),
                description: description.to_owned(),
                data: Some(metric::Data::Gauge(Gauge { data_points })),
                ..Metric::default()
            });
        }
        made
    }

    fn metric(&self, about: &names::Metric) -> Option<Metric> {
        let label = |value: &String| match about.label {
            Some((key, _)) => vec![pair(key, Any::StringValue(value.clone()))],
            None => Vec::new(),
        };
        let (start, time) = (unsigned(self.since.into()), unsigned(self.until.into()));
        let cumulative = AggregationTemporality::Cumulative as i32;
        let data = match about.instrument {
            Instrument::Count | Instrument::Amount => metric::Data::Sum(Sum {
                data_points: self
                    .sums
                    .get(about.name)?
                    .iter()
                    .map(|(value, sum)| NumberDataPoint {
                        attributes: label(value),
                        start_time_unix_nano: start,
                        time_unix_nano: time,
                        value: Some(match about.instrument {
                            Instrument::Count => Number::AsInt(*sum as i64),
                            Instrument::Amount | Instrument::Histogram(..) => Number::AsDouble(*sum),
                        }),
                        ..NumberDataPoint::default()
                    })
                    .collect(),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            Instrument::Histogram(..) => metric::Data::Histogram(Histogram {
                data_points: self
                    .histograms
                    .get(about.name)?
                    .iter()
                    .map(|(value, seen)| HistogramDataPoint {
                        attributes: label(value),
                        start_time_unix_nano: start,
                        time_unix_nano: time,
                        count: seen.count,
                        sum: Some(seen.sum),
                        min: Some(seen.min),
                        max: Some(seen.max),
                        bucket_counts: seen.buckets.clone(),
                        explicit_bounds: bounds(about.name),
                        ..HistogramDataPoint::default()
                    })
                    .collect(),
                aggregation_temporality: cumulative,
            }),
        };
        Some(Metric {
            name: about.name.to_owned(),
            unit: about.unit.to_owned(),
            description: about.description.to_owned(),
            data: Some(data),
            ..Metric::default()
        })
    }
}

fn about(name: &str) -> &'static names::Metric {
    names::METRICS
        .iter()
        .find(|metric| metric.name == name)
        .expect("every metric that is summed up stands in the table")
}

/// A label's value, kept to the set that it was declared with: who writes a record must not be able to make new series.
fn closed(name: &str, label: &str) -> &'static str {
    match about(name).label {
        None => "",
        Some((_, values)) => values.iter().find(|value| **value == label).copied().unwrap_or("other"),
    }
}

fn bounds(name: &str) -> Vec<f64> {
    match about(name).instrument {
        Instrument::Histogram(bounds, Scale::Milliseconds) => bounds.iter().map(|bound| *bound as f64 / 1e3).collect(),
        Instrument::Histogram(bounds, Scale::Bytes) => bounds.iter().map(|bound| *bound as f64).collect(),
        Instrument::Count | Instrument::Amount => Vec::new(),
    }
}

fn unsigned(nanoseconds: i128) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: &str, json: Value) -> Stored {
        Stored {
            seq: 1,
            time: 5,
            task: None,
            exec: None,
            kind: kind.to_owned(),
            prev: [0; 32],
            hash: [0; 32],
            json: json.to_string(),
        }
    }

    #[test]
    fn an_unknown_label_makes_no_new_series() {
        let mut totals = Totals::default();
        totals.add(&record("exec.judged", serde_json::json!({"judgement": "allow"})));
        totals.add(&record("exec.judged", serde_json::json!({"judgement": "x\u{0}y"})));
        totals.add(&record("exec.judged", serde_json::json!({"judgement": "z"})));
        let expected = BTreeMap::from([("allow".to_owned(), 1.0), ("other".to_owned(), 2.0)]);
        assert_eq!(totals.sums[names::EXEC_JUDGED], expected);
    }

    #[test]
    fn a_value_on_a_bound_counts_below_it() {
        let mut totals = Totals::default();
        for seconds in [0.001, 0.0011, 5000.0] {
            totals.add(&record(
                "exec.finished",
                serde_json::json!({"outcome": "exited", "wall_seconds": seconds}),
            ));
        }
        let seen = &totals.histograms[names::EXEC_DURATION]["exited"];
        assert_eq!((seen.count, seen.buckets[0], seen.buckets[1]), (3, 1, 1));
        assert_eq!(seen.buckets.last(), Some(&1));
        assert_eq!((seen.min, seen.max), (0.001, 5000.0));
    }

    #[test]
    fn totals_come_back_from_where_they_are_kept() {
        let mut totals = Totals::default();
        totals.add(&record(
            "exec.finished",
            serde_json::json!({"outcome": "lost", "wall_seconds": 0.5}),
        ));
        let kept = serde_json::to_string(&totals).unwrap();
        assert_eq!(serde_json::from_str::<Totals>(&kept).unwrap(), totals);
    }
}
