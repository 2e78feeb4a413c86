//! Carriers: processes that carry tunnels on when this one has no descriptors left for more.
//!
//! ```text
//!   tunnel ── judged, recorded, dialled ──> Seat::carry ── both sockets ──> carrier (the guest's program, see its own `carrier`)
//!     │  first words heard here, and let pass   <── heard ──┐                   client <──> server
//!     │  account, policy, idleness stay here    <── moved, ended ───────────────┘
//! ```
//!
//! What a tunnel is stays here: its place among its task's, its account, and who watches over it. Only its bytes pass elsewhere, and a
//! client's first words only once they were read here. A carrier that dies takes its connections with it, and belljar that dies takes
//! its carriers.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use belljar_guest::{FromCarrier, HowEnded, MovedBytes, ToCarrier};
use bytes::BytesMut;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::account::Account;
use super::threads;
use crate::sys::{guest, packet, process};

/// How long a carrier may take to end a connection when it is told to; one that says nothing for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most that a client may have said before its connection is handed over: an order has to fit a packet.
pub(super) const EARLY_MAX: usize = 16 << 10;

/// Those that there are, and how many there may be.
#[derive(Debug)]
pub(super) struct Carriers {
    most: usize,
    each: usize,
    running: Mutex<Vec<Arc<Carrier>>>,
}

/// One process.
#[derive(Debug)]
struct Carrier {
    places: Arc<Semaphore>,
    /// Bounded by its places: a connection has one order that is not carried out yet, and the one to close it.
    orders: mpsc::UnboundedSender<Order>,
    table: Arc<Table>,
    next: AtomicU64,
    #[cfg(test)]
    process: u32,
}

/// The connections that it carries.
#[derive(Debug, Default)]
struct Table(Mutex<HashMap<u64, Entry>>);

struct Entry {
    /// It counts, and its end is not written before the last of its bytes is known.
    account: Arc<Account>,
    told: mpsc::UnboundedSender<Told>,
    /// Nobody waits for it any more.
    is_left: bool,
    _place: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}

enum Told {
    Heard(Vec<u8>),
    Ended(io::Result<()>),
}

struct Order {
    message: ToCarrier,
    sockets: Vec<OwnedFd>,
    /// Free when the sockets are closed here.
    _leaves: Option<OwnedSemaphorePermit>,
}

/// A place for one connection in a carrier.
#[derive(Debug)]
pub(super) struct Seat {
    carrier: Arc<Carrier>,
    /// There.
    place: OwnedSemaphorePermit,
    /// The place in this process that it leaves, once its sockets are gone from here.
    leaves: Option<OwnedSemaphorePermit>,
}

/// A connection that is carried elsewhere; it ends there when this is dropped.
pub(super) struct Carried {
    carrier: Arc<Carrier>,
    number: u64,
    told: mpsc::UnboundedReceiver<Told>,
}

impl Carriers {
    /// At most `most` of them, with `each` connections at once.
    pub fn new(most: usize, each: usize) -> Self {
        Self {
            most,
            each,
            running: Mutex::new(Vec::new()),
        }
    }

    /// Places that are free in all that there may be.
    pub fn free(&self) -> usize {
        let running = self.running();
        let free = running.iter().map(|carrier| carrier.places.available_permits());
        free.sum::<usize>() + (self.most - running.len()) * self.each
    }

