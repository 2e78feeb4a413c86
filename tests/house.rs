//! The house rules of the source tree: imports go one way, each outside package has its door, unsafe code its room.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, lowest first. A module may use those of its own layer and below.
const LAYERS: &[&[&str]] = &[
    &["id", "path", "document", "crash", "task", "policy"],
    &["audit"],
    &["sys", "secret", "config", "approval", "image", "sandbox", "egress"],
    &["exec"],
    &["supervisor"],
    &["api", "cli", "telemetry"],
];

/// Beside the layers: who never sees whom.
const STRANGERS: &[(&str, &str)] = &[
    ("sandbox", "egress"),
    ("egress", "sandbox"),
    ("api", "cli"),
    ("telemetry", "cli"),
];

/// Where an outside package may be used. Not listed are those that are everywhere: serde, tokio, thiserror, bytes, tracing, …
const DOORS: &[(&str, &[&str])] = &[
    // Beside the edge: what starlark wants of a file loader.
    ("anyhow", &["cli/", "main.rs", "policy/rules/load.rs"]),
    // Beside the API: the server that plays a model in tests.
    ("axum", &["api/", "approval/reviewer/testing/"]),
    (
        "base64",
        &[
            "api/messages.rs",
            "config/bundle/envelope.rs",
            "config/identity/token.rs",
            "egress/",
            "image/pull",
            "sandbox/plan.rs",
        ],
    ),
    ("bollard", &["sandbox/docker/"]),
    ("clap", &["cli/", "main.rs"]),
    ("comfy_table", &["cli/"]),
    ("flate2", &["image/", "audit/otlp", "egress/secret/answer.rs"]),
    (
        "http_body_util",
        &["api/client", "egress/", "audit/otlp", "sandbox/docker/owner.rs"],
    ),
    (
        "hyper",
        &["api/client", "egress/", "audit/otlp", "sandbox/docker/owner.rs"],
    ),
    (
        "hyper_util",
        &["api/client", "egress/", "audit/otlp", "sandbox/docker/owner.rs"],
    ),
    ("idna", &["egress/"]),
    ("indicatif", &["cli/"]),
    ("ipnet", &["egress/"]),
    ("keyring_core", &["secret/keyring.rs"]),
    ("libc", &["sys/"]),
    ("moka", &["egress/tls/"]),
    // Beside sys: the names of host and user, for audit lies below sys.
    ("nix", &["sys/", "audit/"]),
    ("oci_client", &["image/pull"]),
    ("oci_spec", &["sandbox/", "image/"]),
    ("opentelemetry_proto", &["audit/otlp", "telemetry.rs"]),
    ("psl", &["egress/"]),
    ("rcgen", &["egress/tls/"]),
    (
        "reqwest",
        &[
            "approval/reviewer/model.rs",
            "config/bundle/fetch.rs",
            "egress/cache/fetch.rs",
            // For manifests, which oci-client takes in at any length.
            "image/pull",
        ],
    ),
    (
        "ring",
        &["config/identity/token.rs", "egress/secret/", "egress/tls/java.rs"],
    ),
    ("rusqlite", &["audit/"]),
    // Safe calls on a descriptor at hand; what makes or passes descriptors is in sys.
    (
        "rustix",
        &[
            "sys/",
            "crash.rs",
            "sandbox/",
            "image/",
            "exec/bulk.rs",
            "exec/pump.rs",
            "config/codex.rs",
            "cli/terminal.rs",
        ],
    ),
    ("rustls_platform_verifier", &["egress/tls/", "audit/otlp"]),
    ("seccompiler", &["sandbox/seccomp.rs", "sys/"]),
    ("secrecy", &["image/pull", "secret/"]),
    ("starlark", &["policy/"]),
    ("tar", &["image/"]),
    ("tempfile", &["image/", "egress/programs.rs", "egress/tls/testing.rs"]),
    ("tokio_tungstenite", &["api/client"]),
    ("toml", &["document.rs"]),
    ("tonic", &["audit/otlp", "telemetry.rs"]),
    ("zbus_secret_service_keyring_store", &["secret/keyring.rs"]),
    ("zstd", &["image/", "audit/journal/retain.rs"]),
];

/// The rooms of unsafe code.
const UNSAFE: &[&str] = &["src/sys/", "images/guest/src/kernel"];

