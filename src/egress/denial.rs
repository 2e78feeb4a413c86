//! A no, in the one shape that every front tells it in.

use serde::Serialize;

use super::gate::Destination;
use super::room::Full;

/// A no: which rule, why, and how to go on. Its JSON is what the sandboxed client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Denial {
    decision: &'static str,
    pub rule: String,
    pub reason: String,
    /// Normalised; empty where it could not be read.
    pub host: String,
    pub port: u16,
    pub how_to_ask: String,
    #[serde(skip)]
    pub kind: DenialKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenialKind {
    /// A deny list or a forbidding rule.
    Denied,
    /// Local, private, reserved, or the host itself.
    Local,
    /// The name has no address.
    Unresolved,
    /// On no list, and nobody said yes.
    Unknown,
    /// The request cannot be read in one way only.
    Malformed,
    /// A limit was reached, or the record could not be written.
    Unable,
}

impl Denial {
    pub fn new(destination: &Destination, kind: DenialKind, rule: &str, reason: String) -> Self {
        Self {
            decision: "deny",
            rule: rule.to_owned(),
            reason,
            host: destination.host.to_string(),
            port: destination.port,
            how_to_ask: kind.how_to_ask(destination),
            kind,
        }
    }

    /// A denial of what could not be read as a destination. `host` is what it would mean to most programs, or empty.
    pub fn malformed(reason: String, host: Option<String>, port: u16) -> Self {
        Self {
            decision: "deny",
            rule: "malformed".to_owned(),
            reason,
            host: host.unwrap_or_default(),
            port,
            how_to_ask: "nobody can approve this; send the request in its plain form".to_owned(),
            kind: DenialKind::Malformed,
        }
    }

    /// A denial of what the proxy does for nobody, wherever it was to go.
    pub fn unserved(reason: &str, host: Option<String>, port: u16) -> Self {
        Self {
            rule: "protocol".to_owned(),
            how_to_ask: "nobody can approve this; connect by TCP through the proxy".to_owned(),
            ..Self::malformed(reason.to_owned(), host, port)
        }
    }

    /// A denial of a connection that nothing was read from, since there are too many.
    pub fn over_limit(full: Full) -> Self {
        Self {
            rule: "limit".to_owned(),
            how_to_ask: match full {
                Full::Task => "close a connection first",
                Full::All => "try again when other tasks have closed theirs",
            }
            .to_owned(),
            kind: DenialKind::Unable,
            ..Self::malformed(full.to_string(), None, 0)
        }
    }
}

impl DenialKind {
    fn how_to_ask(self, destination: &Destination) -> String {
        match self {
            DenialKind::Denied => {
                "this cannot be approved from here; whoever owns the task's policy can change it".to_owned()
            }
            DenialKind::Local => "local and private places cannot be approved; use a public host".to_owned(),
            DenialKind::Unresolved => "check the name; one that does not resolve cannot be approved".to_owned(),
            DenialKind::Unknown => format!(
                "ask the person who runs the task to add \"{}\" to network.allow",
                destination.place()
            ),
            DenialKind::Malformed => "nobody can approve this; send the request in its plain form".to_owned(),
            DenialKind::Unable => "nothing was decided about this host; try again later".to_owned(),
        }
    }
}
