use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::config::tests::Place;
use crate::config::{AgentEvents, Config};
use crate::path::SandboxPath;
use crate::policy::{Command, Policy, Stdin, Verdict};
use crate::task::limits::Bytes;
use crate::task::{Backend, GitMode, Guarantee, ImageRef, Methods, NetworkMode, Reviewer, Unknown, Unmatched};

const EXAMPLE: &str = include_str!("../../../config/requirements.example.toml");

fn violations(place: &Place, spec: &str) -> String {
    let rejection = place.admit(spec).unwrap_err();
    assert!(
        matches!(rejection, crate::config::Rejection::Violations(_)),
        "{rejection}"
    );
    rejection.to_string().replace(place.root.to_str().unwrap(), "")
}

fn load_faults(place: &Place) -> String {
    let faults = Config::load(&place.surroundings()).unwrap_err().to_string();
    faults.replace(place.root.to_str().unwrap(), "")
}

/// The example is made to fit the place: its files and folders are there.
fn example(place: &Place) -> String {
    place.write(
        "etc/rules/company.rules",
        "prefix_rule(pattern = [\"rm\"], decision = \"prompt\")\n",
    );
    place.write(
        "etc/jwks.json",
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"one","alg":"EdDSA","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
    );
    place.write("etc/codex.toml", "allowed_approvals_reviewers = [\"user\"]\n");
    let root = place.root.display();
    EXAMPLE
        .replace("/etc/belljar/rules", &format!("{root}/etc/rules"))
        .replace("/etc/codex/requirements.toml", &format!("{root}/etc/codex.toml"))
        .replace("/srv/work", &format!("{root}/work"))
        .replace("required = true", "required = false")
        .replace("/etc/belljar/jwks.json", &format!("{root}/etc/jwks.json"))
        .replace("\nworkspaces = ", "\n#workspaces = ")
        .replace("\"ci\"", "\"tester\"")
}

#[test]
fn the_example_is_a_right_file_with_a_reason_for_each_key() {
    let place = Place::new();
    place.write("etc/requirements.toml", &example(&place));
    let config = place.config();
    let demands = config.requirements.last().unwrap();
    assert_eq!(demands.memory.as_ref().unwrap().value, Bytes(8 << 30));
    assert_eq!(
        demands.codex.as_ref().unwrap().value,
        place.root.join("etc/codex.toml").to_str().unwrap()
    );
    assert_eq!(config.requirements.len(), 2);
    for line in EXAMPLE
        .lines()
        .filter(|line| line.contains(" = ") && !line.starts_with('#'))
    {
        assert!(line.contains(" # "), "no reason: {line}");
    }
    // Every field that a file can set is set by the example, so no key can be missing from it.
    // But for what only a file of Codex's says.
    let shown = format!("{demands:?}")
        .replace("identity_workspaces: None", "")
        .replace("no_upstream: None", "");
    assert!(!shown.contains(": None,"), "{shown}");
}

