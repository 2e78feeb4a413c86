use super::*;
use crate::image::Silent;
use crate::task::ImageRef;

fn stand_in(folder: &Path) -> Builder {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/mmdebstrap");
    Builder {
        program,
        mirror: Some(folder.display().to_string()),
    }
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const RECIPE: &str = r#"version = 1
summary = "mine"
base = "base"
packages = ["zsh", "git", "python3=3.11*"]
run = ["echo 'it'\\''s'; rm -rf \"$1\""]
[[files]]
from = "etc/my file"
to = "/etc/mine"
mode = "0755"
[env]
LANG = "de_DE.UTF-8"
MINE = "a b"
"#;

#[test]
fn the_recipes_that_come_along_are_right_and_stand_on_the_base() {
    let base = Recipe::find("base").unwrap();
    assert!(base.packages.contains(&"git".to_owned()) && base.packages.contains(&"ripgrep".to_owned()));
    for name in Recipe::names() {
        let recipe = Recipe::find(name).unwrap();
        assert_eq!(recipe.suite, "bookworm", "{name}");
        assert!(
            base.packages.iter().all(|package| recipe.packages.contains(package)),
            "{name}"
        );
        assert!(name == "base" || recipe.packages.len() > base.packages.len(), "{name}");
        assert_eq!(recipe.env["LANG"], "C.UTF-8");
    }
}

#[test]
fn every_fault_of_a_recipe_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"version = 1
sumary = "x"
packages = ["--yes", "a,b", "git"]
run = [1]
[[files]]
from = "../x"
to = "etc"
mode = "4755"
[env]
"A B" = "x"
"#;
    write(folder.path().join("recipe.toml"), text);
    let faults = Recipe::find(folder.path().to_str().unwrap()).unwrap_err().to_string();
    let expected = r#"F:1:1: suite: the key is missing (expected a release of Debian, or base = the recipe that this one adds to)
F:1:1: summary: the key is missing (expected what the image is)
F:2:1: sumary: unknown key (did you mean "summary"?)
F:3:13: packages[0]: "--yes" is not a package
F:3:22: packages[1]: "a,b" is not a package
F:4:8: run[0]: expected a string, found a whole number
F:6:8: files[0].from: "/../x" contains a ".."
F:7:6: files[0].to: "etc" is not absolute
F:8:8: files[0].mode: "4755" is not a mode from 0000 to 0777
F:10:9: env."A B": "A B" is not the name of an environment variable"#;
    assert_eq!(
        faults.replace(folder.path().join("recipe.toml").to_str().unwrap(), "F"),
        expected
    );
    let faults = Recipe::find("absent").unwrap_err().to_string();
    assert_eq!(
        faults,
        "NAME: no recipe of this name (base, node, python, rust are there; a folder is written ./NAME)"
    );
}

#[test]
fn a_build_asks_for_what_the_recipe_says_and_ends_in_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    write(
        place.join("mine/recipe.toml"),
        &RECIPE.replace("python3=3.11*", "python3=3.11"),
    );
    write(place.join("mine/etc/my file"), "x");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(5);
    tar.append_data(&mut header, "bin/sh", &b"shell"[..]).unwrap();
    fs::write(place.join("root.tar"), tar.into_inner().unwrap()).unwrap();
    let recipe = Recipe::find(place.join("mine").to_str().unwrap()).unwrap();
    let store = Store::of_state(&place.join("state"));
    let mut said = Vec::new();
    let builder = stand_in(&place);
    let named = builder
        .build(&recipe, "mine", &store, &Silent, &mut |line| said.push(line.to_owned()))
        .unwrap();
    assert_eq!(said, ["I: building"]);
    let image = crate::image::resolve(&ImageRef::Named("mine".into()), &store, &Silent).unwrap();
    assert_eq!(image.digest, Some(named.digest.clone()));
    assert_eq!(
        fs::read_to_string(image.layers[0].join("bin/sh").unwrap()).unwrap(),
        "shell"
    );
    assert!(image.config.env.contains(&("MINE".into(), "a b".into())));
    assert!(image.config.env.contains(&("LANG".into(), "de_DE.UTF-8".into())));
    assert_eq!(fs::read_dir(place.join("state/images/tmp")).unwrap().count(), 0);
    drop(image);
    let again = builder.build(&recipe, "mine", &store, &Silent, &mut |_| {}).unwrap();
    assert_eq!(again.digest, named.digest);
    let arguments = fs::read_to_string(place.join("arguments")).unwrap();
    let arguments: Vec<&str> = arguments.lines().collect();
    assert_eq!(arguments[..3], ["--mode=auto", "--variant=minbase", "--format=tar"]);
    assert!(
        arguments[4].starts_with("--include=") && arguments[4].ends_with(",zsh,zstd"),
        "{}",
        arguments[4]
    );
    assert!(arguments[4].contains(",python3=3.11,"));
    let from = place.join("mine/etc/my file");
    assert_eq!(
        arguments[5],
        format!("--customize-hook=upload '{}' /etc/mine", from.display())
    );
    assert_eq!(arguments[6], "--customize-hook=chmod 0755 \"$1\"/etc/mine");
    let line = recipe.run.last().unwrap();
    let hook = arguments[7].strip_prefix("--customize-hook=").unwrap();
    assert_eq!(shlex::split(hook).unwrap(), ["chroot", "$1", "/bin/sh", "-ec", line]);
    assert_eq!(arguments[9..], ["bookworm", "-", place.to_str().unwrap()]);
    let environment = fs::read_to_string(place.join("environment")).unwrap();
    assert!(environment.contains("SOURCE_DATE_EPOCH=1735689600\n") && !environment.contains("CARGO"));
}

#[test]
fn a_build_that_fails_says_what_the_builder_said_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    write(place.join("fails"), "");
    let store = Store::of_state(&place.join("state"));
    let recipe = Recipe::find("base").unwrap();
    let error = stand_in(&place)
        .build(&recipe, "base", &store, &Silent, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("(exit status: 25):\nI: building\nE: no such package"),
        "{error}"
    );
    assert!(store.names().unwrap().is_empty());
    assert_eq!(fs::read_dir(place.join("state/images/tmp")).unwrap().count(), 0);
    let missing = Builder {
        program: "/nonexistent/mmdebstrap".into(),
        mirror: None,
    };
    let error = missing
        .build(&recipe, "base", &store, &Silent, &mut |_| {})
        .unwrap_err();
    assert!(matches!(error, BuildError::Run { .. }), "{error}");
}
