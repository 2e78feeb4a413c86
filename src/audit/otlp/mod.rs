//! From the journal to collectors: logs for all records, a span a task and an exec, and metrics.
//!
//! Fed by a cursor per collector and signal that lives in the journal's database, never by what happens in this process: what is
//! not delivered when belljar ends is delivered by the next one. A cursor advances only when the collector took every item of
//! a batch, so delivery is at least once and in order, and whatever the collector does (down, slow, refusing, answering nonsense)
//! costs nothing but lag. One process at a time sends to a collector; the others see to it that their records get there.
//!
//! ```text
//!  thread "otlp": one single-threaded runtime
//!    per collector and signal:  read after cursor ─▶ convert ─▶ send ─▶ Ok: advance
//!                                     ▲                          └────▶ else: wait (back-off), smaller batch
//!                                     └── woken by flush, or looks every 500 ms
//! ```

mod batch;
mod config;
mod convert;
mod cursor;
mod dial;
mod metrics;
pub mod names;
mod resend;
mod send;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::journal::{FILE, JournalError, Reader, Seq, Stored};
use convert::Converter;
use cursor::{Cursor, Cursors};
use send::{Batch, SendError, Transport};

pub use config::{Compression, ConfigError, OtlpConfig, Protocol, Signal};
pub use resend::{ResendError, resend};

/// How often the journal is looked at for new records when nobody says that there are any.
const LOOK: Duration = Duration::from_millis(500);

/// The most records in one batch, and the most bytes of their JSON: collectors take 4 MiB in a message, and memory stays bounded.
const BATCH_RECORDS: usize = 512;
const BATCH_BYTES: usize = 1 << 20;

/// The pause after a failure; it doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The same while somebody waits for a flush.
const HURRIED_PAUSE: Duration = Duration::from_millis(100);
const HURRIED_LOOK: Duration = Duration::from_millis(20);

/// Requests to the exporter that may wait: a flush or two, and the end.
const REQUESTS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    #[error("collector {endpoint}")]
    Config {
        endpoint: String,
        #[source]
        source: ConfigError,
    },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("cannot start the exporter's thread")]
    Thread(#[source] std::io::Error),
}

/// What is not yet delivered.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Lag {
    /// The most records that any collector lacks of any signal.
    pub records: u64,
    pub signals: Vec<SignalLag>,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SignalLag {
    pub endpoint: String,
    pub signal: &'static str,
    pub records: u64,
    /// The age of the oldest record that is not delivered; 0 when all are.
    pub seconds: f64,
    /// Why the last attempt failed, when it did.
    pub error: Option<String>,
}

/// How far these collectors have come with the journal in `folder`, whichever process sends; asks none of them.
pub fn lag(folder: &Path, collectors: &[OtlpConfig]) -> Result<Lag, JournalError> {
    let mut lanes = Vec::new();
    for config in collectors {
        let config = Arc::new(config.clone());
        lanes.extend(config.signals.iter().map(|signal| (config.clone(), *signal)));
    }
    let hub = Hub::open(folder, lanes)?;
    Ok(hub.lag(hub.reader.last_seq()?))
}

/// Starts exporting; see [`ExporterHandle`].
pub struct Exporter;

impl Exporter {
    /// Exports the journal in `folder`, which must exist, to every one of `collectors`, until the handle is dropped.
    ///
    /// Connects to nothing before it returns: a collector that is down is no error.
    pub fn start(folder: &Path, collectors: Vec<OtlpConfig>) -> Result<ExporterHandle, OtlpError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(OtlpError::Thread)?;
        let within = runtime.enter();
        let mut lanes = Vec::new();
        for config in collectors {
            let config = Arc::new(config);
            for signal in &config.signals {
                // A connection each: one signal that is slow must not hold up another.
                let transport = Transport::new(&config).map_err(|source| OtlpError::Config {
                    endpoint: config.endpoint.clone(),
                    source,
                })?;
                lanes.push(Lane::new(folder, config.clone(), *signal, transport)?);
            }
        }
        drop(within);
        let hub = Hub::open(
            folder,
            lanes.iter().map(|lane| (lane.config.clone(), lane.signal)).collect(),
        )?;
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let thread = std::thread::Builder::new()
            .name("otlp".to_owned())
            .spawn(move || runtime.block_on(run(lanes, hub, inbox)))
            .map_err(OtlpError::Thread)?;
        Ok(ExporterHandle {
            requests: Some(requests),
            thread: Some(thread),
        })
    }
}

