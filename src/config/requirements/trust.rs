//! Which files of requirements count: only root may have written them, or nothing runs.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Requirements;
use crate::config::bundle::{self, Bundle, Fetch, Held};
use crate::config::codex;
use crate::config::identity::Keys;
use crate::document::{Fault, Faults, Origin};
use crate::policy::Digest;
use crate::policy::rules::built_in;
use crate::sys::path::{is_symlink_in_the_way, open_file_without_symlinks};
use crate::task::RulesText;
use crate::task::spec::BUILT_IN;

/// Larger than any that a person keeps in mind.
const LARGEST: u64 = 1 << 20;

/// Where requirements are, and who may have written them.
pub(in crate::config) struct Sources<'s> {
    pub etc: &'s Path,
    /// Root, but for tests.
    pub owner: u32,
    /// Where the copies of bundles are kept.
    pub state: &'s Path,
    pub fetch: Fetch<'s>,
}

/// What the trusted files say.
#[derive(Default)]
pub(in crate::config) struct Loaded {
    pub requirements: Vec<Requirements>,
    pub files: Vec<PathBuf>,
    pub bundles: Vec<BundleSeen>,
    /// Over the names and texts of all files that were read, rules and Codex's among them; goes into the records.
    pub digest: Option<Digest>,
}

/// A bundle that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BundleSeen {
    pub url: String,
    pub serial: Option<u64>,
    pub expires: Option<String>,
    /// Why it was not renewed, though it is time for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
    /// Why there is none, where the requirements say that it may be missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

impl BundleSeen {
    /// What is to be said of it, if it is not as it should be.
    pub fn complaint(&self) -> Option<String> {
        let url = &self.url;
        match (&self.stale, &self.missing) {
            (Some(why), _) => Some(format!(
                "{url}: the copy of serial {} holds until {}, for the bundle was not renewed ({why})",
                self.serial.unwrap_or_default(),
                self.expires.as_deref().unwrap_or_default()
            )),
            (None, Some(why)) => Some(format!("{url}: no bundle, and none is required ({why})")),
            (None, None) => None,
        }
    }
}

/// Reads `requirements.toml`, then `requirements.d/*.toml` by name, and the bundles that they name.
///
/// A file that is not there demands nothing; one that is there and cannot be read, trusted or understood is a fault.
pub(in crate::config) fn load(sources: &Sources<'_>) -> Result<Loaded, Faults> {
    let mut reading = Reading {
        sources,
        faults: Vec::new(),
        texts: RefCell::new(Vec::new()),
        loaded: Loaded::default(),
    };
    for file in files(sources.etc, sources.owner, &mut reading.faults) {
        reading.file(&file);
    }
    let Reading {
        faults,
        texts,
        mut loaded,
        ..
    } = reading;
    Faults::check(faults)?;
    let texts = texts.into_inner();
    let parts = texts.iter().flat_map(|(path, text)| [path.as_bytes(), text.as_bytes()]);
    loaded.digest = (!texts.is_empty()).then(|| Digest::of_parts(parts));
    Ok(loaded)
}

struct Reading<'s> {
    sources: &'s Sources<'s>,
    faults: Vec<Fault>,
    /// All that was read, by name.
    texts: RefCell<Vec<(String, String)>>,
    loaded: Loaded,
}

