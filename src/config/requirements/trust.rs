//! Which files of requirements count: only root may have written them, or nothing runs.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Requirements;
use crate::config::codex;
use crate::document::{Fault, Faults, Origin};
use crate::policy::Digest;
use crate::sys::path::{is_symlink_in_the_way, open_file_without_symlinks};
use crate::task::RulesText;

/// Larger than any that a person keeps in mind.
const LARGEST: u64 = 1 << 20;

/// What the trusted files say.
#[derive(Default)]
pub(in crate::config) struct Loaded {
    pub requirements: Vec<Requirements>,
    pub files: Vec<PathBuf>,
    /// Over the names and texts of all files that were read, rules and Codex's among them; goes into the records.
    pub digest: Option<Digest>,
}

/// Reads `requirements.toml`, then `requirements.d/*.toml` by name. `owner` is root, but for tests.
///
/// A file that is not there demands nothing; one that is there and cannot be read, trusted or understood is a fault.
pub(in crate::config) fn load(etc: &Path, owner: u32) -> Result<Loaded, Faults> {
    let mut faults = Vec::new();
    let (mut all, mut read) = (Vec::new(), Vec::new());
    let texts = RefCell::new(Vec::new());
    let trusted_text = |path: &Path, owner| {
        let text = trusted_text(path, owner)?;
        texts.borrow_mut().push((path.display().to_string(), text.clone()));
        Ok::<String, String>(text)
    };
    for file in files(etc, owner, &mut faults) {
        let shown = file.display().to_string();
        let found = trusted_text(&file, owner).map_err(|what| Faults::one(whole(&file), "", what));
        match found.and_then(|text| Requirements::from_toml(&text, &shown)) {
            Ok(mut demands) => {
                // Read here and now: what root alone could write a moment ago is what holds.
                for rules in &demands.rules {
                    match trusted_text(Path::new(&rules.value), owner) {
                        Ok(text) => demands.rules_texts.push(RulesText {
                            name: rules.value.clone(),
                            text,
                        }),
                        Err(what) => faults.push(Fault {
                            origin: rules.origin.clone(),
                            key: "gate.rules".to_owned(),
                            what: format!("\"{}\": {what}", rules.value),
                        }),
                    }
                }
                if let Some(source) = demands.codex.clone() {
                    match codex::load(Path::new(&source.value), |path| trusted_text(path, owner)) {
                        Ok(codex) => all.push(codex),
                        Err(found) => faults.extend(found.into_vec()),
                    }
                    read.push(PathBuf::from(source.value));
                }
                all.push(demands);
                read.push(file);
            }
            Err(found) => faults.extend(found.into_vec()),
        }
    }
    Faults::check(faults)?;
    let texts = texts.into_inner();
    let parts = texts.iter().flat_map(|(path, text)| [path.as_bytes(), text.as_bytes()]);
    Ok(Loaded {
        digest: (!texts.is_empty()).then(|| Digest::of_parts(parts)),
        requirements: all,
        files: read,
    })
}

fn files(etc: &Path, owner: u32, faults: &mut Vec<Fault>) -> Vec<PathBuf> {
    let mut fault = |path: &Path, what: String| {
        faults.push(Fault {
            origin: whole(path),
            key: String::new(),
            what,
        });
    };
    let mut files = Vec::new();
    let main = etc.join("requirements.toml");
    if is_there(&main) {
        files.push(main);
    }
    let folder = etc.join("requirements.d");
    if is_there(&folder) {
        match fs::read_dir(&folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>()) {
            Err(error) => fault(&folder, format!("the folder cannot be read: {error}")),
            Ok(entries) => {
                let mut names: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
                names.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
                names.sort();
                files.extend(names);
            }
        }
        if let Err(what) = trusted_folder(&folder, owner) {
            fault(&folder, what);
        }
    }
    // Whoever can write to the folder can put another file in the place of a demand, or take it away.
    if is_there(etc)
        && let Err(what) = trusted_folder(etc, owner)
    {
        fault(etc, what);
    }
    files
}

/// Only what is surely absent is absent.
fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        Ok(_) => true,
    }
}

fn trusted_folder(path: &Path, owner: u32) -> Result<(), String> {
    let found = path
        .symlink_metadata()
        .map_err(|error| format!("the folder cannot be read: {error}"))?;
    if !found.is_dir() {
        return Err("this is not a folder".to_owned());
    }
    trusted(&found, owner)
}

/// The text of a file that root alone can have written.
fn trusted_text(path: &Path, owner: u32) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("the file cannot be read: {error}");
    let file: File = open_file_without_symlinks(path).map_err(|error| match is_symlink_in_the_way(&error) {
        true => "the file is reached by way of a symlink".to_owned(),
        false => unreadable(error),
    })?;
    let found = file.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err("this is not a file".to_owned());
    }
    trusted(&found, owner)?;
    if found.len() > LARGEST {
        return Err("the file is larger than 1 MiB".to_owned());
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn trusted(found: &fs::Metadata, owner: u32) -> Result<(), String> {
    if found.uid() != owner {
        return Err(format!(
            "it belongs to user {}, not to root: what others can write demands nothing",
            found.uid()
        ));
    }
    if found.mode() & 0o022 != 0 {
        return Err(format!(
            "others than root can write to it (mode {:o})",
            found.mode() & 0o7777
        ));
    }
    Ok(())
}

fn whole(path: &Path) -> Origin {
    Origin::File {
        file: path.display().to_string().into(),
        line: 1,
        column: 1,
    }
}
