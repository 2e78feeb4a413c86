//! The way out against none and against other proxies: time to set a connection up, and bytes a second through one.
//!
//! Every proxy carries a CONNECT to the same loopback server. belljar's judges, records (as JSON lines to a file) and checks
//! addresses as it does for a task; only the dialler leads the checked public address to loopback. squid and tinyproxy run
//! where they are installed.

#[path = "table/mod.rs"]
mod table;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use belljar::audit::record::Event;
use belljar::egress::dial::Dialler;
use belljar::egress::gate::{Clearance, Route};
use belljar::egress::resolve::{ResolveError, Resolver};
use belljar::egress::room::Room;
use belljar::egress::{
    Gate, Limits, Listeners, NobodyToAsk, OwnAddresses, Parts, Proxy, ProxyHandle, RecordError, Recorder, Unattributed,
};
use belljar::id::ExecId;
use belljar::task::{Network, NetworkMode, Unknown};
use futures_util::future::BoxFuture;
use table::{Row, Unit};

const SETUPS: usize = 3000;
const WARM_UP: usize = 300;
const BYTES: u64 = 2 << 30;
const HOST: &str = "server.example.com";

/// What a client says first: one echo, or a flood.
const ECHO: u8 = b'e';
const FLOOD: u8 = b'f';

struct Measured {
    name: &'static str,
    setup_p50: Duration,
    setup_p99: Duration,
    bytes_per_second: f64,
}

fn main() -> io::Result<()> {
    let server = serve()?;
    let folder = tempfile::tempdir()?;
    // squid gives root up for a user of its own, who writes its logs here.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (handle, belljar) = runtime.block_on(start_belljar(server, folder.path()))?;

    let mut measured = vec![
        measure("direct", &|| TcpStream::connect(server))?,
        measure("belljar", &|| {
            connect_through(belljar, &format!("{HOST}:{}", server.port()))
        })?,
    ];
    for (name, start) in [("squid", start_squid as Start), ("tinyproxy", start_tinyproxy)] {
        match start(folder.path())? {
            Some(other) => {
                let target = server.to_string();
                measured.push(measure(name, &|| connect_through(other.address, &target))?);
            }
            None => println!("{name} is not installed"),
        }
    }
    runtime.block_on(handle.shutdown());
    report(&measured)
}

fn measure(name: &'static str, connect: &dyn Fn() -> io::Result<TcpStream>) -> io::Result<Measured> {
    let mut times = Vec::with_capacity(SETUPS);
    for round in 0..WARM_UP + SETUPS {
        let start = Instant::now();
        let mut stream = connect()?;
        stream.write_all(&[ECHO])?;
        stream.read_exact(&mut [0])?;
        if round >= WARM_UP {
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    let mut stream = connect()?;
    stream.write_all(&[FLOOD])?;
    let mut buffer = vec![0; 1 << 20];
    let (start, mut received) = (Instant::now(), 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            length => received += length as u64,
        }
    }
    assert_eq!(received, BYTES, "{name} lost bytes");
    Ok(Measured {
        name,
        setup_p50: times[SETUPS / 2],
        setup_p99: times[SETUPS * 99 / 100],
        bytes_per_second: received as f64 / start.elapsed().as_secs_f64(),
    })
}

fn report(measured: &[Measured]) -> io::Result<()> {
    let of = |name: &str, value: fn(&Measured) -> f64| measured.iter().find(|one| one.name == name).map(value);
    let setup: fn(&Measured) -> f64 = |one| one.setup_p50.as_secs_f64();
    let tail: fn(&Measured) -> f64 = |one| one.setup_p99.as_secs_f64();
    let rate: fn(&Measured) -> f64 = |one| one.bytes_per_second;
    let row = |what, unit, value| Row::new(what, unit, of("belljar", value)).beside("direct", of("direct", value));
    let rows = [
        row(
            "proxied connection set up, judged and recorded, p50",
            Unit::Seconds,
            setup,
        )
        .bound(250e-6)
        .against("squid", of("squid", setup), 1.0)
        .beside("tinyproxy", of("tinyproxy", setup)),
        row("the same, p99", Unit::Seconds, tail),
        row("proxied throughput", Unit::BytesPerSecond, rate)
            .against("squid", of("squid", rate), 1.2)
            .against("tinyproxy", of("tinyproxy", rate), 2.0),
    ];
    table::report("egress", &rows)
}

/// A server on loopback that echoes one byte, or floods and closes.
fn serve() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer(stream));
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut wish = [0];
    stream.read_exact(&mut wish)?;
    if wish[0] == ECHO {
        return stream.write_all(&wish);
    }
    let block = vec![7; 1 << 20];
    for _ in 0..BYTES / block.len() as u64 {
        stream.write_all(&block)?;
    }
    Ok(())
}

