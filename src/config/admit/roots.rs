//! Roots, and every other path of a spec: what is there is found here, without following a symlink.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::{Admission, Caller};
use crate::config::Config;
use crate::document::{Origin, Sited};
use crate::path::{HostPath, SandboxPath};
use crate::sys::path::{Kind, first_symlink, is_symlink_in_the_way, kind, open_without_symlinks};
use crate::task::spec::{TaskSpec, expand_home};
use crate::task::{Access, GitMode, Root};

/// What no sandbox may see: whoever can reach the state can answer its own approvals, and whoever can write the configuration
/// can loosen the next task.
pub(super) fn closed_folders(config: &Config, caller: &Caller) -> Vec<(PathBuf, &'static str)> {
    let state = [&caller.state, &config.state].map(|folder| (folder.clone(), "belljar's state"));
    let folders = config
        .folders
        .iter()
        .map(|folder| (folder.clone(), "belljar's configuration"));
    let real = |(folder, what): (PathBuf, &'static str)| (folder.canonicalize().unwrap_or(folder), what);
    state.into_iter().chain(folders).map(real).collect()
}

impl Admission {
    /// All roots, parents before what lies in them, so that they can be mounted in this order.
    pub(super) fn roots(&mut self, spec: &TaskSpec) -> Vec<(Root, Origin, String)> {
        let mut roots: Vec<(Root, Origin, String)> = Vec::new();
        for (n, asked) in spec.writable_roots.iter().enumerate() {
            let key = format!("writable_roots[{n}]");
            if let Some((host, path)) = self.root(&key, &asked.host, asked.path.as_ref(), Access::Write) {
                let root = Root {
                    host,
                    path,
                    access: Access::Write,
                    git: asked.git.as_ref().map_or(GitMode::Safe, |git| git.value),
                    protect: asked.protect.iter().map(|name| name.value.clone()).collect(),
                };
                roots.push((root, asked.host.origin.clone(), key));
            }
        }
        for (n, asked) in spec.readable_roots.iter().enumerate() {
            let key = format!("readable_roots[{n}]");
            if let Some((host, path)) = self.root(&key, &asked.host, asked.path.as_ref(), Access::Read) {
                let root = Root {
                    host,
                    path,
                    access: Access::Read,
                    git: GitMode::ReadOnly,
                    protect: Vec::new(),
                };
                roots.push((root, asked.host.origin.clone(), key));
            }
        }
        let mut seen: BTreeMap<SandboxPath, Origin> = BTreeMap::new();
        for (root, origin, key) in &roots {
            if let Some(first) = seen.insert(root.path.clone(), origin.clone()) {
                self.fault::<()>(
                    origin,
                    key,
                    format!("another root is at \"{}\" already ({first})", root.path),
                );
            }
        }
        roots
    }

    fn root(
        &mut self,
        key: &str,
        host: &Sited<String>,
        path: Option<&Sited<SandboxPath>>,
        access: Access,
    ) -> Option<(HostPath, SandboxPath)> {
        let host_key = format!("{key}.host");
        let found = self.existing(&host_key, host, &[Kind::Folder, Kind::File]);
        let path = match (path, &found) {
            (Some(path), _) => Some(path.clone()),
            (None, None) => None,
            (None, Some(found)) => match found.as_path().to_str().map(SandboxPath::new) {
                Some(Ok(path)) => Some(Sited::new(path, host.origin.clone())),
                _ => self.fault(
                    &host.origin,
                    &host_key,
                    "the path is not UTF-8 (say which path it has inside)",
                ),
            },
        };
        let path = path.and_then(|path| match reserved(&path.value) {
            Some(what) => self.fault(&path.origin, &format!("{key}.path"), what),
            None => Some(path.value),
        });
        let found = found?;
        self.check_exposure(&host_key, &host.origin, found.as_path(), access);
        Some((found, path?))
    }

    /// A root must neither be nor hold nor lie in what is belljar's or the kernel's own.
    pub(super) fn check_exposure(&mut self, key: &str, origin: &Origin, host: &Path, access: Access) {
        for kernel in ["/proc", "/sys", "/dev"] {
            if host.starts_with(kernel) || Path::new(kernel).starts_with(host) {
                self.fault::<()>(
                    origin,
                    key,
                    format!("\"{}\" would show the host's {kernel} to the sandbox", host.display()),
                );
                return;
            }
        }
        for (folder, what) in self.closed.clone() {
            let state = what == "belljar's state";
            let exposes = host.starts_with(&folder) || folder.starts_with(host);
            if exposes && (state || access == Access::Write) {
                let text = format!(
                    "\"{}\" would open {what} in \"{}\" to the sandbox",
                    host.display(),
                    folder.display()
                );
                self.fault::<()>(origin, key, text);
            }
        }
    }

    /// An existing thing of one of these kinds, reached without a symlink.
    pub(super) fn existing(&mut self, key: &str, text: &Sited<String>, kinds: &[Kind]) -> Option<HostPath> {
        let path = match expand_home(&text.value, self.home.as_deref()).map(|path| lexical(&path)) {
            Ok(path) => path,
            Err(what) => return self.fault(&text.origin, key, what),
        };
        let path = match HostPath::new(path) {
            Ok(path) => path,
            Err(error) => return self.fault(&text.origin, key, error.to_string()),
        };
        let opened = open_without_symlinks(path.as_path()).and_then(|fd| kind(&fd));
        match opened {
            Ok(kind) if kinds.contains(&kind) => Some(path),
            Ok(kind) => {
                let expected = if kinds.contains(&Kind::Folder) {
                    "a folder or a file"
                } else {
                    "a file"
                };
                self.fault(
                    &text.origin,
                    key,
                    format!("\"{path}\" is {}, not {expected}", noun(kind)),
                )
            }
            Err(error) => {
                let what = match first_symlink(path.as_path()) {
                    Some(link) if is_symlink_in_the_way(&error) => match link == path.as_path() {
                        true => format!("\"{path}\" is a symlink, which is not followed (name its target)"),
                        false => format!(
                            "\"{path}\" leads through the symlink \"{}\" (name its target)",
                            link.display()
                        ),
                    },
                    _ if error.kind() == std::io::ErrorKind::NotFound => format!("\"{path}\" does not exist"),
                    _ => format!("\"{path}\" cannot be opened: {error}"),
                };
                self.fault(&text.origin, key, what)
            }
        }
    }

    pub(super) fn rules_file(&mut self, file: &Sited<String>) -> Option<HostPath> {
        self.existing("gate.rules", file, &[Kind::File])
    }
}

/// A rules file that lies in a writable root would be the agent's to rewrite for the next task.
pub(super) fn with_protected_rules(mut roots: Vec<Root>, rules: &[HostPath]) -> Vec<Root> {
    for root in roots.iter_mut().filter(|root| root.access == Access::Write) {
        for file in rules {
            if let Ok(inside) = file.as_path().strip_prefix(root.host.as_path()) {
                let name = inside.to_string_lossy().into_owned();
                if !name.is_empty() && !root.protect.contains(&name) {
                    root.protect.push(name);
                }
            }
        }
    }
    roots
}

/// Why no root may be put at this path.
fn reserved(path: &SandboxPath) -> Option<String> {
    let at = Path::new(path.as_str());
    for kernel in ["/proc", "/sys", "/dev", "/run/belljar"] {
        if at.starts_with(kernel) {
            return Some(format!("\"{path}\" lies in {kernel}, which the sandbox makes itself"));
        }
    }
    const SYSTEM: [&str; 11] = [
        "/", "/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/run", "/sbin", "/usr",
    ];
    let system = SYSTEM.contains(&path.as_str()) || ["/usr/bin", "/usr/lib", "/usr/sbin"].contains(&path.as_str());
    system.then(|| format!("a root at \"{path}\" would take the place of the image's own files"))
}

fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Folder => "a folder",
        Kind::File => "a file",
        Kind::Symlink => "a symlink",
        Kind::Socket => "a socket",
        Kind::Fifo => "a pipe",
        Kind::Device => "a device",
    }
}
