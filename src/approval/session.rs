//! Answers for the session: kept in the user's state folder, so that they survive this process and hold for the next task.
//!
//! `<state>/approvals.json` has all of them. Where it is no file (see [`super::file`]), people are asked again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::file::{FileError, StateFile};
use super::question::Reply;
use crate::id::ApprovalId;
use crate::policy::{Approver, Digest, Scope};

/// How long an answer for the session holds at most: a working day. Nobody remembers in the evening of the next day what they
/// allowed in the morning.
pub const KEPT: Duration = Duration::from_secs(12 * 3600);

/// Answers in one file; beyond that the oldest go.
const ANSWERS_MAX: usize = 4096;

/// One session: see the page of [`super`].
#[derive(Debug, Clone)]
pub struct Session {
    state: PathBuf,
    name: String,
    boot: String,
}

/// An answer that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Kept {
    /// The question that it was given to.
    pub approval: ApprovalId,
    /// The session's name; empty for the one without.
    pub session: String,
    boot: String,
    digest: String,
    pub about: String,
    /// `approve` or `deny`.
    pub answer: Word,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub approver: Approver,
    #[schemars(with = "String")]
    pub until: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    Approve,
    Deny,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Whole {
    answers: Vec<Kept>,
}

impl Kept {
    pub(super) fn reply(&self) -> Reply {
        match self.answer {
            Word::Approve => Reply::Approve(Scope::Session),
            Word::Deny => Reply::Deny {
                scope: Scope::Session,
                reason: self.reason.clone(),
            },
        }
    }

    fn holds(&self, boot: &str, now: Timestamp) -> bool {
        // A clock that was set back must not make an answer hold for longer than it was meant to.
        self.boot == boot && now < self.until && self.until <= now + KEPT
    }
}

