//! What the relay needs of the kernel: descriptors that do not block, and waiting for many of them.

use std::ffi::CStr;
use std::io::{Error, Result};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use belljar_guest::ListenKind;

use super::check;

/// A file in memory with this content.
pub fn memory_file(content: &[u8]) -> Result<OwnedFd> {
    // SAFETY: the name is NUL-terminated; the descriptor is new, and ours.
    let file = unsafe { OwnedFd::from_raw_fd(check(libc::memfd_create(c"message".as_ptr(), libc::MFD_CLOEXEC))?) };
    let mut done = 0;
    while done < content.len() {
        done += write(file.as_fd(), &content[done..])?;
    }
    Ok(file)
}

/// One descriptor to wait for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub fd: RawFd,
    pub readable: bool,
    pub writable: bool,
}

/// What a descriptor is good for; an error or a hang-up counts as both, and the call that is then made says which.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    pub readable: bool,
    pub writable: bool,
}

/// Waits until something of what is wanted is there, or `patience` (milliseconds, -1 for ever) is over.
pub fn wait_any(wanted: &[Wanted], patience: i32) -> Result<Vec<Found>> {
    let mut fds: Vec<_> = wanted
        .iter()
        .map(|one| libc::pollfd {
            fd: one.fd,
            events: if one.readable { libc::POLLIN } else { 0 } | if one.writable { libc::POLLOUT } else { 0 },
            revents: 0,
        })
        .collect();
    loop {
        // SAFETY: the array is ours and its length is given.
        match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, patience) }) {
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    const GONE: libc::c_short = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
    Ok(fds
        .iter()
        .zip(wanted)
        .map(|(fd, one)| Found {
            readable: one.readable && fd.revents & (libc::POLLIN | GONE) != 0,
            writable: one.writable && fd.revents & (libc::POLLOUT | GONE) != 0,
        })
        .collect())
}

pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: fcntl with these commands takes and gives integers.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// Reads once; 0 bytes are the end.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    loop {
        // SAFETY: the buffer is ours and its length is given.
        let read = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match read {
            read if read >= 0 => return Ok(read as usize),
            _ => match Error::last_os_error() {
                error if error.kind() == std::io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// Writes once, as much as is taken. Every signal that can be blocked is, SIGPIPE among them.
pub fn write(fd: BorrowedFd<'_>, data: &[u8]) -> Result<usize> {
    loop {
        // SAFETY: the buffer is live and its length is given.
        let written = unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) };
        match written {
            written if written >= 0 => return Ok(written as usize),
            _ => match Error::last_os_error() {
                error if error.kind() == std::io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// Two connected unix sockets that carry packets.
pub fn packet_pair() -> Result<(OwnedFd, OwnedFd)> {
    socket_pair(libc::SOCK_SEQPACKET)
}

/// Two connected unix sockets that carry bytes.
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd)> {
    socket_pair(libc::SOCK_STREAM)
}

fn socket_pair(kind: libc::c_int) -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for the two new descriptors, which are ours.
    unsafe {
        check(libc::socketpair(
            libc::AF_UNIX,
            kind | libc::SOCK_CLOEXEC,
            0,
            fds.as_mut_ptr(),
        ))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// A pipe: the end to read from and the end to write to.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for the two new descriptors, which are ours.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Connects to a unix socket that carries bytes.
pub fn connect_unix(path: &CStr) -> Result<OwnedFd> {
    let bytes = path.to_bytes();
    // SAFETY: sockaddr_un is plain data for which all zeroes are valid.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // One is left for the NUL at the end.
    if bytes.len() >= address.sun_path.len() {
        return Err(Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: the descriptor is new, and ours; the address is live and of the length given.
    unsafe {
        let socket = OwnedFd::from_raw_fd(check(libc::socket(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            0,
        ))?);
        let length = mem::size_of_val(&address) as libc::socklen_t;
        check(libc::connect(
            socket.as_raw_fd(),
            ptr::from_ref(&address).cast(),
            length,
        ))?;
        Ok(socket)
    }
}

/// The next connection of a listener, without blocking.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: no address is asked for; the descriptor is new, and ours.
    unsafe {
        let fd = check(libc::accept4(
            listener.as_raw_fd(),
            ptr::null_mut(),
            ptr::null_mut(),
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A non-blocking socket to a port of this net namespace's own loopback; a TCP connection may still be in the making.
pub fn connect_loopback(port: u16, kind: ListenKind) -> Result<OwnedFd> {
    let socket_kind = match kind {
        ListenKind::Tcp => libc::SOCK_STREAM,
        ListenKind::Udp => libc::SOCK_DGRAM,
    };
    let address = loopback([127, 0, 0, 1], port);
    // SAFETY: the descriptor is new, and ours; the address is live and of the length given.
    unsafe {
        let socket = OwnedFd::from_raw_fd(check(libc::socket(
            libc::AF_INET,
            socket_kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        ))?);
        let length = mem::size_of_val(&address) as libc::socklen_t;
        match check(libc::connect(
            socket.as_raw_fd(),
            ptr::from_ref(&address).cast(),
            length,
        )) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(socket),
        }
    }
}

fn loopback(address: [u8; 4], port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_be_bytes(address).to_be(),
        },
        sin_zero: [0; 8],
    }
}

/// One datagram and who sent it.
pub fn receive_from(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, [u8; 4], u16)> {
    let mut from = loopback([0; 4], 0);
    let mut length = mem::size_of_val(&from) as libc::socklen_t;
    // SAFETY: the buffer is ours and its length is given; the address has the room that is named, and the socket is of AF_INET.
    let read = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            ptr::from_mut(&mut from).cast(),
            &mut length,
        )
    };
    if read < 0 {
        return Err(Error::last_os_error());
    }
    let address = u32::from_be(from.sin_addr.s_addr).to_be_bytes();
    Ok((read as usize, address, u16::from_be(from.sin_port)))
}

pub fn send_to(socket: BorrowedFd<'_>, data: &[u8], address: [u8; 4], port: u16) -> Result<()> {
    let to = loopback(address, port);
    // SAFETY: the buffer and the address are live and of the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            ptr::from_ref(&to).cast(),
            mem::size_of_val(&to) as libc::socklen_t,
        )
    };
    if sent < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

/// Tells the other side of a socket that nothing more comes. A pipe or terminal has no such half, and is left as it is.
pub fn shut_down_writing(fd: BorrowedFd<'_>) {
    // SAFETY: shutdown takes two integers.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) };
}

pub fn set_terminal_size(terminal: BorrowedFd<'_>, rows: u16, cols: u16) -> Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the ioctl reads a live winsize.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &size) }).map(drop)
}