#[test]
fn every_violation_is_listed_with_the_place_of_the_demand() {
    let place = Place::new();
    place.write("etc/requirements.toml", &example(&place));
    place.write("work/secrets/key", "");
    place.write("elsewhere/file", "");
    let spec = r#"image = "other/image:1"
user = "root"
backend = "docker"
runtime = "crun"
writable_roots = [{ host = ".", path = "/w", git = "open" }, { host = "../elsewhere", path = "/e" }]
limits = { memory = "9GiB", cpus = 5, pids = 5000, task_time = "9h" }
network = { allow = ["a.packages.example.net", "evil.example"], unknown = "ask" }
gate = { unmatched = "allow", reviewer = "auto_review", approval_time = "1h" }
"#;
    let expected = r#"task.toml:2:9: image: "other/image:1" is not allowed, only "host", "registry.example/agents/*" (/etc/requirements.toml:13:10)
task.toml:3:8: user: "root" is not allowed, only "agent" (/etc/requirements.toml:14:9)
task.toml:4:11: backend: "docker" is not allowed, only "oci" (/etc/requirements.toml:11:12)
task.toml:5:11: runtime: "crun" is not allowed, only "builtin", "runc" (/etc/requirements.toml:12:12)
task.toml:6:28: writable_roots[0].git: "open" is not allowed, only "safe", "read-only" (/etc/requirements.toml:21:7)
task.toml:6:28: writable_roots[0].host: "/work" would open "/work/secrets", which /etc/requirements.toml:20:10 denies
task.toml:6:71: writable_roots[1].host: "/elsewhere" is not allowed, only "/work" (/etc/requirements.toml:18:12)
task.toml:7:21: limits.memory: 9GiB is more than the 8GiB that /etc/requirements.toml:24:10 allows
task.toml:7:36: limits.cpus: 5 is more than the 4 that /etc/requirements.toml:25:8 allows
task.toml:7:46: limits.pids: 5000 is more than the 4096 that /etc/requirements.toml:26:8 allows
task.toml:7:64: limits.task_time: 32400s is more than the 28800s that /etc/requirements.toml:28:13 allows
task.toml:8:48: network.allow: "evil.example" is not allowed, only "*.packages.example.net" (/etc/requirements.toml:35:9)
task.toml:8:75: network.unknown: "ask" is not allowed, only "deny" (/etc/requirements.toml:37:11)
task.toml:9:22: gate.unmatched: "allow" is not allowed, only "ask", "deny" (/etc/requirements.toml:43:13)
task.toml:9:42: gate.reviewer: "auto_review" is not allowed, only "user" (/etc/codex.toml:1:31)
task.toml:9:42: gate.reviewer: "auto_review" is not allowed, only "user" (/etc/requirements.toml:44:13)
task.toml:9:73: gate.approval_time: 3600s is more than the 1800s that /etc/requirements.toml:31:17 allows"#;
    assert_eq!(violations(&place, spec), expected);
}

#[test]
fn what_nobody_asked_for_gives_way_to_the_demands() {
    let place = Place::new();
    place.write(
        "etc/requirements.toml",
        r#"version = 1
task = { backends = ["docker"], users = ["root"], images = ["team/*", "base"] }
limits = { memory = "1GiB", cpus = 1 }
network = { unknown = ["deny"], deny = ["bad.example"] }
gate = { unmatched = ["ask"], reviewers = ["auto_review"] }
journal = { sync = "each" }
"#,
    );
    let task = place.admit("network = { deny = [\"worse.example\"] }").unwrap();
    assert_eq!(
        (task.backend, task.image),
        (Backend::Docker, ImageRef::Named("base".into()))
    );
    assert_eq!(
        (task.limits.memory, task.limits.cpus),
        (Some(Bytes(1 << 30)), Some(1.0))
    );
    assert_eq!(
        (task.gate.unmatched, task.gate.reviewer),
        (Unmatched::Ask, Reviewer::AutoReview)
    );
    assert_eq!(
        (task.network.mode, task.network.unknown),
        (NetworkMode::None, Unknown::Deny)
    );
    assert_eq!(task.network.deny, ["worse.example", "bad.example"]);
    assert_eq!(place.config().journal.sync.value, crate::config::Sync::Each);
    let config = "[task]\nbackend = \"oci\"\n[journal]\nsync = \"group\"\n";
    place.write("home/.config/belljar/config.toml", config);
    assert_eq!(
        violations(&place, ""),
        "/home/.config/belljar/config.toml:2:11: backend: \"oci\" is not allowed, only \"docker\" (/etc/requirements.toml:2:21)\n\
         /home/.config/belljar/config.toml:4:8: journal.sync: \"group\" is not allowed, only \"each\" (/etc/requirements.toml:6:20)"
    );
}

#[test]
fn no_file_loosens_another() {
    let place = Place::new();
    place.write(
        "etc/requirements.toml",
        "version = 1\nlimits = { pids = 100 }\n[gate]\nreviewers = [\"user\"]\n",
    );
    place.write(
        "etc/requirements.d/90-more.toml",
        "version = 1\nlimits = { pids = 5000 }\n[gate]\nreviewers = [\"user\", \"auto_review\"]\n",
    );
    place.write("etc/requirements.d/ignored.txt", "not TOML");
    let found = violations(
        &place,
        "limits = { pids = 101 }\ngate = { reviewer = \"auto_review\" }\n",
    );
    let expected = "task.toml:2:19: limits.pids: 101 is more than the 100 that /etc/requirements.toml:2:19 allows\n\
        task.toml:3:21: gate.reviewer: \"auto_review\" is not allowed, only \"user\" (/etc/requirements.toml:4:13)";
    assert_eq!(found, expected);
    assert_eq!(place.admit("").unwrap().limits.pids, Some(100));
}

