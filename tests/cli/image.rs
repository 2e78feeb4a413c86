//! Images from a real registry (Debian's docker-registry on loopback, filled by skopeo) and from docker-save archives.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::registry::Registry;
use crate::{belljar, call};

/// "u" with the password "p".
const HTPASSWD: &str = "u:$2y$05$abcdefghijklmnopqrstuuqwWMzKt5N8p.u2GX5MuH1t19BMWuLOW\n";

/// One where every answer wants a login.
fn registry(folder: &Path) -> Registry {
    std::fs::write(folder.join("htpasswd"), HTPASSWD).unwrap();
    let htpasswd = json!({ "realm": "test", "path": folder.join("htpasswd") });
    Registry::start(folder, json!({ "htpasswd": htpasswd }))
}

/// An OCI layout with a shell in it, and what a hostile maker would set.
fn layout(folder: &Path) {
    let mut tar = tar::Builder::new(Vec::new());
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    tar.append_path_with_name(
        busybox.expect("busybox-static is installed (tools/setup.sh test)"),
        "bin/busybox",
    )
    .unwrap();
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    for name in ["sh", "env", "id", "pwd"] {
        tar.append_link(&mut link, format!("bin/{name}"), "busybox").unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let mut blobs = BTreeMap::new();
    let mut blob = |bytes: Vec<u8>, kind: &str| {
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let descriptor = json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() });
        blobs.insert(digest, bytes);
        descriptor
    };
    let layer = blob(tar, "application/vnd.oci.image.layer.v1.tar");
    let config = json!({
        "architecture": architecture, "os": "linux", "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
        "config": {
            "Env": ["PATH=/bin", "LD_PRELOAD=/evil.so", "http_proxy=http://evil", "BASH_ENV=/evil", "MINE=yes"],
            "User": "0:0", "WorkingDir": "/app", "Entrypoint": ["/evil"], "Cmd": ["evil"],
            "Volumes": { "/etc": {} }, "Labels": { "containerd.io/restart.logpath": "binary:///bin/sh" }
        }
    });
    let config = blob(
        config.to_string().into_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
    let manifest = blob(manifest.to_string().into_bytes(), kind);
    std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    for (digest, bytes) in blobs {
        std::fs::write(folder.join("blobs/sha256").join(digest), bytes).unwrap();
    }
    std::fs::write(
        folder.join("index.json"),
        json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string(),
    )
    .unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn skopeo(args: &[&str]) {
    let output = Command::new("skopeo").arg("--insecure-policy").args(args).output();
    let output = output.expect("skopeo is installed (tools/setup.sh test)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_task_runs_an_image_of_a_registry_and_pins_its_digest() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(folder.path());
    let reference = format!("127.0.0.1:{}/team/tools:1", registry.port);
    layout(&folder.path().join("layout"));
    let from = format!("oci:{}", folder.path().join("layout").display());
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        "--dest-creds=u:p",
        &from,
        &format!("docker://{reference}"),
    ]);

    let state = folder.path().join("state");
    let (code, _, said) = call(&state, &["image", "pull", &reference]);
    assert_eq!(code, 125);
    assert!(said.contains("the registry wants a login"), "{said}");

    // A task that names it finds the login where Docker keeps it, and pulls by itself.
    std::fs::write(
        folder.path().join("config.json"),
        json!({ "auths": { format!("127.0.0.1:{}", registry.port): { "auth": "dTpw" } } }).to_string(),
    )
    .unwrap();
    let run = |args: &[&str]| {
        let output = belljar(&state)
            .env("DOCKER_CONFIG", folder.path())
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let inside = run(&[
        "run",
        "-q",
        "--image",
        &reference,
        "--",
        "/bin/sh",
        "-c",
        "env; id -u; pwd",
    ]);
    assert!(
        inside.contains("MINE=yes\n") && inside.ends_with("1000\n/\n"),
        "{inside}"
    );
    for evil in ["LD_PRELOAD", "http_proxy", "BASH_ENV"] {
        assert!(!inside.contains(evil), "{inside}");
    }
    let images: Value = serde_json::from_str(&run(&["image", "ls", "--json"])).unwrap();
    assert_eq!(images[0]["name"], reference.as_str());
    let records = run(&["audit", "ls", "--json"]);
    let mut records = records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let started = records.rfind(|record| record["kind"] == "task.started").unwrap();
    assert_eq!(started["image_digest"], images[0]["digest"]);

    // The password by flag, a name of one's own, and the very digest.
    let pinned = format!("{reference}@{}", images[0]["digest"].as_str().unwrap());
    let mut child = belljar(&state)
        .args([
            "image",
            "pull",
            &pinned,
            "mine",
            "--username",
            "u",
            "--password-stdin",
            "--json",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"p\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let named: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&named["name"], &named["digest"]),
        (&json!("mine"), &images[0]["digest"])
    );

    // What nobody names any more goes, and what is named stays.
    run(&["image", "rm", &reference]);
    assert_eq!(run(&["image", "prune", "--json"]), "{\"images\":0,\"layers\":0}\n");
    run(&["image", "rm", "mine"]);
    assert_eq!(run(&["image", "prune", "--json"]), "{\"images\":1,\"layers\":1}\n");
}

#[test]
fn a_docker_save_archive_is_imported_and_not_pruned_while_a_task_runs_it() {
    let folder = tempfile::tempdir().unwrap();
    layout(&folder.path().join("layout"));
    let from = format!("oci:{}", folder.path().join("layout").display());
    let archive = folder.path().join("saved.tar");
    skopeo(&[
        "copy",
        &from,
        &format!("docker-archive:{}:team/saved:1", archive.display()),
    ]);
    let state = folder.path().join("state");
    let (code, out, said) = call(&state, &["image", "import", archive.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    let name = out.split("  ").next().unwrap();
    assert!(name.ends_with("team/saved:1"), "{out}");
    let mut child = belljar(&state)
        .args([
            "run",
            "-q",
            "-i",
            "--image",
            name,
            "--",
            "/bin/sh",
            "-c",
            "echo ready; read line; echo $line",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    assert_eq!(call(&state, &["image", "rm", name]).0, 0);
    assert_eq!(
        call(&state, &["image", "prune", "--json"]).1,
        "{\"images\":0,\"layers\":0}\n"
    );
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"still there\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "still there\n");
    assert_eq!(
        call(&state, &["image", "prune", "--json"]).1,
        "{\"images\":1,\"layers\":1}\n"
    );
}
