//! Attacks on what the host's own tools obey: git's hooks and settings, agents', editors' and shells' files.

use std::path::Path;

use crate::jail::{Caller, Jail, Place, available, row};

/// A repository with a hook, a submodule and a worktree, and files that tools obey.
fn furnish(place: &Place) {
    place.on_host(
        "git config --global protocol.file.allow always; git config --global user.name t; git config --global user.email t@example.org
         git init -q -b main ../sub && (cd ../sub && echo s > s && git add s && git commit -qm s)
         git init -q -b main . && echo one > file && git add file && git commit -qm one
         git submodule --quiet add ../sub sub && git commit -qm submodule
         git worktree add -q ../tree -b tree
         printf '#!/bin/sh\\nexit 0\\n' > .git/hooks/pre-commit && chmod +x .git/hooks/pre-commit
         mkdir -p .claude pkg/.vscode && echo '{}' > .claude/settings.json && echo '{}' > pkg/.vscode/settings.json
         echo 'export A=b' > .envrc
         git add . && git commit -qm all",
    );
}

/// All that could make a tool of the host run something: settings, hooks, links, and the list of names at the top.
fn armament(place: &Place) -> String {
    place.on_host(
        "ls -A .git/info | grep -v exclude || true; ls -A . .git .git/objects/info .git/modules pkg sub; ls -lR .git/hooks .claude pkg/.vscode | grep -v '^total'
         for file in .git/config .git/modules/sub/config .git/worktrees/tree/commondir .git/worktrees/tree/gitdir sub/.git \\
             .claude/settings.json pkg/.vscode/settings.json .envrc .gitmodules; do echo \"== $file\"; cat $file; done
         git config --list --local",
    )
}

