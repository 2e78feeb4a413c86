//! The tables `[reviewer]` and `[approvals]`: who answers in a person's place, and how much a person is asked.

use std::path::Path;
use std::time::Duration;

use crate::approval::reviewer::{Api, By, ByModel, Class, Named, PATIENCE, Risk, Settings};
use crate::document::{Sited, Table, Word};
use crate::path::HostPath;
use crate::task::SecretSource;
use crate::task::spec::{self, expand_home};

use super::layers::endpoint;

/// How much one person is asked, over all of their tasks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Approvals {
    /// Questions that wait at once.
    pub open: Option<Sited<i64>>,
    /// Questions within `within`.
    pub asked: Option<Sited<i64>>,
    pub within: Option<Sited<Duration>>,
    /// How long the same request stays denied after a no.
    pub repeat: Option<Sited<Duration>>,
}

impl Approvals {
    pub(super) fn read(table: &Table<'_>) -> Self {
        let count = |key| table.value(key).and_then(|value| value.integer(1..=1000));
        Self {
            open: count("open"),
            asked: count("asked"),
            within: table.parsed("within", spec::time),
            repeat: table.parsed("repeat", spec::time),
        }
    }

    pub(super) fn over(self, below: Self) -> Self {
        Self {
            open: self.open.or(below.open),
            asked: self.asked.or(below.asked),
            within: self.within.or(below.within),
            repeat: self.repeat.or(below.repeat),
        }
    }

    pub fn bounds(&self) -> crate::approval::Bounds {
        let default = crate::approval::Bounds::default();
        let count = |count: &Option<Sited<i64>>, default: usize| {
            let count = count.as_ref().and_then(|count| usize::try_from(count.value).ok());
            count.unwrap_or(default)
        };
        crate::approval::Bounds {
            open: count(&self.open, default.open),
            asked: count(&self.asked, default.asked),
            within: self.within.as_ref().map_or(default.within, |time| time.value),
            repeat: self.repeat.as_ref().map_or(default.repeat, |time| time.value),
        }
    }
}

/// What reviews.
#[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub(super) enum Kind {
    Command,
    Model,
    Classes,
}

impl Word for Kind {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("command", Kind::Command),
        ("model", Kind::Model),
        ("classes", Kind::Classes),
    ];
}

/// Reads `[reviewer]`. What belongs to another kind than `by` may stand there, and is only looked at for its faults.
pub(super) fn reviewer(table: &Table<'_>, home: Option<&Path>) -> Option<Sited<Settings>> {
    let time = table.parsed("time", review_time).map_or(PATIENCE, |time| time.value);
    let program = table.list("command", word);
    let model = model(table, home);
    let classes: Vec<Class> = table.tables("classes").iter().filter_map(class).collect();
    let pass = table.word::<Risk>("pass");
    if let Some(pass) = &pass
        && pass.value > Risk::Medium
    {
        let what = "only \"low\" and \"medium\" can pass without a look at what the user wants";
        table.fault(&pass.origin, "pass", what);
    }
    if let Some(program) = program.first().filter(|program| !program.value.starts_with('/')) {
        table.fault(&program.origin, "command", "the program needs an absolute path");
    }
    table.required("by", "command, model or classes")?;
    let kind = table.word::<Kind>("by")?;
    let lacks = |key: &str, what: &str| table.fault(&kind.origin, key, what);
    let by = match kind.value {
        Kind::Command if program.is_empty() => {
            lacks(
                "command",
                "the key is missing (expected a program's path and its arguments)",
            );
            return None;
        }
        Kind::Command => By::Program(program.into_iter().map(|word| word.value).collect()),
        Kind::Model => match model {
            Some(model) => model,
            None => {
                lacks("endpoint", "a model needs an endpoint and its name");
                return None;
            }
        },
        Kind::Classes if classes.is_empty() => {
            lacks("classes", "without a class nothing would ever pass");
            return None;
        }
        Kind::Classes => By::Classes {
            classes,
            pass: pass.map_or(Risk::Low, |pass| pass.value),
        },
    };
    Some(Sited::new(Settings { by, time }, kind.origin.clone()))
}

fn model(table: &Table<'_>, home: Option<&Path>) -> Option<By> {
    let key = table.parsed("key", |text| source(text, home));
    let api = table.word::<Api>("api");
    let model = table.text("model");
    let policy = table.text("policy");
    let endpoint = table.parsed("endpoint", endpoint)?;
    let Some(model) = model.filter(|model| !model.value.trim().is_empty()) else {
        table.fault(&endpoint.origin, "model", "an endpoint needs the name of its model");
        return None;
    };
    // A key in the clear would be anybody's on the way.
    let host = endpoint.value.strip_prefix("http://").map(|rest| {
        let authority = rest.split('/').next().unwrap_or_default();
        authority.rsplit_once(':').map_or(authority, |(host, _)| host)
    });
    if key.is_some() && host.is_some_and(|host| !["localhost", "127.0.0.1", "[::1]"].contains(&host)) {
        table.fault(
            &endpoint.origin,
            "endpoint",
            "a key is sent over https only, or to this machine itself",
        );
    }
    Some(By::Model(ByModel {
        endpoint: endpoint.value,
        api: api.map_or(Api::Chat, |api| api.value),
        model: model.value,
        key: key.map(|key| key.value),
        policy: policy.map(|policy| policy.value),
    }))
}

