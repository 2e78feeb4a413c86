//! The layers of configuration and their merge.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::approvals::{self, Approvals};
use super::{AgentEvents, Config, Egress, HeaderValue, Journal, Otlp, Surroundings, Sync, requirements};
use crate::approval::reviewer;
use crate::audit::otlp::Signal;
use crate::audit::redact::Redactor;
use crate::document::{Document, Fault, Faults, Origin, Sited, Table, Value, Word, read_file};
use crate::sys::path::open_file_without_symlinks;
use crate::task::SecretSource;
use crate::task::limits::Bytes;
use crate::task::spec::{self, TaskSpec, expand_home, read_spec};

/// The lowest layer, and the page that explains every key.
pub(super) const DEFAULT: &str = include_str!("../../config/default.toml");

/// The name under which the lowest layer is reported.
pub(super) const BUILT_IN: &str = "built-in default.toml";

/// One file of configuration, as it stands.
#[derive(Debug, Default)]
struct Layer {
    trusted_folders: Vec<Sited<String>>,
    task: TaskSpec,
    egress: Egress,
    journal: JournalLayer,
    otlp: Vec<Otlp>,
    token: Option<Sited<SecretSource>>,
    reviewer: Option<Sited<reviewer::Settings>>,
    approvals: Approvals,
}

#[derive(Debug, Default)]
struct JournalLayer {
    sync: Option<Sited<Sync>>,
    rotate_size: Option<Sited<Bytes>>,
    rotate_age: Option<Sited<Duration>>,
    keep: Option<Sited<Duration>>,
    redact: Vec<Sited<String>>,
    agent_events: Option<Sited<AgentEvents>>,
}

impl JournalLayer {
    fn read(table: &Table<'_>) -> Self {
        Self {
            sync: table.word("sync"),
            rotate_size: table.parsed("rotate_size", spec::size),
            rotate_age: table.parsed("rotate_age", spec::time),
            keep: table.parsed("keep", spec::time),
            redact: table.list("redact", redaction),
            agent_events: table.word("agent_events"),
        }
    }

    /// This layer's values, and below them those of the one below; patterns of both.
    fn over(self, below: Self) -> Self {
        Self {
            sync: self.sync.or(below.sync),
            rotate_size: self.rotate_size.or(below.rotate_size),
            rotate_age: self.rotate_age.or(below.rotate_age),
            keep: self.keep.or(below.keep),
            redact: below.redact.into_iter().chain(self.redact).collect(),
            agent_events: self.agent_events.or(below.agent_events),
        }
    }
}

pub(super) fn redaction(pattern: &str) -> Result<String, String> {
    match Redactor::new([pattern]) {
        Ok(_) => Ok(pattern.to_owned()),
        Err(errors) => Err(errors[0].to_string()),
    }
}

pub(super) fn built_in(state: &Path) -> Config {
    let layer = Layer::from_toml(DEFAULT, BUILT_IN, None).expect("the built-in configuration was tested");
    merged(vec![layer], state.to_owned())
}

