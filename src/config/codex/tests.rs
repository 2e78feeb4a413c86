//! The cases of Codex, each with its expected answer or a stricter one.
//!
//! Stricter, and why: a task that goes beyond its requirements is refused where Codex lowers it with a warning, for a task
//! that silently runs with less than it asked for fails later and darker; keys unknown to Codex are faults, see the module.

use serde_json::Value as Json;

use super::*;

const CASES: &str = include_str!("../../../tests/data/config/requirements.jsonl");

fn cases(kind: &str) -> Vec<Json> {
    let all = CASES.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let some: Vec<Json> = all.filter(|case| case["kind"] == kind).collect();
    assert!(!some.is_empty(), "no case of kind {kind}");
    some
}

fn read(case: &Json) -> Result<Codex, Faults> {
    let host = case["hostname"].as_str().unwrap_or("machine.example.com");
    Codex::from_toml(case["requirements"].as_str().unwrap_or(""), "requirements.toml", host)
}

fn names<T: Word + PartialEq>(list: &Option<Sited<Vec<T>>>) -> Option<Vec<String>> {
    Some(list.as_ref()?.value.iter().map(|word| word.word().to_owned()).collect())
}

#[test]
fn allowed_sets_are_those_of_codex() {
    let mut held = 0;
    for case in cases("constraint") {
        let codex = read(&case).unwrap();
        let allowed = match case["field"].as_str().unwrap() {
            "sandbox_mode" => names(&codex.sandbox_modes),
            "approval_policy" => names(&codex.approval_policies),
            "web_search_mode" => names(&codex.web_search_modes),
            field => panic!("{field}"),
        };
        let expected: Vec<&str> = case["expected"]["allowed_set"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        let allowed = allowed.unwrap();
        assert_eq!(allowed, expected, "{}", case["id"]);
        let candidate = case["candidate"].as_str().unwrap().to_owned();
        assert_eq!(
            allowed.contains(&candidate),
            case["expected"]["allowed"],
            "{}",
            case["id"]
        );
        held += 1;
    }
    assert_eq!(held, 9);
}

#[test]
fn the_first_allowed_reviewer_is_the_one_that_nobody_chose() {
    for case in cases("constraint_initial_value") {
        let reviewers = read(&case).unwrap().reviewers.unwrap().value;
        assert_eq!(
            reviewers[0].word(),
            case["expected"]["approvals_reviewer"],
            "{}",
            case["id"]
        );
    }
}

#[test]
fn what_codex_refuses_is_refused() {
    for case in cases("invalid_requirements") {
        let faults = read(&case)
            .err()
            .unwrap_or_else(|| panic!("{} was taken", case["id"]))
            .to_string();
        let expected = case["expected"]["error"].as_str().unwrap();
        assert!(faults.contains(expected), "{}: {faults}", case["id"]);
        assert!(faults.starts_with("requirements.toml:"), "{faults}");
    }
}

#[test]
fn the_network_is_read_as_codex_reads_it() {
    for case in cases("network_requirements") {
        let network = read(&case).unwrap().network.unwrap();
        let sorted = |hosts: &[Sited<String>]| {
            let mut hosts: Vec<String> = hosts.iter().map(|host| host.value.clone()).collect();
            hosts.sort();
            hosts
        };
        let expected = &case["expected"];
        assert_eq!(serde_json::json!(sorted(&network.allowed)), expected["allowed"]);
        assert_eq!(serde_json::json!(sorted(&network.denied)), expected["denied"]);
        assert_eq!(network.enabled.map(|flag| flag.value), expected["enabled"].as_bool());
        assert_eq!(
            network.managed_only.map(|flag| flag.value),
            expected["managed_only"].as_bool()
        );
    }
}

/// What a layer demands goes on holding when another is added: belljar holds a task to each of them, and merges none.
#[test]
fn layers_accumulate() {
    for case in cases("compose") {
        let host = case["hostname"].as_str().unwrap_or("machine.example.com");
        let parse = |text: &Json| Codex::from_toml(text.as_str().unwrap(), "requirements.toml", host).unwrap();
        let layers: Vec<Codex> = case["layers_low_to_high"]
            .as_array()
            .unwrap()
            .iter()
            .map(parse)
            .collect();
        let composed = parse(&case["expected"]["requirements"]);
        if let Some(rules) = composed.rules {
            let each: Vec<String> = layers
                .iter()
                .filter_map(|layer| layer.rules.as_ref())
                .map(|rules| rules.text.trim().to_owned())
                .collect();
            assert!(
                !each.is_empty() && each.iter().all(|rule| rules.text.contains(rule.as_str())),
                "{}",
                case["id"]
            );
        }
        // One that names no mode for this machine leaves those of the other as they are.
        if let Some(modes) = names(&composed.sandbox_modes) {
            let each: Vec<_> = layers.iter().filter_map(|layer| names(&layer.sandbox_modes)).collect();
            assert_eq!(each, [modes], "{}", case["id"]);
        }
    }
}

#[test]
fn rules_become_starlark_in_the_line_where_they_stand() {
    for case in cases("requirements_rules") {
        let rules = read(&case).unwrap().rules.unwrap();
        let expected = "\nprefix_rule(pattern = [[\"git\", \"hg\"], [\"status\"]], decision = \"prompt\")\n";
        assert_eq!(rules.text, expected, "{}", case["id"]);
    }
    let text = "[rules]\nprefix_rules = [\n  { pattern = [{ token = \"a\\\"\\n\" }], decision = \"forbidden\", justification = \"no \\u0007\" }, { pattern = [{ token = \"b\" }], decision = \"prompt-user\" },\n  { pattern = [{ token = \"c\" }], decision = \"prompt\" },\n]\n";
    let rules = Codex::from_toml(text, "f", "h").unwrap().rules.unwrap();
    let expected = "\n\nprefix_rule(pattern = [[\"a\\\"\\n\"]], decision = \"forbidden\", justification = \"no \\u0007\"); prefix_rule(pattern = [[\"b\"]], decision = \"prompt\", reviewer = \"user\")\nprefix_rule(pattern = [[\"c\"]], decision = \"prompt\")\n";
    assert_eq!(rules.text, expected);
}

/// Where Codex starts, belljar's demands are no laxer than what Codex holds to; where it does not, nor does belljar.
#[test]
fn what_codex_holds_to_belljar_holds_to() {
    let mut compared = 0;
    for case in cases("effective_oracle").into_iter().chain(cases("effective")) {
        let id = case["id"].as_str().unwrap();
        let read = read(&case);
        if case["expected"]["startup_error"].is_string() {
            assert!(read.is_err(), "{id}");
            compared += 1;
            continue;
        }
        let codex = match read {
            Ok(codex) => codex,
            // A key that Codex ignores.
            Err(faults) => {
                assert_eq!(id, "req-0173", "{faults}");
                assert!(faults.to_string().contains("unknown_top_level: unknown key"));
                continue;
            }
        };
        let only_reads = names(&codex.sandbox_modes).is_some_and(|modes| modes == ["read-only"]);
        let reviewers = codex.reviewers.clone();
        let demands = codex.demands();
        assert_eq!(demands.writable.is_some(), only_reads, "{id}");
        assert!(demands.writable.is_none_or(|writable| writable.value.is_empty()));
        if let (Some(reviewers), Some(effective)) = (reviewers, case["expected"]["approvals_reviewer"].as_str()) {
            assert!(
                reviewers.value.iter().any(|reviewer| reviewer.word() == effective),
                "{id}"
            );
        }
        if only_reads {
            let sandbox = case["expected"]["sandbox"].as_str().unwrap();
            assert!(["readOnly", "read-only"].contains(&sandbox), "{id}");
        }
        compared += 1;
    }
    assert_eq!(compared, 36);
}

#[test]
fn demands_are_what_the_file_means_for_belljar() {
    let text = r#"allowed_approval_policies = ["untrusted"]
allowed_sandbox_modes = ["read-only"]
[experimental_network]
enabled = false
managed_allowed_domains_only = true
domains = { "a.example" = "allow", "b.example" = "deny" }
"#;
    let demands = Codex::from_toml(text, "f", "h").unwrap().demands();
    assert_eq!(demands.unmatched.unwrap().value, [Unmatched::Ask, Unmatched::Deny]);
    assert_eq!(demands.writable.unwrap().value, Vec::<String>::new());
    assert_eq!(demands.modes.unwrap().value, [NetworkMode::None]);
    assert_eq!(demands.allow.unwrap().value, ["a.example"]);
    assert_eq!(demands.deny[0].value, "b.example");
    assert_eq!(demands.unknown.unwrap().value, [Unknown::Deny]);
}

/// `network_effective`: what the admin alone may allow, users cannot add to, and what is missing is denied without a question.
#[test]
fn managed_hosts_cannot_be_added_to() {
    for case in cases("network_effective") {
        let hosts: Vec<String> = case["requirements"]["allow"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|host| format!("{host} = \"allow\""))
            .collect();
        let text = format!(
            "[experimental_network]\nmanaged_allowed_domains_only = true\ndomains = {{ {} }}\n",
            hosts.join(", ")
        );
        let demands = Codex::from_toml(&text, "f", "h").unwrap().demands();
        assert_eq!(
            demands.unknown.as_ref().unwrap().value,
            [Unknown::Deny],
            "{}",
            case["id"]
        );
        assert_eq!(
            demands.allow.as_ref().unwrap().value.len(),
            hosts.len(),
            "{}",
            case["id"]
        );
    }
}

#[test]
fn a_rule_keeps_that_its_name_is_compared_without_case() {
    let text = "[rules]\nprefix_rules = [{ pattern = [{ token = \"git\" }], decision = \"forbidden\", canonical_matching = true }]\n";
    let rules = Codex::from_toml(text, "f", "h").unwrap().rules.unwrap();
    let expected = "\nprefix_rule(pattern = [[\"git\"]], decision = \"forbidden\", canonical_matching = True)\n";
    assert_eq!(rules.text, expected);
}

#[test]
fn folders_that_nobody_may_read_are_denied_as_roots() {
    let text = "[permissions.filesystem]\ndeny_read = [\"/srv/secrets/**\", \"/etc/keys\", \"**/*.env\", \"~/.ssh\", \"./private/*.txt\"]\n[permissions.mine]\nextends = \":workspace\"\n";
    let demands = Codex::from_toml(text, "/etc/codex/f", "h").unwrap().demands();
    let patterns: Vec<&str> = demands.denied_patterns.iter().map(|path| path.value.as_str()).collect();
    assert_eq!(
        patterns,
        [
            "/srv/secrets/**",
            "/etc/keys",
            "/**/*.env",
            "~/.ssh",
            "/etc/codex/private/*.txt"
        ]
    );
    let odd = "[permissions.filesystem]\nextends = \":read-only\"\n";
    assert!(Codex::from_toml(odd, "f", "h").is_err());
}

#[test]
fn a_policy_that_never_asks_lets_nobody_be_asked() {
    let demands = |text: &str| Codex::from_toml(text, "f", "h").unwrap().demands();
    let never = demands("allowed_approval_policies = [\"never\"]\n");
    assert!(never.never_ask.unwrap().value);
    assert_eq!(never.unknown.unwrap().value, [Unknown::Deny]);
    let either = demands("allowed_approval_policies = [\"never\", \"on-request\"]\n");
    assert!(either.never_ask.is_none() && either.unknown.is_none());
}

#[test]
fn what_may_be_searched_is_what_a_task_may_reach() {
    let modes = |text: &str| {
        Codex::from_toml(text, "f", "h")
            .unwrap()
            .demands()
            .modes
            .map(|modes| modes.value)
    };
    assert_eq!(modes("allowed_web_search_modes = []\n"), Some(vec![NetworkMode::None]));
    assert_eq!(
        modes("allowed_web_search_modes = [\"cached\"]\n"),
        Some(vec![NetworkMode::None, NetworkMode::Cached])
    );
    assert_eq!(
        modes("allowed_web_search_modes = [\"live\"]\n"),
        Some(vec![NetworkMode::None, NetworkMode::Cached, NetworkMode::Proxy])
    );
    // Commands with a network of their own are another matter than the model's searches.
    let networked = "allowed_web_search_modes = [\"cached\"]\n[experimental_network]\nenabled = true\n";
    assert_eq!(modes(networked), None);
    assert!(Codex::from_toml("allowed_web_search_modes = [\"all\"]\n", "f", "h").is_err());
}

#[test]
fn profiles_of_which_none_writes_leave_nothing_to_write_to() {
    let writable = |text: &str| Codex::from_toml(text, "f", "h").unwrap().demands().writable;
    let only = "default_permissions = \":read-only\"\n[allowed_permission_profiles]\n\":read-only\" = true\n\":workspace\" = false\n";
    assert_eq!(writable(only).unwrap().value, [""; 0]);
    let own = "default_permissions = \"mine\"\n[allowed_permission_profiles]\nmine = true\n[permissions.mine]\n";
    assert!(writable(&format!("{own}extends = \":read-only\"\n")).is_some());
    assert!(writable(&format!("{own}extends = \":workspace\"\n")).is_none());
    let both = "[allowed_permission_profiles]\n\":read-only\" = true\n\":workspace\" = true\n";
    assert!(writable(both).is_none());
}

#[test]
fn keys_that_demand_nothing_here_are_named() {
    let text =
        "allow_appshots = false\n[auto_review]\nrequired_on_models = [\"x\"]\n[experimental_network]\nhttp_port = 1\n";
    let demands = Codex::from_toml(text, "f", "h").unwrap().demands();
    let named: Vec<&str> = demands.unheeded.iter().map(|key| key.value.as_str()).collect();
    assert_eq!(
        named,
        ["allow_appshots", "auto_review", "experimental_network.http_port"]
    );
}

#[test]
fn hosts_that_the_admin_allows_are_allowed_for_every_way_out() {
    let text = "[experimental_network]\nenabled = true\ndomains = { \"api.example\" = \"allow\" }\n";
    let demands = Codex::from_toml(text, "f", "h").unwrap().demands();
    assert_eq!(demands.always[0].value, "api.example");
    assert!(demands.allow.is_none() && demands.unknown.is_none());
}

#[test]
fn a_part_of_a_pattern_that_is_none_is_refused_in_the_words_of_codex() {
    for (part, what) in [
        ("{ token = \" \" }", "index 0: token cannot be empty"),
        (
            "{ any_of = [\"a\", \"\"] }",
            "index 0: any_of cannot include empty tokens",
        ),
        (
            "{ token = \"a\", any_of = [\"b\"] }",
            "index 0: set either token or any_of, not both",
        ),
        ("{ token = \"a\" }, {}", "index 1: set either token or any_of"),
        (
            "{ token = \"a\", tokn = \"b\" }",
            "unknown key (did you mean \"token\"?)",
        ),
    ] {
        let text = format!("[rules]\nprefix_rules = [{{ pattern = [{part}], decision = \"prompt\" }}]\n");
        let faults = Codex::from_toml(&text, "f", "h").unwrap_err().to_string();
        assert!(faults.contains(what), "{part}: {faults}");
    }
}
