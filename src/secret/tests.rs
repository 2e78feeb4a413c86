use std::sync::Arc;

use super::*;
use crate::path::HostPath;

fn file(path: &Path) -> SecretSource {
    SecretSource::File(HostPath::new(path).unwrap())
}

fn text(value: Result<SecretString, SecretError>) -> String {
    value.unwrap().expose_secret().to_owned()
}

#[test]
fn sources_are_read_as_they_are_written() {
    for written in ["keyring:github", "env:GITHUB_TOKEN", "file:/run/secrets/token"] {
        assert_eq!(written.parse::<SecretSource>().unwrap().to_string(), written);
    }
    for wrong in ["", "keyring", "keyring:", "file:relative", "vault:x", "env:A\0B"] {
        assert!(wrong.parse::<SecretSource>().is_err(), "{wrong:?}");
    }
}

#[test]
fn a_file_gives_its_text_without_the_last_line_feed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    for (content, value) in [("s3cret\n", "s3cret"), ("s3cret", "s3cret"), (" a b \n\n", " a b \n")] {
        std::fs::write(&path, content).unwrap();
        assert_eq!(text(read(&file(&path))), value);
    }
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(text(read(&file(&link))), " a b \n");
}

#[test]
fn what_is_no_value_is_an_error_that_names_the_place_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let place = format!("file:{}", path.display());
    for (content, says) in [
        (b"".to_vec(), "holds no value"),
        (b"\n".to_vec(), "holds no value"),
        (b"hush\xff".to_vec(), "holds something else than text"),
        (b"hush\0".to_vec(), "holds something else than text"),
        (vec![b'h'; LENGTH_LIMIT + 1], "holds more than 65536 bytes"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = read(&file(&path)).unwrap_err().to_string();
        assert_eq!(error, format!("{place} {says}"));
    }
    let folder = file(folder.path());
    assert!(matches!(read(&folder), Err(SecretError::NotAFile { .. })));
    let unset = SecretSource::Env("BELLJAR_TEST_NO_SUCH_VARIABLE".to_owned());
    assert!(matches!(read(&unset), Err(SecretError::NotSet { .. })));
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(matches!(read(&file(&path)), Err(SecretError::NotAFile { .. })));
}

#[test]
fn a_changed_file_is_read_again_and_a_removed_one_is_no_value_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "one").unwrap();
    let kept = Kept::new(file(&path));
    assert_eq!(text(kept.value()), "one");
    assert_eq!(text(kept.value()), "one");
    // As secrets are renewed: another file of the same length takes its place.
    let next = folder.path().join("next");
    std::fs::write(&next, "two").unwrap();
    std::fs::rename(&next, &path).unwrap();
    assert_eq!(text(kept.value()), "two");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(kept.value(), Err(SecretError::File { .. })));
}

#[tokio::test]
async fn a_value_can_be_had_within_a_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "one").unwrap();
    assert_eq!(text(Arc::new(Kept::new(file(&path))).current().await), "one");
}

#[test]
fn a_kept_value_does_not_print() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "hush").unwrap();
    let kept = Kept::new(file(&path));
    kept.value().unwrap();
    let shown = format!("{kept:?}");
    assert!(shown.contains("token") && !shown.contains("hush"), "{shown}");
}

#[test]
fn a_name_that_is_none_is_not_asked_for() {
    for name in ["", "a b", "a\nb", &"x".repeat(129)] {
        let error = keyring::get(name).unwrap_err();
        assert!(matches!(error, KeyringError::Name { .. }), "{name:?}: {error}");
    }
}

/// Runs one test of this binary again in a session of its own, with a real keyring that is unlocked; says how it went.
fn within_a_session(test: &str) {
    let home = tempfile::tempdir().unwrap();
    let session = "umask 077; mkdir run; printf pass | gnome-keyring-daemon --unlock --components=secrets >/dev/null || exit 99; exec \"$@\"";
    let output = std::process::Command::new("dbus-run-session")
        .args(["--", "sh", "-c", session, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .current_dir(home.path())
        .env_remove("DBUS_SESSION_BUS_ADDRESS")
        .env("HOME", home.path())
        .env("XDG_RUNTIME_DIR", home.path().join("run"))
        .env(WITHIN, "1")
        .output()
        .expect("dbus-run-session and gnome-keyring-daemon are installed (tools/setup.sh test)");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

const WITHIN: &str = "BELLJAR_TEST_KEYRING";

#[test]
fn a_real_keyring_keeps_names_replaces_and_forgets() {
    if std::env::var_os(WITHIN).is_none() {
        return within_a_session("secret::tests::a_real_keyring_keeps_names_replaces_and_forgets");
    }
    assert_eq!(keyring::names().unwrap(), Vec::<String>::new());
    keyring::set("github", "one".into()).unwrap();
    keyring::set("ci/npm@example", "two lines\nof text ".into()).unwrap();
    assert_eq!(keyring::names().unwrap(), ["ci/npm@example", "github"]);
    let source = |name: &str| SecretSource::Keyring(name.to_owned());
    assert_eq!(text(read(&source("ci/npm@example"))), "two lines\nof text ");
    let kept = Kept::new(source("github"));
    assert_eq!(text(kept.value()), "one");
    keyring::set("github", "three".into()).unwrap();
    assert_eq!(text(read(&source("github"))), "three");
    keyring::remove("github").unwrap();
    let error = read(&source("github")).unwrap_err();
    let SecretError::Keyring { source: cause, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(matches!(cause, KeyringError::Missing { .. }), "{cause:?}");
    assert!(matches!(keyring::remove("github"), Err(KeyringError::Missing { .. })));
    // Also from within a runtime, where the client itself would panic.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let current = runtime.block_on(Arc::new(Kept::new(source("ci/npm@example"))).current());
    assert_eq!(text(current), "two lines\nof text ");
    assert_eq!(
        runtime.block_on(async { text(read(&source("ci/npm@example"))) }),
        "two lines\nof text "
    );
}