pub(super) fn load(surroundings: &Surroundings) -> Result<Config, Faults> {
    let user = surroundings.user_folder();
    let folders: Vec<PathBuf> = [Some(surroundings.etc.clone()), user].into_iter().flatten().collect();
    let mut layers = vec![Layer::from_toml(DEFAULT, BUILT_IN, None).expect("the built-in configuration was tested")];
    let mut files = Vec::new();
    let mut faults: Vec<Fault> = Vec::new();
    let demands = requirements::load(&requirements::Sources {
        etc: &surroundings.etc,
        owner: surroundings.root,
        state: &surroundings.state_folder(),
        fetch: &surroundings.fetch,
    })
    .unwrap_or_else(|found| {
        faults.extend(found.into_vec());
        Default::default()
    });
    for folder in &folders {
        let file = folder.join("config.toml");
        if is_there(&file) {
            match read_file(&file)
                .and_then(|text| Layer::from_toml(&text, &file.display().to_string(), surroundings.home.as_deref()))
            {
                Ok(mut layer) => {
                    layer.task.rebase(folder);
                    layers.push(layer);
                    files.push(file);
                }
                Err(found) => faults.extend(found.into_vec()),
            }
        }
        // A folder of configuration may well be a link.
        let real = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        layers.push(Layer::of_rules(&real, &mut faults));
    }
    let mut untrusted = None;
    if let Some(folder) = surroundings.project.as_deref().and_then(project_folder) {
        let file = folder.join("config.toml");
        let rules = folder.join("rules");
        let trusted: Vec<&Sited<String>> = layers.iter().flat_map(|layer| &layer.trusted_folders).collect();
        if !trusted.iter().any(|trusted| is_within(&folder, &trusted.value)) {
            untrusted = Some(if is_there(&file) { file } else { rules });
        } else {
            if is_there(&file) {
                match project_layer(&file) {
                    Ok(layer) => {
                        layers.push(layer);
                        files.push(file);
                    }
                    Err(found) => faults.extend(found.into_vec()),
                }
            }
            layers.push(Layer::of_rules(&folder, &mut faults));
        }
    }
    Faults::check(faults)?;
    files.extend(demands.files);
    let mut config = Config {
        folders,
        files,
        requirements: demands.requirements,
        bundles: demands.bundles,
        requirements_digest: demands.digest,
        untrusted,
        ..merged(layers, surroundings.state_folder())
    };
    for demands in &config.requirements {
        // The task is filled in admission, once it is known what its spec says.
        demands.fill(&mut TaskSpec::default(), &mut config.journal);
        demands.fill_egress(&mut config.egress);
        config.journal.redact.extend(demands.redact.iter().cloned());
        if let Some(reviewer) = &mut config.reviewer {
            for policy in &demands.reviewer_policy {
                reviewer.value.add_policy(&policy.value);
            }
        }
    }
    Ok(config)
}

/// Low to high; a list of receivers replaces the one below, for records must not go where the higher layer did not say.
fn merged(layers: Vec<Layer>, state: PathBuf) -> Config {
    let mut task = TaskSpec::default();
    let mut trusted_folders = Vec::new();
    let mut egress = Egress::default();
    let mut journal = JournalLayer::default();
    let mut otlp = Vec::new();
    let mut token = None;
    let mut reviewer = None;
    let mut approvals = Approvals::default();
    for layer in layers {
        task = layer.task.over(task);
        trusted_folders.extend(layer.trusted_folders);
        egress.extra_roots.extend(layer.egress.extra_roots);
        egress.cache.extend(layer.egress.cache);
        egress.upstream = layer.egress.upstream.or(egress.upstream);
        token = layer.token.or(token);
        reviewer = layer.reviewer.or(reviewer);
        approvals = layer.approvals.over(approvals);
        journal = layer.journal.over(journal);
        if !layer.otlp.is_empty() {
            otlp = layer.otlp;
        }
    }
    Config {
        task,
        trusted_folders,
        journal: Journal {
            sync: journal.sync.expect("the built-in configuration says when to sync"),
            rotate_size: journal.rotate_size,
            rotate_age: journal.rotate_age,
            keep: journal.keep,
            redact: journal.redact,
            agent_events: journal
                .agent_events
                .expect("the built-in configuration says what is recorded of events"),
        },
        egress,
        otlp,
        token,
        reviewer,
        approvals,
        state,
        folders: Vec::new(),
        files: Vec::new(),
        requirements: Vec::new(),
        bundles: Vec::new(),
        requirements_digest: None,
        untrusted: None,
    }
}

/// Only what is surely absent is absent: a file that cannot be looked at might forbid something.
fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Err(error) => !matches!(
            error.kind(),
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
        ),
        Ok(_) => true,
    }
}

/// The nearest `.belljar` with configuration or rules in it, at or above a folder.
fn project_folder(folder: &Path) -> Option<PathBuf> {
    let folder = folder.canonicalize().ok()?;
    let own = |folder: &Path| folder.join(".belljar");
    let says = |folder: &PathBuf| ["config.toml", "rules"].iter().any(|name| is_there(&folder.join(name)));
    folder.ancestors().map(own).find(says)
}