#[test]
fn a_file_that_others_can_write_or_that_is_not_understood_stops_everything() {
    let place = Place::new();
    let main = place.write("etc/requirements.toml", "version = 1\n[limit]\nmemory = 1\n");
    place.write("etc/requirements.d/a.toml", "[task]\nbackends = []\n");
    let expected = "/etc/requirements.d/a.toml:1:1: version: the key is missing (expected version = 1)\n\
        /etc/requirements.d/a.toml:2:12: task.backends: an empty list would refuse every task\n\
        /etc/requirements.toml:2:2: limit: unknown key (did you mean \"limits\"?)";
    assert_eq!(load_faults(&place), expected);
    fs::write(&main, "version = 1\n").unwrap();
    fs::remove_file(place.root.join("etc/requirements.d/a.toml")).unwrap();
    place.config();
    for (path, mode) in [
        ("etc/requirements.toml", 0o664),
        ("etc/requirements.d", 0o757),
        ("etc", 0o775),
    ] {
        let path = place.root.join(path);
        let before = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let found = load_faults(&place);
        assert!(
            found.contains(&format!("others than root can write to it (mode {mode:o})")),
            "{found}"
        );
        fs::set_permissions(&path, before).unwrap();
    }
    place.config();
}

#[test]
fn a_file_of_another_owner_or_behind_a_symlink_stops_everything() {
    let place = Place::new();
    let main = place.write("etc/requirements.toml", "version = 1\n");
    let mut surroundings = place.surroundings();
    surroundings.root += 1;
    let found = Config::load(&surroundings).unwrap_err().to_string();
    assert!(
        found.contains("not to root: what others can write demands nothing"),
        "{found}"
    );
    let moved = place.root.join("moved.toml");
    fs::rename(&main, &moved).unwrap();
    symlink(&moved, &main).unwrap();
    assert_eq!(
        load_faults(&place),
        "/etc/requirements.toml:1:1: the file is reached by way of a symlink"
    );
    fs::remove_file(&moved).unwrap();
    assert_eq!(
        load_faults(&place),
        "/etc/requirements.toml:1:1: the file is reached by way of a symlink"
    );
    fs::remove_file(&main).unwrap();
    fs::create_dir(&main).unwrap();
    assert_eq!(load_faults(&place), "/etc/requirements.toml:1:1: this is not a file");
}

