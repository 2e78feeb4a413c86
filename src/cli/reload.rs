//! Policy that changes while a task runs: the files that it comes from are watched, and what they say now is put in force at once.
//!
//! | the files now say | what follows |
//! |---|---|
//! | another policy that the task may have | it holds for the next command and the next connection; live connections that it forbids end |
//! | what cannot be read as a policy | what held goes on holding, and the fault is told and recorded |
//! | that the task asks for more than it may | it would not be admitted: no command begins and its way out is closed, until it no longer does; what runs already goes on |
//!
//! Rules and the network's lists are read again; what a sandbox was made of cannot change any more. What the sandbox itself could
//! write is never read again: a spec or a file of rules in a writable root counts as it stood when the task began.

use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};

use super::flags::{Ready, SpecRead, TaskArgs};
use crate::audit::journal::Journal;
use crate::audit::record::{Entry, Event};
use crate::config::{Config, Rejection, Surroundings};
use crate::path::HostPath;
use crate::policy::{Digest, Policy, RuleText};
use crate::supervisor::TaskHandle;
use crate::sys::watch::Watch;
use crate::task::{Access, Gate, Network, Task};

/// How long files must stand still before they are read: editors and package managers change several at once.
const STILL: Duration = Duration::from_millis(50);
/// How often that is waited for before they are read as they are.
const STILL_TRIES: usize = 40;
/// For so long a task's files are only looked at, this often: to let go of a watch takes the kernel 20 ms, and most tasks are over sooner.
const YOUNG: Duration = Duration::from_secs(1);
const LOOK_YOUNG: Duration = Duration::from_millis(100);
/// How often files are looked at though nothing was told: other machines' changes to a shared file system are not.
const LOOK: Duration = Duration::from_secs(30);
/// The same where the kernel has no more watches for this user.
const LOOK_UNTOLD: Duration = Duration::from_secs(1);

/// What a task came from, to be read again.
pub struct Source {
    args: TaskArgs,
    /// As it stood when the task was admitted.
    spec: SpecRead,
    begun: SystemTime,
}

/// Keeps the policy of one task up to date.
pub struct Reload {
    source: Source,
    task: TaskHandle,
    journal: Journal,
    /// Folders that the sandbox can write.
    writable: Vec<PathBuf>,
    /// Configuration in those folders, as it stood.
    held: Vec<(PathBuf, Option<Stamp>)>,
    /// All that is read, or would be if it were there.
    places: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
    digest: String,
    /// Why what the files say is not in force.
    refused: Option<String>,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What the files say now.
struct Found {
    network: Network,
    policy: Policy,
    files: Vec<String>,
    places: Vec<PathBuf>,
    digest: String,
}

impl Source {
    /// To be called before the task is admitted, so that no change is missed.
    pub fn of(args: &TaskArgs) -> Self {
        Self {
            begun: SystemTime::now(),
            spec: args.read_spec(),
            args: args.clone(),
        }
    }

    pub fn admit(&self) -> anyhow::Result<Ready> {
        self.args.clone().admit_spec(self.spec.clone())
    }
}

impl Reload {
    pub fn of(source: Source, task: &TaskHandle, admitted: &Task, config: &Config, journal: &Journal) -> Self {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let writable = admitted.roots.iter().filter(|root| root.access == Access::Write);
        let writable: Vec<PathBuf> = writable.map(|root| real(root.host.as_ref())).collect();
        let held = config.files.iter().filter(|file| is_within(file, &writable));
        let held = held.map(|file| (file.clone(), Stamp::of(file))).collect();
        let places = places(&source.args, config, &admitted.gate, &writable);
        let seen: Vec<Option<Stamp>> = places.iter().map(|place| Stamp::of(place)).collect();
        // What changed since the task was read is read once more.
        let fresh = seen.iter().flatten().any(|stamp| stamp.is_since(source.begun));
        Self {
            source,
            task: task.clone(),
            journal: journal.clone(),
            writable,
            held,
            places,
            seen: if fresh { Vec::new() } else { seen },
            digest: super::journal::digest(config).unwrap_or_default(),
            refused: None,
        }
    }