fn class(table: &Table<'_>) -> Option<Class> {
    let risk = table.required("risk", "low, medium, high or critical");
    let risk = risk.and_then(|_| table.word::<Risk>("risk"));
    let command: Vec<String> = table.list("command", word).into_iter().map(|word| word.value).collect();
    let host = table.parsed("host", spec::host_pattern);
    let what = match (command.is_empty(), host) {
        (false, None) => Named::Commands(command),
        (true, Some(host)) => Named::Hosts(host.value),
        _ => {
            table.fault(&table.origin(), "", "a class names either a command or a host");
            return None;
        }
    };
    Some(Class {
        risk: risk?.value,
        what,
    })
}

fn review_time(text: &str) -> Result<Duration, String> {
    match spec::time(text)? {
        long if long > PATIENCE => Err(format!("a review takes at most {PATIENCE:?}")),
        time => Ok(time),
    }
}

fn word(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains('\0') {
        true => Err("a word of a command is empty or holds a NUL".to_owned()),
        false => Ok(text.to_owned()),
    }
}

fn source(text: &str, home: Option<&Path>) -> Result<SecretSource, String> {
    match text.split_once(':') {
        Some(("keyring", name)) if !name.is_empty() => Ok(SecretSource::Keyring(name.to_owned())),
        Some(("env", name)) if !name.is_empty() => Ok(SecretSource::Env(name.to_owned())),
        Some(("file", path)) => {
            let path = expand_home(path, home)?;
            HostPath::new(path)
                .map(SecretSource::File)
                .map_err(|error| error.to_string())
        }
        _ => Err(format!("\"{text}\" is not keyring:NAME, env:NAME or file:PATH")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Document, Faults};

    fn read(text: &str) -> Result<Option<Settings>, Faults> {
        let document = Document::parse(text, "config.toml")?;
        document.read(|root| {
            let table = root.table("reviewer")?;
            Some(reviewer(&table, Some(Path::new("/home/ada")))?.value)
        })
    }

    #[test]
    fn each_kind_of_reviewer_is_read() {
        let program =
            read("[reviewer]\nby = \"command\"\ncommand = [\"/usr/bin/review\", \"-s\"]\ntime = \"20s\"\n").unwrap();
        let expected = Settings {
            by: By::Program(vec!["/usr/bin/review".to_owned(), "-s".to_owned()]),
            time: Duration::from_secs(20),
        };
        assert_eq!(program, Some(expected));
        let text = "[reviewer]\nby = \"model\"\nendpoint = \"https://llm.example/v1\"\nmodel = \"m\"\napi = \"responses\"\nkey = \"file:~/key\"\n";
        let expected = By::Model(ByModel {
            endpoint: "https://llm.example/v1".to_owned(),
            api: Api::Responses,
            model: "m".to_owned(),
            key: Some(SecretSource::File(HostPath::new("/home/ada/key").unwrap())),
            policy: None,
        });
        assert_eq!(read(text).unwrap().unwrap().by, expected);
        let text = "[reviewer]\nby = \"classes\"\npass = \"medium\"\n[[reviewer.classes]]\nrisk = \"low\"\ncommand = [\"git\", \"fetch\"]\n\
                    [[reviewer.classes]]\nrisk = \"critical\"\nhost = \"*.paste.example\"\n";
        let Some(By::Classes { classes, pass }) = read(text).unwrap().map(|settings| settings.by) else {
            panic!("no classes");
        };
        assert_eq!((classes.len(), pass), (2, Risk::Medium));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, expected) in [
            ("[reviewer]\n", "expected command, model or classes"),
            ("[reviewer]\nby = \"command\"\n", "a program's path"),
            (
                "[reviewer]\nby = \"command\"\ncommand = [\"review\"]\n",
                "absolute path",
            ),
            ("[reviewer]\nby = \"model\"\n", "needs an endpoint"),
            (
                "[reviewer]\nby = \"model\"\nendpoint = \"https://a\"\n",
                "the name of its model",
            ),
            (
                "[reviewer]\nby = \"model\"\nendpoint = \"http://llm.example/v1\"\nmodel = \"m\"\nkey = \"env:KEY\"\n",
                "over https only",
            ),
            (
                "[reviewer]\nby = \"command\"\ncommand = [\"/a\"]\ntime = \"2m\"\n",
                "at most 90s",
            ),
            (
                "[reviewer]\nby = \"command\"\ncommand = [\"/a\"]\nmodle = \"x\"\n",
                "modle",
            ),
            ("[reviewer]\nby = \"classes\"\n", "nothing would ever pass"),
            ("[reviewer]\nby = \"classes\"\npass = \"high\"\n", "can pass"),
            ("[[reviewer.classes]]\nrisk = \"low\"\n", "either a command or a host"),
        ] {
            let faults = read(text).unwrap_err().to_string();
            assert!(
                faults.contains(expected) && faults.contains("config.toml:"),
                "{text}: {faults}"
            );
        }
        let local =
            "[reviewer]\nby = \"model\"\nendpoint = \"http://127.0.0.1:9/v1\"\nmodel = \"m\"\nkey = \"env:KEY\"\n";
        assert!(read(local).is_ok());
    }
}
