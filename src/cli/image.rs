//! `belljar image build|pull|import|ls|rm|prune`: the local store. Answers go to `out`, how far it is to `progress`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::table;
use crate::document::Faults;
use crate::image::build::{BuildError, Builder, Recipe};
use crate::image::pull::{Access, Login};
use crate::image::{ImageError, Named, Progress, Store};
use crate::path::{HostPath, PathError};

#[derive(Debug, thiserror::Error)]
pub enum ImageCommandError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The faults of a recipe, a line each.
    #[error("{0}")]
    Recipe(Faults),
    #[error("\"{path}\" cannot be imported")]
    Path { path: PathBuf, source: PathError },
    #[error("\"{path}\" cannot be read")]
    Read { path: PathBuf, source: io::Error },
    #[error("the answer cannot be written")]
    Write(#[from] io::Error),
}

/// Builds, imports, lists and removes images.
#[derive(Debug, clap::Subcommand)]
pub enum ImageCommand {
    /// Builds an image from a recipe: one of belljar's own by name, or a folder with a recipe.toml
    Build {
        recipe: String,
        /// The image's name in the store; the recipe's own without it
        name: Option<String>,
        /// Where Debian's packages come from, in place of the machine's own setting
        #[arg(long, value_name = "URL")]
        mirror: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Pulls an image from a registry; what was cut off goes on where it stopped
    Pull {
        /// HOST[:PORT]/PATH[:TAG][@DIGEST]
        reference: String,
        /// The image's name in the store; the reference without it
        name: Option<String>,
        /// In the place of what Docker or Podman keep for the registry
        #[arg(long, value_name = "USER", requires = "password_stdin")]
        username: Option<String>,
        /// Reads the password from stdin
        #[arg(long, requires = "username")]
        password_stdin: bool,
        /// Plain HTTP also with a registry that is not on this machine
        #[arg(long)]
        plain_http: bool,
        #[arg(long)]
        json: bool,
    },
    /// Imports an OCI layout (folder or archive) or what docker save writes
    Import {
        path: PathBuf,
        name: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Lists the images of the store
    Ls {
        #[arg(long)]
        json: bool,
    },
    /// Removes names; layers that nobody needs any more go with prune
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Removes layers that no image and no task needs
    Prune {
        #[arg(long)]
        json: bool,
    },
}

/// Does what was asked of the store of this user.
pub fn run(command: ImageCommand, state: &Path) -> anyhow::Result<u8> {
    let store = Store::of_state(state);
    let (out, talk) = (&mut io::stdout(), &mut io::stderr());
    let line = super::unpacking::UnpackingLine::new(false);
    match command {
        ImageCommand::Build {
            recipe,
            name,
            mirror,
            json,
        } => {
            let asked = Build {
                recipe: &recipe,
                name: name.as_deref(),
                mirror: mirror.as_deref(),
                json,
            };
            build(&store, asked, &line, Streams { out, talk })?;
        }
        ImageCommand::Pull {
            reference,
            name,
            username,
            password_stdin: _,
            plain_http,
            json,
        } => {
            let login = username.map(|user| login(user, &mut io::stdin())).transpose()?;
            let access = Access { login, plain_http };
            let named = store.pull(&reference, name.as_deref(), &access, &line)?;
            tell(&named, json, out)?;
        }
        ImageCommand::Import { path, name, json } => import(&store, &path, name.as_deref(), json, &line, out)?,
        ImageCommand::Ls { json } => list(&store, json, out)?,
        ImageCommand::Rm { names } => remove(&store, &names, out)?,
        ImageCommand::Prune { json } => prune(&store, json, out)?,
    }
    Ok(0)
}

/// `belljar image import PATH [NAME] [--json]`: an OCI layout (folder or archive) or what `docker save` writes.
pub fn import(
    store: &Store,
    path: &Path,
    name: Option<&str>,
    json: bool,
    progress: &dyn Progress,
    out: &mut dyn Write,
) -> Result<(), ImageCommandError> {
    let real = path.canonicalize().map_err(|source| ImageCommandError::Read {
        path: path.to_owned(),
        source,
    })?;
    let real = HostPath::new(real).map_err(|source| ImageCommandError::Path {
        path: path.to_owned(),
        source,
    })?;
    Ok(tell(&store.import(&real, name, progress)?, json, out)?)
}

fn tell(named: &Named, json: bool, out: &mut dyn Write) -> io::Result<()> {
    match json {
        true => writeln!(out, "{}", serde_json::json!(named)),
        false => writeln!(out, "{}  {}", named.name, named.digest),
    }
}

/// A login whose password is the first line of a stream.
fn login(user: String, stream: &mut dyn Read) -> io::Result<Login> {
    let mut password = String::new();
    stream.take(LONGEST_PASSWORD).read_to_string(&mut password)?;
    let line = password.lines().next().unwrap_or_default();
    Ok(Login {
        user,
        password: line.into(),
    })
}

/// Tokens that stand for passwords have some kilobytes.
const LONGEST_PASSWORD: u64 = 64 << 10;

/// `belljar image build RECIPE [NAME] [--json]`: a recipe of belljar's own, or a folder with a `recipe.toml`. What the builder says
/// goes to `talk`.
pub fn build(
    store: &Store,
    asked: Build<'_>,
    progress: &dyn Progress,
    streams: Streams<'_>,
) -> Result<(), ImageCommandError> {
    let recipe = Recipe::find(asked.recipe).map_err(ImageCommandError::Recipe)?;
    let folder_name = || {
        Path::new(asked.recipe)
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or(asked.recipe)
    };
    let name = asked.name.unwrap_or_else(folder_name);
    let builder = Builder {
        program: "mmdebstrap".into(),
        mirror: asked.mirror.map(str::to_owned),
    };
    let talk = streams.talk;
    // A terminal that went away must not stop a build.
    let mut said = |line: &str| drop(writeln!(talk, "{line}"));
    let named = builder.build(&recipe, name, store, progress, &mut said)?;
    Ok(tell(&named, asked.json, streams.out)?)
}

/// What `image build` was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Build<'a> {
    pub recipe: &'a str,
    /// The recipe's own name when absent.
    pub name: Option<&'a str>,
    /// A mirror of Debian's packages.
    pub mirror: Option<&'a str>,
    pub json: bool,
}

/// Where answers and talk go.
pub struct Streams<'a> {
    pub out: &'a mut dyn Write,
    pub talk: &'a mut dyn Write,
}