#[test]
fn rules_of_the_admin_are_read_when_they_are_trusted_and_go_with_every_task() {
    let place = Place::new();
    let rules = place.write(
        "etc/company.rules",
        "prefix_rule(pattern = [\"rm\"], decision = \"forbidden\")\n",
    );
    let demands = format!(
        "version = 1\n[gate]\nrules = [\"{}\", \"/nonexistent.rules\"]\n",
        rules.display()
    );
    place.write("etc/requirements.toml", &demands);
    let found = load_faults(&place);
    assert!(
        found.contains("gate.rules: \"/nonexistent.rules\": the file cannot be read"),
        "{found}"
    );
    place.write(
        "etc/requirements.toml",
        &demands.replace(", \"/nonexistent.rules\"", ""),
    );
    let task = place.admit("").unwrap();
    assert_eq!(task.gate.required.len(), 1);
    assert_eq!(task.gate.required[0].name, rules.to_str().unwrap());
    assert!(task.gate.required[0].text.starts_with("prefix_rule"));
    let digest = place.config().requirements_digest.unwrap();
    fs::write(&rules, "").unwrap();
    assert_ne!(place.config().requirements_digest.unwrap(), digest);
    fs::set_permissions(&rules, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(load_faults(&place).contains("others than root can write to it"));
}

#[test]
fn rules_that_codex_s_file_demands_are_judged_by_and_named_with_their_line() {
    let place = Place::new();
    let codex = "[rules]\nprefix_rules = [\n  { pattern = [{ any_of = [\"git\", \"hg\"] }, { token = \"status\" }], decision = \"prompt\" },\n  { pattern = [{ token = \"rm\" }], decision = \"forbidden\", justification = \"say \\\"please\\\"\" },\n]\n";
    let codex = place.write("etc/codex.toml", codex);
    place.write(
        "etc/requirements.toml",
        &format!("version = 1\n[codex]\nrequirements = \"{}\"\n", codex.display()),
    );
    let task = place.admit("").unwrap();
    let policy = Policy::of_gate(&task.gate).unwrap();
    let judged = |argv: &[&str]| {
        let command = Command {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            cwd: SandboxPath::new("/").unwrap(),
            env: Default::default(),
            stdin: Stdin::None,
            tty: None,
        };
        let explanation = policy.explain(&command);
        let places: Vec<(String, u32)> = explanation
            .rules
            .iter()
            .map(|rule| (rule.file.clone(), rule.line))
            .collect();
        (explanation.judgement, places)
    };
    let file = codex.to_str().unwrap().to_owned();
    assert_eq!(judged(&["hg", "status"]), (Verdict::Ask, vec![(file.clone(), 3)]));
    assert_eq!(
        judged(&["bash", "-c", "true; rm -rf x"]),
        (Verdict::Deny, vec![(file, 4)])
    );
    assert_eq!(judged(&["git", "log"]), (Verdict::Allow, vec![]));
}

#[test]
fn a_denied_folder_is_denied_by_way_of_a_link_too() {
    let place = Place::new();
    place.write("real/keys/id", "");
    symlink(place.root.join("real"), place.root.join("link")).unwrap();
    let denied = place.root.join("link/keys");
    place.write(
        "etc/requirements.toml",
        &format!("version = 1\n[roots]\ndenied = [\"{}\"]\n", denied.display()),
    );
    for host in ["../real/keys", "../real", "../real/keys/id"] {
        let found = violations(
            &place,
            &format!("readable_roots = [{{ host = \"{host}\", path = \"/k\" }}]"),
        );
        assert!(found.contains("which /etc/requirements.toml:3:10 denies"), "{found}");
    }
    assert!(
        place
            .admit("readable_roots = [{ host = \".\", path = \"/k\" }]")
            .is_ok()
    );
}

#[test]
fn only_the_named_people_run_tasks() {
    let place = Place::new();
    place.write(
        "etc/requirements.toml",
        "version = 1\n[identity]\nusers = [\"somebody\"]\ngroups = [\"no such group\"]\n",
    );
    let expected = "/etc/requirements.toml:3:9: identity: user \"tester\" is not among those who may run tasks";
    assert_eq!(violations(&place, ""), expected);
    place.write(
        "etc/requirements.toml",
        "version = 1\n[identity]\nusers = [\"tester\"]\n",
    );
    assert!(place.admit("").is_ok());
}

#[test]
fn records_go_only_where_the_admin_says() {
    let place = Place::new();
    let demands = "version = 1\n[otlp]\nendpoints = [\"https://otel.example:4317\"]\nrequired = true\n";
    place.write("etc/requirements.toml", demands);
    assert_eq!(
        violations(&place, ""),
        "/etc/requirements.toml:4:12: otlp.required: no receiver of records is configured"
    );
    place.write(
        "home/.config/belljar/config.toml",
        "[[otlp]]\nendpoint = \"http://elsewhere:4317\"\n",
    );
    let expected = "/home/.config/belljar/config.toml:2:12: otlp.endpoint: \"http://elsewhere:4317\" is not allowed, \
        only \"https://otel.example:4317\" (/etc/requirements.toml:3:13)";
    assert_eq!(violations(&place, ""), expected);
    place.write(
        "home/.config/belljar/config.toml",
        "[[otlp]]\nendpoint = \"https://otel.example:4317\"\n",
    );
    assert!(place.admit("").is_ok());
    let config = place.config();
    assert!(config.check_endpoints(["https://otel.example:4317"]).is_ok());
    let expected =
        "--otlp: \"http://flag:4317\" is not allowed, only \"https://otel.example:4317\" (/etc/requirements.toml:3:13)";
    let found = config.check_endpoints(["http://flag:4317"]).unwrap_err().to_string();
    assert_eq!(found.replace(place.root.to_str().unwrap(), ""), expected);
}

#[test]
fn what_a_harness_says_is_kept_no_further_than_the_admin_says() {
    let place = Place::new();
    place.write(
        "etc/requirements.toml",
        "version = 1\n[journal]\nagent_events = [\"names\", \"none\"]\n",
    );
    // Nobody asked for the default: the first that is allowed takes its place.
    assert_eq!(place.config().journal.agent_events.value, AgentEvents::Names);
    let asked = |mode: &str| {
        let text = format!("[journal]\nagent_events = \"{mode}\"\n");
        place.write("home/.config/belljar/config.toml", &text);
    };
    asked("none");
    assert!(place.admit("").is_ok());
    assert_eq!(place.config().journal.agent_events.value, AgentEvents::None);
    asked("full");
    assert_eq!(
        violations(&place, ""),
        "/home/.config/belljar/config.toml:2:16: journal.agent_events: \"full\" is not allowed, only \"names\", \"none\" \
         (/etc/requirements.toml:3:16)"
    );
}

#[test]
fn a_fault_of_the_spec_is_told_before_what_is_forbidden() {
    let place = Place::new();
    place.write("etc/requirements.toml", "version = 1\ntask = { users = [\"agent\"] }\n");
    assert_eq!(
        place.faults("user = \"root\"\nimage = \"./absent\"\n"),
        "task.toml:3:9: image: \"/work/./absent\" does not exist".replace("/./", "/")
    );
}

#[test]
fn git_modes_of_roots_are_held_to_the_demands() {
    let place = Place::new();
    place.write(
        "etc/requirements.toml",
        "version = 1\nroots = { git = [\"read-only\"] }\n",
    );
    let found = violations(&place, "writable_roots = [{ host = \".\", path = \"/w\" }]");
    assert!(found.contains("\"safe\" is not allowed, only \"read-only\""), "{found}");
    let task = place
        .admit("writable_roots = [{ host = \".\", path = \"/w\", git = \"read-only\" }]")
        .unwrap();
    assert_eq!(task.roots[0].git, GitMode::ReadOnly);
}

#[test]
fn what_a_task_may_do_without_is_the_admins_to_say() {
    let place = Place::new();
    assert_eq!(place.admit("").unwrap().accept_partial, [Guarantee::ExecIsolation]);
    let task = place
        .admit("accept_partial = [\"limit.memory\"]\n[limits]\nmemory = \"1GiB\"\n")
        .unwrap();
    assert_eq!(task.accept_partial, [Guarantee::ExecIsolation, Guarantee::Memory]);
    assert_eq!(task.named_limits, [Guarantee::Memory]);
    assert_eq!(place.admit("accept_partial = []").unwrap().accept_partial, []);

    let demands = "version = 1\ntask = { accept_partial = [] }\nlimits = { pids = 100 }\n";
    place.write("etc/requirements.toml", demands);
    let task = place.admit("").unwrap();
    // Only the built-in configuration had accepted it, and the cap is a limit that somebody has named.
    assert_eq!(
        (task.accept_partial, task.named_limits),
        (vec![], vec![Guarantee::Pids])
    );
    assert_eq!(
        violations(&place, "accept_partial = [\"limit.memory\", \"seccomp\"]"),
        "task.toml:2:19: accept_partial: \"limit.memory\" is not allowed, only nothing (/etc/requirements.toml:2:27)\n\
         task.toml:2:35: accept_partial: \"seccomp\" is not allowed, only nothing (/etc/requirements.toml:2:27)"
    );
}

#[test]
fn hosts_are_forced_and_held_to_some_requests() {
    let place = Place::new();
    place.write(
        "etc/requirements.toml",
        r#"version = 1
[network]
allow = ["*.example.org"]
always = ["mirror.example.net"]
hosts = [{ host = "*", methods = "read-only" }]
[egress]
upstream = "http://proxy.example:3128"
"#,
    );
    let task = place
        .admit("[[network.hosts]]\nhost = \"api.example.org\"\nmethods = [\"POST\"]")
        .unwrap();
    assert_eq!(task.network.mode, NetworkMode::Proxy);
    assert_eq!(task.network.allow, ["mirror.example.net"]);
    assert_eq!(task.network.hosts[0].methods, Methods::Only(vec!["POST".into()]));
    assert_eq!(task.network.required_hosts[0][0].methods, Methods::ReadOnly);
    assert!(
        place.admit("").unwrap().network.allow.is_empty(),
        "nothing opens a task without a way out"
    );
    assert_eq!(
        violations(&place, "network = { hosts = [{ host = \"evil.example\" }] }"),
        "task.toml:2:31: network.allow: \"evil.example\" is not allowed, only \"*.example.org\" (/etc/requirements.toml:3:9)"
    );
    assert_eq!(
        place.config().egress.upstream.unwrap().value,
        "http://proxy.example:3128"
    );
    place.write(
        "home/.config/belljar/config.toml",
        "[egress]\nupstream = \"http://other.example:80\"\n",
    );
    assert_eq!(
        violations(&place, ""),
        "/home/.config/belljar/config.toml:2:12: egress.upstream: \"http://other.example:80\" is not allowed, \
         only \"http://proxy.example:3128\" (/etc/requirements.toml:7:12)"
    );
}

#[test]
fn a_folder_on_the_way_that_others_can_write_stops_everything() {
    let place = Place::new();
    place.write("etc/requirements.toml", "version = 1\n[gate]\nrules = [\"RULES\"]\n");
    let rules = place.write("open/rules/company.rules", "");
    let text = format!("version = 1\n[gate]\nrules = [{:?}]\n", rules.display().to_string());
    place.write("etc/requirements.toml", &text);
    place.config();
    let open = place.root.join("open");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let faults = load_faults(&place);
    assert!(
        faults.contains("gate.rules") && faults.contains("others than root can write to its folder \"/open\""),
        "{faults}"
    );
}

#[test]
fn a_bundle_demands_as_a_file_does_and_nothing_runs_without_a_required_one() {
    use crate::config::bundle::{BundleFile, FetchError, sign};
    use crate::config::{Surroundings, TaskSpec, admit};

    let place = Place::new();
    let key = crate::audit::key::SigningKey::load_or_make(&place.root.join("key")).unwrap();
    let demand = |required| {
        format!(
            "version = 1\n[bundle]\nurl = \"https://policy.example/b\"\npublic_keys = [\"{}\"]\nrequired = {required}\n",
            key.public()
        )
    };
    place.write("etc/requirements.toml", &demand(true));
    let faults = load_faults(&place);
    assert!(
        faults.starts_with("/etc/requirements.toml:3:7: bundle.url: the bundle cannot be fetched")
            && faults.ends_with("the bundle is required, so nothing runs"),
        "{faults}"
    );
    place.write("etc/requirements.toml", &demand(false));
    let config = place.config();
    assert!(config.bundles[0].missing.is_some());
    let without = config.requirements_digest;

    let file = |name: &str, text: &str| BundleFile {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let files = vec![
        file("team.toml", "version = 1\nlimits = { pids = 100 }\n"),
        file(
            "team.rules",
            "prefix_rule(pattern = [\"rm\"], decision = \"forbidden\", id = \"team:rm\")\n",
        ),
    ];
    let signed = sign(
        &key,
        1,
        jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1),
        files,
    )
    .unwrap();
    // What a fetch would have left there: a function without surroundings of its own cannot give it.
    let kept = std::cell::Cell::new(signed.into_bytes());
    let surroundings = place.surroundings();
    let sources = super::Sources {
        etc: &surroundings.etc,
        owner: surroundings.root,
        state: &surroundings.state_folder(),
        fetch: &|_: &str| -> Result<Vec<u8>, FetchError> { Ok(kept.take()) },
    };
    // The failed attempt a moment ago is not repeated within a minute.
    fs::remove_dir_all(surroundings.state_folder().join("bundles")).unwrap();
    super::load(&sources).unwrap();

    place.write("etc/requirements.toml", &demand(true));
    let config = place.config();
    assert_eq!(config.bundles[0].serial, Some(1));
    assert_ne!(config.requirements_digest, without);
    let admitted = |spec: &str| {
        let spec = TaskSpec::from_toml(&format!("version = 1\n{spec}"), "task.toml").unwrap();
        let caller = Surroundings::caller(&place.surroundings());
        admit(spec, &place.root.join("work"), &config, &caller)
    };
    let refused = admitted("limits = { pids = 200 }").unwrap_err().to_string();
    assert_eq!(
        refused,
        "task.toml:2:19: limits.pids: 200 is more than the 100 that https://policy.example/b#team.toml:2:19 allows"
    );
    let policy = Policy::of_gate(&admitted("").unwrap().gate).unwrap();
    let command = Command {
        argv: vec!["rm".into(), "x".into()],
        cwd: SandboxPath::new("/").unwrap(),
        env: Default::default(),
        stdin: Stdin::None,
        tty: None,
    };
    let found = policy.explain(&command);
    assert_eq!(
        (found.judgement, found.rules[0].id.as_str()),
        (Verdict::Deny, "team:rm")
    );
}

#[test]
fn a_url_of_a_bundle_is_https_or_of_this_machine() {
    let place = Place::new();
    let key = crate::audit::key::SigningKey::load_or_make(&place.root.join("key")).unwrap();
    for (url, taken) in [
        ("https://policy.example/b", true),
        ("http://127.0.0.1:8080/b", true),
        ("http://[::1]/b", true),
        ("http://policy.example/b", false),
        ("http://127.0.0.1.evil.example/b", false),
        ("ftp://x/b", false),
        ("https://user:pass@x/b", false),
    ] {
        let text = format!(
            "version = 1\n[bundle]\nurl = {url:?}\npublic_keys = [\"{}\"]\n",
            key.public()
        );
        assert_eq!(super::Requirements::from_toml(&text, "r.toml").is_ok(), taken, "{url}");
    }
    for keys in ["[]", "[\"ed25519:00\"]"] {
        let text = format!("version = 1\n[bundle]\nurl = \"https://x/b\"\npublic_keys = {keys}\n");
        assert!(super::Requirements::from_toml(&text, "r.toml").is_err(), "{keys}");
    }
}

#[test]
fn where_a_token_is_demanded_only_its_holder_runs_tasks() {
    let place = Place::new();
    place.write(
        "etc/jwks.json",
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
    );
    let oidc = format!(
        "[identity.oidc]\nissuer = \"https://login.example\"\naudience = \"belljar\"\njwks = \"{}/etc/jwks.json\"\n",
        place.root.display()
    );
    let demands = format!("version = 1\n[identity]\nmethods = [\"oidc\"]\nworkspaces = [\"platform\"]\n{oidc}");
    place.write("etc/requirements.toml", &demands);
    assert_eq!(
        violations(&place, ""),
        "/etc/requirements.toml:3:11: identity.methods: a login by token is demanded, and no token is set (identity.token of the configuration)\n\
         /etc/requirements.toml:4:14: identity.workspaces: whoever asks is in no workspace: no token names one"
    );
    let token = place.write("home/token", "not.a.token\n");
    let config = format!("[identity]\ntoken = \"file:{}\"\n", token.display());
    place.write("home/.config/belljar/config.toml", &config);
    let refused = violations(&place, "");
    assert_eq!(
        refused,
        "/home/.config/belljar/config.toml:2:9: identity.token: it is not a signed token (a JWS of three parts)"
    );
    // A token that nobody asked for is no login, and no slip to look past.
    place.write("etc/requirements.toml", "version = 1\n");
    assert!(violations(&place, "").contains("no requirements name the issuer to believe"));
}

#[test]
fn where_nobody_may_be_asked_a_question_is_a_no() {
    let place = Place::new();
    place.write("etc/codex.toml", "allowed_approval_policies = [\"never\"]\n");
    let text = format!(
        "version = 1\n[codex]\nrequirements = \"{}/etc/codex.toml\"\n",
        place.root.display()
    );
    place.write("etc/requirements.toml", &text);
    place.write(
        "work/a.rules",
        "prefix_rule(pattern = [\"git\"], decision = \"prompt\", id = \"ask\")\n",
    );
    let task = place.admit("gate = { rules = [\"a.rules\"] }").unwrap();
    assert_eq!((task.gate.never_ask, task.network.unknown), (true, Unknown::Deny));
    let policy = Policy::of_gate(&task.gate).unwrap();
    let command = |word: &str| Command {
        argv: vec![word.into()],
        cwd: SandboxPath::new("/").unwrap(),
        env: Default::default(),
        stdin: Stdin::None,
        tty: None,
    };
    let found = policy.explain(&command("git"));
    assert_eq!(found.judgement, Verdict::Deny);
    assert_eq!(
        found.reason(),
        "nobody may be asked, by the requirements; to be approved by rule ask (a.rules:1)"
    );
    assert_eq!(policy.explain(&command("ls")).judgement, Verdict::Allow);
}

#[test]
fn who_approves_and_how_far_is_held_to_the_demands() {
    let place = Place::new();
    place.write(
        "etc/requirements.toml",
        "version = 1\n[gate]\napprovers = [\"person\"]\nscopes = [\"once\", \"task\"]\nreviewer_endpoints = [\"https://llm.example/v1\"]\n",
    );
    place.write(
        "etc/requirements.d/1.toml",
        "version = 1\n[gate]\nscopes = [\"once\", \"session\"]\n",
    );
    assert_eq!(place.config().approval_scopes(), [crate::policy::Scope::Once]);
    assert_eq!(
        violations(&place, "gate = { approvers = \"harness\" }"),
        "task.toml:2:22: gate.approvers: \"harness\" is not allowed, only \"person\" (/etc/requirements.toml:3:13)"
    );
    let config = "[reviewer]\nby = \"model\"\nendpoint = \"https://elsewhere/v1\"\nmodel = \"m\"\n";
    place.write("home/.config/belljar/config.toml", config);
    assert_eq!(
        violations(&place, ""),
        "/home/.config/belljar/config.toml:2:6: reviewer.endpoint: \"https://elsewhere/v1\" is not allowed, \
         only \"https://llm.example/v1\" (/etc/requirements.toml:5:22)"
    );
}

#[test]
fn what_codex_lets_nobody_read_lies_in_no_root() {
    let place = Place::new();
    place.write("work/a/b/.env", "");
    place.write("work/c/plain", "");
    place.write("home/.ssh/id", "");
    let codex = place.write(
        "etc/codex.toml",
        "[permissions.filesystem]\ndeny_read = [\"**/*.env\", \"~/.ssh\", \"keys/**\", \"/x/[ab]/y\"]\n",
    );
    place.write(
        "etc/requirements.toml",
        &format!("version = 1\ncodex = {{ requirements = {codex:?} }}\n"),
    );
    let read = |host: &str| format!("readable_roots = [{{ host = {host:?}, path = \"/r\" }}]");
    assert!(place.admit(&read("c")).is_ok());
    assert_eq!(
        violations(&place, &read("a")),
        "task.toml:2:28: readable_roots[0].host: \"/work/a\" would open \"/work/a/b/.env\", which /etc/codex.toml:2:14 denies by a pattern"
    );
    assert_eq!(
        violations(&place, &read("../home")),
        "task.toml:2:28: readable_roots[0].host: \"/home\" would open \"/home/.ssh\", which /etc/codex.toml:2:26 denies"
    );
    place.write("etc/keys/k", "");
    assert!(violations(&place, &read("../etc/keys")).contains("which /etc/codex.toml:2:36 denies"));
}

#[test]
fn a_login_counts_for_the_demands_of_every_file() {
    let place = Place::new();
    let codex = place.write(
        "etc/codex.toml",
        "allowed_login_methods = [\"chatgpt\"]\nallowed_chatgpt_workspaces = [\"one\"]\n",
    );
    place.write(
        "etc/requirements.toml",
        &format!("version = 1\ncodex = {{ requirements = {codex:?} }}\n"),
    );
    let found = violations(&place, "");
    assert!(
        found.contains("/etc/codex.toml:1:25: identity.methods: a login by token is demanded"),
        "{found}"
    );
    assert!(found.contains("/etc/codex.toml:2:30: identity.workspaces"), "{found}");
}

#[test]
fn where_codex_allows_no_proxy_none_may_be_configured() {
    let place = Place::new();
    let codex = place.write(
        "etc/codex.toml",
        "[experimental_network]\nallow_upstream_proxy = false\n",
    );
    place.write(
        "etc/requirements.toml",
        &format!("version = 1\ncodex = {{ requirements = {codex:?} }}\n"),
    );
    assert!(place.admit("").is_ok());
    place.write(
        "home/.config/belljar/config.toml",
        "[egress]\nupstream = \"http://proxy.example:3128\"\n",
    );
    let found = violations(&place, "");
    assert!(
        found.contains("egress.upstream") && found.contains("/etc/codex.toml:2:24 allows no proxy"),
        "{found}"
    );
}

#[test]
fn a_model_that_reviews_is_told_what_codex_tells_its_own() {
    let place = Place::new();
    let codex = place.write("etc/codex.toml", "guardian_policy_config = \"never touch prod\"\n");
    place.write(
        "etc/requirements.toml",
        &format!("version = 1\ncodex = {{ requirements = {codex:?} }}\n"),
    );
    place.write(
        "home/.config/belljar/config.toml",
        "[reviewer]\nby = \"model\"\nendpoint = \"http://127.0.0.1:1/v1\"\nmodel = \"m\"\npolicy = \"own words\"\n",
    );
    let reviewer = place.config().reviewer.unwrap().value;
    let crate::approval::reviewer::By::Model(model) = reviewer.by else {
        panic!("a model was configured");
    };
    assert_eq!(model.policy.as_deref(), Some("own words\n\nnever touch prod"));
}
