use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::*;
use crate::path::SandboxPath;
use crate::task::limits::Bytes;
use crate::task::spec::Overrides;
use crate::task::{Access, Backend, GitMode, ImageRef, NetworkMode, Runtime, Task, User};

/// A machine of its own: an `etc`, a home, a state folder and a workspace, free of symlinks.
pub(super) struct Place {
    _folder: tempfile::TempDir,
    pub root: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["etc", "home/.config/belljar", "state", "work"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        Self { _folder: folder, root }
    }

    pub fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    pub fn surroundings(&self) -> Surroundings {
        Surroundings {
            uid: 1000,
            user: "tester".into(),
            home: Some(self.root.join("home")),
            state: Some(self.root.join("state")),
            xdg_state: None,
            xdg_config: None,
            project: None,
            etc: self.root.join("etc"),
            root: crate::sys::user::myself().uid,
            fetch: |url| {
                Err(bundle::FetchError::Status {
                    url: url.to_owned(),
                    status: 404,
                })
            },
        }
    }

    pub fn config(&self) -> Config {
        Config::load(&self.surroundings()).unwrap()
    }

    fn caller(&self) -> Caller {
        self.surroundings().caller()
    }

    pub fn admit(&self, spec: &str) -> Result<Task, Rejection> {
        let spec = TaskSpec::from_toml(&format!("version = 1\n{spec}"), "task.toml").unwrap();
        admit(spec, &self.root.join("work"), &self.config(), &self.caller())
    }

    /// The faults, with the machine's own paths taken out.
    pub fn faults(&self, spec: &str) -> String {
        match self.admit(spec).unwrap_err() {
            Rejection::Faults(faults) => faults.to_string().replace(self.root.to_str().unwrap(), ""),
            Rejection::Violations(violations) => panic!("{violations}"),
        }
    }
}

fn path(path: &str) -> SandboxPath {
    SandboxPath::new(path).unwrap()
}

#[test]
fn an_empty_spec_becomes_a_task_of_the_defaults() {
    let task = Place::new().admit("").unwrap();
    assert_eq!(
        (task.name.as_str(), &task.image, task.user),
        ("task", &ImageRef::Host, User::Agent)
    );
    assert_eq!((task.backend, &task.runtime), (Backend::Oci, &Runtime::Builtin));
    assert_eq!(task.workdir, path("/"));
    assert_eq!(task.limits.memory, Some(Bytes(4 << 30)));
    assert_eq!(task.limits.cpus, None);
    assert_eq!(task.network.mode, NetworkMode::None);
    assert!(task.roots.is_empty() && task.env.is_empty() && task.command.is_none());
}

#[test]
fn a_spec_is_resolved_against_its_own_folder_and_the_home() {
    let place = Place::new();
    place.write("home/.cargo/registry/x", "");
    place.write("work/agent.rules", "");
    let task = place
        .admit(
            r#"command = ["/usr/bin/make"]
writable_roots = [{ host = ".", path = "/workspace", protect = ["Makefile"] }]
readable_roots = [{ host = "~/.cargo/registry", path = "/cargo" }, { host = "../home" }]
network = { allow = ["a.example", "a.example"] }
gate = { rules = ["agent.rules"] }
"#,
        )
        .unwrap();
    assert_eq!(task.name, "make");
    assert_eq!(task.workdir, path("/workspace"));
    assert_eq!(task.network.mode, NetworkMode::Proxy);
    assert_eq!(task.network.allow, ["a.example"]);
    let home = place.root.join("home");
    let roots: Vec<(&Path, &str, Access)> = task
        .roots
        .iter()
        .map(|root| (root.host.as_path(), root.path.as_str(), root.access))
        .collect();
    let work = place.root.join("work");
    let registry = home.join(".cargo/registry");
    let mut expected = vec![
        (registry.as_path(), "/cargo", Access::Read),
        (home.as_path(), home.to_str().unwrap(), Access::Read),
        (work.as_path(), "/workspace", Access::Write),
    ];
    expected.sort_by_key(|(_, path, _)| path.to_string());
    assert_eq!(roots, expected);
    let workspace = task.roots.iter().find(|root| root.access == Access::Write).unwrap();
    assert_eq!(
        (workspace.git, &workspace.protect[..]),
        (GitMode::Safe, &["Makefile".into(), "agent.rules".into()][..])
    );
}

