//! belljar's proxy as a task has it, in a process of its own: judging, checking addresses, and writing into a real journal. Only the
//! dialler leads the checked public address to loopback.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use belljar::audit::journal::{Journal, JournalOptions};
use belljar::audit::record::{Entry, Event};
use belljar::egress::dial::Dialler;
use belljar::egress::gate::{Clearance, Route};
use belljar::egress::resolve::{ResolveError, Resolved, Resolver};
use belljar::egress::{
    End, Gate, Listeners, NobodyToAsk, OwnAddresses, Parts, Proxy, ProxyHandle, RecordError, Recorder, Unattributed,
    threads,
};
use belljar::id::{ExecId, TaskId};
use belljar::task::{Network, NetworkMode, Unknown};
use futures_util::future::BoxFuture;

/// With this as its first word the bench is the proxy: `ours SERVER FOLDER`.
pub const ROLE: &str = "ours";

/// The proxy, ended when dropped.
pub struct Ours {
    child: Child,
    pub address: SocketAddr,
}

impl Ours {
    pub fn start(server: SocketAddr, folder: &Path) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([ROLE, &server.to_string()])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let address = read_address(&mut child)?;
        Ok(Self { child, address })
    }

    /// Bytes of memory that it and its carriers hold.
    pub fn resident(&self) -> io::Result<u64> {
        let mut bytes = resident(self.child.id())?;
        for carrier in self.carriers()? {
            bytes += resident(carrier)?;
        }
        Ok(bytes)
    }

    /// Processes that carry connections for it.
    pub fn carriers(&self) -> io::Result<Vec<u32>> {
        let mut children = Vec::new();
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let list = std::fs::read_to_string(thread?.path().join("children"))?;
            children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        Ok(children)
    }
}

fn resident(process: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no VmRSS"))
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line that a child of the bench says.
pub fn read_address(child: &mut Child) -> io::Result<SocketAddr> {
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("a child has no stdout"))?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    line.trim().parse().map_err(io::Error::other)
}

/// Is the proxy until standard input ends.
pub fn be(mut words: impl Iterator<Item = String>) -> io::Result<()> {
    let (Some(server), Some(folder)) = (words.next(), words.next()) else {
        return Err(io::Error::other("ours SERVER FOLDER"));
    };
    let server = server.parse().map_err(io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (handle, address) = runtime.block_on(start(server, Path::new(&folder)))?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{address}")?;
    stdout.flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    runtime.block_on(handle.shutdown());
    Ok(())
}

async fn start(server: SocketAddr, folder: &Path) -> io::Result<(ProxyHandle, SocketAddr)> {
    let network = Network {
        mode: NetworkMode::Proxy,
        allow: vec!["**.example.com:*".to_owned()],
        deny: vec!["denied.example.com".to_owned()],
        unknown: Unknown::Deny,
        ..Network::default()
    };
    let gate = Gate::new(&network, Vec::new(), OwnAddresses::system()).map_err(io::Error::other)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let listeners = Listeners {
        http: Some(listener),
        ..Listeners::default()
    };
    let recorder = Arc::new(ToJournal {
        task: TaskId::new(),
        journal: Journal::open(folder, JournalOptions::default()).map_err(io::Error::other)?,
    });
    let mut parts = Parts::new(Arc::new(gate), recorder, Arc::new(NobodyToAsk));
    parts.attribution = Arc::new(Unattributed);
    parts.resolver = Arc::new(OnePublicAddress);
    parts.dialler = Arc::new(ToLoopback(server));
    parts.runtime = threads::next()?;
    Ok((Proxy::start(listeners, parts)?, address))
}

struct ToJournal {
    task: TaskId,
    journal: Journal,
}

impl ToJournal {
    fn entry(&self, exec: Option<ExecId>, event: Event) -> Entry {
        Entry {
            task: Some(self.task),
            exec,
            event,
        }
    }
}

impl Recorder for ToJournal {
    fn record(&self, exec: Option<ExecId>, event: Event) -> BoxFuture<'_, Result<(), RecordError>> {
        let entry = self.entry(exec, event);
        Box::pin(async move {
            let written = self.journal.append(entry).await;
            written.map(drop).map_err(|error| RecordError(Box::new(error)))
        })
    }

    fn record_all(&self, events: Vec<End>) -> BoxFuture<'_, Result<(), RecordError>> {
        let entries = events.into_iter().map(|End { exec, event }| self.entry(exec, event));
        let entries = entries.collect();
        Box::pin(async move {
            let written = self.journal.append_batch(entries).await;
            written.map_err(|error| RecordError(Box::new(error)))
        })
    }
}

struct OnePublicAddress;

impl Resolver for OnePublicAddress {
    fn resolve<'a>(&'a self, _: &'a Clearance) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34))].into()) })
    }
}

struct ToLoopback(SocketAddr);

impl Dialler for ToLoopback {
    fn dial<'a>(&'a self, _: &'a Route) -> BoxFuture<'a, io::Result<tokio::net::TcpStream>> {
        Box::pin(async {
            let stream = tokio::net::TcpStream::connect(self.0).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }
}
