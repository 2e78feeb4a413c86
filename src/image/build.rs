//! Building an image from a recipe: a folder with a small `recipe.toml` and the files that it names.
//!
//! Debian's `mmdebstrap` does the work, and makes the same bytes of the same package versions when `SOURCE_DATE_EPOCH` says which time
//! it is. What comes out goes the way of every image: a layout, checked and unpacked into the store.

mod recipe;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::checked::Summed;
use super::{ImageError, Named, Progress, Store};
use crate::path::HostPath;
use crate::policy::Digest;

pub use recipe::Recipe;

/// What builds, and from where.
#[derive(Debug, Clone)]
pub struct Builder {
    /// `mmdebstrap`, by name or path.
    pub program: PathBuf,
    /// Where Debian's packages are, if not where this machine has them from.
    pub mirror: Option<String>,
}

/// The time that the files of an image have: any fixed one makes equal inputs equal bytes.
const EPOCH: &str = "1735689600";

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("\"{program}\" cannot be run (on Debian: apt-get install mmdebstrap)")]
    Run { program: PathBuf, source: io::Error },
    #[error("\"{program}\" could not make the image ({status}):\n{said}")]
    Failed {
        program: PathBuf,
        status: ExitStatus,
        said: String,
    },
    #[error("the image cannot be put together in \"{path}\"")]
    Write { path: PathBuf, source: io::Error },
    #[error("the image that was built cannot be taken in")]
    Image(#[from] ImageError),
}

impl Builder {
    /// Builds an image and puts it into the store under a name. `said` hears each line of what the builder says.
    pub fn build(
        &self,
        recipe: &Recipe,
        name: &str,
        store: &Store,
        progress: &dyn Progress,
        said: &mut dyn FnMut(&str),
    ) -> Result<Named, BuildError> {
        // While it is held, nobody prunes what is being put together.
        let _lease = store.lease()?;
        let parent = store.scratch()?;
        let folder = tempfile::Builder::new().prefix("build-").tempdir_in(&parent);
        let folder = folder.map_err(|source| BuildError::Write { path: parent, source })?;
        let write = |source| BuildError::Write {
            path: folder.path().to_owned(),
            source,
        };
        let tar = folder.path().join("root.tar");
        self.run(recipe, File::create(&tar).map_err(write)?, said)?;
        let layout = folder.path().join("layout");
        lay_out(recipe, &tar, &layout).map_err(write)?;
        let layout = HostPath::new(&layout).map_err(|error| write(io::Error::other(error)))?;
        Ok(store.import(&layout, Some(name), progress)?)
    }

    fn run(&self, recipe: &Recipe, out: File, said: &mut dyn FnMut(&str)) -> Result<(), BuildError> {
        let cannot_run = |source| BuildError::Run {
            program: self.program.clone(),
            source,
        };
        let mut child = Command::new(&self.program)
            .args(self.arguments(recipe))
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("SOURCE_DATE_EPOCH", EPOCH)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot_run)?;
        let mut last: Vec<String> = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            // A builder without line ends must not fill the memory.
            let mut lines = BufReader::new(stderr);
            loop {
                let mut line = Vec::new();
                if lines
                    .by_ref()
                    .take(64 * 1024)
                    .read_until(b'\n', &mut line)
                    .map_err(cannot_run)?
                    == 0
                {
                    break;
                }
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                said(&line);
                last.push(line);
                if last.len() > 20 {
                    last.remove(0);
                }
            }
        }
        let status = child.wait().map_err(cannot_run)?;
        match status.success() {
            true => Ok(()),
            false => Err(BuildError::Failed {
                program: self.program.clone(),
                status,
                said: last.join("\n"),
            }),
        }
    }

    /// The words of the command line. Hooks are read by a shell or by mmdebstrap's own splitter: every foreign word in them is
    /// quoted.
    fn arguments(&self, recipe: &Recipe) -> Vec<String> {
        let mut words = vec![
            "--mode=auto".to_owned(),
            "--variant=minbase".to_owned(),
            "--format=tar".to_owned(),
            "--aptopt=Apt::Install-Recommends \"false\"".to_owned(),
            format!("--include={}", recipe.packages.join(",")),
        ];
        for file in &recipe.files {
            words.push(format!(
                "--customize-hook=upload {} {}",
                quoted(&file.from.display().to_string()),
                quoted(&file.to)
            ));
            words.push(format!(
                "--customize-hook=chmod {:04o} \"$1\"{}",
                file.mode,
                quoted(&file.to)
            ));
        }
        for line in &recipe.run {
            words.push(format!("--customize-hook=chroot \"$1\" /bin/sh -ec {}", quoted(line)));
        }
        // Lists of packages and logs tell when an image was built, and nothing needs them inside.
        words.push("--customize-hook=rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/* \"$1\"/var/log/*".to_owned());
        // The archive goes to standard output: in an ordinary user's namespace the builder could not open our folder.
        words.extend([recipe.suite.clone(), "-".to_owned()]);
        words.extend(self.mirror.clone());
        words
    }
}

fn quoted(word: &str) -> String {
    shlex::try_quote(word).expect("a recipe holds no NUL").into_owned()
}

/// Makes an OCI layout of one layer: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>.
fn lay_out(recipe: &Recipe, tar: &Path, layout: &Path) -> io::Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut sum = Summed::new(File::open(tar)?);
    let size = io::copy(&mut sum, &mut io::sink())?;
    let layer = sum.digest();
    fs::rename(tar, blobs.join(&layer[7..]))?;
    let add = |value: serde_json::Value, kind: &str| -> io::Result<serde_json::Value> {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::of_bytes(&bytes).to_string();
        fs::write(blobs.join(&digest[7..]), &bytes)?;
        Ok(serde_json::json!({ "mediaType": kind, "digest": digest, "size": bytes.len() }))
    };
    let architecture = super::layout::here().to_string();
    let env: Vec<String> = recipe
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": { "Env": env },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    let config = add(config, "application/vnd.oci.image.config.v1+json")?;
    let layer =
        serde_json::json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size });
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer],
    });
    let manifest = add(manifest, "application/vnd.oci.image.manifest.v1+json")?;
    fs::write(
        layout.join("index.json"),
        serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string(),
    )?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
}

#[cfg(test)]
mod tests;