#[test]
fn every_root_that_is_not_what_it_says_is_refused_at_once() {
    let place = Place::new();
    place.write("work/file", "");
    symlink(place.root.join("work"), place.root.join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(place.root.join("work/socket")).unwrap();
    let spec = r#"writable_roots = [
  { host = "absent", path = "/a" },
  { host = "../link", path = "/b" },
  { host = "../link/file", path = "/c" },
  { host = "socket", path = "/d" },
  { host = "file", path = "/proc/x" },
  { host = "file", path = "/usr" },
  { host = "/", path = "/host" },
  { host = "/dev/shm", path = "/shm" },
  { host = "../state", path = "/s" },
  { host = "..", path = "/t" },
  { host = "~nobody/x", path = "/u" },
  { host = "~/.config", path = "/v" },
]
readable_roots = [{ host = "../state", path = "/w" }, { host = "file", path = "/x" }, { host = ".", path = "/x" }]
"#;
    let expected = r#"task.toml:3:12: writable_roots[0].host: "/work/absent" does not exist
task.toml:4:12: writable_roots[1].host: "/link" is a symlink, which is not followed (name its target)
task.toml:5:12: writable_roots[2].host: "/link/file" leads through the symlink "/link" (name its target)
task.toml:6:12: writable_roots[3].host: "/work/socket" is a socket, not a folder or a file
task.toml:7:27: writable_roots[4].path: "/proc/x" lies in /proc, which the sandbox makes itself
task.toml:8:27: writable_roots[5].path: a root at "/usr" would take the place of the image's own files
task.toml:9:12: writable_roots[6].host: "/" would show the host's /proc to the sandbox
task.toml:10:12: writable_roots[7].host: "/dev/shm" would show the host's /dev to the sandbox
task.toml:11:12: writable_roots[8].host: "/state" would open belljar's state in "/state" to the sandbox
task.toml:12:12: writable_roots[9].host: "" would open belljar's configuration in "/etc" to the sandbox
task.toml:12:12: writable_roots[9].host: "" would open belljar's configuration in "/home/.config/belljar" to the sandbox
task.toml:12:12: writable_roots[9].host: "" would open belljar's state in "/state" to the sandbox
task.toml:13:12: writable_roots[10].host: "~nobody/x" names another user's home, which is not looked up (write the path itself)
task.toml:14:12: writable_roots[11].host: "/home/.config" would open belljar's configuration in "/home/.config/belljar" to the sandbox
task.toml:16:28: readable_roots[0].host: "/state" would open belljar's state in "/state" to the sandbox
task.toml:16:96: readable_roots[2]: another root is at "/x" already (task.toml:16:64)"#;
    assert_eq!(place.faults(spec), expected);
}

#[test]
fn what_is_not_an_image_a_runtime_or_a_secret_is_refused() {
    let place = Place::new();
    place.write("work/text", "not an archive");
    let spec = r#"image = "./text"
runtime = "../x"
workdir = "/proc/self/fd/7"
env = { T = "1" }
secrets = { T = { source = "file:absent", hosts = ["a"] } }
gate = { rules = ["absent.rules", "."] }
"#;
    let expected = r#"task.toml:2:9: image: "/work/text" is not an image: it is not a tar archive
task.toml:3:11: runtime: "/work/../x" cannot be used: No such file or directory (os error 2)
task.toml:4:11: workdir: commands cannot start in "/proc/self/fd/7"
task.toml:6:28: secrets.T: a variable of the same name stands in env
task.toml:6:28: secrets.T.source: "/work/absent" does not exist
task.toml:7:19: gate.rules: "/work/absent.rules" does not exist
task.toml:7:35: gate.rules: "/work" is a folder, not a file"#;
    assert_eq!(place.faults(spec), expected);
    assert_eq!(
        place.faults("image = \"..\""),
        "task.toml:2:9: image: \"\" is not an image: it has neither an \"oci-layout\" file nor a \"bin\" or \"usr/bin\""
    );
}

#[test]
fn an_image_is_told_by_what_it_is() {
    let place = Place::new();
    place.write("work/layout/oci-layout", "{}");
    place.write("work/rootfs/usr/bin/sh", "");
    fs::write(place.root.join("work/image.tar.gz"), [0x1f, 0x8b, 8, 0]).unwrap();
    let image = |text: &str| place.admit(&format!("image = \"{text}\"")).unwrap().image;
    let host = |name: &str| crate::path::HostPath::new(place.root.join("work").join(name)).unwrap();
    assert_eq!(image("host"), ImageRef::Host);
    assert_eq!(image("./layout"), ImageRef::OciLayout(host("layout")));
    assert_eq!(image("./image.tar.gz"), ImageRef::OciLayout(host("image.tar.gz")));
    assert_eq!(image("./rootfs"), ImageRef::Rootfs(host("rootfs")));
    let digest = format!("localhost:5000/a/b:1.0@sha256:{}", "0f".repeat(32));
    for name in ["base", "python:3.12", "Registry.example/team/img", &digest] {
        assert_eq!(image(name), ImageRef::Named(name.to_owned()));
    }
    for name in [
        "Base",
        "a//b",
        "a:",
        "-x",
        "a b",
        "a@sha256:00",
        "a/../b",
        "x:99999999/y",
    ] {
        assert!(
            place
                .faults(&format!("image = \"{name}\""))
                .contains("neither a name nor a reference"),
            "{name}"
        );
    }
}