/// A running exporter. Dropping it ends the export at once; what is not delivered stays for the next start.
pub struct ExporterHandle {
    requests: Option<mpsc::Sender<Flush>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Flush {
    deadline: Instant,
    reply: oneshot::Sender<Lag>,
}

impl ExporterHandle {
    /// Waits until everything that the journal holds now is delivered, or until `deadline` has passed, and says what is missing.
    pub async fn flush(&self, deadline: Duration) -> Lag {
        let (reply, lag) = oneshot::channel();
        let flush = Flush {
            deadline: Instant::now() + deadline,
            reply,
        };
        if let Some(requests) = &self.requests
            && requests.send(flush).await.is_ok()
        {
            return lag.await.unwrap_or_default();
        }
        Lag::default()
    }

    /// Ends the export: a request in flight is given up, its records are sent again by the next start.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; the cursors stand where they stood.
            let _ = thread.join();
        }
    }
}

impl Drop for ExporterHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the lanes and the requests share; all on one thread.
struct Hub {
    reader: Reader,
    cursors: Cursors,
    lanes: Vec<(Arc<OtlpConfig>, Signal)>,
    /// Why a lane's last attempt failed.
    errors: RefCell<BTreeMap<(String, Signal), String>>,
    /// There may be something to send.
    wake: Notify,
    /// A lane has come on, or failed.
    moved: Notify,
    /// How many wait for a flush: then a lane tries again soon instead of after its pause.
    hurried: Cell<u32>,
}

async fn run(mut lanes: Vec<Lane>, hub: Hub, mut inbox: mpsc::Receiver<Flush>) {
    let sending = join_all(lanes.iter_mut().map(|lane| lane.run(&hub)));
    let answering = async {
        let mut flushes = FuturesUnordered::new();
        loop {
            tokio::select! {
                request = inbox.recv() => match request {
                    Some(request) => flushes.push(flush(&hub, request)),
                    None => return,
                },
                Some(()) = flushes.next() => {}
            }
        }
    };
    tokio::select! {
        _ = sending => {}
        () = answering => {}
    }
}

async fn flush(hub: &Hub, request: Flush) {
    hub.hurried.set(hub.hurried.get() + 1);
    let goal = hub.reader.last_seq().unwrap_or(Seq::MAX);
    loop {
        let moved = hub.moved.notified();
        hub.wake.notify_waiters();
        let lag = hub.lag(goal);
        if lag.records == 0 || Instant::now() >= request.deadline {
            hub.hurried.set(hub.hurried.get() - 1);
            // Who asked may have gone.
            let _ = request.reply.send(lag);
            return;
        }
        // Another process may be the one that sends, and moves the cursor without a word to this one.
        let _ = timeout_at(request.deadline.min(Instant::now() + HURRIED_LOOK), moved).await;
    }
}

impl Hub {
    fn open(folder: &Path, lanes: Vec<(Arc<OtlpConfig>, Signal)>) -> Result<Self, JournalError> {
        Ok(Self {
            reader: Reader::open(folder)?,
            cursors: Cursors::open(folder)?,
            lanes,
            errors: RefCell::default(),
            wake: Notify::new(),
            moved: Notify::new(),
            hurried: Cell::new(0),
        })
    }

    /// What is missing of the records up to `goal`, whichever process delivers them.
    fn lag(&self, goal: Seq) -> Lag {
        let now = jiff::Timestamp::now();
        let mut lag = Lag::default();
        for (config, signal) in &self.lanes {
            let mut error = self.errors.borrow().get(&(config.endpoint.clone(), *signal)).cloned();
            let delivered = match self.cursors.read(config, *signal) {
                Ok(cursor) => cursor.seq,
                Err(unreadable) => {
                    error = Some(whole(&unreadable));
                    0
                }
            };
            let records = goal.saturating_sub(delivered);
            let oldest = match records {
                0 => None,
                _ => self.reader.record(delivered + 1).ok().flatten(),
            };
            let age = oldest.map(|record| now.duration_since(record.timestamp()).as_secs_f64());
            lag.records = lag.records.max(records);
            lag.signals.push(SignalLag {
                endpoint: config.endpoint.clone(),
                signal: signal.as_str(),
                records,
                seconds: age.unwrap_or(0.0).max(0.0),
                error,
            });
        }
        lag
    }
}

/// One signal on its way to one collector.
struct Lane {
    folder: PathBuf,
    config: Arc<OtlpConfig>,
    signal: Signal,
    transport: Transport,
    reader: Reader,
    converter: Converter,
    /// Held by the one process that sends this signal to this collector.
    lead: Option<File>,
    batch_limit: usize,
    pause: Duration,
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("cannot take the exporter's lock")]
    Lock(#[source] std::io::Error),
}

