//! Logins for registries, as Docker and Podman keep them: `{"auths": {"registry": {"auth": base64("user:password")}}}`.
//!
//! Programs that keep them instead (`credsStore`, `credHelpers`) are not run; whoever uses one gives the login by flag.

use std::path::PathBuf;

use base64::Engine as _;
use secrecy::SecretString;
use serde_json::Value;

use super::Login;

/// Files of logins are small.
const LARGEST: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Found {
    pub login: Option<Login>,
    /// Why there is none, to go behind "wants a login"; empty when nothing is to be said.
    pub note: String,
}

/// Where they may be, the first that has one wins: Docker's, then Podman's.
pub(super) fn files() -> Vec<PathBuf> {
    let var = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let docker = var("DOCKER_CONFIG").or_else(|| Some(var("HOME")?.join(".docker")));
    let podman = var("REGISTRY_AUTH_FILE").or_else(|| Some(var("XDG_RUNTIME_DIR")?.join("containers/auth.json")));
    let home = var("HOME").map(|home| home.join(".config/containers/auth.json"));
    docker
        .map(|folder| folder.join("config.json"))
        .into_iter()
        .chain(podman)
        .chain(home)
        .collect()
}

pub(super) fn find(registry: &str, files: &[PathBuf]) -> Found {
    let mut note = String::from(" (belljar image pull --username USER --password-stdin, or docker login)");
    for file in files {
        let is_small = std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.len() <= LARGEST);
        let text = if is_small {
            std::fs::read_to_string(file).ok()
        } else {
            None
        };
        let Some(text) = text else { continue };
        let Ok(config) = serde_json::from_str::<Value>(&text) else {
            note = format!(" (\"{}\" is not JSON, so no login was read from it)", file.display());
            continue;
        };
        let entries = config["auths"].as_object().into_iter().flatten();
        let entry = entries
            .filter(|(key, _)| is_for(key, registry))
            .map(|(_, entry)| entry)
            .next();
        if let Some(login) = entry.and_then(login) {
            return Found {
                login: Some(login),
                note: format!(" (the login in \"{}\" was not taken)", file.display()),
            };
        }
        if config["credHelpers"]
            .get(registry)
            .or(config.get("credsStore"))
            .is_some()
        {
            note = format!(
                " (\"{}\" leaves logins to another program, which is not run: belljar image pull --username USER --password-stdin)",
                file.display()
            );
        }
    }
    Found { login: None, note }
}

/// Keys are hosts, or addresses as Docker once wrote them: `https://index.docker.io/v1/`.
fn is_for(key: &str, registry: &str) -> bool {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = key.split_once('/').map_or(key, |(host, _)| host);
    let docker = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    host == registry || docker.contains(&host) && docker.contains(&registry)
}

fn login(entry: &Value) -> Option<Login> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(entry["auth"].as_str()?)
        .ok()?;
    let text = SecretString::from(String::from_utf8(bytes).ok()?);
    let (user, password) = secrecy::ExposeSecret::expose_secret(&text).split_once(':')?;
    Some(Login {
        user: user.to_owned(),
        password: SecretString::from(password.trim_end_matches('\0')),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    fn found(text: &str, registry: &str) -> Found {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        find(registry, &["/nonexistent".into(), file.path().to_owned()])
    }

    #[test]
    fn a_login_is_found_by_its_registry() {
        let text =
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "ZDpk"}, "r.example:5000": {"auth": "dTpwOnc="}}}"#;
        let login = found(text, "r.example:5000").login.unwrap();
        assert_eq!((login.user.as_str(), login.password.expose_secret()), ("u", "p:w"));
        assert_eq!(found(text, "docker.io").login.unwrap().user, "d");
        assert!(found(text, "r.example").login.is_none());
        assert!(!format!("{login:?}").contains("p:w"));
    }

    #[test]
    fn a_login_that_is_kept_elsewhere_is_said_to_be() {
        assert!(
            found(r#"{"credsStore": "desktop"}"#, "r.example")
                .note
                .contains("another program")
        );
        assert!(
            found(r#"{"auths": {"r.example": {"auth": "%"}}}"#, "r.example")
                .login
                .is_none()
        );
        assert!(found("{", "r.example").note.contains("is not JSON"));
    }
}
