use super::*;
use crate::task::{HostRule, Methods, SecretPlace};

const WHOLE: &str = r#"
version = 1
name = "fix-flaky-test"
purpose = "make tests/net.rs pass ten times in a row"
image = "host"
command = ["bash", "-lc", "make test"]
workdir = "/workspace"
user = "agent"
backend = "oci"
runtime = "builtin"

[[writable_roots]]
host = "."
path = "/workspace"
git = "safe"
protect = ["Makefile"]

[[readable_roots]]
host = "~/.cargo/registry"
path = "/cargo-registry"

[env]
CI = "true"

[secrets.GITHUB_TOKEN]
source = "keyring:github"
hosts = ["api.github.com"]

[limits]
memory = "2GiB"
cpus = 2.0
pids = 512
disk = "4GiB"
task_time = "1h"
exec_time = "10m"
output = "64MiB"

[network]
mode = "proxy"
allow = ["docs.example.org", "*.packages.example.net"]
deny = ["pastebin.com"]
unknown = "ask"

[gate]
rules = ["agent.rules"]
unmatched = "allow"
reviewer = "user"
approval_time = "10m"
"#;

fn faults(text: &str) -> String {
    TaskSpec::from_toml(text, "task.toml").unwrap_err().to_string()
}

fn values<T: Clone>(list: &[Sited<T>]) -> Vec<T> {
    list.iter().map(|sited| sited.value.clone()).collect()
}

#[test]
fn the_whole_format_is_read_with_places() {
    let spec = TaskSpec::from_toml(WHOLE, "task.toml").unwrap();
    let origin = |line, column| Origin::File {
        file: "task.toml".into(),
        line,
        column,
    };
    assert_eq!(spec.name, Some(Sited::new("fix-flaky-test".to_owned(), origin(3, 8))));
    assert_eq!(spec.command.unwrap().value, ["bash", "-lc", "make test"]);
    assert_eq!(
        spec.writable_roots[0].git,
        Some(Sited::new(GitMode::Safe, origin(15, 7)))
    );
    assert_eq!(values(&spec.writable_roots[0].protect), ["Makefile"]);
    assert_eq!(
        spec.readable_roots[0].path.as_ref().unwrap().value.as_str(),
        "/cargo-registry"
    );
    assert_eq!(spec.env["CI"], Sited::new("true".to_owned(), origin(23, 6)));
    assert_eq!(spec.secrets["GITHUB_TOKEN"].source.value, "keyring:github");
    assert_eq!(spec.limits.memory, Some(Sited::new(Bytes(2 << 30), origin(30, 10))));
    assert_eq!(spec.limits.cpus.unwrap().value, 2.0);
    assert_eq!(spec.limits.pids.unwrap().value, 512);
    assert_eq!(spec.limits.task_time.unwrap().value, Duration::from_secs(3600));
    assert_eq!(
        values(&spec.network.allow),
        ["docs.example.org", "*.packages.example.net"]
    );
    assert_eq!(spec.network.mode.unwrap().value, NetworkMode::Proxy);
    assert_eq!(spec.gate.unmatched.unwrap().value, Unmatched::Allow);
    assert_eq!(spec.gate.approval_time.unwrap().value, Duration::from_secs(600));
}

