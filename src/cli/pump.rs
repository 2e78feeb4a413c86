//! Carries the streams of one exec between it and this process: the same for an exec of our own task and for one reached
//! through a socket.
//!
//! ```text
//!   stdin  --(thread)--> exec          signals, window size --> exec
//!   stdout, stderr <--(thread)-- events of the exec
//! ```
//!
//! Reading and writing sit in threads of their own, for either may block for ever. The queues between hold a few pieces; a
//! reader that is slow makes the command wait.

use std::io::{self, Read as _};

use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::terminal::{self, Held, RawMode};
use crate::api::client;
use crate::api::messages::{Control, Event, ExecEnd};
use crate::api::wire;
use crate::exec::Stream;
use crate::id::ExecId;
use crate::policy::TtySize;
use crate::supervisor::{ExecEvents, ExecHandle};

/// Pieces of output on their way to a slow reader.
const PIECES: usize = 8;
/// After this many of one signal the exec is canceled: the command does not heed it.
const PATIENCE: u32 = 3;

/// Why the end of an exec was not seen.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    #[error("cannot put the terminal into raw mode")]
    Terminal(#[source] io::Error),
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Client(#[from] client::ClientError),
    #[error("the events of the exec stopped before its end")]
    NoEnd,
}

/// An exec, here or at the other end of a socket.
pub enum Exec {
    Here(ExecHandle),
    There { task: client::Task, id: ExecId },
}

/// What is carried, and in which form it comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    pub stdin: bool,
    pub tty: bool,
    pub form: Form,
    /// Says on stderr that somebody is asked elsewhere; without it, nothing but the command's own output is seen.
    pub tells_waits: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// stdout to stdout, stderr to stderr, byte for byte.
    Bytes,
    /// Each event as a line of JSON on stdout.
    Json,
}

/// Carries until the exec has ended. Output that nobody reads any more cancels the exec.
pub async fn carry(exec: Exec, manner: Manner) -> Result<ExecEnd, PumpError> {
    let (input, mut events) = exec.open().await?;
    let mut caught = catch_signals().map_err(PumpError::Signals)?;
    let writer = Writer::start();
    let mut input = Some(input);
    let mut feeding = JoinSet::new();
    let mut raw = None;
    let mut held = None;
    let mut counts = std::collections::BTreeMap::<i32, u32>::new();
    let end = loop {
        tokio::select! {
            event = events.next() => {
                let event = event?.ok_or(PumpError::NoEnd)?;
                if matches!(event, Event::Started)
                    && let Some(input) = input.take()
                {
                    // Not before: until then the terminal may be needed for a question.
                    if manner.tty {
                        raw = RawMode::enter().map_err(PumpError::Terminal)?;
                        exec.resize(terminal::size()).await;
                    }
                    if manner.stdin {
                        held = Some(Held::take());
                        feeding.spawn(feed(input));
                    }
                }
                if let Event::Asked { approval, reason } = &event
                    && manner.tells_waits
                {
                    eprintln!("belljar: waits for an approval: {}", terminal::clean(reason));
                    eprintln!("  belljar approvals approve {approval}   (or deny; cancel with Ctrl-C)");
                }
                let told = writer.tell(&event, manner.form).await;
                if let Event::Ended { end } = event {
                    break end;
                }
                if told.is_err() {
                    exec.cancel().await;
                }
            }
            Some(number) = caught.recv() => {
                if number == SignalKind::window_change().as_raw_value() {
                    if manner.tty {
                        exec.resize(terminal::size()).await;
                    }
                    continue;
                }
                let count = counts.entry(number).or_default();
                *count += 1;
                if *count >= PATIENCE || !exec.signal(number).await {
                    exec.cancel().await;
                }
            }
        }
    };
    drop((raw, held));
    writer.finish().await;
    Ok(end)
}

impl Exec {
    async fn open(&self) -> Result<(Input, Events), PumpError> {
        Ok(match self {
            Self::Here(exec) => (Input::Here(exec.clone()), Events::Here(exec.events(0))),
            Self::There { task, id } => {
                let (input, output) = task.attach(*id, 0).await?;
                (Input::There(input), Events::There(output))
            }
        })
    }

