//! Where values of secrets come from, from the place where they are kept to the server that gets them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::inspected::world;
use crate::programs::installed;
use crate::world::ALLOWED;

const OTHER: &str = "other.outside.example";

/// A keyring in a session of its own, as a user's desktop has one, and the environment of whoever starts belljar.
#[test]
fn secrets_of_the_keyring_and_of_the_environment_are_used_from_inside() {
    const KEPT: &str = "ghp_k3ptK3ptK3ptK3ptK3ptK3ptK3ptK3ptK3pt";
    const GIVEN: &str = "g1venG1venG1venG1ven";
    if !["dbus-run-session", "gnome-keyring-daemon"]
        .iter()
        .all(|program| installed(program))
    {
        return;
    }
    let Some(world) = world() else { return };
    let spec = world.place.path().join("task.toml");
    let text = format!(
        "version = 1\nname = \"secrets\"\n{}[secrets.KEPT]\nsource = \"keyring:github\"\nhosts = [{ALLOWED:?}]\n\
         [secrets.GIVEN]\nsource = \"env:GIVEN_TOKEN\"\nhosts = [{OTHER:?}]\n",
        world.network(&[OTHER])
    );
    std::fs::write(&spec, text).unwrap();
    let session = format!(
        "umask 077; mkdir -p $HOME/run; export XDG_RUNTIME_DIR=$HOME/run BELLJAR={program} SPEC={spec}
         exec dbus-run-session -- sh -ec '
             printf pass | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1
             printf {KEPT} | $BELLJAR secret set github
             GIVEN_TOKEN={GIVEN} exec $BELLJAR run $SPEC --stdio --quiet'",
        program = world.place.program().display(),
        spec = spec.display()
    );
    let mut task = world.place.start_by(&session);
    let inside = task.sh("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; ls -l /proc/self/fd");
    assert!(
        inside.stdout.contains("KEPT=ghp_") && !inside.stdout.contains(KEPT) && !inside.stdout.contains(GIVEN),
        "{inside:?}"
    );
    let bearer = task.sh(&format!(
        "curl -sS -H \"Authorization: token $KEPT\" https://{ALLOWED}/whoami"
    ));
    assert!(bearer.stdout.starts_with("you are token ghp_"), "{bearer:?}");
    let basic = task.sh(&format!("curl -sS -u \"me:$GIVEN\" https://{OTHER}/whoami"));
    assert!(basic.stdout.starts_with("you are Basic "), "{basic:?}");
    // Each goes to its own hosts only.
    let crossed = task.sh(&format!(
        "curl -sS -u \"me:$KEPT\" https://{OTHER}/whoami; curl -sS -d \"t=$GIVEN\" https://{ALLOWED}/whoami"
    ));
    assert_eq!(crossed.stdout.matches("\"deny\"").count(), 2, "{crossed:?}");
    let said: String = [inside, bearer, basic, crossed]
        .map(|ran| ran.stdout + &ran.stderr)
        .concat();
    let coded = STANDARD.encode(format!("me:{GIVEN}"));
    for value in [KEPT, GIVEN, &coded] {
        assert!(!said.contains(value), "{value}");
    }
    task.end();
    assert_eq!(
        world.told(),
        [
            format!("told {ALLOWED} token {KEPT}"),
            format!("told {OTHER} Basic {coded}")
        ]
    );
    let journal = world.belljar(&["audit", "ls", "--json"]);
    assert_eq!(journal.matches("\"secret.used\"").count(), 2, "{journal}");
    assert!(!journal.contains(KEPT) && !journal.contains(GIVEN));
}
