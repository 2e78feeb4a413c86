//! What no root may show, whatever else is allowed: folders, files, and patterns of files.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::Requirements;
use super::Violations;
use crate::config::Caller;
use crate::document::{Origin, Sited};
use crate::policy::rules::{Pattern, Written};

/// How many names of a root are looked at for a pattern. A root with more is refused: nothing can be said of it in time.
const NAMES_LIMIT: usize = 200_000;

impl Requirements {
    pub(super) fn check_denied(
        &self,
        host: &Path,
        origin: &Origin,
        key: &str,
        caller: &Caller,
        found: &mut Violations,
    ) {
        if let Some(denied) = &self.denied {
            for folder in &denied.value {
                check_folder(host, Path::new(folder), &denied.origin, (origin, key), found);
            }
        }
        check_patterns(host, &self.denied_patterns, (origin, key), caller, found);
    }
}

/// A denied folder is denied by its real path too, or a link on the way to it would open it.
fn check_folder(host: &Path, folder: &Path, by: &Origin, (origin, key): (&Origin, &str), found: &mut Violations) {
    let real = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    if [folder, &real]
        .iter()
        .any(|folder| host.starts_with(folder) || folder.starts_with(host))
    {
        let (host, folder) = (host.display(), folder.display());
        found.push(
            origin,
            key,
            format!("\"{host}\" would open \"{folder}\", which {by} denies"),
        );
    }
}

/// What is there when the task is admitted is what is looked at: what comes later, the task has made itself.
fn check_patterns(
    host: &Path,
    denied: &[Sited<String>],
    place: (&Origin, &str),
    caller: &Caller,
    found: &mut Violations,
) {
    let mut globs = Vec::new();
    for text in denied {
        let whole = match (text.value.strip_prefix('~'), &caller.home) {
            (None, _) => text.value.clone(),
            (Some(rest), Some(home)) => format!("{}{rest}", home.display()),
            // A user without a home has nothing there to hide.
            (Some(_), None) => continue,
        };
        // All that lies in a folder is the folder.
        let whole = whole.trim_end_matches("/**").trim_end_matches("/*");
        if whole.contains(['*', '?', '[']) {
            globs.extend(patterns(whole).into_iter().map(|pattern| (pattern, &text.origin)));
        } else {
            check_folder(host, Path::new(whole), &text.origin, place, found);
        }
    }
    if globs.is_empty() {
        return;
    }
    let (origin, key) = place;
    match first_denied(host, &globs) {
        Ok(None) => {}
        Ok(Some((file, by))) => {
            let (host, file) = (host.display(), file.display());
            let what = format!("\"{host}\" would open \"{file}\", which {by} denies by a pattern");
            found.push(origin, key, what);
        }
        Err(why) => {
            let what = format!(
                "whether \"{}\" holds what {} denies cannot be told: {why}",
                host.display(),
                globs[0].1
            );
            found.push(origin, key, what);
        }
    }
}

/// A glob as patterns of paths: `/**/` may stand for one slash, and a class of letters for any letter, which denies no less.
fn patterns(glob: &str) -> [Pattern; 2] {
    let mut plain = String::new();
    let mut rest = glob;
    while let Some((before, after)) = rest.split_once('[') {
        plain.push_str(before);
        plain.push('?');
        // The first sign of a class may be a bracket itself.
        let from = after.char_indices().nth(1).map_or(after.len(), |(at, _)| at);
        rest = after[from..].split_once(']').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    let short = plain.replace("/**/", "/");
    [Pattern::new(plain), Pattern::new(short)]
}

/// The first path at, above or below a root that one of the patterns means, and where that stands.
fn first_denied<'p>(root: &Path, patterns: &[(Pattern, &'p Origin)]) -> Result<Option<(PathBuf, &'p Origin)>, String> {
    let denied = |path: &Path| {
        let text = path.to_string_lossy();
        let written = Written::new(&text);
        let by = patterns.iter().find(|(pattern, _)| pattern.matches(&written));
        by.map(|(_, by)| (path.to_owned(), *by))
    };
    if let Some(above) = root.ancestors().find_map(denied) {
        return Ok(Some(above));
    }
    let mut folders = vec![root.to_owned()];
    let mut names = 0;
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(_) if folder == root && !root.is_dir() => return Ok(None),
            Err(error) => return Err(format!("\"{}\" cannot be read: {error}", folder.display())),
        };
        for entry in entries {
            let entry = entry.map_err(|error| format!("\"{}\" cannot be read: {error}", folder.display()))?;
            names += 1;
            if names > NAMES_LIMIT {
                return Err(format!("it holds more than {NAMES_LIMIT} files"));
            }
            let path = entry.path();
            if let Some(found) = denied(&path) {
                return Ok(Some(found));
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            }
        }
    }
    Ok(None)
}
