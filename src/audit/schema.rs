//! The shape of records as JSON Schema, one a kind, made from the types that write them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Map, Value};

use super::record::{Entry, VERSION};

/// A record as it stands in the journal. Only its schema is used: the journal writes the envelope itself.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "the type is there for its schema")]
struct Record {
    /// The version of the record's shape.
    version: u32,
    /// The record's number in its journal, without gaps, from 1 on.
    seq: u64,
    /// RFC 3339, UTC, nanoseconds. Clocks jump: `seq` is what orders.
    time: String,
    /// The machine that wrote it.
    host: String,
    /// The boot of that machine's kernel.
    boot: String,
    /// Who ran the belljar that wrote it: by their token, where one is asked for, else the machine's user. Records of belljar 0.1
    /// before that was told lack it.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[schemars(flatten)]
    entry: Entry,
}

/// The schema of every kind of record, by its name. Fields may be added within a version; none goes or changes its meaning.
pub fn schemas() -> BTreeMap<String, Value> {
    let whole = schemars::schema_for!(Record).to_value();
    let definitions = whole.get("$defs").cloned().unwrap_or_default();
    let envelope = object(&whole, "properties");
    let needed = whole
        .get("required")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let kinds = whole
        .get("oneOf")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let mut schemas = BTreeMap::new();
    for kind in kinds {
        let Some(name) = kind.pointer("/properties/kind/const").and_then(Value::as_str) else {
            continue;
        };
        let kind = with_own_fields(&kind, &definitions);
        let mut properties = envelope.clone();
        properties.extend(object(&kind, "properties"));
        let mut required = needed.clone();
        required.extend(
            kind.get("required")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
        );
        let mut schema = Map::new();
        schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
        schema.insert("$id".into(), format!("urn:belljar:record:{VERSION}:{name}").into());
        schema.insert("title".into(), name.into());
        schema.insert("type".into(), "object".into());
        schema.insert("properties".into(), properties.into());
        schema.insert("required".into(), required.into());
        schema.insert("$defs".into(), definitions.clone());
        schemas.insert(name.to_owned(), schema.into());
    }
    schemas
}

/// A kind whose fields are a type of their own refers to it; here its fields stand in the record itself.
fn with_own_fields(kind: &Value, definitions: &Value) -> Value {
    let mut whole = kind.clone();
    let target = kind
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|path| path.strip_prefix("#/$defs/"))
        .and_then(|name| definitions.get(name));
    if let (Some(target), Some(whole)) = (target, whole.as_object_mut()) {
        let mut properties = object(target, "properties");
        properties.extend(object(kind, "properties"));
        whole.insert("properties".into(), properties.into());
        let list = |value: &Value| {
            value
                .get("required")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let required: Vec<Value> = list(kind).into_iter().chain(list(target)).collect();
        whole.insert("required".into(), required.into());
    }
    whole
}

fn object(value: &Value, name: &str) -> Map<String, Value> {
    value.get(name).and_then(Value::as_object).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests;