#[test]
fn a_fault_of_a_flag_names_the_flag() {
    let place = Place::new();
    let flags = Overrides {
        write: vec!["absent".into()],
        ..Overrides::default()
    };
    let spec = TaskSpec::default().apply(flags, &place.root).unwrap();
    let rejection = admit(spec, &place.root, &place.config(), &place.caller()).unwrap_err();
    let expected = format!("--write: \"{}/absent\" does not exist", place.root.display());
    assert_eq!(rejection.to_string(), expected);
}

#[test]
fn layers_lie_upon_each_other_and_each_value_knows_its_place() {
    let place = Place::new();
    place.write(
        "etc/config.toml",
        "[task]\nuser = \"root\"\n[task.limits]\npids = 7\n[journal]\nsync = \"each\"\n",
    );
    let user = "[task.limits]\npids = 9\n[task.gate]\nrules = [\"my.rules\"]\n";
    place.write("home/.config/belljar/config.toml", user);
    let config = place.config();
    assert_eq!(config.task.user.as_ref().unwrap().value, User::Root);
    assert_eq!(config.task.limits.pids.as_ref().unwrap().value, 9);
    assert_eq!(config.journal.sync.value, Sync::Each);
    let rules = place.root.join("home/.config/belljar/my.rules");
    assert_eq!(config.task.gate.rules[0].value, rules.to_str().unwrap());
    let origins: Vec<String> = config
        .settings()
        .iter()
        .filter(|setting| {
            ["task.user", "task.limits.pids", "task.image", "journal.sync"].contains(&setting.key.as_str())
        })
        .map(|setting| format!("{} {}", setting.key, setting.origin).replace(place.root.to_str().unwrap(), ""))
        .collect();
    let expected = [
        "task.image built-in default.toml:12:9",
        "task.user /etc/config.toml:2:8",
        "task.limits.pids /home/.config/belljar/config.toml:2:8",
        "journal.sync /etc/config.toml:6:8",
    ];
    assert_eq!(origins, expected);
}

#[test]
fn faults_of_all_layers_are_listed_at_once() {
    let place = Place::new();
    place.write("etc/config.toml", "[task]\ncommand = [\"sh\"]\n[journal]\nsink = 1\n");
    let user = "trusted_folders = [\"src\"]\n[[otlp]]\nendpoint = \"ftp://x\"\nheaders = { \"a b\" = \"c\", d = \"file:/nonexistent\" }\n";
    place.write("home/.config/belljar/config.toml", user);
    let faults = Config::load(&place.surroundings()).unwrap_err().to_string();
    let expected = r#"/etc/config.toml:2:11: task.command: only a task spec may say this
/etc/config.toml:4:1: journal.sink: unknown key (did you mean "sync"?)
/home/.config/belljar/config.toml:1:20: trusted_folders[0]: "src" is not absolute
/home/.config/belljar/config.toml:3:12: otlp[0].endpoint: "ftp://x" is not a URL of http or https (a name and password belong into headers)
/home/.config/belljar/config.toml:4:21: otlp[0].headers."a b": "a b" is not the name of a header
/home/.config/belljar/config.toml:4:30: otlp[0].headers.d: /nonexistent cannot be read: No such file or directory (os error 2)"#;
    assert_eq!(faults.replace(place.root.to_str().unwrap(), ""), expected);
}