#[test]
fn imports_go_one_way() {
    let mut wrong = Vec::new();
    for (file, code) in sources("src") {
        let Some(from) = module_of(&file) else { continue };
        for to in modules_used(&code) {
            let (Some(mine), Some(theirs)) = (layer(&from), layer(&to)) else {
                wrong.push(format!("{file}: {from} or {to} is in no layer"));
                continue;
            };
            if theirs > mine || STRANGERS.contains(&(from.as_str(), to.as_str())) {
                wrong.push(format!("{file}: {from} must not use {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn outside_packages_come_in_by_their_doors() {
    let mut wrong = Vec::new();
    for (file, code) in sources("src") {
        let place = file.strip_prefix("src/").unwrap();
        for (package, doors) in DOORS {
            if uses_package(&code, package) && !doors.iter().any(|door| place.starts_with(door)) {
                wrong.push(format!("{file}: {package} belongs behind {}", doors.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let mut wrong = Vec::new();
    for (file, code) in sources("src").into_iter().chain(sources("images")) {
        if UNSAFE.iter().any(|room| file.starts_with(room)) {
            continue;
        }
        if words(&code).any(|word| word == "unsafe") {
            wrong.push(file);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_module_is_on_the_map() {
    let root = fs::read_to_string(path("src/lib.rs")).unwrap();
    let modules = root
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let missing: Vec<&str> = modules.filter(|module| layer(module).is_none()).collect();
    assert!(missing.is_empty(), "in no layer of tests/house.rs: {missing:?}");
}

#[test]
fn the_reader_sees_imports_and_nothing_else() {
    let code = bare(
        "use crate::{a::X, b, c::{d, e}}; // crate::no\n/* crate::no /* crate::no */ */ let s = \"crate::no \\\" crate::no\"; \
         let r = r#\"crate::no \" crate::no\"#; let q = '\"'; crate::f::g(); fn h<'t>(x: &'t str) { pub(crate) fn i() {} }",
    );
    let used: Vec<String> = modules_used(&code).into_iter().collect();
    assert_eq!(used, ["a", "b", "c", "f"]);
    assert!(uses_package("use nix::unistd;", "nix") && uses_package("x(nix::y)", "nix"));
    assert!(!uses_package("crate::sys::nix::y; unix::z; linux_nix::y", "nix"));
    assert!(without_tests("a\n#[cfg(test)]\nmod tests;\n").contains('a'));
    assert!(!without_tests("a\n#[cfg(test)]\nmod tests { unsafe }\n").contains("unsafe"));
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// `audit` for `src/audit/journal/mod.rs`; `None` for the roots, which may see all.
fn module_of(file: &str) -> Option<String> {
    let inside = file.strip_prefix("src/")?;
    let first = inside.split('/').next()?.trim_end_matches(".rs");
    (!["lib", "main"].contains(&first)).then(|| first.to_owned())
}

/// The top-level modules that the code names as `crate::…`.
fn modules_used(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(top_names(group)),
            None => used.extend(first_word(rest)),
        }
    }
    used
}

/// The first word of each item of a group, up to the brace that closes it.
fn top_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut item = String::new();
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(first_word(&std::mem::take(&mut item))),
            _ => {}
        }
        if c != ',' || depth > 0 {
            item.push(c);
        }
    }
    names.extend(first_word(&item));
    names
}

fn first_word(text: &str) -> Option<String> {
    words(text).next().map(str::to_owned)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// Whether the code names the package as the root of a path.
fn uses_package(code: &str, package: &str) -> bool {
    let path = format!("{package}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = &code[..at];
        !before.ends_with(|c: char| c.is_alphanumeric() || c == '_') && !before.ends_with("::")
    }) || code.contains(&format!("use {package};"))
}

/// All Rust files below a folder but those of tests, as their path from the root and their code without tests, comments and text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    collect(&path(folder), &mut files);
    files.sort();
    assert!(!files.is_empty(), "no sources in {folder}");
    let root = path("");
    let mut sources = Vec::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        sources.push((name, bare(without_tests(&text))));
    }
    sources
}

fn path(inside: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(inside)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != "tests" && name != "target" {
                collect(&path, files);
            }
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            files.push(path);
        }
    }
}

/// Tests stand last in a file.
fn without_tests(text: &str) -> &str {
    match text.find("\n#[cfg(test)]\nmod ") {
        Some(at) => &text[..at],
        None => text,
    }
}

/// The code without comments, text and characters.
fn bare(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => comment(rest),
            '"' => quoted(rest),
            'r' if !ends_in_word(&code) && raw(rest).is_some() => raw(rest).unwrap(),
            '\'' => character(rest),
            _ => 0,
        };
        if skip == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.push(' ');
            rest = &rest[skip..];
        }
    }
    code
}

fn ends_in_word(code: &str) -> bool {
    code.ends_with(|c: char| c.is_alphanumeric() || c == '_') && !code.ends_with('b')
}

fn comment(text: &str) -> usize {
    let mut depth = 0;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The length of a raw text at the beginning, if there is one.
fn raw(text: &str) -> Option<usize> {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    let open = 1 + hashes;
    if text.as_bytes().get(open) != Some(&b'"') {
        return None;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let end = text[open + 1..].find(&close)?;
    Some(open + 1 + end + close.len())
}

/// The length of a character at the beginning; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            chars.next();
            text[3..].find('\'').map_or(0, |end| end + 4)
        }
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}
