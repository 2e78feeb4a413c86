//! A live task's folder in the state folder, as others find it: `<state>/tasks/<id>/` with `task.json`, which `supervisor`
//! writes, and `api.sock`.

use std::fs;
use std::io;
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
    fn only_a_folder_whose_card_is_its_own_is_a_task() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(cards(state.path()).unwrap(), vec![]);
        let card = Card {
            id: TaskId::new(),
            name: "a".to_owned(),
            pid: 1,
            created: "2026-01-01T00:00:00Z".to_owned(),
        };
        let write = |folder: PathBuf, text: &str| {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(CARD), text).unwrap();
        };
        let text = serde_json::to_string(&card).unwrap();
        write(of_task(state.path(), card.id), &text);
        write(of_task(state.path(), TaskId::new()), &text);
        write(of_task(state.path(), TaskId::new()), "{}");
        fs::create_dir(state.path().join("tasks/other")).unwrap();
        assert_eq!(cards(state.path()).unwrap(), vec![card]);
    }

    #[test]
    fn an_old_card_is_still_read() {
        let id = "01920000-0000-7000-8000-000000000000";
        let text = format!(r#"{{"id":"{id}","name":"a","pid":7,"created":"2026-01-01T00:00:00Z"}}"#);
        let card: Card = serde_json::from_str(&text).unwrap();
        assert_eq!((card.id.to_string().as_str(), card.pid), (id, 7));
    }
}
