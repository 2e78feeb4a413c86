//! The threads that proxies are served on.
//!
//! A connection passes through one thread: on the threads that all other work shares, each step of it would wake another one, which
//! takes longer than the step. There are a few, each with an event loop of its own; a task's proxy stays on one of them. They ask for
//! short turns: each step wakes a client or a server, which would run in their place.

use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle};

use crate::sys::process;

/// More than this many do not help: each moves gigabytes a second.
const MOST: usize = 4;

struct Threads {
    loops: Vec<Handle>,
    /// How many proxies were given a thread.
    given: usize,
}

static THREADS: Mutex<Threads> = Mutex::new(Threads {
    loops: Vec::new(),
    given: 0,
});

/// The event loop for one more proxy. Its thread is made when it is first needed, and ends with the process.
pub fn next() -> io::Result<Handle> {
    let most = std::thread::available_parallelism().map_or(1, usize::from).min(MOST);
    let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    let Threads { loops, given } = &mut *threads;
    let place = *given % most;
    if place == loops.len() {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        loops.push(runtime.handle().clone());
        // Joined by nobody: every connection that it serves belongs to a proxy that is shut down by itself.
        std::thread::Builder::new()
            .name("belljar-egress".to_owned())
            .spawn(move || {
                // Where the kernel does not do that it is as fast as others are.
                let _ = process::prefer_short_turns();
                runtime.block_on(std::future::pending::<()>());
            })?;
    }
    *given += 1;
    Ok(loops[place].clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_take_turns_on_as_many_threads_as_there_are_processors_for() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from).min(MOST);
        let names: Vec<String> = (0..2 * processors)
            .map(|_| {
                let (tell, told) = std::sync::mpsc::channel();
                next().unwrap().spawn(async move {
                    let thread = std::thread::current();
                    tell.send(format!("{:?} {:?}", thread.name(), thread.id())).unwrap();
                });
                told.recv().unwrap()
            })
            .collect();
        assert!(names.iter().all(|name| name.contains("belljar-egress")), "{names:?}");
        assert_eq!(names[..processors], names[processors..]);
        let different: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(different.len(), processors);
    }
}
