//! Images that were made to lead their runtime astray: every path of theirs that belljar writes to or mounts over is a trap.

use crate::jail::{Caller, Place, row};

/// A root file system of one program, the machine's static busybox.
fn plain_image(place: &Place) {
    place.on_host(
        "mkdir -p ../image/bin ../image/etc ../image/var && cd ../image && cp $(command -v busybox) bin/busybox
         for name in sh cat ls stat; do ln bin/busybox bin/$name; done
         echo root:x:0:0::/:/bin/sh > etc/passwd",
    );
}

/// What belljar makes, writes or mounts over in every image.
const NAMES: &[&str] = &[
    "dev",
    "proc",
    "sys",
    "run",
    "home",
    "tmp",
    "etc",
    "workspace",
    "var/tmp",
    "etc/passwd",
    "etc/group",
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
    "home/agent",
    "run/belljar",
    "dev/null",
    "dev/shm",
];

/// `/dev` as a link (CVE-2026-41579), and every other name that a runtime writes to. Such an image may be refused; it may not be
/// obeyed.
pub fn links_of_an_image_lead_nowhere_outside(caller: Caller) {
    for name in NAMES {
        let place = Place::new(caller);
        plain_image(&place);
        let target = place.make_folder("target").display().to_string();
        place.on_host(&format!(
                "echo precious > ../target/passwd; cd ../image; mkdir -p $(dirname {name}); rm -rf {name}; ln -s ../../../../../../../..{target} {name}"
            ));
        let before = place.on_host("ls -lR ../target; cat ../target/*");
        let file = place.path().join("task.toml");
        let (image, work) = (place.path().join("image"), place.work());
        let spec =
            format!("version = 1\nimage = {image:?}\n[[writable_roots]]\nhost = {work:?}\npath = \"/workspace\"\n");
        std::fs::write(&file, spec).unwrap();
        let script = "for name in dev proc sys; do [ -d /$name ] && [ ! -L /$name ] && echo $name; done; stat -c %t:%T /dev/null; echo x > /dev/null; echo data > /workspace/file";
        let output = place
            .command(&place.program())
            .args(["run", "--quiet"])
            .args(caller.flags())
            .arg(&file)
            .args(["--", "/bin/sh", "-c", script])
            .output()
            .unwrap();
        let (code, said) = (output.status.code(), String::from_utf8_lossy(&output.stdout));
        let why = String::from_utf8_lossy(&output.stderr);
        match code {
            Some(125) => row(&format!("an image with a link for /{name}"), caller, "refused"),
            _ => {
                assert_eq!((code, &*said), (Some(0), "dev\nproc\nsys\n1:3\n"), "{name}: {why}");
                assert_eq!(place.on_host("cat file"), "data\n", "{name}");
                row(&format!("an image with a link for /{name}"), caller, "BLOCKED");
            }
        }
        assert_eq!(
            place.on_host("ls -lR ../target; cat ../target/*"),
            before,
            "{name}: {why}"
        );
    }
}