    /// A seat in one of them; one is started where the others are full. `None` where there is none to be had.
    pub fn seat(&self) -> Option<Seat> {
        let mut running = self.running();
        let free = |carrier: &Arc<Carrier>| {
            let place = carrier.places.clone().try_acquire_owned().ok()?;
            let carrier = carrier.clone();
            Some(Seat {
                carrier,
                place,
                leaves: None,
            })
        };
        if let Some(found) = running.iter().find_map(free) {
            return Some(found);
        }
        if running.len() >= self.most {
            return None;
        }
        // A millisecond, once in very many connections.
        match Carrier::start(self.each) {
            Ok(carrier) => {
                let found = free(&carrier);
                running.push(carrier);
                found
            }
            Err(error) => {
                tracing::warn!(%error, "a process to carry connections could not be started");
                None
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, Vec<Arc<Carrier>>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|carrier| !carrier.orders.is_closed());
        running
    }

    /// Those that run.
    #[cfg(test)]
    pub fn processes(&self) -> Vec<u32> {
        self.running().iter().map(|carrier| carrier.process).collect()
    }
}

impl Carrier {
    fn start(places: usize) -> io::Result<Arc<Carrier>> {
        let (socket, theirs) = packet::pair()?;
        process::set_nonblocking(&socket)?;
        let serving = threads::next()?;
        let child = guest::start_carrier(theirs)?;
        let (orders, to_give) = mpsc::unbounded_channel();
        let table = Arc::new(Table::default());
        #[cfg(test)]
        let process = child.id();
        // It ends with the process, or when nobody has an order for it any more.
        serving.spawn(serve(socket, to_give, table.clone(), child));
        Ok(Arc::new(Carrier {
            places: Arc::new(Semaphore::new(places)),
            orders,
            table,
            next: AtomicU64::new(1),
            #[cfg(test)]
            process,
        }))
    }
}

/// Speaks with a carrier until it is gone, or not needed any more.
async fn serve(socket: OwnedFd, orders: mpsc::UnboundedReceiver<Order>, table: Arc<Table>, mut child: Child) {
    if let Err(error) = speak(socket, orders, &table).await {
        tracing::warn!(%error, "a process that carried connections is lost");
    }
    table.lose_all();
    // Without its socket it ends by itself; killed, it ends now, and is reaped.
    let reaped = tokio::task::spawn_blocking(move || {
        let _ = child.kill();
        child.wait()
    });
    let _ = reaped.await;
}

async fn speak(socket: OwnedFd, mut orders: mpsc::UnboundedReceiver<Order>, table: &Table) -> io::Result<()> {
    let socket = packet::watched(socket, Interest::READABLE | Interest::WRITABLE)?;
    let give = async {
        while let Some(Order { message, sockets, .. }) = orders.recv().await {
            let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            let send = |socket: &OwnedFd| packet::send(socket.as_fd(), &message, &fds);
            socket.async_io(Interest::WRITABLE, send).await?;
        }
        Ok::<(), io::Error>(())
    };
    tokio::select! {
        // What is said is always heard, also while an order waits: so neither side waits for the other.
        given = give => given?,
        heard = hear_all(&socket, table) => return heard,
    }
    // Nobody is left who could order anything; the last connections are ending.
    while !table.is_empty() {
        hear(&socket, table).await?;
    }
    Ok(())
}

async fn hear_all(socket: &AsyncFd<OwnedFd>, table: &Table) -> io::Result<()> {
    loop {
        hear(socket, table).await?;
    }
}

/// Takes what the carrier says next. Cancel-safe.
async fn hear(socket: &AsyncFd<OwnedFd>, table: &Table) -> io::Result<()> {
    let receive = |socket: &OwnedFd| packet::receive::<FromCarrier>(socket.as_fd());
    match tokio::time::timeout(PATIENCE, socket.async_io(Interest::READABLE, receive)).await {
        Ok(Ok(Some((said, _)))) => {
            table.take(said);
            Ok(())
        }
        Ok(Ok(None)) => Err(gone()),
        Ok(Err(error)) => Err(error),
        Err(_) if table.waits_for_an_end() => Err(io::Error::other("it does not end what it is told to end")),
        Err(_) => Ok(()),
    }
}

fn gone() -> io::Error {
    io::Error::other("the process that carried the connection is gone")
}

impl Table {
    fn entries(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    fn waits_for_an_end(&self) -> bool {
        self.entries().values().any(|entry| entry.is_left)
    }

    fn take(&self, said: FromCarrier) {
        let mut entries = self.entries();
        match said {
            FromCarrier::Heard { connection, bytes } => {
                if let Some(entry) = entries.get(&connection) {
                    // Who is not there to hear it has sent the order to close.
                    let _ = entry.told.send(Told::Heard(bytes));
                }
            }
            FromCarrier::Moved(moved) => {
                for (connection, bytes) in moved {
                    if let Some(entry) = entries.get(&connection) {
                        entry.count(bytes);
                    }
                }
            }
            FromCarrier::Ended { connection, bytes, how } => {
                let Some(entry) = entries.remove(&connection) else {
                    return;
                };
                drop(entries);
                entry.count(bytes);
                // It ended so, whether or not there is still somebody who waits for it.
                let ended = match how {
                    HowEnded::Done => {
                        entry.account.complete();
                        Ok(())
                    }
                    HowEnded::Closed => Ok(()),
                    HowEnded::Failed { errno } => {
                        let error = io::Error::from_raw_os_error(errno);
                        entry.account.fail(error.to_string());
                        Err(error)
                    }
                };
                let _ = entry.told.send(Told::Ended(ended));
            }
        }
    }

    /// Ends what was carried: the carrier is gone.
    fn lose_all(&self) {
        let lost = std::mem::take(&mut *self.entries());
        for entry in lost.into_values() {
            entry.account.fail(gone().to_string());
        }
    }
}

impl Entry {
    fn count(&self, bytes: MovedBytes) {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        self.account.add_sent(size(bytes.sent));
        self.account.add_received(size(bytes.received));
    }
}

impl Seat {
    /// With the place in this process that the connection had until now.
    pub fn leaving(self, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { leaves: place, ..self }
    }

