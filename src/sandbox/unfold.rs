//! Files of ours in a folder that the image `host` takes from the machine, such as the one of its certificates. That folder is mounted
//! elsewhere, and in its place stands one in the disposable layer with a link to each thing in it: nothing of the machine's is changed
//! or copied, it takes no other right than any bind does, and every backend can do it.

use std::fs;
use std::path::Path;

use super::host_root::{READ_ONLY, folder as made_folder};
use super::plan::{Made, Mount, Owner, Source, What};
use crate::path::{HostPath, SandboxPath};

/// Where the machine's own folders lie then.
pub const PLACE: &str = "/run/belljar/machine";

/// More than there are roots of trust, or anything else in such a folder; what is beyond is not there inside.
const ENTRIES_MAX: usize = 4096;

/// Makes room for files that are to be made in folders of the machine's.
pub(super) fn make_room(files: &[Made], made: &mut Vec<Made>, mounts: &mut Vec<Mount>) {
    for file in files {
        let mounted = mounts.iter_mut().find_map(|mount| match &mount.source {
            Source::Bind { host, .. } if is_around(&mount.path, &file.path) && is_its_own(mount) => {
                let (host, folder) = (host.clone(), mount.path.clone());
                mount.path = place_of(&folder);
                Some((host, folder))
            }
            _ => None,
        });
        if let Some((host, folder)) = mounted {
            link_all(host.as_path(), &place_of(&folder), &folder, files, made);
            continue;
        }
        // The folder may be known by a link to another one.
        let is_link = |one: &&mut Made| matches!(one.what, What::Link { .. }) && is_around(&one.path, &file.path);
        let Some(link) = made.iter_mut().find(is_link) else {
            continue;
        };
        let folder = link.path.clone();
        *link = made_folder(folder.as_str(), 0o755);
        let target = fs::canonicalize(folder.as_str()).ok().filter(|target| target.is_dir());
        if let Some(host) = target.and_then(|target| HostPath::new(target).ok()) {
            link_all(host.as_path(), &place_of(&folder), &folder, files, made);
            mounts.push(Mount {
                path: place_of(&folder),
                source: Source::Bind {
                    host,
                    owner: Owner::Same,
                },
                attributes: READ_ONLY,
            });
        }
    }
}

/// What the task's spec mounts itself stays as it says.
fn is_its_own(mount: &Mount) -> bool {
    matches!(&mount.source, Source::Bind { host, owner: Owner::Same } if host.as_path() == Path::new(mount.path.as_str()))
        && mount.attributes == READ_ONLY
}

fn is_around(folder: &SandboxPath, file: &SandboxPath) -> bool {
    file != folder && file.is_within(folder)
}

fn place_of(folder: &SandboxPath) -> SandboxPath {
    let name = folder.relative().replace('/', "-");
    SandboxPath::new(&format!("{PLACE}/{name}")).expect("a path's own parts make a path")
}

/// Links at `at` to all that is in a folder of the host, which is mounted at `mounted`, but for what `files` put there.
fn link_all(host: &Path, mounted: &SandboxPath, at: &SandboxPath, files: &[Made], made: &mut Vec<Made>) {
    let Ok(entries) = fs::read_dir(host) else { return };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .take(ENTRIES_MAX)
        .collect();
    // What is in force must not hang on the order in which a disk gives it.
    names.sort_unstable();
    for name in names {
        let below = |folder: &SandboxPath| SandboxPath::new(&format!("{}/{name}", folder.as_str()));
        // A name with control characters can be nobody's.
        let (Ok(link), Ok(target)) = (below(at), below(mounted)) else {
            continue;
        };
        if files.iter().any(|file| file.path == link) {
            continue;
        }
        if files.iter().any(|file| is_around(&link, &file.path)) {
            made.push(made_folder(link.as_str(), 0o755));
            link_all(&host.join(&name), &target, &link, files, made);
            continue;
        }
        made.push(Made {
            path: link,
            what: What::Link {
                target: target.as_str().to_owned(),
            },
            users: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> SandboxPath {
        SandboxPath::new(path).unwrap()
    }

    fn link(at: &str, target: &str) -> Made {
        Made {
            path: path(at),
            what: What::Link {
                target: target.to_owned(),
            },
            users: false,
        }
    }

    fn bind(host: &Path) -> Mount {
        Mount {
            path: path(host.to_str().unwrap()),
            source: Source::Bind {
                host: HostPath::new(host).unwrap(),
                owner: Owner::Same,
            },
            attributes: READ_ONLY,
        }
    }

    #[test]
    fn a_folder_of_the_machine_holds_what_it_held_and_the_file() {
        let machine = tempfile::tempdir().unwrap();
        let certs = machine.path().join("certs");
        fs::create_dir_all(certs.join("java")).unwrap();
        for name in ["a.pem", "bundle", "java/store", "java/other"] {
            fs::write(certs.join(name), "").unwrap();
        }
        let inside = certs.to_str().unwrap();
        let place = format!("{PLACE}{}", inside.replace('/', "-").replacen('-', "/", 1));
        let files = [
            link(&format!("{inside}/bundle"), "/ours"),
            link(&format!("{inside}/java/store"), "/ours"),
            link("/elsewhere", "/ours"),
        ];
        let (mut made, mut mounts) = (Vec::new(), vec![bind(&certs)]);
        make_room(&files, &mut made, &mut mounts);
        let moved = Mount {
            path: path(&place),
            ..bind(&certs)
        };
        assert_eq!(mounts, [moved]);
        assert_eq!(
            made,
            [
                link(&format!("{inside}/a.pem"), &format!("{place}/a.pem")),
                made_folder(&format!("{inside}/java"), 0o755),
                link(&format!("{inside}/java/other"), &format!("{place}/java/other")),
            ]
        );
        // As SUSE and Fedora have it.
        let known = machine.path().join("known");
        std::os::unix::fs::symlink("certs", &known).unwrap();
        let known = known.to_str().unwrap();
        let (mut made, mut mounts) = (vec![link(known, "certs")], Vec::new());
        make_room(&[link(&format!("{known}/bundle"), "/ours")], &mut made, &mut mounts);
        assert_eq!(made[0], made_folder(known, 0o755));
        assert!(made[1..].iter().any(|one| one.path == path(&format!("{known}/java"))));
        assert_eq!(mounts.len(), 1);
    }

    #[test]
    fn what_a_task_mounts_itself_stays_where_it_is() {
        let machine = tempfile::tempdir().unwrap();
        let own = Mount {
            path: path("/etc/ssl/certs"),
            ..bind(machine.path())
        };
        let (mut made, mut mounts) = (Vec::new(), vec![own.clone()]);
        make_room(&[link("/etc/ssl/certs/bundle", "/ours")], &mut made, &mut mounts);
        assert_eq!((made, mounts), (Vec::new(), vec![own]));
    }
}