/// By real paths, or a link in a trusted folder would lend its trust to what it leads to.
fn is_within(file: &Path, trusted: &str) -> bool {
    Path::new(trusted)
        .canonicalize()
        .is_ok_and(|trusted| file.starts_with(trusted))
}

/// A project may say how its tasks run, not where records go, when they are on the disk, who reviews, or what is trusted.
fn project_layer(file: &Path) -> Result<Layer, Faults> {
    let shown = file.display().to_string();
    let origin = Origin::File {
        file: shown.as_str().into(),
        line: 1,
        column: 1,
    };
    let read = open_file_without_symlinks(file).and_then(|open| {
        let mut text = String::new();
        open.take(1 << 20).read_to_string(&mut text)?;
        Ok(text)
    });
    let text = read.map_err(|error| Faults::one(origin, "", format!("the file cannot be read: {error}")))?;
    let mut layer = Document::parse(&text, &shown)?.read(|root| {
        if let Some(version) = root.value("version") {
            version.integer(1..=1);
        }
        for key in [
            "trusted_folders",
            "journal",
            "egress",
            "otlp",
            "identity",
            "reviewer",
            "approvals",
        ] {
            if let Some(value) = root.value(key) {
                value.fault("only the system's and the user's configuration may say this");
            }
        }
        Layer {
            task: root.table("task").map(|table| task(&table)).unwrap_or_default(),
            ..Layer::default()
        }
    })?;
    // Paths are relative to the project, not to the folder of its configuration.
    if let Some(project) = file.ancestors().nth(2) {
        layer.task.rebase(project);
    }
    Ok(layer)
}

impl Layer {
    /// The files of rules beside a layer's configuration, `rules/*.rules` by name: they hold for all of its tasks. Approvals that
    /// are remembered stand in one of them.
    fn of_rules(folder: &Path, faults: &mut Vec<Fault>) -> Self {
        let rules = folder.join("rules");
        let mut layer = Self::default();
        if !is_there(&rules) {
            return layer;
        }
        let origin = |path: &Path| Origin::File {
            file: path.display().to_string().into(),
            line: 1,
            column: 1,
        };
        let entries = std::fs::read_dir(&rules).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
        match entries {
            Ok(entries) => {
                let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
                files.retain(|file| file.extension().is_some_and(|extension| extension == "rules"));
                files.sort();
                layer.task.gate.rules = files
                    .iter()
                    .map(|file| Sited::new(file.display().to_string(), origin(file)))
                    .collect();
            }
            Err(error) => faults.push(Fault {
                origin: origin(&rules),
                key: String::new(),
                what: format!("the folder of rules cannot be read: {error}"),
            }),
        }
        layer
    }

    fn from_toml(text: &str, file: &str, home: Option<&Path>) -> Result<Layer, Faults> {
        Document::parse(text, file)?.read(|root| {
            if let Some(version) = root.value("version") {
                version.integer(1..=1);
            }
            Layer {
                trusted_folders: root.list("trusted_folders", |text| trusted_folder(text, home)),
                task: root.table("task").map(|table| task(&table)).unwrap_or_default(),
                egress: root
                    .table("egress")
                    .map(|table| egress(&table, home))
                    .unwrap_or_default(),
                journal: root
                    .table("journal")
                    .map(|table| JournalLayer::read(&table))
                    .unwrap_or_default(),
                otlp: root
                    .tables("otlp")
                    .iter()
                    .filter_map(|table| otlp(table, home))
                    .collect(),
                token: root
                    .table("identity")
                    .and_then(|table| table.parsed("token", |text| token(text, home))),
                reviewer: root
                    .table("reviewer")
                    .and_then(|table| approvals::reviewer(&table, home)),
                approvals: root
                    .table("approvals")
                    .map(|table| Approvals::read(&table))
                    .unwrap_or_default(),
            }
        })
    }
}

fn egress(table: &Table<'_>, home: Option<&Path>) -> Egress {
    Egress {
        extra_roots: table.list("extra_roots", |text| trusted_folder(text, home)),
        upstream: table.parsed("upstream", upstream),
        cache: table.list("cache", |text| trusted_folder(text, home)),
    }
}

