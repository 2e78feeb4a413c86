//! A real registry of images (Debian's docker-registry) on loopback.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ended when it is dropped.
pub struct Registry {
    child: Child,
    pub port: u16,
}

impl Registry {
    /// In a folder of its own; `auth` is that part of its configuration, null for one that lets anybody in.
    pub fn start(folder: &Path, auth: serde_json::Value) -> Registry {
        // Free a moment ago; the registry cannot choose one by itself.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut config = serde_json::json!({
            "version": 0.1,
            "log": { "level": "error" },
            "storage": { "filesystem": { "rootdirectory": folder.join("registry") } },
            "http": { "addr": format!("127.0.0.1:{port}") },
        });
        if !auth.is_null() {
            config["auth"] = auth;
        }
        // JSON is YAML too.
        std::fs::write(folder.join("config.yml"), config.to_string()).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed (tools/setup.sh test)");
        let mut registry = Registry { child, port };
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                registry.child.try_wait().unwrap().is_none(),
                "the registry did not start"
            );
            std::thread::yield_now();
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
