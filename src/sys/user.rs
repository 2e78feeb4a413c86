//! Who this process is.

use std::path::PathBuf;

use nix::unistd::{Uid, User};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_the_one_that_the_kernel_says() {
        assert_eq!(myself().uid, rustix::process::geteuid().as_raw());
        assert!(!myself().name.is_empty());
    }
}
