use clap::Parser;

use serde_json::{Value, json};

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    egress: EgressArgs,
}

fn belljar(args: &[&str]) -> anyhow::Result<String> {
    let args = ["egress", "check"].iter().chain(args);
    let cli = Cli::try_parse_from(args)?;
    let mut out = Vec::new();
    let spec = |path: &Path| {
        assert!(path.ends_with("task.toml"));
        let network = Network {
            mode: NetworkMode::Proxy,
            allow: vec!["*.example.com".to_owned()],
            deny: vec!["evil.example.com".to_owned()],
            unknown: Unknown::Ask,
            ..Network::default()
        };
        Ok(WayOut {
            network,
            rules: Vec::new(),
        })
    };
    run(cli.egress, &mut out, spec)?;
    Ok(String::from_utf8(out)?)
}

#[test]
fn each_host_is_answered_with_its_reason() {
    let out = belljar(&[
        "--allow",
        "*.example.com",
        "--deny",
        "evil.example.com",
        "--resolve",
        "www.example.com=93.184.216.34",
        "--resolve",
        "inner.example.com=10.0.0.1",
        "https://WWW.example.com/x",
        "inner.example.com",
        "gone.example.com",
        "evil.example.com",
        "other.org:8443",
        "0x7f.1",
    ])
    .unwrap();
    insta::assert_snapshot!(out, @r"
        allow www.example.com:443  the allow list has *.example.com  [network.allow *.example.com]
        deny  inner.example.com:443  inner.example.com is 10.0.0.1, which is private (10.0.0.0/8)  [local]
        deny  gone.example.com:443  gone.example.com: the name does not resolve  [resolve]
        deny  evil.example.com:443  the deny list has evil.example.com  [network.deny evil.example.com]
        deny  other.org:8443  other.org:8443 is not in the allow list  [unknown]
        deny  127.0.0.1:443  an address must be written in its usual form: 127.0.0.1  [malformed]
        ");
}

#[test]
fn a_spec_gives_the_lists_and_flags_add_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().join("task.toml");
    std::fs::write(&spec, "").unwrap();
    let spec = spec.to_str().unwrap();
    let out = belljar(&[
        "--json",
        "--deny",
        "b.example.com",
        spec,
        "b.example.com",
        "other.org",
        "evil.example.com",
    ])
    .unwrap();
    let findings: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let decisions: Vec<_> = findings
        .iter()
        .map(|finding| finding["decision"].as_str().unwrap())
        .collect();
    assert_eq!(decisions, ["deny", "ask", "deny"]);
}

#[test]
fn faulty_arguments_are_all_told() {
    assert!(belljar(&[]).unwrap_err().to_string().contains("no host to check"));
    let error = belljar(&["--allow", "a*b.com", "--deny", "*", "x.org"])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("network.allow[0]") && error.contains("network.deny[0]"),
        "{error}"
    );
    let error = belljar(&["--resolve", "a", "--resolve", "1.1.1.1=b", "x.org"])
        .unwrap_err()
        .to_string();
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn a_batch_is_answered_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let batch = folder.path().join("cases.jsonl");
    let cases = r#"{"id": 1, "allow": ["*.example.com"], "deny": [], "host": "Www.Example.com.", "port": 443, "dns": {"www.example.com": ["93.184.216.34"]}}
{"id": "b", "allow": ["www.example.com"], "deny": [], "host": "www.example.com", "port": 80, "method": "GET", "dns": {"www.example.com": ["10.0.0.1"]}}
{"id": "c", "allow": ["www.example.com"], "deny": [], "host": "www.example.com", "port": 80, "dns": {"www.example.com": "NXDOMAIN"}}
{"id": "d", "allow": [], "deny": [], "host": "www.example.com", "port": 80}
{"id": "e", "allow": [], "deny": [], "host": "www.example.com", "port": 80, "unknown": "ask"}

