//! Everything that is emitted stands in the registry, and everything in the registry is emitted.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;

use crate::audit::journal::{Journal, JournalOptions};
use crate::audit::otlp::convert::Converter;
use crate::audit::otlp::metrics::{Now, Totals};
use crate::audit::otlp::names;
use crate::audit::samples;

type Types = BTreeMap<String, String>;

fn registry() -> toml::Table {
    include_str!("../../../../config/telemetry-names.toml").parse().unwrap()
}

fn entries(table: &str, value: &str) -> Types {
    registry()[table]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            assert!(!entry["brief"].as_str().unwrap().is_empty());
            let word = |name: &str| entry[name].as_str().unwrap().to_owned();
            (word("name"), word(value))
        })
        .collect()
}

/// All that one entry of each kind gives, and its metrics.
fn emitted() -> (Types, Types) {
    let folder = tempfile::tempdir().unwrap();
    let options = JournalOptions {
        user: Some("ada".to_owned()),
        ..JournalOptions::default()
    };
    let journal = Journal::open(folder.path(), options).unwrap();
    let mut entries = samples::of_each_kind();
    // One whose argument is too long to be sent whole.
    let mut long = entries
        .iter()
        .find(|entry| entry.event.kind() == "exec.started")
        .unwrap()
        .clone();
    if let crate::audit::record::Event::ExecStarted { argv, .. } = &mut long.event {
        argv.push("x".repeat(1 << 20));
    }
    entries.push(long);
    for entry in entries {
        journal.append_blocking(entry).unwrap();
    }
    let reader = journal.reader().unwrap();
    let mut converter = Converter::new("j".to_owned());
    let mut totals = Totals::default();
    let mut attributes = Types::new();
    let mut add = |found: Vec<KeyValue>| {
        let once: BTreeSet<&str> = found.iter().map(|pair| pair.key.as_str()).collect();
        assert_eq!(once.len(), found.len(), "a name stands twice in {once:?}");
        for pair in found {
            let kind = type_of(pair.value.unwrap().value.as_ref().unwrap());
            let before = attributes.insert(pair.key.clone(), kind.to_owned());
            assert!(
                before.is_none_or(|before| before == kind),
                "{} is {kind} here and another type there",
                pair.key
            );
        }
    };
    add(converter.resource().attributes);
    for record in reader.after(0, 1000).unwrap() {
        add(converter.log(&reader, &record).unwrap().attributes);
        if let Some(span) = converter.span(&reader, &record).unwrap() {
            add(span.attributes);
        }
        totals.add(&record);
    }
    let now = Now {
        lag: vec![("logs", 3)],
        journal_bytes: 7,
    };
    let mut metrics = Types::new();
    for metric in totals.metrics(&now) {
        let (instrument, labels) = match metric.data.unwrap() {
            Data::Gauge(gauge) => (
                "gauge",
                gauge.data_points.into_iter().map(|point| point.attributes).collect(),
            ),
            Data::Sum(sum) => (
                "counter",
                sum.data_points.into_iter().map(|point| point.attributes).collect(),
            ),
            Data::Histogram(histogram) => (
                "histogram",
                histogram
                    .data_points
                    .into_iter()
                    .map(|point| point.attributes)
                    .collect::<Vec<_>>(),
            ),
            other => panic!("{other:?}"),
        };
        labels.into_iter().for_each(&mut add);
        metrics.insert(metric.name, format!("{instrument} in {}", metric.unit));
    }
    (attributes, metrics)
}

fn type_of(value: &Any) -> &'static str {
    match value {
        Any::StringValue(_) => "string",
        Any::BoolValue(_) => "boolean",
        Any::IntValue(_) => "int",
        Any::DoubleValue(_) => "double",
        Any::ArrayValue(_) => "string[]",
        other => panic!("{other:?}"),
    }
}

#[test]
fn attributes_are_those_of_the_registry() {
    let (emitted, _) = emitted();
    let mut registered = entries("attribute", "type");
    assert!(registered.keys().all(|name| name.starts_with(names::OURS)));
    registered.extend(entries("convention", "type"));
    assert_eq!(emitted, registered);
}

#[test]
fn metrics_are_those_of_the_registry() {
    let (_, emitted) = emitted();
    assert_eq!(emitted, entries("metric", "instrument"));
    for metric in names::METRICS {
        assert!(emitted.contains_key(metric.name), "no sample makes {}", metric.name);
    }
}

/// The registry of the semantic conventions: the type of each attribute that is not deprecated.
fn conventions() -> Types {
    let lines = include_str!("../../../../tests/data/semconv/attributes.jsonl").lines();
    lines
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|attribute| attribute["deprecated"] != true)
        .map(|attribute| {
            let word = |name: &str| attribute[name].as_str().unwrap().to_owned();
            // What has a closed set of values travels as text.
            let kind = word("type").replace("enum", "string");
            (word("attribute"), kind)
        })
        .collect()
}

#[test]
fn names_of_the_conventions_are_theirs_and_mean_the_same_type() {
    let conventions = conventions();
    for (name, kind) in entries("convention", "type") {
        assert_eq!(conventions.get(&name), Some(&kind), "{name}");
    }
    for name in entries("attribute", "type").keys() {
        assert!(!conventions.contains_key(name), "{name} is a name of the conventions");
    }
}