impl Reading<'_> {
    fn file(&mut self, file: &Path) {
        match self.text(file).map_err(|what| Faults::one(whole(file), "", what)) {
            Ok(text) => {
                self.requirements(&text, &file.display().to_string());
                self.loaded.files.push(file.to_owned());
            }
            Err(found) => self.faults.extend(found.into_vec()),
        }
    }

    /// A text that root alone can have written; it is part of the digest.
    fn text(&self, path: &Path) -> Result<String, String> {
        let text = trusted_text(path, self.sources.owner)?;
        self.texts.borrow_mut().push((path.display().to_string(), text.clone()));
        Ok(text)
    }

    /// One file's demands, with what they refer to. Read here and now: what root alone could write a moment ago is what holds.
    fn requirements(&mut self, text: &str, shown: &str) {
        let mut demands = match Requirements::from_toml(text, shown) {
            Ok(demands) => demands,
            Err(found) => return self.faults.extend(found.into_vec()),
        };
        for rules in &demands.rules {
            let own = rules.value.strip_prefix(BUILT_IN).and_then(built_in);
            match own.map_or_else(|| self.text(Path::new(&rules.value)), |rules| Ok(rules.text)) {
                Ok(text) => demands.rules_texts.push(RulesText {
                    name: rules.value.clone(),
                    text,
                }),
                Err(what) => self.fault(&rules.origin, "gate.rules", format!("\"{}\": {what}", rules.value)),
            }
        }
        if let Some(oidc) = &mut demands.identity_oidc {
            match self
                .text(Path::new(&oidc.jwks.value))
                .and_then(|text| Keys::from_json(&text))
            {
                Ok(keys) => oidc.keys = keys,
                Err(what) => {
                    let what = format!("\"{}\": {what}", oidc.jwks.value);
                    self.fault(&oidc.jwks.origin.clone(), "identity.oidc.jwks", what);
                }
            }
        }
        if let Some(source) = demands.codex.clone() {
            match codex::load(Path::new(&source.value), |path| self.text(path)) {
                Ok(codex) => self.loaded.requirements.push(codex),
                Err(found) => self.faults.extend(found.into_vec()),
            }
            self.loaded.files.push(PathBuf::from(source.value));
        }
        self.bundle(&demands);
        self.loaded.requirements.push(demands);
    }

    fn bundle(&mut self, demands: &Requirements) {
        let Some(demand) = &demands.bundle else { return };
        let url = demand.url.value.clone();
        match bundle::load(demand, self.sources.state, SystemTime::now(), self.sources.fetch) {
            Ok(Held { bundle, stale }) => {
                self.bundled(&bundle, &url);
                self.loaded.bundles.push(BundleSeen {
                    url,
                    serial: Some(bundle.serial),
                    expires: Some(bundle.expires.to_string()),
                    stale,
                    missing: None,
                });
            }
            Err(error) if demand.required => {
                let what = format!("{error}; the bundle is required, so nothing runs");
                self.fault(&demand.url.origin, "bundle.url", what);
            }
            Err(error) => self.loaded.bundles.push(BundleSeen {
                url,
                serial: None,
                expires: None,
                stale: None,
                missing: Some(error.to_string()),
            }),
        }
    }

    fn bundled(&mut self, bundle: &Bundle, url: &str) {
        for file in &bundle.files {
            let shown = format!("{url}#{}", file.name);
            self.texts.borrow_mut().push((shown.clone(), file.text.clone()));
            if file.name.ends_with(".rules") {
                let rules = RulesText {
                    name: shown,
                    text: file.text.clone(),
                };
                self.loaded.requirements.push(Requirements {
                    rules_texts: vec![rules],
                    ..Requirements::default()
                });
                continue;
            }
            match Requirements::from_toml(&file.text, &shown) {
                // Whoever signs could send machines elsewhere for good.
                Ok(demands) if demands.bundle.is_some() => {
                    let origin = Origin::File {
                        file: shown.as_str().into(),
                        line: 1,
                        column: 1,
                    };
                    self.fault(&origin, "bundle", "a bundle names no bundle".to_owned());
                }
                Ok(_) => self.requirements(&file.text, &shown),
                Err(found) => self.faults.extend(found.into_vec()),
            }
        }
    }

    fn fault(&mut self, origin: &Origin, key: &str, what: String) {
        self.faults.push(Fault {
            origin: origin.clone(),
            key: key.to_owned(),
            what,
        });
    }
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
    trusted(&found, owner)?;
    trusted_parents(path, owner)
}

/// Whoever can write to a folder on the way can put another in its place. In one like `/tmp` (sticky, of root's) only the owner
/// of what lies there can.
fn trusted_parents(path: &Path, owner: u32) -> Result<(), String> {
    for folder in path.ancestors().skip(1) {
        let found = folder
            .symlink_metadata()
            .map_err(|error| format!("its folder \"{}\" cannot be looked at: {error}", folder.display()))?;
        if ![0, owner].contains(&found.uid()) {
            return Err(format!(
                "its folder \"{}\" belongs to user {}, not to root",
                folder.display(),
                found.uid()
            ));
        }
        if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
            return Err(format!(
                "others than root can write to its folder \"{}\" (mode {:o})",
                folder.display(),
                found.mode() & 0o7777
            ));
        }
    }
    Ok(())
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
    trusted_parents(path, owner)?;
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