    /// Hands a connection over. What its server says goes to its client from now on; `early`, and what the client says, waits to be
    /// heard and let pass.
    pub fn carry(
        self,
        (client, server): (TcpStream, TcpStream),
        early: &[u8],
        account: Arc<Account>,
    ) -> io::Result<Carried> {
        let Seat { carrier, place, leaves } = self;
        let number = carrier.next.fetch_add(1, Ordering::Relaxed);
        // Both stay as they are, and do not block.
        let sockets = vec![client.into_std()?.into(), server.into_std()?.into()];
        let (tell, told) = mpsc::unbounded_channel();
        let entry = Entry {
            account,
            told: tell,
            is_left: false,
            _place: place,
        };
        carrier.table.entries().insert(number, entry);
        let carried = Carried { carrier, number, told };
        let early = early.to_vec();
        let message = ToCarrier::Carry {
            connection: number,
            early,
        };
        carried.order(Order {
            message,
            sockets,
            _leaves: leaves,
        })?;
        Ok(carried)
    }
}

impl Carried {
    fn order(&self, order: Order) -> io::Result<()> {
        self.carrier.orders.send(order).map_err(|_| {
            // Its table may have been emptied before this one came into it.
            self.carrier.table.lose_all();
            gone()
        })
    }

    fn say(&self, message: ToCarrier) -> io::Result<()> {
        self.order(Order {
            message,
            sockets: Vec::new(),
            _leaves: None,
        })
    }

    /// Adds what the client says next; 0 bytes are its end.
    pub async fn hear(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        let connection = self.number;
        self.say(ToCarrier::Hear { connection })?;
        match self.told.recv().await.ok_or_else(gone)? {
            Told::Heard(bytes) => {
                into.extend_from_slice(&bytes);
                Ok(bytes.len())
            }
            Told::Ended(ended) => ended.map(|()| 0),
        }
    }

    /// Lets pass what the client said and will say, and waits for the end.
    pub async fn pass(mut self) -> io::Result<()> {
        let connection = self.number;
        self.say(ToCarrier::Pass { connection })?;
        loop {
            match self.told.recv().await.ok_or_else(gone)? {
                Told::Heard(_) => {}
                Told::Ended(ended) => return ended,
            }
        }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let connection = self.number;
        if let Some(entry) = self.carrier.table.entries().get_mut(&connection) {
            entry.is_left = true;
        } else {
            return;
        }
        // A carrier that is gone has closed it.
        let _ = self.say(ToCarrier::Close { connection });
    }
}

#[cfg(test)]
mod tests;