#[test]
fn every_fault_of_a_spec_is_listed_at_once() {
    let text = r#"version = 2
nam = "x"
command = []
workdir = "work"
user = "admin"
env = { "A=B" = "1", C = 2, D = "\u0000" }
[[writable_roots]]
path = "/a/../b"
git = "none"
protect = ["/etc", "../x", ""]
[[readable_roots]]
host = ""
git = "safe"
[secrets.TOKEN]
source = "vault:x"
hosts = []
[limits]
memory = "2 parsecs"
cpus = 0
pids = 1.5
disk = "4KiB"
exec_time = "10"
output = true
[network]
mode = "open"
allow = ["a b", 1]
[gate]
unmatched = "yes"
"#;
    let expected = r#"task.toml:1:11: version: 2 is not a whole number from 1 to 1
task.toml:2:1: nam: unknown key (did you mean "name"?)
task.toml:3:11: command: a command needs at least one word
task.toml:4:11: workdir: "work" is not absolute
task.toml:5:8: user: "admin" is not one of "agent", "root"
task.toml:6:17: env."A=B": "A=B" is not the name of an environment variable
task.toml:6:26: env.C: expected a string, found a whole number
task.toml:6:33: env.D: the value of a variable cannot hold a NUL
task.toml:7:1: writable_roots[0].host: the key is missing (expected a path)
task.toml:8:8: writable_roots[0].path: "/a/../b" contains a ".."
task.toml:9:7: writable_roots[0].git: "none" is not one of "safe", "read-only", "open"
task.toml:10:12: writable_roots[0].protect[0]: "/etc" is not a name below the root
task.toml:10:20: writable_roots[0].protect[1]: "/../x" contains a ".."
task.toml:10:28: writable_roots[0].protect[2]: "" is not a name below the root
task.toml:12:8: readable_roots[0].host: a path must not be empty
task.toml:13:1: readable_roots[0].git: unknown key (expected host, path)
task.toml:15:10: secrets.TOKEN.source: "vault:x" is not keyring:NAME, env:NAME or file:PATH
task.toml:16:9: secrets.TOKEN.hosts: a secret needs at least one host
task.toml:18:10: limits.memory: "2 parsecs" is not a size (expected a number and KiB, MiB, GiB, TiB, kB, MB, GB or TB)
task.toml:19:8: limits.cpus: 0 is not a number from 0.01 to 4096
task.toml:20:8: limits.pids: expected a whole number, found a number with a fraction
task.toml:21:8: limits.disk: 4KiB is less than 1MiB, which holds nothing
task.toml:22:13: limits.exec_time: "10" is not a length of time (expected a number and ms, s, m, h or d)
task.toml:23:10: limits.output: expected a string, found true or false
task.toml:25:8: network.mode: "open" is not one of "none", "cached", "proxy"
task.toml:26:10: network.allow[0]: "a b" is not a host or a pattern of hosts
task.toml:26:17: network.allow[1]: expected a string, found a whole number
task.toml:28:13: gate.unmatched: "yes" is not one of "allow", "ask", "deny""#;
    assert_eq!(faults(text), expected);
}

