//! Packet sockets (`SOCK_SEQPACKET`) that carry one message and its descriptors a packet; memory files and pipes.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use belljar_guest::{Encoded, FDS_MAX, MESSAGE_MAX, PACKET_MAX, decode, encode};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with this runtime's reactor. The descriptor must not block.
#[allow(unsafe_code)]
pub fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one open descriptor until it is dropped, and `AsyncFd` deregisters it before it drops it; nobody can
    // swap it for another one in between, for it is only ever lent out by reference.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Two connected ends, both close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((a, b))
}

/// Sends one message; one that is too large for a packet travels in a sealed memory file.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    match encode(message) {
        Encoded::Packet(packet) => send_raw(socket, &packet, fds),
        Encoded::Large(body) => {
            if body.len() > MESSAGE_MAX {
                return Err(ErrorKind::ArgumentListTooLong.into());
            }
            let file = memory_file("message", &body)?;
            let mut all = fds.to_vec();
            all.push(file.as_fd());
            send_raw(socket, &[1], &all)
        }
    }
}

fn send_raw(socket: BorrowedFd<'_>, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ErrorKind::InvalidInput.into());
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message and its descriptors; `None` when the other side is gone.
///
/// What is received is hostile: it is bounded before it is allocated, and anything that does not read back whole is
/// [`ErrorKind::InvalidData`].
pub fn receive<T: for<'de> Deserialize<'de>>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; PACKET_MAX + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(ErrorKind::InvalidData.into());
    }
    let body = match &buffer[..received.bytes] {
        [] => return Ok(None),
        [0, body @ ..] => decode(body),
        [1] => decode(&read_memory_file(fds.pop().ok_or(ErrorKind::InvalidData)?)?),
        _ => return Err(ErrorKind::InvalidData.into()),
    };
    body.map(|message| Some((message, fds)))
        .map_err(|_| ErrorKind::InvalidData.into())
}

/// A file that lives in memory only, sealed: nobody can change it any more.
pub fn memory_file(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    let fd = OwnedFd::from(file);
    fcntl_add_seals(
        &fd,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(fd)
}

fn read_memory_file(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let size = rustix::fs::fstat(&fd)?.st_size;
    if size < 0 || size as usize > MESSAGE_MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut content = vec![0; size as usize];
    let mut done = 0;
    while done < content.len() {
        match rustix::io::pread(&fd, &mut content[done..], done as u64)? {
            0 => return Err(ErrorKind::InvalidData.into()),
            read => done += read,
        }
    }
    Ok(content)
}

/// A pipe: the end to read from, which does not block, and the end to write to, which does. As large as one asks for, where the
/// user's share of pipe memory allows it.
pub fn output_pipe(bytes: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Beyond the user's share (pipe(7), pipe-user-pages-soft) the kernel keeps the small size; it works, only slower.
    let _ = fcntl_setpipe_size(&write, bytes);
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

/// A pipe to feed a command: the end to read from, which blocks, and the end to write to, which does not.
pub fn input_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    Ok((read, write))
}

/// A plain pipe whose ends are both close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use belljar_guest::{FromInit, ToSlot};

    use super::*;

    #[test]
    fn a_message_and_its_descriptors_arrive() {
        let (a, b) = pair().unwrap();
        let (read, write) = pipe().unwrap();
        send(a.as_fd(), &ToSlot::Signal { signal: 15 }, &[write.as_fd()]).unwrap();
        drop(write);
        let (message, fds) = receive::<ToSlot>(b.as_fd()).unwrap().unwrap();
        assert_eq!(message, ToSlot::Signal { signal: 15 });
        File::from(fds.into_iter().next().unwrap()).write_all(b"x").unwrap();
        let mut byte = [0; 1];
        assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 1);
    }

    #[test]
    fn a_message_larger_than_a_packet_arrives() {
        let (a, b) = pair().unwrap();
        let start = ToSlot::Start(belljar_guest::Start {
            argv: vec!["x".repeat(1 << 20)],
            env: vec![],
            cwd: "/".into(),
            tty: None,
            detach: false,
        });
        send(a.as_fd(), &start, &[]).unwrap();
        assert_eq!(receive::<ToSlot>(b.as_fd()).unwrap().unwrap().0, start);
    }

    #[test]
    fn the_other_side_gone_is_not_an_error_and_nonsense_is() {
        let (a, b) = pair().unwrap();
        rustix::net::send(&a, &[0, 77, 1, 2], SendFlags::empty()).unwrap();
        assert_eq!(
            receive::<FromInit>(b.as_fd()).unwrap_err().kind(),
            ErrorKind::InvalidData
        );
        rustix::net::send(&a, &[1], SendFlags::empty()).unwrap();
        assert_eq!(
            receive::<FromInit>(b.as_fd()).unwrap_err().kind(),
            ErrorKind::InvalidData
        );
        drop(a);
        assert!(receive::<FromInit>(b.as_fd()).unwrap().is_none());
    }
}
