//! `permissions` and its profiles: what of the machine a command may see and change.

use std::path::Path;

use crate::document::{Origin, Sited, Table};

/// The profiles that everybody has.
const READ_ONLY: &str = ":read-only";

/// What may be read in no sandbox: absolute paths, paths below a home, and patterns. What is relative is relative to `folder`, that of
/// the file.
pub(super) fn deny_read(root: &Table<'_>, folder: Option<&Path>) -> Vec<Sited<String>> {
    let permissions = root.value("permissions").and_then(|value| value.table());
    let mut denied = Vec::new();
    for (name, value) in permissions.map(Table::open).unwrap_or_default() {
        if name.value != "filesystem" {
            continue;
        }
        let Some(table) = value.table() else { continue };
        for key in ["description", "extends", "workspace_roots", "filesystem", "network"] {
            if let Some(value) = table.value(key) {
                value.fault("permissions.filesystem is reserved for requirements-level filesystem constraints and cannot define a profile");
            }
        }
        denied.extend(table.list("deny_read", |text| pattern(text, folder)));
    }
    denied
}

fn pattern(text: &str, folder: Option<&Path>) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    if text.is_empty() {
        return Err("the path is empty, or would deny everything".to_owned());
    }
    if text.starts_with('/') || text == "~" || text.starts_with("~/") {
        return Ok(text.to_owned());
    }
    // A pattern that begins anywhere means anywhere.
    if text.starts_with("**/") {
        return Ok(format!("/{text}"));
    }
    match folder.filter(|folder| folder.is_absolute()) {
        Some(folder) => Ok(folder.join(text.trim_start_matches("./")).display().to_string()),
        None => Err(format!("\"{text}\" is relative, and to what is not known")),
    }
}

/// Reads which profiles may be chosen. Where none of them writes, the place that says so.
pub(super) fn profiles(root: &Table<'_>) -> Option<Origin> {
    let allowed = root.value("allowed_permission_profiles");
    let default = root.text("default_permissions");
    let Some(value) = allowed else {
        if default.is_some()
            && let Some(value) = root.value("default_permissions")
        {
            value.fault("default_permissions requires allowed_permission_profiles");
        }
        return None;
    };
    let entries = value.table().map(Table::open).unwrap_or_default();
    let profiles: Vec<String> = entries
        .into_iter()
        .filter(|(_, allowed)| allowed.flag().is_some_and(|flag| flag.value))
        .map(|(name, _)| name.value)
        .collect();
    match default {
        Some(default) if !profiles.contains(&default.value) => {
            value.fault(format!(
                "default_permissions `{}` must be allowed by allowed_permission_profiles",
                default.value
            ));
        }
        None if ![READ_ONLY, ":workspace"]
            .iter()
            .all(|name| profiles.iter().any(|profile| profile == name)) =>
        {
            value.fault("default_permissions must be set unless allowed_permission_profiles allows both :read-only and :workspace");
        }
        _ => {}
    }
    profiles
        .iter()
        .all(|name| name == READ_ONLY || only_reads(root, name))
        .then(|| value.origin())
}

/// Whether a profile of the file's own writes nothing: it extends the one that only reads, and names no file itself.
fn only_reads(root: &Table<'_>, profile: &str) -> bool {
    let Some(profiles) = root.value("permissions").and_then(|value| value.table()) else {
        return false;
    };
    let found = profiles.open().into_iter().find(|(name, _)| name.value == profile);
    let Some(entries) = found.and_then(|(_, value)| value.table()).map(Table::open) else {
        return false;
    };
    let extends = entries.iter().find(|(name, _)| name.value == "extends");
    let base = extends.and_then(|(_, value)| value.text());
    base.is_some_and(|base| base.value == READ_ONLY) && entries.iter().all(|(name, _)| name.value != "filesystem")
}