enum Step {
    /// Nothing to do, or another process does it.
    Idle,
    Advanced,
}

impl Lane {
    fn new(folder: &Path, config: Arc<OtlpConfig>, signal: Signal, transport: Transport) -> Result<Self, JournalError> {
        let reader = Reader::open(folder)?;
        let converter = Converter::new(reader.journal_id()?);
        Ok(Self {
            folder: folder.to_owned(),
            config,
            signal,
            transport,
            reader,
            converter,
            lead: None,
            batch_limit: BATCH_RECORDS,
            pause: FIRST_PAUSE,
        })
    }

    async fn run(&mut self, hub: &Hub) {
        let key = (self.config.endpoint.clone(), self.signal);
        loop {
            let woken = hub.wake.notified();
            match self.step(hub).await {
                Ok(Step::Advanced) => {
                    hub.errors.borrow_mut().remove(&key);
                    self.pause = FIRST_PAUSE;
                    self.batch_limit = (self.batch_limit * 2).min(BATCH_RECORDS);
                    hub.moved.notify_waiters();
                }
                Ok(Step::Idle) => {
                    let _ = timeout(LOOK, woken).await;
                }
                Err(error) => {
                    // What a collector answers may be about one record among many: find it by halves, so that all before it get
                    // through, and the error that is shown is about that one.
                    if let StepError::Send(SendError::Rejected { .. } | SendError::Answer { .. }) = &error {
                        self.batch_limit = (self.batch_limit / 2).max(1);
                    }
                    hub.errors.borrow_mut().insert(key.clone(), whole(&error));
                    hub.moved.notify_waiters();
                    if hub.hurried.get() > 0 {
                        tokio::time::sleep(self.pause.min(HURRIED_PAUSE)).await;
                    } else {
                        let _ = timeout(self.pause, woken).await;
                    }
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn step(&mut self, hub: &Hub) -> Result<Step, StepError> {
        if !self.leads().map_err(StepError::Lock)? {
            return Ok(Step::Idle);
        }
        let mut cursor = hub.cursors.read(&self.config, self.signal)?;
        let records = self.next(cursor.seq)?;
        let Some(last) = records.last() else {
            return Ok(Step::Idle);
        };
        cursor.seq = last.seq;
        if let Some(batch) = self.batch(&records, &mut cursor, hub)? {
            self.transport.send(batch).await?;
        }
        hub.cursors.write(&self.config, self.signal, &cursor)?;
        Ok(Step::Advanced)
    }

    /// Whether this process is the one that sends. The lock goes with the process, however it ends.
    fn leads(&mut self) -> std::io::Result<bool> {
        if self.lead.is_some() {
            return Ok(true);
        }
        let digest = crate::policy::Digest::of_bytes(cursor::key(&self.config).as_bytes());
        let name = format!(
            "otlp-{}-{}.lock",
            &super::verify::hex(digest.as_bytes())[..16],
            self.signal.as_str()
        );
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.folder.join(name))?;
        match file.try_lock() {
            Ok(()) => {
                self.lead = Some(file);
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn next(&self, after: Seq) -> Result<Vec<Stored>, JournalError> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let limit = self.batch_limit as i64;
        self.reader
            .each("seq > ?1 ORDER BY seq LIMIT ?2", &[&(after as i64), &limit], |record| {
                bytes += record.json.len();
                records.push(record);
                bytes < BATCH_BYTES
            })?;
        Ok(records)
    }

    /// The request for these records; `None` when none of them says anything to this signal.
    fn batch(&mut self, records: &[Stored], cursor: &mut Cursor, hub: &Hub) -> Result<Option<Batch>, JournalError> {
        Ok(match self.signal {
            Signal::Logs => Some(self.converter.logs(&self.reader, records)?),
            Signal::Traces => self.converter.spans(&self.reader, records)?,
            Signal::Metrics => {
                records.iter().for_each(|record| cursor.totals.add(record));
                Some(self.converter.metrics(cursor.totals.metrics(&self.now(hub)?)))
            }
        })
    }

    fn now(&self, hub: &Hub) -> Result<metrics::Now, JournalError> {
        let lag = hub.lag(self.reader.last_seq()?);
        let own = lag
            .signals
            .into_iter()
            .filter(|lag| lag.endpoint == self.config.endpoint);
        let size = |name: &str| std::fs::metadata(self.folder.join(name)).map_or(0, |file| file.len());
        Ok(metrics::Now {
            lag: own.map(|lag| (lag.signal, lag.records)).collect(),
            journal_bytes: size(FILE) + size(&format!("{FILE}-wal")),
        })
    }
}

/// An error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
