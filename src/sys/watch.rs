//! Folders whose entries change, as the kernel tells it (inotify(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::packet;

/// Folders, and what happens in them.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// A user may have 128 of them unless the admin says otherwise. To be called within a runtime.
    pub fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self(packet::watched(fd, Interest::READABLE)?))
    }

    /// Watches the entries of a folder from now on. A file that is being written counts when its writer closes it; one that is
    /// watched already stays so.
    pub fn folder(&self, folder: &Path) -> io::Result<()> {
        let changes = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(self.0.get_ref(), folder, changes)?;
        Ok(())
    }

    /// Waits until something is told, and takes out all of it. Cancel-safe.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        self.drain()?;
        ready.clear_ready();
        Ok(())
    }

    fn drain(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(self.0.get_ref(), &mut buffer);
        loop {
            match events.next() {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_change_in_a_folder_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::new().unwrap();
        watch.folder(folder.path()).unwrap();
        fs::write(folder.path().join("rules"), "one").unwrap();
        watch.changed().await.unwrap();
        assert!(watch.changed().now_or_never().is_none());
        fs::rename(folder.path().join("rules"), folder.path().join("other")).unwrap();
        watch.changed().await.unwrap();
        assert!(watch.folder(&folder.path().join("other")).is_err(), "it is no folder");
    }
}