#[test]
fn the_version_must_be_given() {
    assert_eq!(
        faults(""),
        "task.toml:1:1: version: the key is missing (expected version = 1)"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault_of_that_file() {
    let faults = TaskSpec::read(Path::new("/nonexistent/task.toml"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        faults,
        "/nonexistent/task.toml:1:1: the file cannot be read: No such file or directory (os error 2)"
    );
}

/// The schema comes from the types, the reading from code: every table of the one must know the keys of the other.
#[test]
fn the_schema_and_the_reader_know_the_same_keys() {
    let schema = serde_json::to_value(TaskSpec::schema()).unwrap();
    let keys = |table: &serde_json::Value| -> Vec<String> {
        let mut keys: Vec<String> = table["properties"].as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    let read = |text: &str| -> Vec<String> {
        let faults = faults(&format!("version = 1\n{text}qqqqqqqqqqqqqqqqqqqq = 1\n"));
        let (_, list) = faults
            .lines()
            .find_map(|line| line.split_once("unknown key (expected "))
            .unwrap();
        let mut keys: Vec<String> = list.trim_end_matches(')').split(", ").map(str::to_owned).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(&schema), read(""));
    assert_eq!(schema["additionalProperties"], false);
    for (name, text) in [
        ("WritableRoot", "[[writable_roots]]\nhost = \".\"\n"),
        ("ReadableRoot", "[[readable_roots]]\nhost = \".\"\n"),
        ("SecretSpec", "[secrets.X]\nsource = \"env:X\"\nhosts = [\"a\"]\n"),
        ("LimitsSpec", "[limits]\n"),
        ("NetworkSpec", "[network]\n"),
        ("GateSpec", "[gate]\n"),
    ] {
        assert_eq!(keys(&schema["$defs"][name]), read(text), "{name}");
        assert_eq!(schema["$defs"][name]["additionalProperties"], false, "{name}");
    }
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn flags_alone_make_a_spec() {
    let flags = Overrides {
        image: Some("./rootfs".into()),
        write: strings(&[".", "/data:/d", "out"]),
        read: strings(&["~/x:/x", "/opt/tools"]),
        env: strings(&["A=b=c"]),
        memory: Some("1GiB".into()),
        timeout: Some("5m".into()),
        allow: strings(&["example.org"]),
        rules: strings(&["a.rules"]),
        command: strings(&["make", ""]),
        ..Overrides::default()
    };
    let spec = TaskSpec::default().apply(flags, Path::new("/home/u/p")).unwrap();
    assert_eq!(spec.image.unwrap().value, "/home/u/p/./rootfs");
    let roots: Vec<_> = spec
        .writable_roots
        .iter()
        .map(|root| {
            (
                root.host.value.as_str(),
                root.path.as_ref().map(|path| path.value.as_str()),
            )
        })
        .collect();
    assert_eq!(
        roots,
        [
            ("/home/u/p/.", Some("/workspace")),
            ("/data", Some("/d")),
            ("/home/u/p/out", None)
        ]
    );
    assert_eq!(spec.readable_roots[0].host.value, "~/x");
    assert_eq!(spec.readable_roots[1].path, None);
    assert_eq!(spec.env["A"], Sited::new("b=c".to_owned(), Origin::Flag("--env")));
    assert_eq!(spec.limits.memory.unwrap().value, Bytes(1 << 30));
    assert_eq!(spec.limits.task_time.unwrap().value, Duration::from_secs(300));
    assert_eq!(spec.gate.rules[0].value, "/home/u/p/a.rules");
    assert_eq!(spec.command.unwrap().value, ["make", ""]);
}

#[test]
fn a_flag_takes_the_place_of_a_file_s_root_and_keeps_its_protection() {
    let spec = TaskSpec::from_toml(WHOLE, "task.toml").unwrap();
    let flags = Overrides {
        write: strings(&["/elsewhere"]),
        ..Overrides::default()
    };
    let spec = spec.apply(flags, Path::new("/")).unwrap();
    assert_eq!(spec.writable_roots.len(), 1);
    assert_eq!(spec.writable_roots[0].host.value, "/elsewhere");
    assert_eq!(values(&spec.writable_roots[0].protect), ["Makefile"]);
    assert_eq!(spec.limits.pids.unwrap().value, 512);
}

#[test]
fn every_fault_of_the_flags_is_listed_with_its_flag() {
    let flags = Overrides {
        user: Some("me".into()),
        env: strings(&["A", "=x"]),
        pids: Some("many".into()),
        cpus: Some("NaN".into()),
        write: strings(&["x:/a/../b", ""]),
        command: strings(&[""]),
        ..Overrides::default()
    };
    let faults = TaskSpec::default()
        .apply(flags, Path::new("/"))
        .unwrap_err()
        .to_string();
    let expected = r#"--: the first word of a command must not be empty
--cpus: "NaN" is not a number from 0.01 to 4096
--env: "" is not the name of an environment variable
--env: "A" is not NAME=VALUE
--pids: "many" is not a whole number from 2 to 4194304
--user: "me" is not one of "agent", "root"
--write: "/a/../b" contains a ".."
--write: a path must not be empty"#;
    assert_eq!(faults, expected);
}

#[test]
fn a_higher_layer_replaces_values_and_adds_to_lists() {
    let low = "version = 1\nuser = \"root\"\n[network]\ndeny = [\"a\"]\n[gate]\nrules = [\"low.rules\"]\n[env]\nA = \"1\"\nB = \"1\"\n";
    let high = "version = 1\nuser = \"agent\"\n[network]\ndeny = [\"b\"]\n[gate]\nrules = [\"high.rules\"]\n[env]\nB = \"2\"\n";
    let low = TaskSpec::from_toml(low, "low").unwrap();
    let spec = TaskSpec::from_toml(high, "high").unwrap().over(low);
    assert_eq!(spec.user.unwrap().value, User::Agent);
    assert_eq!(values(&spec.network.deny), ["a", "b"]);
    assert_eq!(values(&spec.gate.rules), ["low.rules", "high.rules"]);
    assert_eq!((spec.env["A"].value.as_str(), spec.env["B"].value.as_str()), ("1", "2"));
}

#[test]
fn hosts_say_what_may_be_asked_of_them() {
    let spec = TaskSpec::from_toml(
        r#"version = 1
[[network.hosts]]
host = "api.example.org"
ports = [443]
methods = "read-only"
paths = ["/v1/", "/repos/*/issues"]
[[network.hosts]]
host = "*.example.net:8443"
methods = ["GET", "POST"]
"#,
        "task.toml",
    )
    .unwrap();
    let rules = host_rules(&spec.network.hosts);
    let expected = [
        HostRule {
            host: "api.example.org".into(),
            ports: vec![443],
            methods: Methods::ReadOnly,
            paths: vec!["/v1/".into(), "/repos/*/issues".into()],
        },
        HostRule {
            host: "*.example.net:8443".into(),
            ports: Vec::new(),
            methods: Methods::Only(vec!["GET".into(), "POST".into()]),
            paths: Vec::new(),
        },
    ];
    assert_eq!(rules, expected);
}

#[test]
fn what_is_wrong_with_hosts_is_told_with_its_place() {
    let text = r#"version = 1
[[network.hosts]]
host = "api.example.org:443"
ports = [443, 0]
methods = ["get", "CONNECT"]
paths = ["v1", "/a/../b", "/%2e", "/a*b", "//a"]
path = "/"
[[network.hosts]]
methods = "readonly"
paths = []
[[network.hosts]]
host = "a.example.org"
methods = []
"#;
    let odd = "is not a plain path (from \"/\" on, without escapes, query, dots or empty segments; a \"*\" is a whole segment)";
    let expected = format!(
        r#"task.toml:4:10: network.hosts[0].ports: the host names a port already
task.toml:4:15: network.hosts[0].ports[1]: 0 is not a whole number from 1 to 65535
task.toml:5:12: network.hosts[0].methods[0]: "get" is not an HTTP method in capitals
task.toml:5:19: network.hosts[0].methods[1]: CONNECT is never let through
task.toml:6:10: network.hosts[0].paths[0]: "v1" {odd}
task.toml:6:16: network.hosts[0].paths[1]: "/a/../b" {odd}
task.toml:6:27: network.hosts[0].paths[2]: "/%2e" {odd}
task.toml:6:35: network.hosts[0].paths[3]: "/a*b" {odd}
task.toml:6:43: network.hosts[0].paths[4]: "//a" {odd}
task.toml:7:1: network.hosts[0].path: unknown key (did you mean "paths"?)
task.toml:8:1: network.hosts[1].host: the key is missing (expected a host or a pattern of hosts)
task.toml:9:11: network.hosts[1].methods: "readonly" is not one of "all", "read-only", nor a list of methods
task.toml:10:9: network.hosts[1].paths: an empty list would allow nothing (leave the key out for all)
task.toml:13:11: network.hosts[2].methods: an empty list would allow nothing (leave the key out for all)"#
    );
    assert_eq!(faults(text), expected);
}

#[test]
fn a_secret_says_where_its_value_goes() {
    let spec = TaskSpec::from_toml(
        r#"version = 1
[secrets.A]
source = "env:A"
hosts = ["a.example.org"]
header = "X-Key: Key {}"
[secrets.B]
source = "file:b"
hosts = ["*.amazonaws.com"]
aws = { access_key_id = "AKIDEXAMPLE000000000", session_token = "file:c" }
[secrets.C]
source = "keyring:c"
hosts = ["c.example.org:8443"]
oauth = { token_url = "https://login.example.org/token", client_id = "me", scope = "read" }
"#,
        "task.toml",
    );
    let mut spec = spec.unwrap();
    spec.rebase(Path::new("/work"));
    let header = SecretPlace::Header {
        name: "x-key".into(),
        before: "Key ".into(),
        after: String::new(),
    };
    assert_eq!(spec.secrets["A"].header.as_ref().unwrap().value, header);
    let aws = spec.secrets["B"].aws.as_ref().unwrap();
    assert_eq!(aws.session_token.as_ref().unwrap().value, "file:/work/c");
    assert_eq!(spec.secrets["C"].oauth.as_ref().unwrap().client_id.value, "me");
}

#[test]
fn what_is_wrong_with_secrets_is_told_with_its_place() {
    let text = r#"version = 1
[secrets.A]
source = "vault:x"
hosts = ["*", "a.example.org"]
header = "Authorization Bearer"
query = "k"
basic = "a:b"
[secrets.B]
source = "env:B"
hosts = ["b.example.org"]
header = "Host: {}"
aws = { access_key_id = "x" }
[secrets.C]
source = "env:C"
hosts = []
oauth = { token_url = "http://login.example.org/", client_id = "me", secret = "x" }
"#;
    let found = faults(text);
    for expected in [
        r#"task.toml:3:10: secrets.A.source: "vault:x" is not keyring:NAME"#,
        "task.toml:4:10: secrets.A.hosts[0]: a secret is for named hosts, not for all",
        r#"task.toml:5:10: secrets.A.header: "Authorization Bearer" is not "Name: text {} text""#,
        "task.toml:6:9: secrets.A.query: a value goes to one place only",
        r#"task.toml:7:9: secrets.A.basic: "a:b" is not a user's name"#,
        r#"task.toml:11:10: secrets.B.header: "Host: {}" is not"#,
        "task.toml:12:7: secrets.B.aws: a value goes to one place only",
        r#"task.toml:12:25: secrets.B.aws.access_key_id: "x" is not the id of an access key"#,
        "task.toml:15:9: secrets.C.hosts: a secret needs at least one host",
        r#"task.toml:16:23: secrets.C.oauth.token_url: "http://login.example.org/" is not https://HOST/PATH"#,
        "secrets.C.oauth.secret: unknown key",
    ] {
        assert!(found.contains(expected), "{expected}\n{found}");
    }
}
