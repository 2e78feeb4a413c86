//! A live task's folder in the state folder, as others find it: `<state>/tasks/<id>/` with `api.sock` and `task.json`.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::id::TaskId;

pub const SOCKET: &str = "api.sock";
const CARD: &str = "task.json";

/// What `task.json` says, so that a task can be found by its name without asking it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    pub id: TaskId,
    pub name: String,
    /// The belljar process that keeps the task.
    pub pid: u32,
    /// RFC 3339, UTC.
    pub created: String,
}

/// The folder of one task.
pub fn of_task(state: &Path, id: TaskId) -> PathBuf {
    state.join("tasks").join(id.to_string())
}

/// Makes the folder (0700) and writes `task.json` whole or not at all.
pub fn publish(folder: &Path, card: &Card) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let fresh = folder.join("task.json.new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(&serde_json::to_vec(card)?)?;
    fs::rename(fresh, folder.join(CARD))
}

/// Takes back what [`publish`] and the server put into the folder; what else is there stays.
pub fn withdraw(folder: &Path) {
    for name in [SOCKET, CARD] {
        // Gone already is as good.
        let _ = fs::remove_file(folder.join(name));
    }
}

/// The cards of all tasks in the state folder, oldest first. A folder without a readable card is none of ours, or half gone.
pub fn cards(state: &Path) -> io::Result<Vec<Card>> {
    let folders = match fs::read_dir(state.join("tasks")) {
        Ok(folders) => folders,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut cards = Vec::new();
    for folder in folders {
        let folder = folder?;
        let Ok(text) = fs::read(folder.path().join(CARD)) else {
            continue;
        };
        if let Ok(card) = serde_json::from_slice::<Card>(&text)
            && folder.file_name().to_str() == Some(&card.id.to_string())
        {
            cards.push(card);
        }
    }
    cards.sort_by_key(|card| card.id);
    Ok(cards)
}

/// The address of the socket in `folder`. A unix socket's address has at most 107 bytes; a longer one is reached through the
/// descriptor of its folder, which must stay open until the socket is bound or connected.
pub fn socket_address(folder: &Path) -> io::Result<(PathBuf, Option<fs::File>)> {
    let address = folder.join(SOCKET);
    if address.as_os_str().len() < 108 {
        return Ok((address, None));
    }
    let opened = fs::File::open(folder)?;
    let short = format!("/proc/self/fd/{}/{SOCKET}", std::os::fd::AsRawFd::as_raw_fd(&opened));
    Ok((PathBuf::from(short), Some(opened)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_task_is_found_and_a_withdrawn_one_is_not() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(cards(state.path()).unwrap(), vec![]);
        let card = Card {
            id: TaskId::new(),
            name: "a".to_owned(),
            pid: 1,
            created: "2026-01-01T00:00:00Z".to_owned(),
        };
        let folder = of_task(state.path(), card.id);
        publish(&folder, &card).unwrap();
        fs::create_dir(state.path().join("tasks/other")).unwrap();
        assert_eq!(cards(state.path()).unwrap(), vec![card]);
        withdraw(&folder);
        assert_eq!(cards(state.path()).unwrap(), vec![]);
    }

    #[test]
    fn an_old_card_is_still_read() {
        let id = "01920000-0000-7000-8000-000000000000";
        let text = format!(r#"{{"id":"{id}","name":"a","pid":7,"created":"2026-01-01T00:00:00Z"}}"#);
        let card: Card = serde_json::from_str(&text).unwrap();
        assert_eq!((card.id.to_string().as_str(), card.pid), (id, 7));
    }
}
