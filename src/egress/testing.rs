//! A proxy between a test client and test servers, all on loopback.
//!
//! Loopback is closed to the proxy, so servers get public addresses here: the resolver answers with them, the gate judges
//! them as it would judge any, and the dialler of the fixture alone leads them to a loopback server. Production has no such
//! dialler.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

use super::ask::{Asker, EgressQuestion, NobodyToAsk, Told};
use super::cache::Store;
use super::client::Unattributed;
use super::dial::Dialler;
use super::gate::{Clearance, Gate, NetworkRule, OwnAddresses, Route};
use super::limits::Limits;
use super::resolve::{ResolveError, Resolved, Resolver};
use super::room::Room;
use super::tls::Inspection;
use super::way::{RecordError, Recorder};
use super::{Listeners, Parts, Proxy, ProxyHandle};
use crate::audit::record::Event;
use crate::id::ExecId;
use crate::task::{HostRule, Network, NetworkMode, Unknown};

/// Where names of the tests resolve to.
pub const PUBLIC: &str = "93.184.216.34";

/// What the proxy did, in order.
#[derive(Default)]
pub struct Seen {
    pub events: Mutex<Vec<Event>>,
    pub resolved: Mutex<Vec<String>>,
    pub dialled: Mutex<Vec<SocketAddr>>,
    /// Until this is said, names that start with `held.` do not resolve, and those that start with `far.` are not reached.
    pub release: watch::Sender<bool>,
    /// The order of all of it: `record allow`, `resolve a.example.com`, `dial 93.184.216.34:443`.
    pub order: Mutex<Vec<String>>,
}

impl Seen {
    async fn held(&self) {
        let _ = self.release.subscribe().wait_for(|released| *released).await;
    }
}

pub struct Options<'a> {
    pub allow: &'a [&'a str],
    pub deny: &'a [&'a str],
    pub unknown: Unknown,
    pub rules: Vec<NetworkRule>,
    pub limits: Limits,
    pub room: Room,
    pub asker: Arc<dyn Asker>,
    pub recorder: fn(&Event) -> bool,
    /// Further answers by name; one a question, the last for good.
    pub answers: &'a [(&'a str, &'a [&'a [&'a str]])],
    pub hosts: Vec<HostRule>,
    pub inspection: Option<Arc<Inspection>>,
    pub mode: NetworkMode,
    pub store: Option<Arc<Store>>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            allow: &["*.example.com"],
            deny: &["denied.example.com"],
            unknown: Unknown::Deny,
            rules: Vec::new(),
            limits: Limits::default(),
            room: Room::of_process(),
            asker: Arc::new(NobodyToAsk),
            recorder: |_| true,
            answers: &[],
            hosts: Vec::new(),
            inspection: None,
            mode: NetworkMode::Proxy,
            store: None,
        }
    }
}

pub struct Fixture {
    pub http: SocketAddr,
    pub socks: SocketAddr,
    pub dns_tcp: SocketAddr,
    pub dns_udp: SocketAddr,
    pub seen: Arc<Seen>,
    pub handle: ProxyHandle,
    pub server: TcpListener,
    /// Where datagrams of flows arrive.
    pub datagrams: UdpSocket,
}

pub fn gate(allow: &[&str], deny: &[&str], unknown: Unknown, rules: Vec<NetworkRule>) -> Arc<Gate> {
    gate_with_hosts((allow, deny), unknown, rules, (NetworkMode::Proxy, Vec::new()))
}

fn gate_with_hosts(
    (allow, deny): (&[&str], &[&str]),
    unknown: Unknown,
    rules: Vec<NetworkRule>,
    (mode, hosts): (NetworkMode, Vec<HostRule>),
) -> Arc<Gate> {
    let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    let network = Network {
        mode,
        allow: owned(allow),
        deny: owned(deny),
        unknown,
        hosts,
        ..Network::default()
    };
    Arc::new(Gate::new(&network, rules, OwnAddresses::fixed(&["127.0.0.1"])).unwrap())
}

