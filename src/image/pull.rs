//! Pulling an image from a registry: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>.
//!
//! ```text
//!  reference ─▶ index or manifest ─▶ configuration ─▶ each layer:  <state>/images/blobs/<digest>.partial ─▶ <digest> ─▶ unpacked, gone
//! ```
//!
//! What the registry says is foreign: answers are read within bounds, digests and sizes are checked, and nothing is fetched from
//! addresses that a manifest names. A layer that was cut off goes on where it stopped, in this pull or a later one. A reference
//! must name its registry: nothing is ever asked of one that nobody named.

mod credentials;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use oci_spec::image::Descriptor;
use reqwest::header;
use rustix::fs::{FlockOperation, flock};
use secrecy::{ExposeSecret as _, SecretString};

use super::checked::{LARGEST_JSON, Summed};
use super::layout::{Layout, Registry};
use super::{ImageError, Named, Progress, Store};

/// What may stand for an image in a registry.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

const CONNECT_PATIENCE: Duration = Duration::from_secs(15);

/// Without a byte for so long, a stream is taken for dead.
const READ_PATIENCE: Duration = Duration::from_secs(60);

/// How often a layer that broke off is asked for again, from where it stopped.
const TRIES: u32 = 4;

/// How a registry is spoken to.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// In the place of what the caller's configuration of Docker or Podman keeps for the registry.
    pub login: Option<Login>,
    /// Also with a registry that is not on this machine.
    pub plain_http: bool,
}