{"id": "f", "allow": ["*"], "deny": [], "host": "0x7f000001", "port": 80}
{"id": "g", "allow": ["a*b"], "deny": [], "host": "a.com", "port": 80}
{"id": "h", "allow": ["*"], "deny": [], "host": "a@b.com", "port": 80}
{"id": "i", "allow": ["*"], "deny": [], "host": "b.com", "port": 80}
{"id": "j", "hosts": [{"host": "b.com", "methods": "read-only", "paths": ["/v1/"]}], "host": "b.com", "method": "GET", "path": "/v1/a"}
{"id": "k", "hosts": [{"host": "b.com", "methods": "read-only"}], "host": "b.com", "method": "POST"}
{"id": "l", "hosts": [{"host": "b.com", "methods": ["PUT"], "paths": ["/v1/"]}], "host": "b.com", "method": "PUT", "path": "/v1/../v2"}
{"id": "n", "allow": ["b.com"], "host": "B.com", "port": 65536}
{"id": "o", "allow": ["b.com"], "host": "b.com", "dns": {"b.com": ["c.com"], "c.com": ["10.0.0.1"]}}
{"id": "p", "allow": ["b.com"], "host": "b.com", "dns": {"b.com": ["c.com"], "c.com": ["b.com"]}}
{"id": "m", "allow": ["b.com"], "host": "b.com", "method": "GET /\r\n"}
"#;
    std::fs::write(&batch, cases).unwrap();
    let out = belljar(&["--batch", batch.to_str().unwrap()]).unwrap();
    insta::assert_snapshot!(out, @r#"
        {"id":1,"decision":"allow","reason":"the allow list has *.example.com","host":"www.example.com"}
        {"id":"b","decision":"deny","reason":"www.example.com is 10.0.0.1, which is private (10.0.0.0/8)","host":"www.example.com"}
        {"id":"c","decision":"deny","reason":"www.example.com: the name does not resolve","host":"www.example.com"}
        {"id":"d","decision":"deny","reason":"www.example.com is not in the allow list","host":"www.example.com"}
        {"id":"e","decision":"ask","reason":"www.example.com is not in the allow list","host":"www.example.com"}
        {"id":"f","decision":"deny","reason":"an address must be written in its usual form: 127.0.0.1","host":"127.0.0.1"}
        {"id":"g","decision":"deny","reason":"the network lists have 1 fault: network.allow[0] \"a*b\": a star stands alone, or in front as \"*.\" or \"**.\"","host":"a.com"}
        {"id":"h","decision":"deny","reason":"a user or password stands before the host","host":null}
        {"id":"i","decision":"allow","reason":"the allow list has *; its addresses are judged when it is resolved","host":"b.com"}
        {"id":"j","decision":"allow","reason":"it is allowed for some requests; its addresses are judged when it is resolved","host":"b.com"}
        {"id":"k","decision":"deny","reason":"POST is not among the methods that are allowed here","host":"b.com"}
        {"id":"l","decision":"deny","reason":"/v1/../v2 can be read as more than one path, so no rule about paths allows it","host":"b.com"}
        {"id":"n","decision":"deny","reason":"65536 is not a port (1 to 65535)","host":"b.com"}
        {"id":"o","decision":"deny","reason":"b.com is 10.0.0.1, which is private (10.0.0.0/8)","host":"b.com"}
        {"id":"p","decision":"deny","reason":"b.com has no address","host":"b.com"}
        {"id":"m","decision":"deny","reason":"\"GET /\\r\\n\" is no method","host":"b.com"}
        "#);
}

#[test]
fn bad_lines_of_a_batch_are_told_by_number_and_the_others_answered() {
    let folder = tempfile::tempdir().unwrap();
    let batch = folder.path().join("cases.jsonl");
    let cases = "\n{\"id\": 1, \"hostname\": \"a.com\"}\nx\n{\"id\": 2, \"host\": \"a.com\"}\n";
    std::fs::write(&batch, cases).unwrap();
    let cli = Cli::try_parse_from(["egress", "check", "--batch", batch.to_str().unwrap()]).unwrap();
    let mut out = Vec::new();
    let error = run(cli.egress, &mut out, |_| unreachable!()).unwrap_err().to_string();
    assert!(error.starts_with("2 lines of "), "{error}");
    let answers: Vec<Value> = out
        .split(|&b| b == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    let said: Vec<_> = answers
        .iter()
        .map(|answer| (&answer["id"], &answer["decision"], answer["error"].as_str()))
        .collect();
    let told = |number: usize, what: &str| format!("{}:{number}: {what}", batch.display());
    let (one, two) = (
        told(2, "missing field `host`"),
        told(3, "expected value at line 1 column 1"),
    );
    assert_eq!(
        said,
        [
            (&json!(1), &json!("deny"), Some(one.as_str())),
            (&Value::Null, &json!("deny"), Some(two.as_str())),
            (&json!(2), &json!("deny"), None),
        ]
    );
}

/// Each case was read by a person: what a careful reader of the documents would expect.
#[test]
fn odd_hosts_addresses_and_patterns_are_judged_as_written_beside_them() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/egress/odd.jsonl");
    let out = belljar(&["--batch", file.to_str().unwrap()]).unwrap();
    let cases = std::fs::read_to_string(&file).unwrap();
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (case, answer) in cases.lines().map(read).zip(out.lines().map(read)) {
        assert_eq!(case["id"], answer["id"]);
        count += 1;
        let found = json!({"decision": answer["decision"], "host": answer["host"]});
        if found != case["expected"] {
            wrong.push(format!("{case}: {answer}"));
        }
    }
    assert_eq!(count, cases.lines().count());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