    /// For as long as the task lives.
    pub async fn go_on(mut self) -> Infallible {
        let young = Instant::now() + YOUNG;
        let mut watch = None;
        loop {
            let is_young = Instant::now() < young;
            if !is_young && watch.is_none() {
                watch = Some(Watch::new().ok());
            }
            let watch = watch.as_ref().and_then(Option::as_ref);
            let now = self.look(watch).await;
            if now == self.seen {
                match is_young {
                    true => tokio::time::sleep(LOOK_YOUNG).await,
                    false => wait(watch).await,
                }
                continue;
            }
            self.seen = self.still(now).await;
            self.read_again().await;
        }
    }

    /// The files as they are now; their folders are watched from here on.
    async fn look(&self, watch: Option<&Watch>) -> Vec<Option<Stamp>> {
        if let Some(watch) = watch {
            for place in &self.places {
                // A folder that is not there yet is made in one that is.
                let mut folders = place.ancestors().skip(1);
                let _ = folders.find(|folder| watch.folder(folder).is_ok());
            }
        }
        let places = self.places.clone();
        let look = move || places.iter().map(|place| Stamp::of(place)).collect();
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    async fn still(&self, mut before: Vec<Option<Stamp>>) -> Vec<Option<Stamp>> {
        for _ in 0..STILL_TRIES {
            tokio::time::sleep(STILL).await;
            let now = self.look(None).await;
            if now == before {
                break;
            }
            before = now;
        }
        before
    }

    async fn read_again(&mut self) {
        let reader = Reader {
            args: self.source.args.clone(),
            spec: self.source.spec.clone(),
            writable: self.writable.clone(),
            held: self.held.clone(),
            before: self.task.policy().rules.now(),
        };
        let read = tokio::task::spawn_blocking(move || reader.read()).await;
        match read.context("reading fell over").and_then(|read| read) {
            Ok(found) => self.put(found).await,
            Err(error) => match error.downcast_ref::<Rejection>() {
                Some(Rejection::Violations(_)) => self.close(format!("{error:#}")).await,
                Some(Rejection::Faults(_)) | None => self.keep(format!("{error:#}")).await,
            },
        }
    }

    async fn put(&mut self, found: Found) {
        let Found {
            network,
            policy,
            files,
            places,
            digest,
        } = found;
        let next = match self.task.policy().prepare(network, policy) {
            Ok(Some(next)) => next,
            Ok(None) => {
                self.places = places;
                // What was wrong is put right, by what holds already.
                if self.refused.take().is_some() {
                    self.digest = digest;
                    self.record(files, None).await;
                }
                return;
            }
            Err(error) => return self.keep(format!("{:#}", anyhow::Error::from(error))).await,
        };
        self.digest = digest;
        if self.record(files, None).await {
            self.task.policy().put(next);
            self.places = places;
            self.refused = None;
            tracing::info!("the task's policy has changed, and holds from now on");
        }
    }

    async fn close(&mut self, why: String) {
        if self.refused.as_ref() == Some(&why) {
            return;
        }
        let reason = "the requirements changed, and this task asks for more than they allow".to_owned();
        self.task.policy().close(reason);
        tracing::warn!("no command begins any more, and the way out is closed: {why}");
        self.refuse(why).await;
    }

    async fn keep(&mut self, why: String) {
        if self.refused.as_ref() == Some(&why) {
            return;
        }
        tracing::warn!("a changed policy cannot be put in force, and the one before goes on holding: {why}");
        self.refuse(why).await;
    }

    async fn refuse(&mut self, why: String) {
        let files = self.places.iter().filter(|place| place.is_file());
        let files = files.map(|place| place.display().to_string()).collect();
        self.record(files, Some(why.clone())).await;
        self.refused = Some(why);
    }

    /// Whether it stands in the journal: what does not is not put in force.
    async fn record(&self, files: Vec<String>, refused: Option<String>) -> bool {
        let event = Event::ConfigLoaded {
            files,
            digest: self.digest.clone(),
            error: refused,
        };
        let entry = Entry {
            task: Some(self.task.id()),
            exec: None,
            event,
        };
        let written = self.journal.append(entry).await;
        if let Err(error) = &written {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "a changed policy cannot be recorded, so it is not put in force"
            );
        }
        written.is_ok()
    }
}

/// Until something is told, or it is time to look anyway.
async fn wait(watch: Option<&Watch>) {
    let Some(watch) = watch else {
        return tokio::time::sleep(LOOK_UNTOLD).await;
    };
    if let Ok(Err(_)) = tokio::time::timeout(LOOK, watch.changed()).await {
        tokio::time::sleep(LOOK_UNTOLD).await;
    }
}

/// Reads what the files say. Blocking.
struct Reader {
    args: TaskArgs,
    spec: SpecRead,
    writable: Vec<PathBuf>,
    held: Vec<(PathBuf, Option<Stamp>)>,
    before: std::sync::Arc<Policy>,
}

impl Reader {
    fn read(self) -> anyhow::Result<Found> {
        let is_ours = |file: &Path| !is_within(file, &self.writable);
        let spec = match self.args.spec.as_deref() {
            Some(file) if is_ours(file) => self.args.read_spec(),
            Some(_) | None => self.spec.clone(),
        };
        let Ready { task, config, .. } = self.args.clone().admit_spec(spec)?;
        for file in config.files.iter().filter(|file| !is_ours(file)) {
            if !self
                .held
                .iter()
                .any(|(held, stamp)| held == file && *stamp == Stamp::of(file))
            {
                bail!(
                    "{} can be written from inside the sandbox, and is not what it was when the task began",
                    file.display()
                );
            }
        }
        let places = places(&self.args, &config, &task.gate, &self.writable);
        let (ours, theirs): (Vec<HostPath>, Vec<HostPath>) =
            task.gate.rules.iter().cloned().partition(|file| is_ours(file.as_ref()));
        let texts: Vec<RuleText> = theirs
            .iter()
            .map(|file| {
                let known = self.before.text_of(&file.to_string()).cloned();
                known.with_context(|| format!("{file} can be written from inside the sandbox, so it is not read"))
            })
            .collect::<anyhow::Result<_>>()?;
        let gate = Gate {
            rules: ours,
            ..task.gate
        };
        let policy = Policy::of_gate_beside(texts, &gate)?;
        let settings = serde_json::to_vec(&config.settings())?;
        let network = serde_json::to_vec(&task.network)?;
        let files: Vec<&PathBuf> = places.iter().filter(|place| place.is_file()).collect();
        Ok(Found {
            digest: Digest::of_parts([settings.as_slice(), network.as_slice(), &policy.texts_as_bytes()]).to_string(),
            files: files.iter().map(|file| file.display().to_string()).collect(),
            network: task.network,
            policy,
            places,
        })
    }
}

/// Where a policy is read from, be it there or not; what the sandbox could write is left out.
fn places(args: &TaskArgs, config: &Config, gate: &Gate, writable: &[PathBuf]) -> Vec<PathBuf> {
    let cwd = std::env::current_dir().unwrap_or_default();
    let mut places = Surroundings::of_process().places();
    places.extend(config.files.iter().cloned());
    places.extend(gate.required.iter().map(|rules| PathBuf::from(&rules.name)));
    places.extend(gate.rules.iter().map(|file| AsRef::<Path>::as_ref(file).to_owned()));
    places.extend(args.spec.iter().map(|spec| cwd.join(spec)));
    places.retain(|place| place.is_absolute() && !is_within(place, writable));
    places.sort();
    places.dedup();
    places
}

/// By real paths: what a link leads to counts.
fn is_within(file: &Path, folders: &[PathBuf]) -> bool {
    // A file that is not there yet is where its folder is.
    let real = file.canonicalize().or_else(|_| {
        let folder = file.parent().unwrap_or(Path::new("")).canonicalize()?;
        Ok::<_, std::io::Error>(folder.join(file.file_name().unwrap_or_default()))
    });
    let real = real.unwrap_or_else(|_| file.to_owned());
    folders.iter().any(|folder| real.starts_with(folder))
}

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        let found = file.metadata().ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    fn is_since(&self, time: SystemTime) -> bool {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // The kernel's stamps lag behind by a tick.
        let since = since.saturating_sub(STILL);
        self.changed >= (since.as_secs() as i64, i64::from(since.subsec_nanos()))
    }
}
