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
    let mut measured = vec![
        measure("direct", &|| TcpStream::connect(server))?,
        measure("belljar", &|| connect_through(ours.address, &target))?,
    ];
    drop(ours);
    for (name, start) in [("squid", start_squid as Start), ("tinyproxy", start_tinyproxy)] {
        match start(folder.path())? {
            Some(other) => {
                let target = server.to_string();
                measured.push(measure(name, &|| connect_through(other.address, &target))?);
            }
            None => println!("{name} is not installed"),
        }
    }
    let crowd = crowd::measure(folder.path())?;
    report(&measured, &crowd)
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
