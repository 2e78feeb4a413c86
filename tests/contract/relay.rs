//! A far guest that lies: what it says is read by a guest in a box of its own, which ends at the first word out of turn.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use belljar::path::HostPath;
use belljar::sandbox::launcher::Launcher;
use belljar::sandbox::oci::{Machinery, SandboxError};
use belljar::sandbox::relay;
use belljar::sys::cgroup::Cgroups;

/// A frame: its length, its head, and what follows.
fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}

/// PID 1's first word, as a far guest of this version says it.
fn ready() -> Vec<u8> {
    frame(&[0, 0, u8::try_from(belljar_guest::VERSION).unwrap()])
}

/// Whether the near guest greets, and then ends, for a far one that says this.
async fn greets_and_ends(said: &[u8]) -> (bool, bool) {
    let state = tempfile::tempdir().unwrap();
    let machinery = Machinery {
        launcher: Arc::new(Mutex::new(
            Launcher::start(Path::new(env!("CARGO_BIN_EXE_belljar"))).unwrap(),
        )),
        cgroups: Arc::new(Cgroups::none("a test of the relay alone")),
        state: state.path().to_owned(),
    };
    let place = HostPath::new(state.path()).unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(said).unwrap();
    let greeted = relay::greet(&machinery, place, OwnedFd::from(near)).await;
    match greeted {
        Ok((_guest, near)) => {
            let ended = tokio::time::timeout(Duration::from_secs(20), near.readable()).await;
            (true, ended.is_ok())
        }
        Err(SandboxError::Channel { .. }) => (false, true),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_far_guest_that_never_says_who_it_is_is_not_believed() {
    for said in [
        frame(&[77, 1, 2, 3]),
        u32::MAX.to_le_bytes().to_vec(),
        // Another version.
        frame(&[0, 0, 99]),
        // A slot that nobody asked for.
        frame(&[0, 1, 0, 0]),
    ] {
        assert_eq!(greets_and_ends(&said).await, (false, true), "{said:?}");
    }
}

#[tokio::test]
async fn a_far_guest_that_speaks_out_of_turn_ends_its_sandbox() {
    for lie in [
        // A second first word.
        ready(),
        // A connection to a port that nobody listens on.
        frame(&[3, 0x80, 0x80, 0x80, 0x80, 0x08, 80]),
        // A listener that nobody asked for.
        frame(&[0, 3, 80, 0]),
        // A datagram to a port that nobody listens on.
        frame(&[4, 80, 127, 0, 0, 1, 5]),
        // A message that cannot be read.
        frame(&[0, 200]),
        // A length that no message has.
        u32::MAX.to_le_bytes().to_vec(),
    ] {
        let mut said = ready();
        said.extend(&lie);
        assert_eq!(greets_and_ends(&said).await, (true, true), "{lie:?}");
    }
}
