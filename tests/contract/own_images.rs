//! Images that an engine has of its own: what their configuration asks for is their maker's word, and nobody obeys it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::engines::Daemon;
use crate::registry::Registry;

/// A folder of the test's own, and the engine that it speaks to.
struct Place {
    folder: tempfile::TempDir,
    host: String,
}

impl Place {
    fn new(daemon: &Daemon) -> Place {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("work")).unwrap();
        Place {
            folder,
            host: format!("unix://{}", daemon.socket().display()),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn docker(&self, words: &[&str]) -> String {
        let output = Command::new("docker")
            .args(["-H", &self.host])
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "docker {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn belljar(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_belljar"))
            .args(words)
            .env("BELLJAR_STATE", self.path().join("state"))
            .env("DOCKER_HOST", &self.host)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a script in a task of an image.
    fn run(&self, image: &str, script: &str) -> (Option<i32>, String) {
        let work = self.path().join("work");
        let output = self.belljar(&[
            "run",
            "--quiet",
            "--backend",
            "docker",
            "--accept-partial",
            "namespaces",
            "--image",
            image,
            "--write",
            work.to_str().unwrap(),
            "--",
            "/bin/sh",
            "-c",
            script,
        ]);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Gives the engine an image of one program with everything that a hostile maker would set.
    fn import(&self, name: &str, more: &[&str]) {
        let root = self.path().join("root");
        for folder in ["bin", "etc", "work"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let script = format!(
            "cd {} && cp $(command -v busybox) bin/busybox && cp bin/busybox bin/su && chmod 4755 bin/su
             for name in sh id env ls cat; do ln -sf busybox bin/$name; done
             echo root:x:0:0::/:/bin/sh > etc/passwd
             tar -c . | docker -H {} import \"$@\" - {name}",
            root.display(),
            self.host
        );
        let state = self.path().join("state");
        let labels = format!(
            "LABEL belljar.task=x belljar.state={0} belljar.image=x@{0}",
            state.display()
        );
        let mut changes = vec![
            "USER 0",
            "ENV LD_PRELOAD=/evil.so http_proxy=http://evil PATH=/bin MINE=yes",
            "VOLUME /vol",
            "ENTRYPOINT [\"/bin/evil\"]",
            "HEALTHCHECK CMD touch /workspace/healthy",
            "ONBUILD RUN touch /workspace/built",
            &labels,
        ];
        changes.extend(more);
        let changes = changes.iter().flat_map(|change| ["--change", change]);
        let output = Command::new("sh")
            .args(["-ec", &script, "sh"])
            .args(changes)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

/// What the last task that was started ran.
fn started(place: &Place) -> (String, String) {
    let output = place.belljar(&["audit", "ls", "--kind", "task.started", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let text = |name: &str| last[name].as_str().unwrap_or_default().to_owned();
    (text("image"), text("image_digest"))
}

pub fn an_engines_own_image_is_run_and_never_obeyed(daemon: &Daemon) {
    let place = Place::new(daemon);
    place.import("evil:1", &[]);
    // With the labels of the image, which are belljar's own as far as a label goes.
    let theirs = place.docker(&["create", "evil:1"]);
    let id = place.docker(&["inspect", "-f", "{{.Id}}", "evil:1"]);
    let script = "id -u; id -un; env; ls -l /bin/su; ls /vol 2>&1; ls /workspace";
    let (code, said) = place.run("evil:1", script);
    assert_eq!(code, Some(0), "{said}");
    let mut lines = said.lines();
    assert_eq!((lines.next(), lines.next()), (Some("1000"), Some("agent")));
    for absent in ["LD_PRELOAD", "http_proxy", "healthy", "built"] {
        assert!(!said.contains(absent), "{absent}: {said}");
    }
    assert!(said.contains("MINE=yes") && said.contains("-rwxr-xr-x"), "{said}");
    assert!(
        said.contains("/vol: No such file"),
        "no volume of the image's own: {said}"
    );
    assert_eq!(started(&place), ("evil:1".to_owned(), id.clone()));

    // By its id, as engines have it, once it has no name there any more.
    let again = place.run(&id[7..19], "echo again");
    assert_eq!(again, (Some(0), "again\n".to_owned()));
    assert_eq!(started(&place).1, id);

    // A name moves on, and the record with it.
    place.import("evil:1", &["ENV MINE=other"]);
    let (code, said) = place.run("evil:1", "echo $MINE");
    assert_eq!((code, said.as_str()), (Some(0), "other\n"));
    assert_eq!(started(&place).1, place.docker(&["inspect", "-f", "{{.Id}}", "evil:1"]));
    assert_ne!(started(&place).1, id);

    place.import("lost:1", &["WORKDIR /proc/self/fd/8"]);
    let (code, said) = place.run("lost:1", "true");
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("its folder of work is \"/proc/self/fd/8\""), "{said}");

    let (code, said) = place.run("nowhere:1", "true");
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("neither in the local store nor at the engine"), "{said}");
    assert!(
        said.contains("docker pull nowhere:1 there, or belljar image pull docker.io/library/nowhere:1"),
        "{said}"
    );

    // What carries such labels and is not belljar's is not belljar's to remove.
    assert_eq!(place.docker(&["ps", "-aq", "--no-trunc"]), theirs);
    let left = place.docker(&["images", "-q", "--filter", "label=belljar.image"]);
    assert!(!left.is_empty());
    place.docker(&["rm", &theirs]);
}

/// Docker's own words for it: an image that a registry knows by a digest.
pub fn an_image_of_a_registrys_digest_is_the_engines_where_it_has_it(daemon: &Daemon) {
    let place = Place::new(daemon);
    let registry = Registry::start(place.path(), serde_json::Value::Null);
    let name = format!("127.0.0.1:{}/team/evil", registry.port);
    place.import(&format!("{name}:1"), &[]);
    place.docker(&["push", &format!("{name}:1")]);
    let pinned = place.docker(&["inspect", "-f", "{{index .RepoDigests 0}}", &format!("{name}:1")]);
    // Only the engine has it now.
    drop(registry);
    let (code, said) = place.run(&pinned, "echo pinned");
    assert_eq!((code, said.as_str()), (Some(0), "pinned\n"));
    assert_eq!(started(&place).0, pinned);
}
