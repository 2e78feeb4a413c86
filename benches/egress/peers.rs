//! Other proxies, each with a configuration that does no more than ours has to, and ended when dropped.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub type Start = fn(&Path) -> io::Result<Option<Other>>;

/// Another proxy, ended when dropped.
pub struct Other {
    child: Child,
    pub address: SocketAddr,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn start_squid(folder: &Path) -> io::Result<Option<Other>> {
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

pub fn start_tinyproxy(folder: &Path) -> io::Result<Option<Other>> {
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
