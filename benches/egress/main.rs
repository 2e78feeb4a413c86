//! The way out against none and against other proxies: time to set a connection up, and bytes a second through one.
//!
//! Every proxy carries a CONNECT to the same loopback server, and each is a process of its own. belljar's judges, writes into a
//! journal and checks addresses as it does for a task. squid and tinyproxy, which write a line to a log, run where they are
//! installed.

mod crowd;
mod ours;
mod peers;
#[path = "../table/mod.rs"]
mod table;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use ours::Ours;
use peers::{Start, start_squid, start_tinyproxy};
use table::{Row, Unit};

/// Every contender sets up so many in turn, and all of them so many turns: what else a machine does meets all alike.
const IN_TURN: usize = 200;
const TURNS: usize = 15;
const WARM_UP: usize = 300;
const BYTES: u64 = 2 << 30;
const HOST: &str = "server.example.com";

/// What a client says first: one echo, or a flood.
const ECHO: u8 = b'e';
const FLOOD: u8 = b'f';

/// One way to the server.
struct Way {
    name: &'static str,
    connect: Box<dyn Fn() -> io::Result<TcpStream>>,
    setups: Vec<Duration>,
    bytes_per_second: f64,
}

fn main() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some(ours::ROLE) => ours::be(words),
        Some(crowd::ROLE) => crowd::be(),
        _ => compare(),
    }
}

fn compare() -> io::Result<()> {
    let server = serve()?;
    let folder = tempfile::tempdir()?;
    // squid gives root up for a user of its own, who writes its logs here.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777))?;
    let ours = Ours::start(server, &folder.path().join("ours"))?;
    let target = format!("{HOST}:{}", server.port());
    let address = ours.address;
    let mut others = Vec::new();
    let mut ways = vec![
        Way::new("direct", move || TcpStream::connect(server)),
        Way::new("belljar", move || connect_through(address, &target)),
    ];
    for (name, start) in [("squid", start_squid as Start), ("tinyproxy", start_tinyproxy)] {
        match start(folder.path())? {
            Some(other) => {
                let (address, target) = (other.address, server.to_string());
                ways.push(Way::new(name, move || connect_through(address, &target)));
                others.push(other);
            }
            None => println!("{name} is not installed"),
        }
    }
    for way in &ways {
        way.set_up(WARM_UP)?;
    }
    for _ in 0..TURNS {
        for way in &mut ways {
            let times = way.set_up(IN_TURN)?;
            way.setups.extend(times);
        }
    }
    for way in &mut ways {
        way.setups.sort_unstable();
        way.bytes_per_second = way.flood()?;
    }
    let measured: Vec<Measured> = ways.iter().map(Measured::of).collect();
    drop((ours, others));
    let crowd = crowd::measure(folder.path())?;
    report(&measured, &crowd)
}

impl Way {
    fn new(name: &'static str, connect: impl Fn() -> io::Result<TcpStream> + 'static) -> Self {
        Self {
            name,
            connect: Box::new(connect),
            setups: Vec::with_capacity(IN_TURN * TURNS),
            bytes_per_second: 0.0,
        }
    }

    /// Connects so many times, each to its first echo.
    fn set_up(&self, rounds: usize) -> io::Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let start = Instant::now();
            let mut stream = (self.connect)()?;
            stream.write_all(&[ECHO])?;
            stream.read_exact(&mut [0])?;
            times.push(start.elapsed());
        }
        Ok(times)
    }

    /// Bytes a second of one connection.
    fn flood(&self) -> io::Result<f64> {
        let mut stream = (self.connect)()?;
        stream.write_all(&[FLOOD])?;
        let mut buffer = vec![0; 1 << 20];
        let (start, mut received) = (Instant::now(), 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                length => received += length as u64,
            }
        }
        assert_eq!(received, BYTES, "{} lost bytes", self.name);
        Ok(received as f64 / start.elapsed().as_secs_f64())
    }
}

struct Measured {
    name: &'static str,
    setup_p50: Duration,
    setup_p99: Duration,
    bytes_per_second: f64,
}

impl Measured {
    fn of(way: &Way) -> Self {
        let count = way.setups.len();
        Self {
            name: way.name,
            setup_p50: way.setups[count / 2],
            setup_p99: way.setups[count * 99 / 100],
            bytes_per_second: way.bytes_per_second,
        }
    }
}

fn report(measured: &[Measured], crowd: &[Row]) -> io::Result<()> {
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
    let all: Vec<Row> = rows.iter().chain(crowd).cloned().collect();
    table::report("egress", &all)
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
    // In one piece, as programs send it.
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
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