fn connect_through(proxy: SocketAddr, target: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy)?;
    stream.set_nodelay(true)?;
    write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")?;
    let mut head = Vec::new();
    let mut block = [0; 512];
    while !head.ends_with(b"\r\n\r\n") {
        let length = stream.read(&mut block)?;
        if length == 0 {
            break;
        }
        head.extend_from_slice(&block[..length]);
    }
    if !head.starts_with(b"HTTP/1.1 200") && !head.starts_with(b"HTTP/1.0 200") {
        return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
    }
    Ok(stream)
}

async fn start_belljar(server: SocketAddr, folder: &Path) -> io::Result<(ProxyHandle, SocketAddr)> {
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
    let parts = Parts {
        gate: Arc::new(gate),
        recorder: Arc::new(FileRecorder(Mutex::new(File::create(folder.join("records.jsonl"))?))),
        asker: Arc::new(NobodyToAsk),
        attribution: Arc::new(Unattributed),
        resolver: Arc::new(OnePublicAddress),
        dialler: Arc::new(ToLoopback(server)),
        limits: Limits::default(),
        inspection: None,
        store: None,
        room: Room::of_process(),
    };
    Ok((Proxy::start(listeners, parts)?, address))
}

struct FileRecorder(Mutex<File>);

impl Recorder for FileRecorder {
    fn record(&self, _: Option<ExecId>, event: Event) -> BoxFuture<'_, Result<(), RecordError>> {
        Box::pin(async move {
            let mut line = serde_json::to_vec(&event).map_err(|error| RecordError(Box::new(error)))?;
            line.push(b'\n');
            let mut file = self.0.lock().expect("no writer falls over");
            file.write_all(&line).map_err(|error| RecordError(Box::new(error)))
        })
    }
}

struct OnePublicAddress;

impl Resolver for OnePublicAddress {
    fn resolve<'a>(&'a self, _: &'a Clearance) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34))]) })
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

type Start = fn(&Path) -> io::Result<Option<Other>>;

/// Another proxy, ended when dropped.
struct Other {
    child: Child,
    address: SocketAddr,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_squid(folder: &Path) -> io::Result<Option<Other>> {
    let address = free_address()?;
    let config = folder.join("squid.conf");
    let folder = folder.display();
    std::fs::write(
        &config,
        format!(
            "http_port {address}\nacl all_ports port 1-65535\nhttp_access allow all_ports\ncache deny all\nworkers 1\n\
             pid_filename {folder}/squid.pid\naccess_log stdio:{folder}/access.log\ncache_log {folder}/cache.log\n\
             coredump_dir {folder}\nshutdown_lifetime 0 seconds\n"
        ),
    )?;
    start("squid", &["-N", "-f", &config.to_string_lossy()], address)
}

fn start_tinyproxy(folder: &Path) -> io::Result<Option<Other>> {
    let address = free_address()?;
    let config = folder.join("tinyproxy.conf");
    let log = folder.join("tinyproxy.log");
    std::fs::write(
        &config,
        format!(
            "Port {}\nListen {}\nTimeout 600\nLogLevel Connect\nLogFile \"{}\"\nMaxClients 1000\n",
            address.port(),
            address.ip(),
            log.display()
        ),
    )?;
    start("tinyproxy", &["-d", "-c", &config.to_string_lossy()], address)
}

fn start(program: &str, args: &[&str], address: SocketAddr) -> io::Result<Option<Other>> {
    let child = Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let other = match child {
        Ok(child) => Other { child, address },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("{program} does not listen")));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(Some(other))
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
