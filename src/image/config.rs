//! The configuration that an image brings along. It is the image maker's word, not the caller's: it fills gaps and decides
//! nothing. The user, volumes, labels, ports and stop signal of an image are not even read on.

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::path::SandboxPath;

/// What is kept of an image's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Variables such as `PATH`, for those that nobody else sets.
    pub env: Vec<(String, String)>,
    pub workdir: Option<SandboxPath>,
    /// As the image says it; for showing only. Who runs is the task's to say.
    pub user: Option<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
}

/// Bounds of what is kept; an image that goes beyond them is not a plain one.
const MOST_VARIABLES: usize = 256;
const LONGEST: usize = 32 * 1024;
const MOST_WORDS: usize = 1024;

impl ImageConfig {
    pub(super) fn of(configuration: &ImageConfiguration) -> Result<ImageConfig, String> {
        let Some(config) = configuration.config() else {
            return Ok(ImageConfig::default());
        };
        let words = |words: &Option<Vec<String>>, what: &str| -> Result<Vec<String>, String> {
            let words = words.clone().unwrap_or_default();
            let fits =
                words.len() <= MOST_WORDS && words.iter().all(|word| word.len() <= LONGEST && !word.contains('\0'));
            if fits {
                Ok(words)
            } else {
                Err(format!("its {what} is too long or holds a NUL"))
            }
        };
        Ok(ImageConfig {
            env: env(config.env().as_deref().unwrap_or_default())?,
            workdir: workdir(config.working_dir().as_deref())?,
            user: config
                .user()
                .clone()
                .filter(|user| user.len() <= 256 && !user.chars().any(char::is_control)),
            entrypoint: words(config.entrypoint(), "entry point")?,
            cmd: words(config.cmd(), "command")?,
        })
    }
}

/// Leaves out what steers belljar's own way out of the sandbox, or how every program is loaded.
fn env(pairs: &[String]) -> Result<Vec<(String, String)>, String> {
    if pairs.len() > MOST_VARIABLES {
        return Err(format!("it sets more than {MOST_VARIABLES} variables"));
    }
    let mut env = Vec::new();
    for pair in pairs {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if name.is_empty() || !name.chars().all(plain) || pair.len() > LONGEST || value.contains('\0') {
            return Err(format!(
                "it sets a variable that is none: {:?}",
                pair.chars().take(60).collect::<String>()
            ));
        }
        let upper = name.to_ascii_uppercase();
        let steers = upper.ends_with("_PROXY") || upper.starts_with("LD_") || upper.starts_with("BELLJAR_");
        if !steers && !["BASH_ENV", "ENV", "HOME", "USER"].contains(&upper.as_str()) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(env)
}

/// CVE-2024-21626: a folder in `/proc` may lead out of the sandbox.
fn workdir(text: Option<&str>) -> Result<Option<SandboxPath>, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let path = SandboxPath::new(text).map_err(|error| format!("its folder of work: {error}"))?;
    let kernel = ["/proc", "/sys", "/dev"].map(|path| SandboxPath::new(path).expect("a plain absolute path"));
    match kernel.iter().any(|kernel| path.is_within(kernel)) {
        true => Err(format!("its folder of work is \"{path}\"")),
        false => Ok(Some(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Result<ImageConfig, String> {
        let whole = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"config":{json}}}"#
        );
        ImageConfig::of(&serde_json::from_str(&whole).unwrap())
    }

    #[test]
    fn an_image_fills_gaps_and_steers_nothing() {
        let json = r#"{"Env":["PATH=/usr/bin","https_proxy=http://evil","LD_PRELOAD=/x.so","BASH_ENV=/x","EMPTY"],
            "WorkingDir":"/app/","User":"root","Entrypoint":["/e"],"Cmd":["c"],"Volumes":{"/etc":{}},
            "Labels":{"a":"binary:///bin/sh"},"StopSignal":"SIGKILL"}"#;
        let expected = ImageConfig {
            env: vec![("PATH".into(), "/usr/bin".into()), ("EMPTY".into(), "".into())],
            workdir: Some(SandboxPath::new("/app").unwrap()),
            user: Some("root".into()),
            entrypoint: vec!["/e".into()],
            cmd: vec!["c".into()],
        };
        assert_eq!(config(json).unwrap(), expected);
    }

    #[test]
    fn a_configuration_of_nonsense_is_refused() {
        for json in [
            r#"{"WorkingDir":"/proc/self/fd/8"}"#,
            r#"{"WorkingDir":"app"}"#,
            r#"{"WorkingDir":"/a/../../b"}"#,
            r#"{"Env":["=x"]}"#,
            r#"{"Env":["A\u0000=x"]}"#,
            r#"{"Env":["A B=x"]}"#,
            r#"{"Cmd":["a\u0000b"]}"#,
        ] {
            assert!(config(json).is_err(), "{json}");
        }
    }
}