/// A proxy is spoken to in plain HTTP: what goes through it is TLS of its own, or was plain before.
pub(super) fn upstream(text: &str) -> Result<String, String> {
    let authority = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    match authority.map(|authority| crate::egress::host::Authority::parse(authority, None)) {
        Some(Ok(authority)) => Ok(format!("http://{authority}")),
        Some(Err(error)) => Err(format!("{text:?} is not http://HOST:PORT: {error}")),
        None => Err(format!("{text:?} is not http://HOST:PORT")),
    }
}

/// An absolute path, `~` put in.
fn trusted_folder(text: &str, home: Option<&Path>) -> Result<String, String> {
    let path = expand_home(text, home)?;
    match path.is_absolute() {
        true => Ok(path.display().to_string()),
        false => Err(format!("\"{text}\" is not absolute")),
    }
}

fn token(text: &str, home: Option<&Path>) -> Result<SecretSource, String> {
    match text.strip_prefix("file:") {
        Some(path) => format!("file:{}", expand_home(path, home)?.display()).parse(),
        None => text.parse(),
    }
}

/// The defaults of all tasks: what makes one task this one cannot be among them.
fn task(table: &Table<'_>) -> TaskSpec {
    for key in ["name", "purpose", "command"] {
        if let Some(value) = table.value(key) {
            value.fault("only a task spec may say this");
        }
    }
    read_spec(table)
}

fn otlp(table: &Table<'_>, home: Option<&Path>) -> Option<Otlp> {
    let endpoint = table
        .required("endpoint", "a URL")
        .and_then(|value| value.parsed(endpoint));
    let mut headers = BTreeMap::new();
    for (name, value) in table.table("headers").map(Table::open).unwrap_or_default() {
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.value.is_empty() || !name.value.chars().all(token) {
            value.fault(format!("{:?} is not the name of a header", name.value));
        } else if let Some(text) = header(&value, home) {
            headers.insert(name.value.to_ascii_lowercase(), text);
        }
    }
    let file = |key| {
        table.parsed(key, |text| {
            let path = expand_home(text, home)?;
            match path.is_absolute() {
                true => Ok(path),
                false => Err(format!("\"{text}\" is not absolute")),
            }
        })
    };
    let otlp = Otlp {
        protocol: table.word("protocol"),
        compression: table.word("compression"),
        signals: table.list("signals", Signal::read),
        ca: file("ca"),
        client_certificate: file("client_certificate"),
        client_key: file("client_key"),
        endpoint: endpoint?,
        headers,
    };
    let half = match (&otlp.client_certificate, &otlp.client_key) {
        (Some(certificate), None) => Some((&certificate.origin, "client_certificate")),
        (None, Some(key)) => Some((&key.origin, "client_key")),
        (Some(_), Some(_)) | (None, None) => None,
    };
    if let Some((origin, key)) = half {
        table.fault(
            origin,
            key,
            "a client certificate needs its key, and the key its certificate",
        );
    }
    Some(otlp)
}

pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let authority = rest.and_then(|rest| rest.split('/').next()).unwrap_or_default();
    match authority.is_empty() || authority.contains('@') || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        true => Err(format!(
            "{text:?} is not a URL of http or https (a name and password belong into headers)"
        )),
        false => Ok(text.to_owned()),
    }
}

fn header(value: &Value<'_>, home: Option<&Path>) -> Option<Sited<HeaderValue>> {
    value.parsed(|text| {
        let text = match text.strip_prefix("file:") {
            None => text.to_owned(),
            Some(path) => {
                let path = expand_home(path, home)?;
                let read = std::fs::read_to_string(&path);
                let read = read.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
                read.trim_end_matches(['\r', '\n']).to_owned()
            }
        };
        match text.chars().any(|c| c.is_control() && c != '\t') {
            true => Err("the value of a header cannot hold a control character".to_owned()),
            false => Ok(HeaderValue::new(text)),
        }
    })
}
