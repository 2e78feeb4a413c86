//! Very many connections at once through one proxy: how many it holds, what each costs, and whether all of them, and new ones beside
//! them, still get an answer.
//!
//! A tunnel has two ends in the proxy, and each end another one: so clients, proxy and server are three processes, and where the limit of
//! open files is lower than the crowd wants, the proxy has carriers beside it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use belljar::egress::room::Room;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ours::{Ours, read_address};
use crate::table::{Row, Unit};
use crate::{ECHO, HOST, connect_through};

/// With this as its first word the bench is the server.
pub const ROLE: &str = "crowd-server";

const WANTED: usize = 10_000;
/// Room that is left for those who come after the crowd.
const SPARE: usize = 64;
const BESIDE: usize = 300;

/// The server, ended when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the limit of open files allows fewer than are wanted, as many as it allows: the proxy keeps descriptors for the rest of
/// belljar, and refuses who comes then.
pub fn measure(folder: &Path) -> io::Result<[Row; 3]> {
    let fit = Room::of_process().free().saturating_sub(SPARE);
    let crowd = WANTED.min(fit);
    let mut child = Command::new(std::env::current_exe()?)
        .arg(ROLE)
        .stdout(Stdio::piped())
        .spawn()?;
    let address = read_address(&mut child)?;
    let server = Server { child, address };
    let ours = Ours::start(server.address, &folder.join("crowd"))?;
    let target = format!("{HOST}:{}", server.address.port());
    let connect = || connect_through(ours.address, &target);
    for _ in 0..100 {
        echo(&mut connect()?)?;
    }
    let before = ours.resident()?;
    let mut clients: Vec<TcpStream> = (0..crowd).map(|_| connect()).collect::<io::Result<_>>()?;
    let held = ours.resident()?.saturating_sub(before);
    let carriers = ours.carriers()?.len();
    let mut beside = Vec::with_capacity(BESIDE);
    for _ in 0..BESIDE {
        let start = Instant::now();
        echo(&mut connect()?)?;
        beside.push(start.elapsed());
    }
    beside.sort_unstable();
    for client in &mut clients {
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        echo(client)?;
    }
    let what = match crowd {
        WANTED => format!(
            "connections open at once through one proxy (in {} processes), each answered",
            carriers + 1
        ),
        _ => format!("connections open at once through one proxy, each answered (open files here allow {crowd})"),
    };
    Ok([
        Row::new(what, Unit::Count, Some(clients.len() as f64)).bound(crowd as f64),
        Row::new("memory of each of those", Unit::Bytes, Some(held as f64 / crowd as f64)),
        Row::seconds("connection set up beside those, p50", Some(beside[BESIDE / 2])),
    ])
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&[ECHO])?;
    stream.read_exact(&mut [0])
}

/// Is the server: every connection gets back what it sends.
pub fn be() -> io::Result<()> {
    // As many as it may hold.
    Room::of_process();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let mut stdout = io::stdout();
        writeln!(stdout, "{}", listener.local_addr()?)?;
        stdout.flush()?;
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await?;
            connections.spawn(async move {
                let mut byte = [0];
                while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
            });
            while connections.try_join_next().is_some() {}
        }
    })
}