#[test]
fn a_project_counts_where_its_folder_is_trusted_and_says_only_how_its_tasks_run() {
    let place = Place::new();
    let file = place.write(
        "work/.belljar/config.toml",
        "[task]\nuser = \"root\"\n[task.gate]\nrules = [\"p.rules\"]\n",
    );
    let inner = place.root.join("work/inner");
    fs::create_dir(&inner).unwrap();
    let surroundings = Surroundings {
        project: Some(inner),
        ..place.surroundings()
    };
    let load = || Config::load(&surroundings);
    let config = load().unwrap();
    assert_eq!(
        (config.untrusted, config.task.user.unwrap().value),
        (Some(file.clone()), User::Agent)
    );
    symlink(&place.root, place.root.join("home/link")).unwrap();
    let trust = |folder: &str| {
        let text = format!("trusted_folders = [\"{folder}\"]\n[task]\nuser = \"agent\"\n");
        place.write("home/.config/belljar/config.toml", &text);
    };
    trust("~/nowhere");
    assert_eq!(load().unwrap().untrusted, Some(file.clone()));
    trust("~/link/work");
    let config = load().unwrap();
    assert_eq!((config.untrusted, config.task.user.unwrap().value), (None, User::Root));
    assert_eq!(
        config.task.gate.rules[0].value,
        place.root.join("work/p.rules").to_str().unwrap()
    );
    place.write(
        "work/.belljar/config.toml",
        "trusted_folders = [\"/\"]\n[journal]\nsync = \"group\"\n[[otlp]]\nendpoint = \"http://x\"\n\
         [reviewer]\nby = \"command\"\ncommand = [\"/bin/true\"]\n[approvals]\nopen = 1\n",
    );
    let faults = load().unwrap_err().to_string();
    assert_eq!(
        faults
            .matches("only the system's and the user's configuration may say this")
            .count(),
        5,
        "{faults}"
    );
    let moved = place.root.join("work/.belljar/moved");
    fs::rename(&file, &moved).unwrap();
    symlink(&moved, &file).unwrap();
    assert!(load().unwrap_err().to_string().contains("the file cannot be read"));
}

