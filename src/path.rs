//! Two worlds of paths that never mix: [`HostPath`] names a file outside, [`SandboxPath`] one inside.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Why a text is not a path of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("a path must not be empty")]
    Empty,
    #[error("\"{0}\" is not absolute")]
    NotAbsolute(String),
    #[error("\"{0}\" contains a \"..\"")]
    Parent(String),
    #[error("the path contains a NUL or control character")]
    Control,
}

/// An absolute path on the host, free of `.` and `..`; it says nothing about what is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "PathBuf", into = "PathBuf")]
pub struct HostPath(PathBuf);

impl HostPath {
    /// Reads an absolute path; `..` is refused, for what it means depends on symlinks.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, PathError> {
        Ok(Self(normal(&path.into())?))
    }

    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path of `name` in this folder.
    pub fn join(&self, name: impl AsRef<Path>) -> Result<Self, PathError> {
        Self::new(self.0.join(name))
    }
}

impl TryFrom<PathBuf> for HostPath {
    type Error = PathError;

    fn try_from(path: PathBuf) -> Result<Self, PathError> {
        Self::new(path)
    }
}

impl From<HostPath> for PathBuf {
    fn from(path: HostPath) -> PathBuf {
        path.0
    }
}

impl AsRef<Path> for HostPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// An absolute path inside a sandbox, free of `.` and `..`. Always UTF-8, for it travels as JSON.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxPath(String);

impl SandboxPath {
    pub fn new(path: &str) -> Result<Self, PathError> {
        let path = normal(Path::new(path))?;
        Ok(Self(path.to_str().expect("a part of a &str is UTF-8").to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path from the root of the sandbox, without the leading slash: `etc/passwd` for `/etc/passwd`.
    pub fn relative(&self) -> &str {
        self.0.trim_start_matches('/')
    }

    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &SandboxPath) -> bool {
        Path::new(&self.0).starts_with(&other.0)
    }
}

impl fmt::Display for SandboxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for SandboxPath {
    type Error = PathError;

    fn try_from(path: String) -> Result<Self, PathError> {
        Self::new(&path)
    }
}

impl From<SandboxPath> for String {
    fn from(path: SandboxPath) -> String {
        path.0
    }
}

fn normal(path: &Path) -> Result<PathBuf, PathError> {
    let shown = || path.display().to_string();
    if path.as_os_str().is_empty() {
        return Err(PathError::Empty);
    }
    if path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .any(|b| *b < 0x20 || *b == 0x7f)
    {
        return Err(PathError::Control);
    }
    if !path.is_absolute() {
        return Err(PathError::NotAbsolute(shown()));
    }
    let mut normal = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => return Err(PathError::Parent(shown())),
            Component::Prefix(_) => return Err(PathError::NotAbsolute(shown())),
        }
    }
    Ok(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_path_is_absolute_and_normal() {
        assert_eq!(SandboxPath::new("/a//b/./c/").unwrap().as_str(), "/a/b/c");
        assert_eq!(SandboxPath::new("a"), Err(PathError::NotAbsolute("a".into())));
        assert_eq!(SandboxPath::new("/a/../b"), Err(PathError::Parent("/a/../b".into())));
        assert_eq!(SandboxPath::new(""), Err(PathError::Empty));
        assert_eq!(SandboxPath::new("/a\nb"), Err(PathError::Control));
    }

    #[test]
    fn within_goes_by_whole_names() {
        let root = SandboxPath::new("/work").unwrap();
        assert!(SandboxPath::new("/work/a").unwrap().is_within(&root));
        assert!(!SandboxPath::new("/workshop").unwrap().is_within(&root));
    }
}
