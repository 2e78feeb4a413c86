//! Whom the command's user is outside, where a writable root lies on a file system that cannot show its files as somebody else's:
//! the overlay that is the root of another container, a network's, a virtual machine's share.
//!
//! Elsewhere the ids of a sandbox are its own, and a mount that maps ids makes the files of a root its user's. Where there can be no
//! such mount the user has to be the owner of the files, as it is for every task of an ordinary user. All other ids stay the sandbox's
//! own. Where that owner is root, the user inside is root outside, without a capability and in a user namespace of its own; that is
//! less than is promised, and is said.
//!
//! Called by `supervisor` before a plan is made; the plan, and with it the launcher, takes the answer.

use std::io;
use std::os::fd::OwnedFd;

use super::launcher::{GiveRequest, LaunchError};
use super::plan::{CallerIds, OutsideUser};
use crate::audit::record::{Control, Enforced};
use crate::document::Word as _;
use crate::path::{HostPath, SandboxPath};
use crate::sys::mount::{self, Attributes};
use crate::sys::namespace;
use crate::task::{Access, Guarantee, Root};

#[derive(Debug, thiserror::Error)]
pub enum OwnersError {
    #[error("could not look at the root {root}")]
    Look { root: HostPath, source: io::Error },
    #[error(
        "{} belongs to {}, {} to {}, and neither lies where ids can be mapped ({}, {}): a command can be one of them only; \
         a root on a volume of its own, or on a tmpfs, can be anybody's",
        one.root, one.names(), other.root, other.names(), one.file_system, other.file_system
    )]
    Differ { one: Box<Unmapped>, other: Box<Unmapped> },
}

/// A root whose files cannot be shown as somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmapped {
    pub root: SandboxPath,
    pub file_system: String,
    pub owner: OutsideUser,
}

impl Unmapped {
    fn names(&self) -> String {
        format!("{}:{}", self.owner.uid, self.owner.gid)
    }
}

/// The one whom the command's user has to be outside, if it has to be somebody. `give` tries to map the ids of a folder. Blocking, for
/// less than a millisecond for a root on a file system that is not known to do it.
pub fn look(
    roots: &[Root],
    caller: CallerIds,
    mut give: impl FnMut(&GiveRequest) -> Result<OwnedFd, LaunchError>,
) -> Result<Option<Unmapped>, OwnersError> {
    // Without ids of its own to give, a sandbox's user is the caller anyhow.
    let writable = roots
        .iter()
        .filter(|root| root.access == Access::Write && caller.has_range);
    let mut found: Option<Unmapped> = None;
    for root in writable {
        let failed = |source| OwnersError::Look {
            root: root.host.clone(),
            source,
        };
        let folder = mount::open_source(root.host.as_ref()).map_err(failed)?;
        let kind = rustix::fs::fstatfs(&folder)
            .map_err(|error| failed(error.into()))?
            .f_type;
        let request = GiveRequest {
            host: root.host.clone(),
            attributes: Attributes::default(),
            user: OutsideUser {
                uid: namespace::FIRST_ID,
                gid: namespace::FIRST_ID,
            },
            maker: None,
        };
        if MAPPED.contains(&(kind as u64)) || give(&request).is_ok() {
            continue;
        }
        let stat = rustix::fs::fstat(&folder).map_err(|error| failed(error.into()))?;
        let unmapped = Unmapped {
            root: root.path.clone(),
            file_system: name(kind as u64),
            owner: OutsideUser {
                uid: stat.st_uid,
                gid: stat.st_gid,
            },
        };
        match found {
            Some(one) if one.owner != unmapped.owner => {
                return Err(OwnersError::Differ {
                    one: Box::new(one),
                    other: Box::new(unmapped),
                });
            }
            _ => found = Some(unmapped),
        }
    }
    Ok(found)
}

/// What a sandbox's ids give less of, for whom its user is outside.
pub fn shortfall(caller: CallerIds, unmapped: Option<&Unmapped>) -> Option<Control> {
    let why = match unmapped {
        Some(at) if at.owner.uid == 0 || at.owner.gid == 0 => format!(
            "{} belongs to {} and lies on {}, where ids cannot be mapped: to write there the command's user is the same outside \
             (needed: a root on a volume or a tmpfs, or one that belongs to nobody special)",
            at.root,
            at.names(),
            at.file_system
        ),
        None if caller.uid == 0 && !caller.has_range && namespace::is_root_outside() => {
            "belljar is root here, and root outside of its user namespace too, which has no ids to give: the command's user is root \
             outside (needed: a user namespace of somebody else's, or none)"
                .to_owned()
        }
        _ => return None,
    };
    Some(Control {
        control: Guarantee::Ids.word().to_owned(),
        enforced: Enforced::Partial,
        reason: Some(why),
    })
}

/// ext2 to ext4, XFS and Btrfs: as long as there have been mounts that map ids (statfs(2) has the numbers).
const MAPPED: [u64; 3] = [0xef53, 0x5846_5342, 0x9123_683e];

/// For people.
fn name(kind: u64) -> String {
    match kind {
        0x794c_7630 => "an overlay".to_owned(),
        0x6969 => "NFS".to_owned(),
        0x6573_5546 => "a FUSE file system".to_owned(),
        0x0102_1997 => "a 9p file system".to_owned(),
        kind => format!("a file system of type {kind:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::GitMode;

    const ROOT: CallerIds = CallerIds {
        uid: 0,
        gid: 0,
        has_range: true,
    };

    /// Of a file system whose ids no kernel maps.
    fn root(at: &str) -> Root {
        Root {
            host: HostPath::new(at).unwrap(),
            path: SandboxPath::new(at).unwrap(),
            access: Access::Write,
            git: GitMode::Safe,
            protect: Vec::new(),
        }
    }

    fn cannot(_: &GiveRequest) -> Result<OwnedFd, LaunchError> {
        Err(LaunchError::Gone)
    }

    #[test]
    fn the_owner_of_a_root_that_cannot_be_mapped_is_told_and_root_is_less_than_promised() {
        let found = look(&[root("/proc")], ROOT, cannot).unwrap().unwrap();
        assert_eq!(found.owner, OutsideUser { uid: 0, gid: 0 });
        let less = shortfall(ROOT, Some(&found)).unwrap();
        assert_eq!((less.control.as_str(), less.enforced), ("ids", Enforced::Partial));
        let plain = Unmapped {
            owner: OutsideUser { uid: 7, gid: 8 },
            ..found
        };
        assert_eq!(shortfall(ROOT, Some(&plain)), None);
        assert_eq!(shortfall(ROOT, None), None);
    }

    #[test]
    fn what_is_read_only_and_what_can_be_mapped_asks_for_nobody() {
        let read = Root {
            access: Access::Read,
            ..root("/proc")
        };
        assert_eq!(look(&[read], ROOT, cannot).unwrap(), None);
        let can = |_: &GiveRequest| Ok(std::fs::File::open("/dev/null").unwrap().into());
        assert_eq!(look(&[root("/proc")], ROOT, can).unwrap(), None);
        let ordinary = CallerIds {
            uid: 5,
            gid: 5,
            has_range: false,
        };
        assert_eq!(look(&[root("/proc")], ordinary, cannot).unwrap(), None);
    }
}
