//! Files that a command names and that the agent can write: a script, say. Somebody says yes to the words of a command; a file that
//! became another one while the question waited is not what they looked at.
//!
//! Only words that are paths in a writable root are looked at, also those within a shell's script. Between the last look and the
//! command's own there is a moment in which a second command of the task can still write: the digest in the record shows what was
//! approved.

use std::io::Read as _;

use crate::path::{HostPath, SandboxPath};
use crate::policy::{Command, Digest};
use crate::sys::path::{Kind, kind_of_file, open_file_without_symlinks};
use crate::task::{Access, Root};

/// Files of one command that are looked at.
const FILES_MAX: usize = 8;

/// Longer ones are data rather than scripts.
const LENGTH_LIMIT: u64 = 1 << 20;

/// A file as it was when the question was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    path: SandboxPath,
    host: HostPath,
    digest: Digest,
}

impl Named {
    /// The files that a command names. Blocking.
    pub fn by(command: &Command, roots: &[Root]) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        // Words of a shell's script are words of one argument.
        let within = command.argv.iter().filter(|word| word.contains(char::is_whitespace));
        let within = within.flat_map(|word| shlex::split(word).unwrap_or_default());
        for word in command.argv.iter().cloned().chain(within) {
            if found.len() == FILES_MAX {
                break;
            }
            if let Some(file) = Self::at(&word, &command.cwd, roots)
                && !found.contains(&file)
            {
                found.push(file);
            }
        }
        found
    }

    fn at(word: &str, cwd: &SandboxPath, roots: &[Root]) -> Option<Self> {
        let path = match word.starts_with('/') {
            true => SandboxPath::new(word),
            false => SandboxPath::new(&format!("{cwd}/{}", word.trim_start_matches("./"))),
        };
        let path = path.ok()?;
        // The deepest root that it lies in is the one that it is seen in.
        let holds = roots.iter().filter(|root| path.is_within(&root.path));
        let root = holds.max_by_key(|root| root.path.as_str().len())?;
        if root.access != Access::Write {
            return None;
        }
        let below = path.as_str().strip_prefix(root.path.as_str())?.trim_start_matches('/');
        let host = match below {
            "" => root.host.clone(),
            below => root.host.join(below).ok()?,
        };
        let digest = digest(&host)?;
        Some(Self { path, host, digest })
    }

    /// Whether it is still what it was. Blocking.
    pub fn is_same(&self) -> bool {
        digest(&self.host) == Some(self.digest)
    }

    pub fn path(&self) -> &SandboxPath {
        &self.path
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.path, self.digest)
    }
}

/// Of a regular file that is there by itself; what a symlink leads to is another name's.
fn digest(path: &HostPath) -> Option<Digest> {
    let file = open_file_without_symlinks(path.as_path()).ok()?;
    let is_file = kind_of_file(&file).is_ok_and(|kind| kind == Kind::File);
    if !is_file || file.metadata().ok()?.len() > LENGTH_LIMIT {
        return None;
    }
    let mut content = Vec::new();
    file.take(LENGTH_LIMIT + 1).read_to_end(&mut content).ok()?;
    Some(Digest::of_bytes(&content))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::policy::Stdin;
    use crate::task::GitMode;

    fn root(host: &Path, path: &str, access: Access) -> Root {
        Root {
            host: HostPath::new(host).unwrap(),
            path: SandboxPath::new(path).unwrap(),
            access,
            git: GitMode::Safe,
            protect: Vec::new(),
        }
    }

    fn named(argv: &[&str], roots: &[Root]) -> Vec<String> {
        let command = Command {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            cwd: SandboxPath::new("/workspace/in").unwrap(),
            env: BTreeMap::new(),
            stdin: Stdin::None,
            tty: None,
        };
        let files = Named::by(&command, roots);
        files.iter().map(|file| file.path.to_string()).collect()
    }

    #[test]
    fn files_that_the_agent_can_write_are_found_and_no_others() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        for folder in ["work/in", "read"] {
            std::fs::create_dir_all(place.join(folder)).unwrap();
        }
        for file in ["work/x.sh", "work/in/y.py", "read/z"] {
            std::fs::write(place.join(file), file).unwrap();
        }
        std::os::unix::fs::symlink("y.py", place.join("work/in/link")).unwrap();
        let roots = [
            root(&place.join("work"), "/workspace", Access::Write),
            root(&place.join("read"), "/workspace/read", Access::Read),
        ];
        let found = ["/workspace/in/y.py"];
        assert_eq!(named(&["python3", "./y.py", "y.py", "--x"], &roots), found);
        assert_eq!(
            named(&["bash", "-lc", "cd / && python3 /workspace/in/y.py"], &roots),
            found
        );
        assert_eq!(named(&["/workspace/x.sh"], &roots), ["/workspace/x.sh"]);
        let nothing = [
            "sh",
            "link",
            "/workspace/read/z",
            "../x.sh",
            "/etc/passwd",
            "/workspace",
        ];
        assert_eq!(named(&nothing, &roots), Vec::<String>::new());
    }

    #[test]
    fn a_file_that_was_changed_replaced_or_removed_is_another() {
        let place = tempfile::tempdir().unwrap();
        let work = place.path().canonicalize().unwrap();
        std::fs::write(work.join("x.sh"), "echo good").unwrap();
        let roots = [root(&work, "/workspace", Access::Write)];
        let cwd = SandboxPath::new("/workspace").unwrap();
        let file = Named::at("x.sh", &cwd, &roots).unwrap();
        assert!(file.is_same());
        std::fs::write(work.join("x.sh"), "echo evil").unwrap();
        assert!(!file.is_same());
        std::fs::write(work.join("x.sh"), "echo good").unwrap();
        assert!(file.is_same());
        std::fs::rename(work.join("x.sh"), work.join("y.sh")).unwrap();
        assert!(!file.is_same());
        std::os::unix::fs::symlink("y.sh", work.join("x.sh")).unwrap();
        assert!(!file.is_same());
    }
}
