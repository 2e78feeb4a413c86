//! `[[network.hosts]]`: hosts that are allowed for some requests only.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::host_pattern;
use crate::document::{Origin, Sited, Table, Value};
use crate::task::{HostRule, Methods};

/// One host and the requests that it is allowed for.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct HostSpec {
    /// A host or a pattern as in `allow`; it need not stand there as well.
    pub host: Sited<String>,
    /// 80 and 443 when absent.
    #[schemars(default)]
    pub ports: Vec<Sited<u16>>,
    /// All when absent.
    pub methods: Option<Sited<Methods>>,
    /// Every path when absent. `/v1/` is what lies below it, `/v1` also the path itself, a `*` any one segment.
    #[schemars(default)]
    pub paths: Vec<Sited<String>>,
}

/// `"all"`, `"read-only"` or a list of methods.
impl JsonSchema for Methods {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Methods".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "enum": ["all", "read-only"] },
                { "type": "array", "minItems": 1, "items": { "type": "string", "pattern": "^[A-Z][A-Z-]*$" } },
            ]
        })
    }
}

/// Reads the list out of `[network]`.
pub(crate) fn hosts(network: &Table<'_>) -> Vec<HostSpec> {
    network.tables("hosts").iter().filter_map(host).collect()
}

/// The rules as the proxy takes them.
pub(crate) fn host_rules(specs: &[HostSpec]) -> Vec<HostRule> {
    let rule = |spec: &HostSpec| HostRule {
        host: spec.host.value.clone(),
        ports: spec.ports.iter().map(|port| port.value).collect(),
        methods: spec
            .methods
            .as_ref()
            .map_or(Methods::All, |methods| methods.value.clone()),
        paths: spec.paths.iter().map(|path| path.value.clone()).collect(),
    };
    specs.iter().map(rule).collect()
}

fn host(table: &Table<'_>) -> Option<HostSpec> {
    let host = table
        .required("host", "a host or a pattern of hosts")
        .and_then(|value| value.parsed(host_pattern));
    let ports: Vec<Sited<u16>> = table
        .value("ports")
        .and_then(|value| value.list())
        .unwrap_or_default()
        .iter()
        .filter_map(|value| value.integer(1..=i64::from(u16::MAX)))
        .filter_map(|port| Some(Sited::new(u16::try_from(port.value).ok()?, port.origin)))
        .collect();
    let methods = table.value("methods").and_then(|value| methods(&value));
    let paths = table.list("paths", path);
    for key in ["ports", "paths"] {
        if let Some(value) = table.value(key)
            && value.list().is_some_and(|list| list.is_empty())
        {
            value.fault("an empty list would allow nothing (leave the key out for all)");
        }
    }
    let host = host?;
    if let Some(port) = ports.first()
        && names_port(&host.value)
    {
        fault(table, &port.origin, "the host names a port already");
    }
    Some(HostSpec {
        host,
        ports,
        methods,
        paths,
    })
}

fn fault(table: &Table<'_>, origin: &Origin, what: &str) {
    table.fault(origin, "ports", what);
}

fn names_port(host: &str) -> bool {
    host.rfind(':').is_some_and(|at| !host[at..].contains(']'))
}

fn methods(value: &Value<'_>) -> Option<Sited<Methods>> {
    if value.is_list() {
        let methods: Vec<_> = value.list()?.iter().map(|method| method.parsed(method_name)).collect();
        if methods.is_empty() {
            value.fault("an empty list would allow nothing (leave the key out for all)");
        }
        let methods: Option<Vec<_>> = methods.into_iter().collect();
        let methods = methods?.into_iter().map(|method| method.value).collect();
        return Some(Sited::new(Methods::Only(methods), value.origin()));
    }
    value.parsed(|text| match text {
        "all" => Ok(Methods::All),
        "read-only" => Ok(Methods::ReadOnly),
        _ => Err(format!(
            "\"{text}\" is not one of \"all\", \"read-only\", nor a list of methods"
        )),
    })
}

/// A method as it stands in a request: they are told apart by case (RFC 9110, 9.1).
fn method_name(text: &str) -> Result<String, String> {
    match text {
        "CONNECT" | "TRACE" => Err(format!("{text} is never let through")),
        _ if text.starts_with(|c: char| c.is_ascii_uppercase())
            && text.chars().all(|c| c.is_ascii_uppercase() || c == '-') =>
        {
            Ok(text.to_owned())
        }
        _ => Err(format!("{text:?} is not an HTTP method in capitals")),
    }
}

fn path(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|b| b.is_ascii_graphic() && !b"?#%;\\".contains(&b));
    let segments = text.strip_prefix('/').unwrap_or_default().split('/');
    let star = |segment: &str| segment.contains('*') && segment != "*";
    let odd = |segment: &str| segment == "." || segment == ".." || star(segment);
    match text.starts_with('/') && plain && !text.contains("//") && !segments.clone().any(odd) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is not a plain path (from \"/\" on, without escapes, query, dots or empty segments; a \"*\" is a whole segment)"
        )),
    }
}
