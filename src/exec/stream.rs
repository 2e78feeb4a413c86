//! An exec's events as they happen: held for replay, bounded, with backpressure on the command while somebody reads slowly.
//!
//! The command's pipe is read only as fast as the slowest attached reader takes it, within [`WINDOW`]. With nobody attached the
//! oldest output beyond the window goes; a reader sees the gap in the sequence numbers, and the record's byte counts are whole.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::ExecEvent;

/// Output held at most, in bytes: enough for a reader that comes a moment late or stumbles, and for 64 such execs on a small machine.
const WINDOW: u64 = 4 << 20;

#[derive(Debug, Default)]
struct State {
    /// The sequence number of the first event held, counted from 1.
    first: u64,
    events: VecDeque<(ExecEvent, u64)>,
    held: u64,
    readers: HashMap<u64, u64>,
    next_reader: u64,
    ended: bool,
}

/// The log of one exec; shared by its writer and its readers.
#[derive(Debug, Default)]
pub struct Log {
    state: Mutex<State>,
    /// Something was appended, or the log ended.
    appended: Notify,
    /// A reader went on or away.
    taken: Notify,
}

fn size(event: &ExecEvent) -> u64 {
    match event {
        ExecEvent::Output { data, .. } => data.len() as u64,
        ExecEvent::Judged { .. } | ExecEvent::Asked { .. } | ExecEvent::Started | ExecEvent::Ended(_) => 0,
    }
}

impl Log {
    pub fn new() -> Arc<Log> {
        let log = Log::default();
        log.lock().first = 1;
        Arc::new(log)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code between lock and unlock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an event; waits first while an attached reader is a whole window behind. Cancel-safe: it is appended or not.
    pub async fn append(&self, event: ExecEvent) {
        let added = size(&event);
        loop {
            let taken = self.taken.notified();
            {
                let mut state = self.lock();
                if state.readers.is_empty() || added == 0 || state.held + added <= WINDOW || state.unread() == 0 {
                    state.push(event, added);
                    break;
                }
            }
            taken.await;
        }
        self.appended.notify_waiters();
    }

    /// Appends the last event, whatever the readers do.
    pub fn end(&self, event: ExecEvent) {
        {
            let mut state = self.lock();
            state.push(event, 0);
            state.ended = true;
        }
        self.appended.notify_waiters();
    }

    /// The last event, once there is one.
    pub fn last(&self) -> Option<ExecEvent> {
        let state = self.lock();
        if !state.ended {
            return None;
        }
        state.events.back().map(|(event, _)| event.clone())
    }

    /// Waits for the last event. Cancel-safe.
    pub async fn ended(&self) -> ExecEvent {
        loop {
            let appended = self.appended.notified();
            if let Some(event) = self.last() {
                return event;
            }
            appended.await;
        }
    }

    /// Reads from the event after `after` on, or from the oldest that is held.
    pub fn reader(self: &Arc<Self>, after: u64) -> ExecEvents {
        let mut state = self.lock();
        let id = state.next_reader;
        state.next_reader += 1;
        let next = (after + 1).max(state.first);
        state.readers.insert(id, next);
        ExecEvents { log: self.clone(), id }
    }
}

impl State {
    fn push(&mut self, event: ExecEvent, added: u64) {
        self.events.push_back((event, added));
        self.held += added;
        // Room is made by letting go of what every attached reader has had, and with none attached of whatever is oldest.
        while self.held > WINDOW {
            let slowest = self.readers.values().copied().min().unwrap_or(u64::MAX);
            if slowest <= self.first || self.events.len() <= 1 {
                break;
            }
            let (_, size) = self.events.pop_front().expect("there is more than one");
            self.first += 1;
            self.held -= size;
        }
    }

    /// Bytes that the slowest attached reader has before it.
    fn unread(&self) -> u64 {
        let slowest = self.readers.values().copied().min().unwrap_or(u64::MAX);
        let skip = slowest.saturating_sub(self.first) as usize;
        self.events.iter().skip(skip).map(|(_, size)| size).sum()
    }
}

/// A reader of an exec's events; while it lives, no output is lost to it.
#[derive(Debug)]
pub struct ExecEvents {
    log: Arc<Log>,
    id: u64,
}

impl ExecEvents {
    /// The next event and its sequence number, from 1; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<(u64, ExecEvent)> {
        loop {
            let appended = self.log.appended.notified();
            {
                let mut state = self.log.lock();
                let next = *state.readers.get(&self.id)?;
                let index = next.saturating_sub(state.first) as usize;
                if let Some((event, size)) = state.events.get(index) {
                    let (event, size) = (event.clone(), *size);
                    state.readers.insert(self.id, next + 1);
                    drop(state);
                    if size > 0 {
                        self.log.taken.notify_waiters();
                    }
                    return Some((next, event));
                }
                if state.ended {
                    return None;
                }
            }
            appended.await;
        }
    }
}

impl Drop for ExecEvents {
    fn drop(&mut self) {
        self.log.lock().readers.remove(&self.id);
        self.log.taken.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::exec::{ExecEnd, Stream};

    fn output(bytes: usize) -> ExecEvent {
        ExecEvent::Output {
            stream: Stream::Stdout,
            data: Bytes::from(vec![b'x'; bytes]),
        }
    }

    fn ended() -> ExecEvent {
        ExecEvent::Ended(ExecEnd::Failed { error: "test".into() })
    }

    #[tokio::test]
    async fn a_late_reader_gets_what_is_held_and_sees_the_gap() {
        let log = Log::new();
        for _ in 0..10 {
            log.append(output(1 << 20)).await;
        }
        log.end(ended());
        let mut reader = log.reader(0);
        let mut seen = Vec::new();
        while let Some((seq, _)) = reader.next().await {
            seen.push(seq);
        }
        assert_eq!(seen, [7, 8, 9, 10, 11]);
    }

    #[tokio::test]
    async fn an_attached_reader_loses_nothing_and_holds_the_writer_back() {
        let log = Log::new();
        let mut reader = log.reader(0);
        let writer = {
            let log = log.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    log.append(output(1 << 20)).await;
                }
                log.end(ended());
            })
        };
        tokio::task::yield_now().await;
        assert!(log.lock().held <= WINDOW);
        let mut count = 0;
        while let Some((seq, _)) = reader.next().await {
            count += 1;
            assert_eq!(seq, count);
        }
        assert_eq!(count, 21);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_frees_the_writer() {
        let log = Log::new();
        let reader = log.reader(0);
        let writer = {
            let log = log.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    log.append(output(1 << 20)).await;
                }
            })
        };
        tokio::task::yield_now().await;
        drop(reader);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn reading_goes_on_after_a_given_event() {
        let log = Log::new();
        log.append(ExecEvent::Started).await;
        log.append(output(1)).await;
        log.end(ended());
        let mut reader = log.reader(1);
        assert_eq!(reader.next().await.unwrap().0, 2);
        assert_eq!(reader.next().await.unwrap().0, 3);
        assert!(reader.next().await.is_none());
    }
}