#[derive(Debug, Clone)]
pub struct Login {
    pub user: String,
    pub password: SecretString,
}

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("it names no registry (host[:port]/path[:tag][@digest]; Docker's own is docker.io/library/NAME)")]
    NoRegistry,
    #[error("the registry wants a login{note}")]
    Login { note: String },
    #[error("could not get the {what}")]
    Ask {
        what: &'static str,
        source: Box<OciDistributionError>,
    },
    #[error("could not get the {what}")]
    Http { what: &'static str, source: reqwest::Error },
    #[error("the registry has no such {what}")]
    Absent { what: &'static str },
    #[error("the registry answered {status} when asked for the {what}")]
    Status { what: &'static str, status: u16 },
    #[error("the {what} is longer than {most} bytes")]
    Long { what: &'static str, most: u64 },
    #[error("the layer broke off after {read} of {size} bytes")]
    Short { read: u64, size: u64 },
    #[error("could not {doing}")]
    Local { doing: &'static str, source: io::Error },
}

impl PullError {
    /// Whether another try may do better.
    fn is_passing(&self) -> bool {
        match self {
            PullError::Short { .. } => true,
            PullError::Ask { source, .. } => match &**source {
                OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => true,
                OciDistributionError::ServerError { code, .. } => *code >= 500 || *code == 429,
                _ => false,
            },
            _ => false,
        }
    }
}

/// Whether a name says which registry it is in: its first part is a host. A bare name is one of the local store only.
pub fn names_a_registry(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
}

/// What `docker pull` asks for when it is given this name, as a reference that names its registry.
pub fn docker_reference(name: &str) -> String {
    match names_a_registry(name) {
        true => name.to_owned(),
        false if name.contains('/') => format!("docker.io/{name}"),
        false => format!("docker.io/library/{name}"),
    }
}

impl Store {
    /// Pulls an image and puts it into the store under a name, the reference itself where none is given. Blocks on the network.
    pub fn pull(
        &self,
        reference: &str,
        name: Option<&str>,
        access: &Access,
        progress: &dyn Progress,
    ) -> Result<Named, ImageError> {
        let failed = |source| ImageError::Pull {
            reference: reference.to_owned(),
            source,
        };
        if !names_a_registry(reference) || !crate::task::is_image_name(reference) {
            return Err(failed(PullError::NoRegistry));
        }
        let lease = self.lease()?;
        let remote = Remote::new(reference, access, self.blobs()?).map_err(failed)?;
        let layout = Layout::registry(reference, Box::new(remote));
        let named = self.take_in_as(&layout, name.unwrap_or(reference), progress);
        drop(lease);
        named
    }
}

/// One reference of one registry.
struct Remote {
    text: String,
    reference: Reference,
    /// Speaks to the registry: logins and blobs.
    client: Client,
    /// For manifests, which the client would take in at any length.
    http: reqwest::Client,
    scheme: &'static str,
    auth: RegistryAuth,
    /// Why there is no better login.
    note: String,
    runtime: tokio::runtime::Runtime,
    blobs: PathBuf,
}

impl Remote {
    fn new(text: &str, access: &Access, blobs: PathBuf) -> Result<Remote, PullError> {
        // Installed before, or now: there is one for all of belljar.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let reference: Reference = text.parse().map_err(|_| PullError::NoRegistry)?;
        let plain = access.plain_http || is_loopback(reference.registry());
        let found = match &access.login {
            Some(login) => credentials::Found {
                login: Some(login.clone()),
                note: String::new(),
            },
            None => credentials::find(reference.registry(), &credentials::files()),
        };
        let auth = match found.login {
            Some(login) => RegistryAuth::Basic(login.user, login.password.expose_secret().to_owned()),
            None => RegistryAuth::Anonymous,
        };
        let client = Client::new(ClientConfig {
            protocol: if plain {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            read_timeout: Some(READ_PATIENCE),
            connect_timeout: Some(CONNECT_PATIENCE),
            user_agent: concat!("belljar/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let http = reqwest::Client::builder()
            .https_only(!plain)
            .read_timeout(READ_PATIENCE)
            .connect_timeout(CONNECT_PATIENCE)
            .user_agent(concat!("belljar/", env!("CARGO_PKG_VERSION")))
            .build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        Ok(Remote {
            text: text.to_owned(),
            client,
            http: http.map_err(|source| PullError::Http {
                what: "registry",
                source,
            })?,
            scheme: if plain { "http" } else { "https" },
            reference,
            auth,
            note: found.note,
            runtime: runtime.map_err(|source| PullError::Local {
                doing: "start a runtime",
                source,
            })?,
            blobs,
        })
    }

    fn failed(&self, source: PullError) -> ImageError {
        ImageError::Pull {
            reference: self.text.clone(),
            source,
        }
    }

    fn asked(&self, what: &'static str, error: OciDistributionError) -> PullError {
        match error {
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                PullError::Login {
                    note: self.note.clone(),
                }
            }
            OciDistributionError::ServerError { code: 404, .. } => PullError::Absent { what },
            error => PullError::Ask {
                what,
                source: Box::new(error),
            },
        }
    }

    /// A manifest or index, by the tag or a digest.
    async fn manifest(&self, what: &'static str, digest: Option<&str>) -> Result<Vec<u8>, PullError> {
        let token = self
            .client
            .auth(&self.reference, &self.auth, RegistryOperation::Pull)
            .await
            .map_err(|error| self.asked(what, error))?;
        let wanted = digest
            .or(self.reference.digest())
            .or(self.reference.tag())
            .unwrap_or("latest");
        let url = format!(
            "{}://{}/v2/{}/manifests/{wanted}",
            self.scheme,
            self.reference.resolve_registry(),
            self.reference.repository()
        );
        let mut request = self.http.get(url).header(header::ACCEPT, MANIFESTS);
        request = match (token, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, RegistryAuth::Bearer(token)) => request.bearer_auth(token),
            (None, RegistryAuth::Anonymous) => request,
        };
        let http = |source| PullError::Http { what, source };
        let mut response = request.send().await.map_err(http)?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 => {
                return Err(PullError::Login {
                    note: self.note.clone(),
                });
            }
            404 => return Err(PullError::Absent { what }),
            status => return Err(PullError::Status { what, status }),
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(http)? {
            take(&mut bytes, &chunk, what, LARGEST_JSON)?;
        }
        Ok(bytes)
    }

    async fn configuration(&self, digest: &str, size: u64) -> Result<Vec<u8>, PullError> {
        let what = "configuration";
        let stream = self.client.pull_blob_stream(&self.reference, digest).await;
        let mut stream = stream.map_err(|error| self.asked(what, error))?.stream;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| self.asked(what, error.into()))?;
            take(&mut bytes, &chunk, what, size.min(LARGEST_JSON))?;
        }
        Ok(bytes)
    }

    /// Goes on with a layer where the file ends.
    async fn fetch(&self, digest: &str, size: u64, file: &mut File, heard: &dyn Fn(u64)) -> Result<(), PullError> {
        let local = |source| PullError::Local {
            doing: "write a layer",
            source,
        };
        let asked = |error| self.asked("layer", error);
        let mut read = file.metadata().map_err(local)?.len();
        if read > size {
            file.set_len(0).map_err(local)?;
            read = 0;
        }
        heard(read);
        if read == size {
            return Ok(());
        }
        let answer = self
            .client
            .pull_blob_stream_partial(&self.reference, digest, read, None)
            .await;
        let mut stream = match answer.map_err(asked)? {
            BlobResponse::Partial(part) => part.stream,
            BlobResponse::Full(whole) => {
                // The registry does not go on in the middle.
                file.set_len(0).map_err(local)?;
                read = 0;
                whole.stream
            }
        };
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| asked(error.into()))?;
            read += chunk.len() as u64;
            if read > size {
                file.set_len(0).map_err(local)?;
                return Err(PullError::Long {
                    what: "layer",
                    most: size,
                });
            }
            file.write_all(&chunk).map_err(local)?;
            heard(read);
        }
        match read == size {
            true => Ok(()),
            false => Err(PullError::Short { read, size }),
        }
    }

    fn fetch_whole(&self, digest: &str, size: u64, file: &mut File, heard: &dyn Fn(u64)) -> Result<(), PullError> {
        let mut tries = 1;
        loop {
            match self.runtime.block_on(self.fetch(digest, size, file, heard)) {
                Err(error) if error.is_passing() && tries < TRIES => {
                    tracing::info!(%error, digest, tries, "a layer broke off and is asked for again");
                    std::thread::sleep(Duration::from_millis(100) * 4u32.pow(tries));
                    tries += 1;
                }
                other => return other,
            }
        }
    }

    /// The packed layer, whole and with its digest.
    fn packed(&self, digest: &str, size: u64, heard: &dyn Fn(u64)) -> Result<File, ImageError> {
        let local = |doing| move |source| self.failed(PullError::Local { doing, source });
        let place = self.blobs.join(name_of(digest));
        let partial = place.with_extension("partial");
        let mut options = OpenOptions::new();
        options.create(true).append(true).read(true);
        let mut file = options.open(&partial).map_err(local("open a layer"))?;
        // Whoever fetches the same bytes for another image.
        flock(&file, FlockOperation::LockExclusive).map_err(|error| local("lock a layer")(error.into()))?;
        if let Ok(whole) = File::open(&place) {
            return Ok(whole);
        }
        let was_begun = file.metadata().map_err(local("look at a layer"))?.len() > 0;
        let fetched = self.fetch_whole(digest, size, &mut file, heard);
        fetched.map_err(|error| self.failed(error))?;
        let mut found = sum(&partial).map_err(local("read a layer"))?;
        if found != digest && was_begun {
            // What an earlier pull left may be what is wrong.
            file.set_len(0).map_err(local("empty a layer"))?;
            let fetched = self.fetch_whole(digest, size, &mut file, heard);
            fetched.map_err(|error| self.failed(error))?;
            found = sum(&partial).map_err(local("read a layer"))?;
        }
        if found != digest {
            fs::remove_file(&partial).map_err(local("remove a layer"))?;
            return Err(ImageError::Digest {
                what: "layer",
                expected: digest.to_owned(),
                found,
            });
        }
        fs::rename(&partial, &place).map_err(local("put a layer in its place"))?;
        File::open(&place).map_err(local("open a layer"))
    }
}

impl Registry for Remote {
    fn root(&self) -> Result<Vec<u8>, ImageError> {
        let bytes = self.runtime.block_on(self.manifest("manifest", None));
        let bytes = bytes.map_err(|error| self.failed(error))?;
        if let Some(expected) = self.reference.digest() {
            let found = crate::policy::Digest::of_bytes(&bytes).to_string();
            if found != expected {
                return Err(ImageError::Digest {
                    what: "manifest",
                    expected: expected.to_owned(),
                    found,
                });
            }
        }
        Ok(bytes)
    }

    fn small(&self, what: &'static str, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let digest = descriptor.digest().to_string();
        let bytes = match what {
            "configuration" => self.runtime.block_on(self.configuration(&digest, descriptor.size())),
            _ => self.runtime.block_on(self.manifest(what, Some(&digest))),
        };
        bytes.map_err(|error| self.failed(error))
    }

    fn layer(&self, digest: &str, size: u64, heard: &dyn Fn(u64)) -> Result<File, ImageError> {
        self.packed(digest, size, heard)
    }

    fn unpacked(&self, digest: &str) {
        let place = self.blobs.join(name_of(digest));
        // Both are only in the way now; pruning takes what stays.
        let _ = fs::remove_file(place.with_extension("partial"));
        let _ = fs::remove_file(place);
    }
}

/// A digest that was checked where it was read, as the name of a file.
fn name_of(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn sum(file: &Path) -> io::Result<String> {
    let mut sum = Summed::new(BufReader::with_capacity(1 << 20, File::open(file)?));
    io::copy(&mut sum, &mut io::sink())?;
    Ok(sum.digest())
}

fn take(bytes: &mut Vec<u8>, chunk: &[u8], what: &'static str, most: u64) -> Result<(), PullError> {
    if (bytes.len() + chunk.len()) as u64 > most {
        return Err(PullError::Long { what, most });
    }
    bytes.extend_from_slice(chunk);
    Ok(())
}

/// A registry of this machine: nobody reads along between it and us.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => host,
        None => registry.split_once(':').map_or(registry, |(host, _)| host),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
