//! Who this process is.

use std::path::PathBuf;

use nix::unistd::{Group, Uid, User};

/// The effective user of this process, with what the user database says about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Myself {
    pub uid: u32,
    /// The number as text where the database knows no name.
    pub name: String,
    pub home: Option<PathBuf>,
}

pub fn myself() -> Myself {
    let uid = Uid::effective();
    // A failing look-up (an LDAP that is away) leaves a user without a name, never with another one's.
    let entry = User::from_uid(uid).ok().flatten();
    Myself {
        uid: uid.as_raw(),
        name: entry.as_ref().map_or_else(|| uid.to_string(), |user| user.name.clone()),
        home: entry.map(|user| user.dir).filter(|home| home.is_absolute()),
    }
}

/// The name of a user; the number as text where the database knows none.
pub fn name_of(uid: u32) -> String {
    let entry = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    entry.map_or_else(|| uid.to_string(), |user| user.name)
}

/// What this machine calls itself.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The names of the groups that a user is in, as the group database says.
pub fn groups_of(name: &str, uid: u32) -> Vec<String> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else {
        return Vec::new();
    };
    let Ok(name) = std::ffi::CString::new(name) else {
        return Vec::new();
    };
    let ids = nix::unistd::getgrouplist(&name, user.gid).unwrap_or_default();
    ids.into_iter()
        .filter_map(|id| Group::from_gid(id).ok().flatten())
        .map(|group| group.name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_the_one_that_the_kernel_says() {
        assert_eq!(myself().uid, rustix::process::geteuid().as_raw());
        assert!(!myself().name.is_empty());
    }

    #[test]
    fn root_is_in_the_group_of_root() {
        assert!(groups_of("root", 0).contains(&"root".to_owned()));
        assert!(groups_of("no such user", u32::MAX - 7).is_empty());
    }
}
