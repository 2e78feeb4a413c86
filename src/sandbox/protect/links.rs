//! Other names of files that are held: a hard link is the same file, and by it what is held could be written. Nobody inside can make
//! one of a held file, for that lies in another mount; but an earlier task could have, before the file was one to be held.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat};

use super::Hold;
use super::walk::{ENTRIES_MAX, Kind, Walk, is_passing};

/// Other names that are held, at most: each is a mount. With more of them somebody keeps whole copies by hard links.
const NAMES_MAX: usize = 256;

/// The same file has the same two numbers.
type Identity = (u64, u64);

impl Walk<'_> {
    /// Holds what else in the root is a held file.
    pub fn other_names(&mut self) -> io::Result<()> {
        let mut shared = BTreeSet::new();
        let fixed = self.found.holds.iter().filter(|(_, hold)| **hold == Hold::Fix);
        let fixed: Vec<PathBuf> = fixed.map(|(path, _)| path.clone()).collect();
        for path in &fixed {
            match self.kind(path)? {
                Kind::Folder => self.each_file(path, false, &mut |_, stat| shared.extend(identity_of_many(stat)))?,
                Kind::File => {
                    let stat = rustix::fs::fstat(self.open(path, OFlags::PATH)?)?;
                    shared.extend(identity_of_many(&stat));
                }
                Kind::Link | Kind::Socket | Kind::Absent => {}
            }
        }
        if shared.is_empty() {
            return Ok(());
        }
        let mut names = Vec::new();
        self.each_file(Path::new(""), true, &mut |path, stat| {
            if identity_of_many(stat).is_some_and(|file| shared.contains(&file)) {
                names.push(path.to_owned());
            }
        })?;
        if names.len() > NAMES_MAX {
            let gap = format!("{} names are hard links of what is protected", names.len());
            self.found.gaps.push(gap);
        }
        for name in names.into_iter().take(NAMES_MAX) {
            self.present(&name, Kind::File)?;
        }
        Ok(())
    }

    /// Every plain file below a folder, but for what is held where `past_held` says so, other roots, and objects of repositories: those
    /// are shared by copies as a matter of course, and named by what is in them.
    fn each_file(&self, top: &Path, past_held: bool, act: &mut dyn FnMut(&Path, &Stat)) -> io::Result<()> {
        let mut folders = vec![top.to_owned()];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            let fd = match self.open(&folder, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(fd) => fd,
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Err(error),
            };
            for entry in Dir::read_from(&fd)? {
                let entry = entry?;
                let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
                if name == Path::new(".") || name == Path::new("..") || name == Path::new("objects") {
                    continue;
                }
                seen += 1;
                let path = folder.join(name);
                let is_held = self.found.holds.get(&path).is_some_and(|hold| *hold != Hold::Pin);
                if past_held && is_held || self.is_others(&path) {
                    continue;
                }
                // Gone between the two, by somebody outside.
                let Ok(stat) = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) else {
                    continue;
                };
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => folders.push(path),
                    FileType::RegularFile => act(&path, &stat),
                    _ => {}
                }
            }
            // Beyond this, names are not looked for either, and that is told.
            if seen > ENTRIES_MAX {
                break;
            }
        }
        Ok(())
    }
}

/// A file's identity, if it has more than one name.
fn identity_of_many(stat: &Stat) -> Option<Identity> {
    (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino))
}
