use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self, LocalModes, Winsize};

use crate::belljar;

/// A pseudo-terminal: our end, and the one that belljar gets.
pub fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let size = Winsize {
        ws_row: 31,
        ws_col: 97,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    termios::tcsetwinsize(&theirs, size).unwrap();
    (File::from(ours), theirs.into())
}

/// Reads until some text was seen; gives all of it.
pub fn until(terminal: &mut File, text: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&seen).contains(text) {
        let n = terminal.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
fn a_command_at_a_terminal_has_its_size_and_the_old_mode_comes_back() {
    let state = tempfile::tempdir().unwrap();
    let (mut ours, theirs) = terminal();
    let mode = || termios::tcgetattr(&theirs).unwrap().local_modes & (LocalModes::ICANON | LocalModes::ECHO);
    let before = mode();
    let mut child = belljar(state.path())
        .args([
            "run",
            "-q",
            "-i",
            "-t",
            "--",
            "sh",
            "-c",
            "stty size; read x; echo got $x",
        ])
        .stdin(theirs.try_clone().unwrap())
        .stdout(theirs.try_clone().unwrap())
        .spawn()
        .unwrap();
    until(&mut ours, "31 97");
    assert!(mode().is_empty(), "the terminal is raw while the command has it");
    ours.write_all(b"hello\r").unwrap();
    until(&mut ours, "got hello");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(mode(), before);
}
