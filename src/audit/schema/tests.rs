use std::path::PathBuf;

use super::*;
use crate::audit::journal::{Journal, JournalOptions, Stored};

/// One record of each kind as version 1 wrote it; none of them may ever be changed.
fn samples() -> BTreeMap<String, Value> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/records/v1");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files
        .map(|path| {
            let sample = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), sample)
        })
        .collect()
}

#[test]
fn every_kind_has_a_schema_and_an_old_sample_that_fits_it() {
    let (schemas, samples) = (schemas(), samples());
    let names = |map: &BTreeMap<String, Value>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&schemas), names(&samples));
    assert!(schemas.len() >= 19);
    for (kind, sample) in &samples {
        let schema = &schemas[kind];
        assert_eq!(fits(sample, schema, schema), Ok(()), "{kind}");
        // A field that was renamed or dropped would fit as an unknown one.
        for field in sample.as_object().unwrap().keys() {
            assert!(
                schema["properties"].get(field).is_some(),
                "{kind} has no {field} any more"
            );
        }
    }
}

#[test]
fn what_is_not_a_record_does_not_fit() {
    let schemas = schemas();
    let schema = &schemas["exec.finished"];
    let good = &samples()["exec.finished"];
    for (field, wrong) in [
        ("outcome", Value::from("vanished")),
        ("argv", Value::from("make")),
        ("wall_seconds", Value::Null),
        ("exit_code", Value::from("0")),
        ("kind", Value::from("exec.started")),
        ("seq", Value::from(-1)),
    ] {
        let mut record = good.clone();
        record[field] = wrong;
        assert!(fits(&record, schema, schema).is_err(), "{field}");
    }
    let mut record = good.clone();
    record.as_object_mut().unwrap().remove("usage");
    assert!(fits(&record, schema, schema).is_err());
}

/// The part of JSON Schema that schemas made from types use.
fn fits(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    let error = |what: &str| Err(format!("{value} is not {what} of {schema}"));
    let Some(schema_fields) = schema.as_object() else {
        return Ok(());
    };
    for (word, rule) in schema_fields {
        match word.as_str() {
            "$ref" => {
                let pointer = rule.as_str().unwrap().trim_start_matches('#');
                fits(value, root.pointer(pointer).unwrap(), root)?;
            }
            "const" if value != rule => return error("the constant"),
            "enum" if !rule.as_array().unwrap().contains(value) => return error("one"),
            "type" => {
                let types = match rule {
                    Value::Array(types) => types.clone(),
                    one => vec![one.clone()],
                };
                if !types.iter().any(|name| is_a(value, name.as_str().unwrap())) {
                    return error("the type");
                }
            }
            "minimum" if value.as_f64().is_some_and(|number| number < rule.as_f64().unwrap()) => {
                return error("within the minimum");
            }
            "required" => {
                for name in rule.as_array().unwrap() {
                    if value.is_object() && value.get(name.as_str().unwrap()).is_none() {
                        return Err(format!("{name} is missing in {value}"));
                    }
                }
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        fits(value, rule, root)?;
                    }
                }
            }
            "items" => {
                for value in value.as_array().into_iter().flatten() {
                    fits(value, rule, root)?;
                }
            }
            "anyOf" | "oneOf"
                if !rule
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|rule| fits(value, rule, root).is_ok()) =>
            {
                return error("any");
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_a(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the type {other} is not known here"),
    }
}

/// Every kind with all its fields, as this program writes it.
fn written_now() -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), JournalOptions::default()).unwrap();
    for entry in crate::audit::samples::of_each_kind() {
        journal.append_blocking(entry).unwrap();
    }
    let records = journal.reader().unwrap().after(1, 1000).unwrap();
    records.iter().map(Stored::value).collect()
}

#[test]
fn what_is_written_now_fits_its_schema() {
    let schemas = schemas();
    let written = written_now();
    assert_eq!(written.len(), schemas.len());
    for record in written {
        let schema = &schemas[record["kind"].as_str().unwrap()];
        assert_eq!(fits(&record, schema, schema), Ok(()));
    }
}