    /// Whether the command was running to get it.
    async fn signal(&self, number: i32) -> bool {
        match self {
            Self::Here(exec) => exec.signal(number).is_ok(),
            // Not over the WebSocket, where it would wait behind stdin that the command does not read.
            Self::There { task, id } => task.signal(*id, number).await.is_ok(),
        }
    }

    async fn resize(&self, size: TtySize) {
        match self {
            Self::Here(exec) => exec.resize(size),
            // An exec that has ended needs no size.
            Self::There { task, id } => drop(task.resize(*id, size).await),
        }
    }

    async fn cancel(&self) {
        match self {
            Self::Here(exec) => exec.cancel(),
            Self::There { task, id } => drop(task.cancel(*id).await),
        }
    }
}

enum Input {
    Here(ExecHandle),
    There(client::Input),
}

enum Events {
    Here(ExecEvents),
    There(client::Output),
}

impl Events {
    /// Cancel-safe.
    async fn next(&mut self) -> Result<Option<Event>, PumpError> {
        match self {
            Self::Here(events) => Ok(events.next().await.map(|(_, event)| wire::event(event))),
            Self::There(output) => Ok(output.next().await?),
        }
    }
}

/// Feeds our stdin to the command until either ends.
async fn feed(mut input: Input) {
    let (pieces, mut read) = mpsc::channel::<Vec<u8>>(PIECES);
    // Not joined: it may be blocked in `read` until the process ends.
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) if pieces.blocking_send(buffer[..n].to_vec()).is_err() => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    while let Some(piece) = read.recv().await {
        let written = match &mut input {
            Input::Here(exec) => exec.write_stdin(Bytes::from(piece)).await.is_ok(),
            Input::There(input) => input.write_stdin(&piece).await.is_ok(),
        };
        if !written {
            return;
        }
    }
    match &mut input {
        Input::Here(exec) => exec.close_stdin(),
        // Too late is as good.
        Input::There(input) => drop(input.control(Control::StdinClosed).await),
    }
}

/// The thread that writes; it ends at the first error, such as a reader that has gone.
struct Writer {
    pieces: mpsc::Sender<(Stream, Bytes)>,
    thread: std::thread::JoinHandle<()>,
}

struct Gone;

impl Writer {
    fn start() -> Self {
        let (pieces, mut queue) = mpsc::channel::<(Stream, Bytes)>(PIECES);
        let thread = std::thread::spawn(move || {
            while let Some((stream, data)) = queue.blocking_recv() {
                let written = match stream {
                    Stream::Stdout | Stream::Pty => write_to(&mut io::stdout().lock(), &data),
                    Stream::Stderr => write_to(&mut io::stderr().lock(), &data),
                };
                if written.is_err() {
                    return;
                }
            }
        });
        Self { pieces, thread }
    }

    async fn tell(&self, event: &Event, form: Form) -> Result<(), Gone> {
        let piece = match (form, event) {
            (Form::Bytes, Event::Output { stream, data }) => (*stream, data.clone()),
            (Form::Bytes, _) => return Ok(()),
            (Form::Json, event) => {
                let mut line = serde_json::to_vec(event).expect("an event has string keys only");
                line.push(b'\n');
                (Stream::Stdout, Bytes::from(line))
            }
        };
        self.pieces.send(piece).await.map_err(|_| Gone)
    }

    /// Waits until all is written.
    async fn finish(self) {
        drop(self.pieces);
        let thread = self.thread;
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

fn write_to(out: &mut impl io::Write, data: &[u8]) -> io::Result<()> {
    out.write_all(data)?;
    out.flush()
}

/// The numbers of the signals that are passed on, and SIGWINCH.
fn catch_signals() -> io::Result<Caught> {
    let (numbers, caught) = mpsc::channel(PIECES);
    let mut watching = JoinSet::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
        SignalKind::window_change(),
    ] {
        let mut signals = signal(kind)?;
        let numbers = numbers.clone();
        watching.spawn(async move {
            while signals.recv().await.is_some() {
                if numbers.send(kind.as_raw_value()).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(Caught {
        caught,
        _watching: watching,
    })
}

struct Caught {
    caught: mpsc::Receiver<i32>,
    _watching: JoinSet<()>,
}

impl Caught {
    async fn recv(&mut self) -> Option<i32> {
        self.caught.recv().await
    }
}
