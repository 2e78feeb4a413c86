//! Names in writable roots that nobody inside may make, change or replace: what the host's own tools run or obey by themselves
//! when a person later opens, enters or asks about the folder (git's hooks and settings, editors', shells' and agents' files).
//!
//! ```text
//!   look ── which names are there, which are not ──> holds (mounts of the plan) and placeholders
//!   place ── makes the placeholders on the host, notes them first ──> Guard ── settled after the sandbox ──> they are gone again
//!   sweep ── at the end: what is there that no mount could forbid
//! ```
//!
//! A name that is there becomes a read-only mount of itself. A mount point can neither be removed nor renamed, but its parents
//! could be moved away and made anew, so every folder on the way from the root is a mount of itself too. A name that is not
//! there needs something to mount on: a placeholder, on the host, for as long as the task lives. For a folder it is an empty
//! one, which git does not list; for a file a socket that nobody listens on, which git does not list either, and inside an
//! empty read-only file covers it. In git's own folder, where git itself would trip over a socket, it is a file that says nothing.
//!
//! A socket on which a program outside listens when the task begins is covered too, where names are looked for.
//!
//! Not a boundary: what another process of the host does to the same names while the task runs. Replacing a mounted name from
//! outside unmounts it inside (the kernel's rule since Linux 3.18). Nor what tools of the host make of a repository that the task is
//! just making somewhere below: only the sweep at its end sees to that. Nor a socket that a program outside makes in a root later, or that
//! lies in a readable one: whoever listens there answers whom the folder was given to.

mod config;
mod git;
mod links;
mod place;
mod sweep;
mod walk;

use std::io;
use std::path::{Path, PathBuf};

use super::plan::{Mount, Source};
use crate::path::{HostPath, SandboxPath};
use crate::sys::mount::Attributes;
use crate::task::{Access, Root};

pub use place::{Guard, settle_dead};

/// Folders that tools obey, at the top of a root where absent and wherever they are found.
///
/// Not among them, and why: `AGENTS.md` and its kin, `.gitattributes` (its filters and drivers need settings, which are held),
/// `package.json`, `Makefile`, `.cargo`, `conftest.py`, `build.rs` and whatever else is run by somebody who builds or tests: that is
/// the work itself, and who runs it outside runs the agent's code knowingly. `protect` of a root holds any of them.
const FOLDERS: [&str; 16] = [
    ".agents",
    // belljar's own: what it says holds for the next task of a trusted folder.
    ".belljar",
    ".claude",
    ".codex",
    ".cursor",
    ".devcontainer",
    ".gemini",
    ".github/workflows",
    ".husky",
    ".idea",
    ".kiro",
    ".opencode",
    ".roo",
    ".vscode",
    ".windsurf",
    ".zed",
];

/// Files, likewise.
const FILES: [&str; 24] = [
    ".bash_login",
    ".bash_logout",
    ".bash_profile",
    ".bashrc",
    ".devcontainer.json",
    ".dir-locals.el",
    ".envrc",
    ".exrc",
    ".gdbinit",
    ".gitconfig",
    ".gitmodules",
    // Where git-lfs sends what is pushed, and with whose login.
    ".lfsconfig",
    ".mcp.json",
    ".npmrc",
    ".nvim.lua",
    ".pre-commit-config.yaml",
    ".profile",
    ".yarnrc",
    ".yarnrc.yml",
    ".zlogin",
    ".zprofile",
    ".zshenv",
    ".zshrc",
    ".vimrc",
];

#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    #[error("could not look for protected names in {root}")]
    Look { root: HostPath, source: io::Error },
    #[error("could not hold the place of the protected name {}", path.display())]
    Place { path: PathBuf, source: io::Error },
    #[error("could not note placeholders in {}", path.display())]
    Note { path: PathBuf, source: io::Error },
}

/// What a look at the writable roots found.
#[derive(Debug, Default)]
pub struct Protected {
    /// In the order in which they are to be mounted.
    pub mounts: Vec<Mount>,
    /// Why the protection is not whole; empty when it is.
    pub gaps: Vec<String>,
}

/// How one name is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// A mount of itself, as writable as it was: it cannot be moved.
    Pin,
    /// A read-only mount of itself.
    Fix,
    /// An empty read-only file over it.
    Cover,
}

/// What is put on the host where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stand {
    Folder,
    Socket,
    Empty,
    /// A file of one line, "."; see `git`.
    Dot,
}

impl Stand {
    fn text(self) -> &'static str {
        match self {
            Stand::Dot => ".\n",
            Stand::Empty | Stand::Folder | Stand::Socket => "",
        }
    }
}

/// What a task with these roots would hold; nothing is made. Blocking.
pub fn look(roots: &[Root]) -> Result<Protected, ProtectError> {
    let mut protected = Protected::default();
    for (root, others) in writable(roots) {
        let found = look_at(root, &others, &|_| false)?;
        protected.add(root, &found);
    }
    Ok(protected)
}

fn look_at(root: &Root, others: &[PathBuf], is_stand: &dyn Fn(&Path) -> bool) -> Result<walk::Found, ProtectError> {
    walk::look(root, others, is_stand).map_err(|source| ProtectError::Look {
        root: root.host.clone(),
        source,
    })
}

impl Protected {
    fn add(&mut self, root: &Root, found: &walk::Found) {
        self.mounts.extend(mounts_of(root, &found.holds));
        let gaps = found.gaps.iter().map(|gap| format!("{}: {gap}", root.path));
        self.gaps.extend(gaps);
    }
}

/// The mounts that hold a root's names.
fn mounts_of(root: &Root, holds: &walk::Holds) -> Vec<Mount> {
    let held = holds.iter().filter_map(|(name, hold)| {
        let path = SandboxPath::new(&format!(
            "{}/{}",
            root.path.as_str().trim_end_matches('/'),
            name.to_str()?
        ))
        .ok()?;
        let (source, read_only) = match hold {
            Hold::Pin => (
                Source::Itself {
                    within: root.path.clone(),
                },
                false,
            ),
            Hold::Fix => (
                Source::Itself {
                    within: root.path.clone(),
                },
                true,
            ),
            Hold::Cover => (
                Source::Nothing {
                    within: root.path.clone(),
                },
                true,
            ),
        };
        let attributes = Attributes {
            read_only,
            no_suid: true,
            no_dev: true,
            no_exec: false,
        };
        Some(Mount {
            path,
            source,
            attributes,
        })
    });
    held.collect()
}

/// Writable folders, with the names under which other roots lie in them: those are held, or not, as the other root says.
fn writable(roots: &[Root]) -> impl Iterator<Item = (&Root, Vec<PathBuf>)> {
    roots.iter().filter(|root| root.access == Access::Write).map(|root| {
        let inner = roots
            .iter()
            .filter(|other| other.path != root.path && other.path.is_within(&root.path));
        let names = inner.map(|other| {
            let whole = other.path.as_str();
            PathBuf::from(whole[root.path.as_str().len()..].trim_start_matches('/'))
        });
        (root, names.collect())
    })
}