#[test]
fn a_header_never_prints_its_value() {
    let place = Place::new();
    place.write("home/token", "s3cret\n");
    place.write(
        "etc/config.toml",
        "[[otlp]]\nendpoint = \"http://h:1\"\nheaders = { Authorization = \"file:~/token\" }\n",
    );
    let config = place.config();
    assert_eq!(config.otlp[0].headers["authorization"].value.expose(), "s3cret");
    let shown = format!("{config:?}{}", serde_json::to_string(&config.settings()).unwrap());
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[test]
fn the_state_folder_follows_the_caller() {
    let place = Place::new();
    let mut surroundings = place.surroundings();
    assert_eq!(surroundings.state_folder(), place.root.join("state"));
    surroundings.state = None;
    assert_eq!(
        surroundings.state_folder(),
        place.root.join("home/.local/state/belljar")
    );
    surroundings.xdg_state = Some("/x".into());
    assert_eq!(surroundings.state_folder(), Path::new("/x/belljar"));
    surroundings.uid = 0;
    assert_eq!(surroundings.state_folder(), Path::new("/var/lib/belljar"));
}

/// Every key that the code knows stands in `config/default.toml`, set or behind a "#", with its reason; uncommented, the
/// whole page is still a valid one.
#[test]
fn the_default_page_names_every_key_and_gives_a_reason() {
    let page = layers::DEFAULT;
    let mut open = String::new();
    for line in page.lines() {
        // A key that is off is written "#key", a sentence "# text".
        let key = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
        open.push_str(key.unwrap_or(line));
        open.push('\n');
    }
    let open = open
        .replace("file:/etc/belljar/otlp.token", "x")
        .replace("~/src/mine", "/src/mine");
    let place = Place::new();
    place.write("etc/config.toml", &open);
    let config = place.config();
    let keys: Vec<String> = config.settings().iter().map(|setting| setting.key.clone()).collect();
    let schema = serde_json::to_value(TaskSpec::schema()).unwrap();
    let properties = |value: &serde_json::Value| {
        value["properties"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    for key in properties(&schema) {
        let own = ["version", "name", "purpose", "command"].contains(&key.as_str());
        assert!(
            own || keys.iter().any(|found| found.starts_with(&format!("task.{key}"))),
            "{key}"
        );
    }
    for (table, def) in [
        ("limits", "LimitsSpec"),
        ("network", "NetworkSpec"),
        ("gate", "GateSpec"),
    ] {
        for key in properties(&schema["$defs"][def]) {
            assert!(
                keys.iter()
                    .any(|found| found.starts_with(&format!("task.{table}.{key}"))),
                "{table}.{key}"
            );
        }
    }
    let lines: Vec<&str> = page.lines().collect();
    for (n, line) in lines.iter().enumerate() {
        let key = line
            .strip_prefix('#')
            .filter(|rest| !rest.starts_with(' '))
            .unwrap_or(line);
        if key.contains(" = ") && !key.starts_with('#') && !line.starts_with("# ") {
            let reason_above = lines[..n]
                .iter()
                .rev()
                .find(|above| !above.starts_with('#') || above.starts_with("# "));
            let reasoned = line.contains("  # ") || reason_above.is_some_and(|above| above.starts_with("# "));
            assert!(reasoned, "line {} gives no reason: {line}", n + 1);
        }
    }
}

#[test]
fn rules_that_approvals_became_hold_for_every_task_of_the_user() {
    let place = Place::new();
    let rules = |config: Config| {
        let rules = config.task.gate.rules.into_iter();
        rules.map(|rule| rule.value).collect::<Vec<_>>()
    };
    assert_eq!(rules(place.config()), [""; 0]);
    let file = place.write("home/.config/belljar/rules/approved.rules", "");
    assert_eq!(place.surroundings().approved_rules(), Some(file.clone()));
    assert_eq!(rules(place.config()), [file.to_str().unwrap()]);
}

#[test]
fn the_program_that_reviews_is_protected_where_the_agent_could_write() {
    let place = Place::new();
    place.write("work/tools/review", "");
    let program = place.root.join("work/tools/review");
    let config = format!("[reviewer]\nby = \"command\"\ncommand = [{program:?}]\n");
    place.write("home/.config/belljar/config.toml", &config);
    let task = place
        .admit("writable_roots = [{ host = \".\", path = \"/w\" }]")
        .unwrap();
    assert_eq!(task.roots[0].protect, ["tools/review"]);
}

#[test]
fn rules_beside_each_layers_configuration_hold_for_its_tasks() {
    let place = Place::new();
    let rule = |name: &str| format!("prefix_rule(pattern = [\"{name}\"], decision = \"forbidden\")\n");
    place.write("etc/rules/b.rules", &rule("system-b"));
    place.write("etc/rules/a.rules", &rule("system-a"));
    place.write("etc/rules/notes.txt", "no rules");
    place.write("etc/c.rules", &rule("beside"));
    place.write("home/.config/belljar/rules/u.rules", &rule("user"));
    let project = place.write("work/.belljar/rules/p.rules", &rule("project"));
    let surroundings = Surroundings {
        project: Some(place.root.join("work")),
        ..place.surroundings()
    };
    let names = || {
        let config = Config::load(&surroundings).unwrap();
        let files = config.task.gate.rules.iter().map(|file| PathBuf::from(&file.value));
        let names = files.map(|file| file.file_name().unwrap().to_str().unwrap().to_owned());
        (names.collect::<Vec<_>>(), config.untrusted)
    };
    // What an agent may have put into a folder that nobody trusts is not read.
    let untrusted = Some(place.root.join("work/.belljar/rules"));
    assert_eq!(
        names(),
        (["a.rules", "b.rules", "u.rules"].map(str::to_owned).to_vec(), untrusted)
    );
    let trust = format!("trusted_folders = [{:?}]\n", place.root.join("work"));
    place.write("home/.config/belljar/config.toml", &trust);
    let all = ["a.rules", "b.rules", "u.rules", "p.rules"].map(str::to_owned).to_vec();
    assert_eq!(names(), (all, None));
    let config = Config::load(&surroundings).unwrap();
    let task = admit(
        TaskSpec::from_toml(
            "version = 1\nwritable_roots = [{ host = \".\", path = \"/w\" }]",
            "task.toml",
        )
        .unwrap(),
        &place.root.join("work"),
        &config,
        &place.caller(),
    )
    .unwrap();
    assert_eq!(task.gate.rules.len(), 4);
    assert_eq!(task.roots[0].protect, [".belljar/rules/p.rules"]);
    // A link may lead to what the agent can write.
    fs::remove_file(&project).unwrap();
    symlink(place.root.join("etc/rules/a.rules"), &project).unwrap();
    let refused = admit(
        TaskSpec::from_toml("version = 1", "task.toml").unwrap(),
        &place.root,
        &Config::load(&surroundings).unwrap(),
        &place.caller(),
    );
    assert!(refused.unwrap_err().to_string().contains("is a symlink"));
}

#[test]
fn a_folder_of_rules_that_is_none_refuses_to_start() {
    let place = Place::new();
    place.write("etc/rules", "a file");
    let faults = Config::load(&place.surroundings()).unwrap_err().to_string();
    assert!(
        faults.contains("/etc/rules:1:1: the folder of rules cannot be read"),
        "{faults}"
    );
}