/// Attacks, each a script that says EXPOSED when it could do what it must not.
const ATTACKS: &[(&str, &str)] = &[
    (
        "write .git/config",
        "printf '[core]\\nfsmonitor=/tmp/x\\n' >> .git/config",
    ),
    (
        "write .git/config in place",
        "dd if=/dev/zero of=.git/config bs=1 count=1 conv=notrunc",
    ),
    ("remove .git/config", "rm -f .git/config && ! test -e .git/config"),
    ("rename over .git/config", "printf x > n && mv -f n .git/config"),
    ("rename .git/config away", "mv .git/config .git/c"),
    ("hard link to .git/config", "ln .git/config c && echo x >> c"),
    ("symlink over .git/config", "ln -sf /tmp/x .git/config"),
    ("rename .git and make a new one", "mv .git g && mkdir .git"),
    ("rename .git/hooks", "mv .git/hooks h"),
    ("new hook", "echo x > .git/hooks/post-checkout"),
    ("change a hook", "echo x >> .git/hooks/pre-commit"),
    ("chmod a hook", "chmod 777 .git/hooks/pre-commit"),
    ("make .git/config.worktree", "echo x > .git/config.worktree"),
    (
        "replace .git/config.worktree",
        "rm -f .git/config.worktree; mkdir .git/config.worktree",
    ),
    ("make .git/commondir", "echo /tmp > .git/commondir"),
    ("replace .git/commondir", "mv .git/commondir .git/c"),
    ("make .git/gitdir", "echo /tmp > .git/gitdir"),
    ("make .git/info/attributes", "echo '* filter=x' > .git/info/attributes"),
    ("rename .git/info", "mv .git/info i && mkdir -p .git/info"),
    (
        "make objects/info/alternates",
        "echo /tmp > .git/objects/info/alternates",
    ),
    ("rename .git/objects", "mv .git/objects o"),
    ("a submodule's config", "echo x >> .git/modules/sub/config"),
    ("a submodule's hooks", "echo x > .git/modules/sub/hooks/post-checkout"),
    ("rename a submodule's git folder", "mv .git/modules/sub .git/modules/x"),
    ("a new submodule's git folder", "mkdir -p .git/modules/x/hooks"),
    ("a submodule's link", "echo 'gitdir: /tmp' > sub/.git"),
    ("rename a submodule and make it anew", "mv sub x && mkdir -p sub/.git"),
    ("a worktree's commondir", "echo /tmp > .git/worktrees/tree/commondir"),
    ("a worktree's gitdir", "echo /tmp > .git/worktrees/tree/gitdir"),
    ("rename a worktree's folder", "mv .git/worktrees/tree .git/worktrees/x"),
    (
        "a worktree's own config",
        "echo x > .git/worktrees/tree/config.worktree",
    ),
    ("git config", "git config core.fsmonitor /tmp/x"),
    (
        "git config --worktree",
        "git config extensions.worktreeConfig true && git config --worktree core.fsmonitor /tmp/x",
    ),
    ("git remote add", "git remote add evil 'ext::sh -c x'"),
    (
        "a remote of the old kind",
        "mkdir -p .git/remotes && echo 'URL: /tmp' > .git/remotes/origin",
    ),
    (
        "a branch of the old kind",
        "mkdir -p .git/branches && echo /tmp > .git/branches/x",
    ),
    (
        "git init over it",
        "mkdir -p t/hooks && echo x > t/hooks/evil && git init -q --template=$PWD/t && test -e .git/hooks/evil",
    ),
    ("change .claude", "echo x > .claude/settings.json"),
    (
        "make .claude/settings.local.json",
        "echo x > .claude/settings.local.json",
    ),
    ("rename .claude", "mv .claude c"),
    (
        "make .belljar/config.toml",
        "mkdir -p .belljar && echo x > .belljar/config.toml",
    ),
    ("make .codex", "mkdir .codex/x"),
    ("replace .codex by a symlink", "rmdir .codex; ln -s /tmp .codex"),
    ("make .mcp.json", "echo '{}' > .mcp.json"),
    ("rename over .mcp.json", "echo '{}' > m && mv -f m .mcp.json"),
    (
        "remove the cover of .mcp.json",
        "rm -f .mcp.json && ! test -e .mcp.json",
    ),
    ("link at .mcp.json", "ln -sf /tmp/x .mcp.json"),
    ("change .envrc", "echo x >> .envrc"),
    ("rename .envrc", "mv .envrc e"),
    ("make .bashrc", "echo x > .bashrc"),
    ("make .vscode/tasks.json", "echo x > .vscode/tasks.json"),
    ("nested .vscode", "echo x > pkg/.vscode/settings.json"),
    ("rename the parent of a nested .vscode", "mv pkg p"),
    ("make .github/workflows/x.yml", "echo x > .github/workflows/x.yml"),
    ("rename .github", "mv .github g"),
    ("replace .github/workflows", "rmdir .github/workflows"),
    ("bind over .git", "mount --bind /tmp .git"),
    ("unmount .git/config", "umount .git/config"),
    ("by /proc/self/root", "echo x >> /proc/self/root/workspace/.git/config"),
    ("by /proc/self/cwd", "echo x >> /proc/self/cwd/.git/hooks/x"),
    ("by a descriptor", "exec 7<.git/config && echo x >> /proc/self/fd/7"),
    ("truncate", "truncate -s 0 .git/config"),
    ("chattr", "chattr +i .git/HEAD"),
    (
        "setfattr",
        "python3 -c 'import os; os.setxattr(\".git/config\", \"user.x\", b\"y\")'",
    ),
];

const GIT_ENV: &str = "[env]\nGIT_AUTHOR_NAME = \"a\"\nGIT_AUTHOR_EMAIL = \"a@example.org\"\nGIT_COMMITTER_NAME = \"a\"\nGIT_COMMITTER_EMAIL = \"a@example.org\"\n";

fn attack(jail: &mut Jail, caller: Caller, folder: &str, attacks: &[(&str, &str)]) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, script) in attacks {
        let ran = jail.sh(&format!(
            "cd {folder}; if ({script}) >/dev/null 2>&1; then echo EXPOSED; else echo BLOCKED; fi"
        ));
        // gVisor says yes to it and changes nothing outside, which is what is looked at in the end.
        if *name == "chmod a hook" && caller == Caller::Runsc {
            row(name, caller, "no effect");
            continue;
        }
        row(name, caller, ran.last_line());
        if ran.last_line() != "BLOCKED" {
            faults.push(format!("{name}: {} {}", ran.last_line(), ran.stderr));
        }
    }
    faults
}

pub fn what_git_and_other_tools_obey_cannot_be_changed(caller: Caller) {
    let place = Place::new(caller);
    furnish(&place);
    let before = armament(&place);
    let mut jail = place.start("");
    let mut faults = attack(&mut jail, caller, "/workspace", ATTACKS);
    // What is missing from the list of names would be the attacks' doing or a placeholder that stayed.
    jail.sh("cd /workspace && rm -rf n c i o x e m h g p t");
    jail.end();
    let after = armament(&place);
    if before != after {
        faults.push(format!("the host's folder changed:\n{before}\n---\n{after}"));
    }
    assert!(faults.is_empty(), "{caller:?}:\n{}", faults.join("\n"));
}