impl Fixture {
    pub async fn start(options: Options<'_>) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = Listeners {
            http: Some(listen()),
            socks: Some(listen()),
            socks_udp: Some(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()),
            dns_tcp: Some(listen()),
            dns_udp: Some(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()),
        };
        let at = |listener: &Option<std::net::TcpListener>| listener.as_ref().unwrap().local_addr().unwrap();
        let (http, socks, dns_tcp) = (at(&listeners.http), at(&listeners.socks), at(&listeners.dns_tcp));
        let dns_udp = listeners.dns_udp.as_ref().unwrap().local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        let answers = options
            .answers
            .iter()
            .map(|&(name, rounds)| (name.to_owned(), rounds.iter().map(|round| parse(round)).collect()));
        let parts = Parts {
            gate: gate_with_hosts(
                (options.allow, options.deny),
                options.unknown,
                options.rules,
                (options.mode, options.hosts),
            ),
            recorder: Arc::new(TestRecorder(seen.clone(), options.recorder)),
            asker: options.asker,
            attribution: Arc::new(Unattributed),
            resolver: Arc::new(TestResolver(seen.clone(), Mutex::new(answers.collect()))),
            dialler: Arc::new(TestDialler(
                seen.clone(),
                server.local_addr().unwrap(),
                datagrams.local_addr().unwrap(),
            )),
            limits: options.limits,
            inspection: options.inspection,
            store: options.store,
            room: options.room,
            runtime: tokio::runtime::Handle::current(),
        };
        let handle = Proxy::start(listeners, parts).unwrap();
        Self {
            http,
            socks,
            dns_tcp,
            dns_udp,
            seen,
            handle,
            server,
            datagrams,
        }
    }

    /// Sends bytes to the HTTP front and gives the stream.
    pub async fn send(&self, bytes: impl AsRef<[u8]>) -> TcpStream {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        stream
    }

    /// Sends bytes to the HTTP front and gives all that comes back until it closes.
    pub async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.send(bytes).await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// Takes the servers' listener out, for a task that serves on it.
    pub async fn take_server(&mut self) -> TcpListener {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        std::mem::replace(&mut self.server, other)
    }

    pub fn way(&self) -> &super::way::Way {
        &self.handle.way
    }

    /// Stops the proxy and gives the records of all that it did.
    pub async fn finish(self) -> (Vec<Event>, Arc<Seen>) {
        self.handle.shutdown().await;
        let events = std::mem::take(&mut *self.seen.events.lock().unwrap());
        (events, self.seen)
    }
}

/// Opens a tunnel, with the client's and the server's end.
pub async fn tunnel(fixture: &Fixture, host: &str, port: u16) -> (TcpStream, TcpStream) {
    let mut client = fixture
        .send(format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"))
        .await;
    let (server, _) = fixture.server.accept().await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    (client, server)
}

/// Reads up to the end of a head.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

struct TestRecorder(Arc<Seen>, fn(&Event) -> bool);

impl Recorder for TestRecorder {
    fn record(&self, _: Option<ExecId>, event: Event) -> BoxFuture<'_, Result<(), RecordError>> {
        Box::pin(async move {
            if !(self.1)(&event) {
                return Err(RecordError("the disk is full".into()));
            }
            let word = match &event {
                Event::EgressJudged { decision, .. } => format!("record {decision}"),
                other => format!("record {}", other.kind()),
            };
            self.0.order.lock().unwrap().push(word);
            self.0.events.lock().unwrap().push(event);
            Ok(())
        })
    }
}

type Answers = HashMap<String, Vec<Vec<IpAddr>>>;

struct TestResolver(Arc<Seen>, Mutex<Answers>);

impl Resolver for TestResolver {
    fn resolve<'a>(&'a self, clearance: &'a Clearance) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(async move {
            let name = clearance.name().as_str().to_owned();
            self.0.order.lock().unwrap().push(format!("resolve {name}"));
            self.0.resolved.lock().unwrap().push(name.clone());
            if name.starts_with("held.") {
                self.0.held().await;
            }
            let mut answers = self.1.lock().unwrap();
            let addresses = match answers.get_mut(&name) {
                Some(rounds) if rounds.len() > 1 => rounds.remove(0),
                Some(rounds) => rounds[0].clone(),
                None => vec![PUBLIC.parse().unwrap()],
            };
            Ok(addresses.into())
        })
    }
}

struct TestDialler(Arc<Seen>, SocketAddr, SocketAddr);

impl Dialler for TestDialler {
    fn dial<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(async move {
            let address = route.addresses()[0];
            self.0.order.lock().unwrap().push(format!("dial {address}"));
            self.0.dialled.lock().unwrap().push(address);
            if route.destination().host.to_string().starts_with("far.") {
                self.0.held().await;
            }
            TcpStream::connect(self.1).await
        })
    }

    fn dial_datagrams<'a>(&'a self, _: &'a Route) -> BoxFuture<'a, io::Result<UdpSocket>> {
        Box::pin(async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await?;
            socket.connect(self.2).await?;
            Ok(socket)
        })
    }
}

/// Keeps questions until the test answers them.
#[derive(Default)]
pub struct Desk {
    pub questions: Mutex<Vec<(EgressQuestion, tokio::sync::oneshot::Sender<Told>)>>,
    pub asked: tokio::sync::Notify,
}

impl Asker for Desk {
    fn ask(&self, question: EgressQuestion) -> BoxFuture<'static, Told> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.questions.lock().unwrap().push((question, answer));
        self.asked.notify_one();
        Box::pin(async move { answered.await.unwrap() })
    }
}
