//! Who may be at an engine: root at one that maps ids, and an ordinary user at one that lets it in.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use crate::engines::{Daemon, ORDINARY};

/// A folder of the caller's own, with a program that it can reach.
struct Place {
    folder: tempfile::TempDir,
    host: String,
    /// In whose mounts the engine is.
    within: Option<u32>,
    /// What is done in mounts of the caller's own, which the engine does not see.
    before: Option<String>,
    uid: u32,
}

impl Place {
    fn new(daemon: &Daemon, uid: u32, within: Option<u32>) -> Place {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["work", "state", "home"] {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            chown(path, Some(uid), Some(uid)).unwrap();
        }
        std::fs::copy(env!("CARGO_BIN_EXE_belljar"), folder.path().join("belljar")).unwrap();
        // As for a member of the socket's group.
        std::fs::set_permissions(daemon.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
        std::fs::set_permissions(daemon.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Place {
            folder,
            host: format!("unix://{}", daemon.socket().display()),
            within,
            before: None,
            uid,
        }
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn run(&self, accepted: &[&str], script: &str) -> (Option<i32>, String) {
        let accepted = accepted.iter().flat_map(|control| ["--accept-partial", control]);
        self.run_with(&accepted.collect::<Vec<_>>(), script)
    }

    fn run_with(&self, flags: &[&str], script: &str) -> (Option<i32>, String) {
        let mut words: Vec<String> = Vec::new();
        if let Some(script) = &self.before {
            let script = format!("{script}; exec \"$@\"");
            words.extend(
                [
                    "unshare",
                    "--mount",
                    "--propagation",
                    "private",
                    "sh",
                    "-ec",
                    &script,
                    "sh",
                ]
                .map(str::to_owned),
            );
        }
        if let Some(process) = self.within {
            words.extend(["nsenter", "-t", &process.to_string(), "-m", "--"].map(str::to_owned));
        }
        let id = self.uid.to_string();
        words.extend(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"].map(str::to_owned));
        let output = Command::new(&words[0])
            .args(&words[1..])
            .arg(self.folder.path().join("belljar"))
            .args(["run", "--quiet", "--backend", "docker", "--write"])
            .arg(self.work())
            .args(flags)
            .args(["--", "sh", "-c", script])
            .env("BELLJAR_STATE", self.folder.path().join("state"))
            .env("HOME", self.folder.path().join("home"))
            .env("DOCKER_HOST", &self.host)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    fn owner(&self) -> u32 {
        std::fs::metadata(self.work().join("made")).unwrap().uid()
    }
}

/// Whom the sandbox knows, and a file in its root.
const WORK: &str = "id -un; echo x > made; grep -c ^memory_limit.= /run/belljar/limits";

pub fn an_ordinary_user_works_at_an_engine_that_lets_it_in(daemon: &Daemon) {
    let place = Place::new(daemon, ORDINARY, None);
    let (code, said) = place.run(&[], WORK);
    assert_eq!(code, Some(120), "{said}");
    for control in ["namespaces", "mounts", "protected_names"] {
        assert!(
            said.contains(&format!("{control} can be enforced only in part here")),
            "{control}: {said}"
        );
    }
    let all = ["namespaces", "mounts", "protected_names"];
    assert_eq!(place.run(&all, WORK), (Some(0), "agent\n1\n".to_owned()));
    assert_eq!(place.owner(), ORDINARY);
}

/// Nothing has to be accepted there; but an ordinary user is none of those that such an engine knows.
pub fn an_engine_that_maps_ids_gives_all_to_root_and_says_what_others_lack(daemon: &Daemon) {
    let place = Place::new(daemon, 0, Some(daemon.pid()));
    let (code, said) = place.run(&[], &format!("{WORK}; cat /proc/self/uid_map"));
    assert_eq!(code, Some(0), "{said}");
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words[..4], ["agent", "1", "0", "200000"], "{said}");
    assert_eq!(place.owner(), 0);
    let other = Place::new(daemon, ORDINARY, Some(daemon.pid()));
    let (code, said) = other.run(&["mounts", "protected_names"], WORK);
    assert_eq!(code, Some(120), "{said}");
    assert!(
        said.contains("owners can be enforced only in part here: the engine runs all under ids of its own"),
        "{said}"
    );
}

/// In a container of somebody else's the whole root is an overlay, whose ids no mount can map.
pub fn a_root_whose_ids_cannot_be_mapped_is_refused(daemon: &Daemon) {
    let mut place = Place::new(daemon, 0, None);
    let at = place.folder.path().display().to_string();
    for name in ["lower", "upper", "scratch"] {
        std::fs::create_dir(place.folder.path().join(name)).unwrap();
    }
    place.before = Some(format!(
        "mount -t overlay -o lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/scratch none {at}/work; chown 77:78 {at}/work"
    ));
    let (code, said) = place.run(&["namespaces"], WORK);
    assert_eq!(code, Some(125), "{said}");
    assert!(
        said.contains(
            "the engine cannot give a writable root of 77:78 to the command's user where ids cannot be mapped"
        ),
        "{said}"
    );
}

pub fn nobody_is_root_at_an_engine_that_maps_no_ids(daemon: &Daemon) {
    let place = Place::new(daemon, 0, None);
    let (code, said) = place.run_with(&["--accept-partial", "namespaces", "--user", "root"], "id -u");
    assert_eq!(code, Some(125), "{said}");
    assert!(
        said.contains("user = \"root\" would be root of the host: this engine maps no ids"),
        "{said}"
    );
}

/// What an admin gave a runtime for its arguments is seen, whatever it is called.
pub fn a_runtime_that_ignores_limits_is_not_given_any(daemon: &Daemon) {
    let place = Place::new(daemon, 0, None);
    for (control, flag, value) in [
        ("limit.memory", "--memory", "1GiB"),
        ("limit.cpus", "--cpus", "1"),
        ("limit.pids", "--pids", "100"),
    ] {
        let refused =
            format!("{control} can be enforced not at all here: the engine starts this runtime with --ignore-cgroups");
        let run = |runtime: &str| {
            let accepted = ["--accept-partial", "namespaces", "--accept-partial", "exec_isolation"];
            place.run_with(
                &[&accepted[..], &["--runtime", runtime, flag, value]].concat(),
                "echo ran",
            )
        };
        let (code, said) = run("unbounded");
        assert!(code == Some(120) && said.contains(&refused), "{control}: {said}");
        // gVisor bounds processes by half, and says so.
        if control != "limit.pids" {
            assert_eq!(run("sandboxed"), (Some(0), "ran\n".to_owned()), "{control}");
        }
    }
}

/// A user's own Podman is in a user namespace, so ids need no acceptance; what it gives less of is told, and it serves nobody else.
pub fn an_ordinary_user_works_at_a_podman_of_its_own(daemon: &Daemon) {
    let place = Place::new(daemon, ORDINARY, Some(daemon.pid()));
    let (code, said) = place.run(&[], WORK);
    assert_eq!(code, Some(120), "{said}");
    let less = |said: &str| {
        let named = ["ids", "mounts", "namespaces", "owners", "protected_names", "seccomp"].into_iter();
        let is_less = |control: &&str| said.contains(&format!("{control} can be enforced only in part here"));
        named.filter(is_less).collect::<Vec<_>>()
    };
    let is_v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let expected: &[&str] = match is_v2 {
        true => &["mounts", "protected_names"],
        // Podman makes no cgroup namespace there.
        false => &["mounts", "namespaces", "protected_names"],
    };
    assert_eq!(less(&said), expected, "{said}");
    assert!(!said.contains("ids inside are ids outside"), "{said}");
    let look = "id -un; echo x > made; ! touch /usr/made 2> /dev/null; cat /proc/self/uid_map; mkdir .git/x .vscode/x 2> /dev/null || echo held";
    let (code, said) = place.run(expected, look);
    assert_eq!(code, Some(0), "{said}");
    let words: Vec<&str> = said.split_whitespace().collect();
    // Its own namespace is the outer one: the agent is the first id there, which is the caller.
    assert_eq!(words[..7], ["agent", "0", "1", "1000", "1000", "0", "1"], "{said}");
    assert_eq!(words.last(), Some(&"held"), "{said}");
    assert_eq!(place.owner(), ORDINARY);

    let other = Place::new(daemon, 0, Some(daemon.pid()));
    let (code, said) = other.run(expected, WORK);
    assert_eq!(code, Some(125), "{said}");
    assert!(
        said.contains("the engine runs as the user belljar in a user namespace of its own and belljar as root"),
        "{said}"
    );
}