/// Attacks that only a sandbox makes possible, on what it has put there, or that need more rights than an ordinary user has.
const NOT_OUTSIDE: &[&str] = &[
    "replace .git/commondir",
    "make .codex",
    "replace .codex by a symlink",
    "remove the cover of .mcp.json",
    "make .vscode/tasks.json",
    "make .github/workflows/x.yml",
    "rename .github",
    "replace .github/workflows",
    "bind over .git",
    "unmount .git/config",
    "by /proc/self/root",
    "chattr",
];

#[test]
fn each_attack_succeeds_where_nothing_defends() {
    let caller = available(Caller::Root).unwrap_or(Caller::Ordinary);
    let place = Place::new(caller);
    furnish(&place);
    let all = ATTACKS.iter().filter(|(name, _)| !NOT_OUTSIDE.contains(name));
    let failed: Vec<_> = all
        .filter(|(_, script)| {
            let said = place.on_host(&format!(
                "rm -rf ../copy; cp -a . ../copy; cd ../copy; if ({script}) >/dev/null 2>&1; then echo EXPOSED; else echo BLOCKED; fi"
            ));
            said != "EXPOSED\n"
        })
        .collect();
    assert_eq!(failed, [] as [&(&str, &str); 0]);
}

pub fn ordinary_work_with_git_goes_on(caller: Caller) {
    let place = Place::new(caller);
    furnish(&place);
    let mut jail = place.start(GIT_ENV);
    let ran = jail.sh("set -e; exec 2>&1; cd /workspace
             test -z \"$(git status --porcelain)\"
             echo two >> file; git add -A; git commit -qm two
             git checkout -qb topic; echo three > three; git add three; git commit -qm three
             git checkout -q main; echo four > four; git add four; git commit -qm four
             git rebase -q main topic; git checkout -q main; git merge -q topic
             git stash list; echo wip > file; git stash -q; git stash pop -q; git checkout file
             git tag v1; git branch -d topic; git pack-refs --all; git gc -q; git fsck --no-progress
             git worktree add -q /tmp/w -b other; cd /tmp/w; echo w > w; git add w; git commit -qm w; cd /workspace
             git worktree remove /tmp/w; git reset -q --hard HEAD~1; git cherry-pick v1
             git log --oneline | wc -l");
    assert_eq!((ran.last_line(), ran.code()), ("6", Some(0)), "{}", ran.stdout);
    jail.end();
    assert_eq!(
        place.on_host("git status --porcelain; git log -1 --format=%s"),
        "three\n"
    );
}

pub fn a_submodule_can_be_worked_in(caller: Caller) {
    let place = Place::new(caller);
    furnish(&place);
    let mut jail = place.start(GIT_ENV);
    let ran = jail.sh("set -e; exec 2>&1; cd /workspace/sub; echo x >> s; git commit -qam sub; git status --porcelain; cd ..; git add sub; git commit -qm bump");
    assert_eq!((ran.stdout.as_str(), ran.code()), ("", Some(0)));
    jail.end();
}

pub fn a_worktree_can_be_worked_in_when_its_repository_is_a_root_too(caller: Caller) {
    let place = Place::new(caller);
    furnish(&place);
    let (tree, git) = (place.path().join("tree"), place.work().join(".git"));
    let mut jail = place.start_spec(&format!(
            "version = 1\nname = \"escape\"\nworkdir = {tree:?}\n{GIT_ENV}\n[[writable_roots]]\nhost = {tree:?}\npath = {tree:?}\n\
             [[writable_roots]]\nhost = {git:?}\npath = {git:?}\n"
        ));
    let ran = jail.sh("set -e; exec 2>&1; echo x > new; git add new; git commit -qm new; git status --porcelain; git log -1 --format=%s");
    assert_eq!((ran.stdout.as_str(), ran.code()), ("new\n", Some(0)));
    let attacks = [
        ("the repository's config from a worktree", "git config core.fsmonitor x"),
        (
            "the repository's hooks from a worktree",
            "echo x > \"$(git rev-parse --git-path hooks)\"/pre-commit",
        ),
        ("the worktree's link", "echo 'gitdir: /tmp' > .git"),
        ("the link back", "echo /tmp > \"$(git rev-parse --git-dir)\"/commondir"),
        (
            "the worktree's own config",
            "echo x > \"$(git rev-parse --git-dir)\"/config.worktree",
        ),
    ];
    let faults = attack(&mut jail, caller, &tree.display().to_string(), &attacks);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    jail.end();
    assert_eq!(place.on_host("git log -1 --format=%s tree"), "new\n");
}

/// What an agent would leave to be run by the next `git status` outside; none of it may be.
const TRAPS: &[&str] = &[
    "git config core.fsmonitor 'touch $PWD/RAN; false'",
    "git config core.hooksPath hooks",
    "git config filter.x.clean 'touch RAN; cat'; echo '* filter=x' > .gitattributes",
    "git config include.path ../evil",
    "printf '[core]\\n\\tfsmonitor = touch RAN\\n' > .git/config.worktree",
    "mkdir -p evil && printf '[core]\\n\\tfsmonitor = touch RAN\\n\\trepositoryformatversion = 0\\n' > evil/config && echo ../evil > .git/commondir",
    "printf '#!/bin/sh\\ntouch RAN\\n' > .git/hooks/post-index-change; chmod +x .git/hooks/post-index-change",
    "mv .git old; cp -r old .git; git config core.fsmonitor 'touch RAN'",
    "mv sub old; cp -r old sub; rm sub/.git; cp -r .git/modules/sub sub/.git; git -C sub config core.fsmonitor 'touch RAN'",
    "git -C sub config core.fsmonitor 'touch RAN'",
];

pub fn git_status_on_the_host_runs_nothing_of_the_agents(caller: Caller) {
    let place = Place::new(caller);
    furnish(&place);
    let mut jail = place.start("");
    for trap in TRAPS {
        jail.sh(&format!("cd /workspace; {trap}"));
    }
    jail.end();
    place.on_host(
        "git status > /dev/null; git diff > /dev/null; git -C sub status > /dev/null; git add -A; git stash -q || true",
    );
    assert_eq!(
        place.on_host("find / -xdev -name RAN -newer ../task.toml 2>/dev/null || true"),
        ""
    );
    row("traps for git status on the host", caller, "BLOCKED");
}

pub fn a_root_without_a_repository_gets_none(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let attacks = [
        ("git init where there was none", "git init -q ."),
        ("make .git/hooks", "mkdir -p .git/hooks"),
        ("make a .git file", "rmdir .git; echo 'gitdir: /tmp' > .git"),
    ];
    let faults = attack(&mut jail, caller, "/workspace", &attacks);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    jail.end();
    assert_eq!(place.on_host("ls -A"), "");
}

pub fn an_open_repository_is_the_agents_and_a_read_only_one_stays_as_it_is(caller: Caller) {
    let place = Place::new(caller);
    furnish(&place);
    let root = |git: &str| {
        let work = place.work();
        format!(
            "version = 1\nname = \"escape\"\nworkdir = \"/workspace\"\n[[writable_roots]]\nhost = {work:?}\npath = \"/workspace\"\ngit = \"{git}\"\n"
        )
    };
    let mut jail = place.start_spec(&root("read-only"));
    let ran =
        jail.sh("cd /workspace; git status --porcelain; echo x > new; git add new 2>/dev/null || echo refused; rm new");
    assert_eq!(ran.stdout, "refused\n", "{}", ran.stderr);
    jail.end();
    let mut jail = place.start_spec(&root("open"));
    let ran = jail.sh("cd /workspace; git config some.key value && git config some.key");
    assert_eq!(ran.stdout, "value\n", "{}", ran.stderr);
    jail.end();
}

pub fn names_of_the_task_itself_are_protected_too(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("echo all: > Makefile");
    let work = place.work();
    let mut jail = place.start_spec(&format!(
            "version = 1\nname = \"escape\"\nworkdir = \"/workspace\"\n[[writable_roots]]\nhost = {work:?}\npath = \"/workspace\"\nprotect = [\"Makefile\", \"ci/run\"]\n"
        ));
    let attacks = [
        ("change Makefile", "echo x >> Makefile"),
        ("make ci/run", "echo x > ci/run"),
        ("rename ci", "mv ci c"),
    ];
    let faults = attack(&mut jail, caller, "/workspace", &attacks);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    jail.end();
    assert_eq!(place.on_host("ls -A; cat Makefile"), "Makefile\nall:\n");
}

pub fn names_that_are_links_are_held_with_what_they_name(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("mkdir -p conf/claude && echo x > conf/claude/settings.json && ln -s conf/claude .claude && ln -s $PWD/conf/mcp .mcp.json && ln -s /etc/hostname .envrc");
    let before = place.on_host("ls -lR --time-style=+");
    let mut jail = place.start("");
    let attacks = [
        ("replace a link", "ln -sfn /tmp .claude"),
        ("remove a link", "rm .claude"),
        ("rename a link", "mv .envrc x"),
        ("change what a link names", "echo y > conf/claude/settings.json"),
        ("rename what a link names", "mv conf/claude conf/c"),
        ("rename the parent of that", "mv conf c"),
        ("make what a link names", "echo y > conf/mcp"),
        ("write through a link", "echo y > .mcp.json"),
    ];
    let faults = attack(&mut jail, caller, "/workspace", &attacks);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    jail.end();
    assert_eq!(place.on_host("ls -lR --time-style=+"), before);
}

pub fn placeholders_are_shared_and_go_with_the_last_task_of_a_root(caller: Caller) {
    let place = Place::new(caller);
    let one = place.start("");
    let mut two = place.start("");
    one.end();
    let faults = attack(
        &mut two,
        caller,
        "/workspace",
        &[("make .mcp.json after another task ended", "echo x > .mcp.json")],
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    two.end();
    assert_eq!(place.on_host("ls -A"), "");
}

pub fn after_a_kill_the_next_start_removes_placeholders(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    jail.sh("true");
    assert!(place.work().join(".mcp.json").symlink_metadata().is_ok());
    jail.child.kill().unwrap();
    jail.child.wait().unwrap();
    drop(jail);
    // Another root: the first one's placeholders are no business of this task.
    let other = place.make_folder("other");
    place
            .start_spec(&format!("version = 1\nname = \"escape\"\nworkdir = \"/workspace\"\n[[writable_roots]]\nhost = {other:?}\npath = \"/workspace\"\n"))
            .end();
    assert_eq!(place.on_host("ls -A"), "");
    assert!(
        !Path::new(&place.path().join("state/roots"))
            .read_dir()
            .unwrap()
            .any(|entry| entry.unwrap().file_name() != "lock")
    );
}

pub fn placeholders_do_not_show_in_git_status(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("git init -q -b main .");
    let mut jail = place.start("");
    let ran = jail.sh("cd /workspace; git status --porcelain; git add -A; git status --porcelain");
    assert_eq!((ran.stdout.as_str(), ran.code()), ("", Some(0)), "{}", ran.stderr);
    assert_eq!(place.on_host("git status --porcelain"), "");
    jail.end();
}

/// An earlier task could have made another name for a file that only later is one to be held.
pub fn a_protected_file_is_held_by_all_its_names(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("git init -q -b main .");
    let mut first = place.start("");
    let ran = first.sh(
        "set -e; cd /workspace; mkdir -p pkg node_modules; echo 'export A=b' > pkg/.envrc; ln pkg/.envrc node_modules/x
         git init -q lib; ln lib/.git/config other; echo '#!/bin/sh' > lib/.git/hooks/x.sample; ln lib/.git/hooks/x.sample h",
    );
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    first.end();
    let mut second = place.start("");
    let attacks = [
        ("a held file by another name", "echo x >> node_modules/x"),
        (
            "settings by another name",
            "git config -f other core.fsmonitor x || echo x >> other",
        ),
        ("what lies in a held folder, by another name", "echo x >> h"),
        ("rename another name", "mv other o"),
    ];
    let faults = attack(&mut second, caller, "/workspace", &attacks);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    second.end();
    assert_eq!(
        place.on_host("cat pkg/.envrc lib/.git/hooks/x.sample; grep -c fsmonitor lib/.git/config || true"),
        "export A=b\n#!/bin/sh\n0\n"
    );
}

/// On some file systems `.VSCode` is `.vscode`.
pub fn protected_names_are_held_however_they_are_written(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("mkdir -p pkg/.VSCode && echo '{}' > pkg/.VSCode/tasks.json && echo x > pkg/.EnvRC");
    let mut jail = place.start("");
    let attacks = [
        ("nested .VSCode", "echo x > pkg/.VSCode/tasks.json"),
        ("nested .EnvRC", "echo y > pkg/.EnvRC"),
    ];
    let faults = attack(&mut jail, caller, "/workspace", &attacks);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    jail.end();
}