impl Session {
    /// The session of this boot with this name, in a state folder that exists.
    pub fn of_boot(state: &Path, name: Option<&str>) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            state: state.to_owned(),
            name: name.unwrap_or_default().to_owned(),
            boot: boot.trim().to_owned(),
        })
    }

    /// The answer that was kept for this digest; the last one counts. Blocking.
    pub fn find(&self, digest: &Digest) -> Result<Option<Kept>, FileError> {
        let digest = digest.to_string();
        let found = self.list()?.into_iter().rev();
        Ok(found
            .filter(|kept| kept.session == self.name)
            .find(|kept| kept.digest == digest))
    }

    /// Keeps an answer. Blocking.
    pub(super) fn keep(
        &self,
        approval: ApprovalId,
        digest: &Digest,
        about: &str,
        reply: &Reply,
        by: &Approver,
    ) -> Result<(), FileError> {
        let (answer, reason) = match reply {
            Reply::Approve(_) => (Word::Approve, None),
            Reply::Deny { reason, .. } => (Word::Deny, reason.clone()),
        };
        let kept = Kept {
            approval,
            session: self.name.clone(),
            boot: self.boot.clone(),
            digest: digest.to_string(),
            about: about.to_owned(),
            answer,
            reason,
            approver: by.clone(),
            until: Timestamp::now() + KEPT,
        };
        self.change(|answers| {
            answers.retain(|other| other.digest != kept.digest || other.session != kept.session);
            answers.push(kept);
        })
    }

    /// All answers that hold in this boot, of all sessions, oldest first. Blocking.
    pub fn list(&self) -> Result<Vec<Kept>, FileError> {
        let mut answers = self.file().read()?.answers;
        // Not before the reading: what was kept meanwhile would seem to hold for too long.
        let now = Timestamp::now();
        answers.retain(|kept| kept.holds(&self.boot, now));
        Ok(answers)
    }

    /// Lets the answers to these questions hold no longer; says how many there were. Blocking.
    pub fn forget(&self, which: impl Fn(&Kept) -> bool) -> Result<usize, FileError> {
        self.change(|answers| {
            let before = answers.len();
            answers.retain(|kept| !which(kept));
            before - answers.len()
        })
    }

    fn file(&self) -> StateFile<Whole> {
        StateFile::new(self.state.join("approvals.json"))
    }

    fn change<R>(&self, change: impl FnOnce(&mut Vec<Kept>) -> R) -> Result<R, FileError> {
        self.file().change(|Whole { answers }| {
            // Not before the lock is held: what others kept meanwhile would seem to hold for too long.
            let now = Timestamp::now();
            answers.retain(|kept| kept.holds(&self.boot, now));
            let answer = change(answers);
            let surplus = answers.len().saturating_sub(ANSWERS_MAX);
            answers.drain(..surplus);
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::ApproverKind;

    fn person() -> Approver {
        Approver {
            kind: ApproverKind::Person,
            name: "ada".to_owned(),
            via: "terminal".to_owned(),
        }
    }

    fn session(state: &Path, name: &str) -> Session {
        Session::of_boot(state, Some(name)).unwrap()
    }

    fn keep(session: &Session, digest: &Digest, reply: Reply) {
        session
            .keep(ApprovalId::new(), digest, "make", &reply, &person())
            .unwrap();
    }

    #[test]
    fn an_answer_holds_in_its_session_and_boot_and_for_its_digest_only() {
        let state = tempfile::tempdir().unwrap();
        let (one, other) = (session(state.path(), "one"), session(state.path(), "other"));
        let digest = Digest::of_bytes(b"a");
        keep(&one, &digest, Reply::Approve(Scope::Session));
        let again = session(state.path(), "one").find(&digest).unwrap().unwrap();
        assert_eq!(
            (again.reply(), again.approver),
            (Reply::Approve(Scope::Session), person())
        );
        assert_eq!(other.find(&digest).unwrap(), None);
        assert_eq!(one.find(&Digest::of_bytes(b"b")).unwrap(), None);
        let rebooted = Session {
            boot: "another".to_owned(),
            ..one
        };
        assert_eq!(rebooted.find(&digest).unwrap(), None);
    }

    #[test]
    fn the_last_answer_counts_and_can_be_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let session = session(state.path(), "");
        let digest = Digest::of_bytes(b"a");
        keep(&session, &digest, Reply::Approve(Scope::Session));
        keep(&session, &digest, Reply::deny("no more"));
        let kept = session.find(&digest).unwrap().unwrap();
        assert_eq!((kept.answer, session.list().unwrap().len()), (Word::Deny, 1));
        assert_eq!(session.forget(|one| one.approval == kept.approval).unwrap(), 1);
        assert_eq!(session.find(&digest).unwrap(), None);
    }

    #[test]
    fn an_answer_that_is_over_or_that_claims_to_hold_for_longer_is_none() {
        let state = tempfile::tempdir().unwrap();
        let session = session(state.path(), "");
        let digest = Digest::of_bytes(b"a");
        keep(&session, &digest, Reply::Approve(Scope::Session));
        let file = state.path().join("approvals.json");
        let until = |until: Timestamp| {
            let mut whole: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            whole["answers"][0]["until"] = until.to_string().into();
            fs::write(&file, serde_json::to_vec(&whole).unwrap()).unwrap();
            session.find(&digest).unwrap().is_some()
        };
        let minute = Duration::from_secs(60);
        assert!(until(Timestamp::now() + minute));
        assert!(!until(Timestamp::now() - minute));
        assert!(!until(Timestamp::now() + KEPT + minute));
    }

    #[test]
    fn a_file_that_others_can_write_or_that_is_damaged_answers_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let state = tempfile::tempdir().unwrap();
        let session = session(state.path(), "");
        let digest = Digest::of_bytes(b"a");
        keep(&session, &digest, Reply::Approve(Scope::Session));
        let file = state.path().join("approvals.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(matches!(session.find(&digest), Err(FileError::Foreign { .. })));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, "{\"version\":1").unwrap();
        assert!(matches!(session.find(&digest), Err(FileError::Damaged { .. })));
        fs::write(&file, "{\"version\":9,\"answers\":[]}").unwrap();
        assert!(matches!(
            session.find(&digest),
            Err(FileError::Version { found: 9, .. })
        ));
    }

    #[test]
    fn keepers_at_once_lose_no_answer() {
        let state = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..8u8 {
                let session = session(state.path(), "");
                scope.spawn(move || keep(&session, &Digest::of_bytes(&[n]), Reply::Approve(Scope::Session)));
            }
        });
        assert_eq!(session(state.path(), "").list().unwrap().len(), 8);
    }

    #[test]
    fn an_old_file_is_still_read() {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let digest = Digest::of_bytes(b"a");
        let text = format!(
            r#"{{"version":1,"answers":[{{"approval":"01920000-0000-7000-8000-000000000000","session":"","boot":"{}","digest":"{digest}","about":"make","answer":"approve","approver":{{"kind":"person","name":"ada","via":"terminal"}},"until":"{}"}}]}}"#,
            boot.trim(),
            Timestamp::now() + Duration::from_secs(60),
        );
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join("approvals.json"), text).unwrap();
        let kept = session(state.path(), "").find(&digest).unwrap().unwrap();
        assert_eq!(kept.reply(), Reply::Approve(Scope::Session));
    }
}
