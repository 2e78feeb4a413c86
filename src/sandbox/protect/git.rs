//! What of a repository's own folder git runs or obeys: hooks, settings, and the files that lead to other folders with settings.
//!
//! Everything else stays writable, so that commits, branches, rebases and new worktrees work: a commit makes files beside these.

use std::io;
use std::path::Path;

use rustix::fs::OFlags;

use super::config::{self, Lead};
use super::walk::{Kind, Walk, within};
use super::{Stand, sweep};
use crate::task::GitMode;

/// How deep the git folders of submodules lie in `modules`: their names may have slashes.
const MODULE_DEPTH: usize = 6;

/// Settings files that lead to more of them, at most.
const LEADS_MAX: usize = 16;

impl Walk<'_> {
    /// Whether a folder is what git takes for a repository, whatever its name: HEAD, objects, refs.
    pub fn is_git_folder(&self, path: &Path) -> io::Result<bool> {
        Ok(self.kind(&path.join("HEAD"))? != Kind::Absent
            && self.kind(&path.join("objects"))? == Kind::Folder
            && self.kind(&path.join("refs"))? == Kind::Folder)
    }

    /// A name `.git`: the folder itself, or the file of a worktree or submodule that says where the folder is.
    pub fn git_entry(&mut self, path: &Path) -> io::Result<()> {
        match (self.git, self.kind(path)?) {
            (GitMode::Open, _) | (_, Kind::Absent) => Ok(()),
            (GitMode::Safe, Kind::Folder) => self.git_folder(path),
            (_, kind) => {
                self.found.repositories.insert(path.to_owned());
                self.present(path, kind)
            }
        }
    }

    /// A repository's folder.
    pub fn git_folder(&mut self, path: &Path) -> io::Result<()> {
        match self.git {
            GitMode::Open => return Ok(()),
            GitMode::ReadOnly if !path.as_os_str().is_empty() => {
                self.found.repositories.insert(path.to_owned());
                return self.present(path, Kind::Folder);
            }
            GitMode::ReadOnly => {
                let gap = "the root is itself a repository's folder, of which only settings and hooks are read-only";
                self.found.gaps.push(gap.to_owned());
            }
            GitMode::Safe => {}
        }
        self.found.repositories.insert(path.to_owned());
        // With each name that is held, all on the way to it are: this folder itself, `info`, `objects`.
        self.settings(path)?;
        // An absent one would be an invitation: with it git takes another folder's settings for this repository's. This one
        // says "here".
        self.fix(&path.join("commondir"), Stand::Dot)?;
        self.fix(&path.join("gitdir"), Stand::Empty)?;
        self.fix(&path.join("hooks"), Stand::Folder)?;
        // Remotes as they were written before there were settings for them (gitrepository-layout(5)): git still fetches from
        // and pushes to what stands there.
        self.fix(&path.join("remotes"), Stand::Folder)?;
        self.fix(&path.join("branches"), Stand::Folder)?;
        self.fix(&path.join("info/attributes"), Stand::Empty)?;
        self.fix(&path.join("objects/info/alternates"), Stand::Empty)?;
        // Git's own daemon, where the owner has one: git-fsmonitor--daemon(1).
        let daemon = path.join("fsmonitor--daemon.ipc");
        if self.kind(&daemon)? == Kind::Socket {
            self.listener(&daemon);
        }
        self.fix(&path.join("modules"), Stand::Folder)?;
        self.modules(&path.join("modules"), MODULE_DEPTH)?;
        self.worktrees(&path.join("worktrees"))
    }

    /// The settings, and what they lead to within the root: other settings, and a folder of hooks that is not git's own.
    fn settings(&mut self, path: &Path) -> io::Result<()> {
        for name in ["config", "config.worktree"] {
            self.fix(&path.join(name), Stand::Empty)?;
        }
        let text = sweep::text(&self.root, path.join("config")).unwrap_or_default();
        let mut files = vec![(path.to_owned(), text)];
        for _ in 0..LEADS_MAX {
            let Some((folder, text)) = files.pop() else { break };
            for lead in config::leads(&text) {
                let (from, name, stand) = match &lead {
                    Lead::Settings(name) => (Some(folder.as_path()), name, Stand::Socket),
                    // The work tree of a folder named .git is the one that it lies in.
                    Lead::Hooks(name) => (path.parent(), name, Stand::Folder),
                };
                // Somebody's home, or git's own folder: of the host's, not in this root.
                if name.starts_with(['~', '%']) {
                    continue;
                }
                let Some(target) = from.and_then(|from| within(from, Path::new(name))) else {
                    continue;
                };
                self.fix(&target, stand)?;
                if let (Lead::Settings(_), Some(parent)) = (&lead, target.parent()) {
                    let text = sweep::text(&self.root, &target).unwrap_or_default();
                    files.push((parent.to_owned(), text));
                }
            }
        }
        Ok(())
    }

    /// New submodules cannot come, but those that are there work.
    fn modules(&mut self, path: &Path, depth: usize) -> io::Result<()> {
        for name in self.folders(path)? {
            let inner = path.join(name);
            if self.is_git_folder(&inner)? {
                self.git_folder(&inner)?;
            } else if depth > 0 {
                self.modules(&inner, depth - 1)?;
            }
        }
        Ok(())
    }

    /// The links of worktrees that are there; new ones may come, and what they lead to is looked at when the task is over.
    fn worktrees(&mut self, path: &Path) -> io::Result<()> {
        for name in self.folders(path)? {
            let inner = path.join(name);
            self.found.repositories.insert(inner.clone());
            for file in ["commondir", "gitdir"] {
                let file = inner.join(file);
                let kind = self.kind(&file)?;
                if kind != Kind::Absent {
                    self.present(&file, kind)?;
                }
            }
            self.fix(&inner.join("config.worktree"), Stand::Empty)?;
        }
        Ok(())
    }

    /// The folders in a folder, by name.
    fn folders(&self, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        use std::os::unix::ffi::OsStringExt;
        if self.kind(path)? != Kind::Folder {
            return Ok(Vec::new());
        }
        let fd = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd)? {
            let name = std::ffi::OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." && self.kind(&path.join(&name))? == Kind::Folder {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}