/// `belljar image ls [--json]`.
pub fn list(store: &Store, json: bool, out: &mut dyn Write) -> Result<(), ImageCommandError> {
    let names = store.names()?;
    if json {
        return Ok(writeln!(out, "{:#}", serde_json::json!(names))?);
    }
    if names.is_empty() {
        return Ok(writeln!(out, "no image in the local store; \"host\" is always there")?);
    }
    Ok(writeln!(out, "{}", table::images(&names))?)
}

/// `belljar image rm NAME…`: the names; `prune` frees what they used.
pub fn remove(store: &Store, names: &[String], out: &mut dyn Write) -> Result<(), ImageCommandError> {
    for name in names {
        store.remove(name)?;
        writeln!(out, "{name}")?;
    }
    Ok(())
}

/// `belljar image prune [--json]`.
pub fn prune(store: &Store, json: bool, out: &mut dyn Write) -> Result<(), ImageCommandError> {
    let pruned = store.prune()?;
    match json {
        true => writeln!(out, "{}", serde_json::json!(pruned))?,
        false => writeln!(out, "{} images and {} layers removed", pruned.images, pruned.layers)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Silent;

    #[test]
    fn an_empty_store_says_so_and_prunes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::of_state(folder.path());
        let mut out = Vec::new();
        list(&store, false, &mut out).unwrap();
        list(&store, true, &mut out).unwrap();
        prune(&store, true, &mut out).unwrap();
        let expected = "no image in the local store; \"host\" is always there\n[]\n{\"images\":0,\"layers\":0}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let error = remove(&store, &["absent".into()], &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("no image \"absent\""), "{error}");
        let error = import(&store, Path::new("/nonexistent"), None, false, &Silent, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "\"/nonexistent\" cannot be read");
    }
}
