//! What a task leaves in its writable roots.

use serde_json::Value;

use crate::jail::{Caller, Place, row};

/// The files that the record of the task's end names.
pub fn left_files(place: &Place) -> Vec<String> {
    let output = place
        .command(&place.program())
        .args(["audit", "ls", "--json"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let finished = records.rfind(|record| record["kind"] == "task.finished").unwrap();
    let mut files: Vec<_> = finished["left_files"]
        .as_array()
        .unwrap_or_else(|| panic!("{finished}"))
        .iter()
        .map(|file| file.as_str().unwrap().to_owned())
        .collect();
    files.sort();
    files
}

pub fn special_files_that_come_back_are_in_the_record(caller: Caller) {
    let place = Place::new(caller);
    // Older than the clock of file times may lag behind: what is younger could be the task's.
    place.on_host("mkfifo before; echo x > plain; sleep 0.1");
    let mut jail = place.start("");
    let ran = jail.sh(
            "set -e; cd /workspace; mkdir -p a/b; mkfifo a/b/fifo; cp /bin/true suid; chmod 4755 suid; cp /bin/true sgid; chmod 2755 sgid
             python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"a/so\\ncket\")'
             echo y > plain; ln -s /etc/passwd link; chmod u+s plain",
        );
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    jail.end();
    let expected = [
        "fifo: /workspace/a/b/fifo",
        "set-id file, disarmed: /workspace/plain",
        "set-id file, disarmed: /workspace/sgid",
        "set-id file, disarmed: /workspace/suid",
        "socket: /workspace/a/so\\ncket",
    ];
    // gVisor's FIFOs and sockets are its own, and go with it.
    let is_gone = |line: &&str| caller == Caller::Runsc && !line.starts_with("set-id");
    let expected: Vec<_> = expected.into_iter().filter(|line| !is_gone(line)).collect();
    assert_eq!(left_files(&place), expected);
    assert_eq!(
        place.on_host("stat -c %a suid sgid; find . -perm /6000 -type f"),
        "755\n755\n"
    );
    row("special files that come back", caller, "reported");
}

pub fn a_task_that_leaves_only_files_has_nothing_to_tell(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    jail.sh("cd /workspace; echo x > x; mkdir y");
    jail.end();
    assert_eq!(left_files(&place), [] as [&str; 0]);
}

/// Repositories that the host's git would enter unasked, each made in a folder of its own.
const ARMED: &[(&str, &str)] = &[
    (
        "settings that run something",
        "git init -q e; git -C e config core.fsmonitor 'touch RAN'",
    ),
    (
        "a hook",
        "git init -q e; echo 'touch RAN' > e/.git/hooks/post-index-change; chmod +x e/.git/hooks/*",
    ),
    (
        "settings by way of commondir",
        "git init -q e; mkdir d; mv e/.git/config e/.git/objects e/.git/refs d; echo ../../d > e/.git/commondir
         git config -f d/config core.fsmonitor 'touch RAN'",
    ),
    (
        "a link to a folder of another name",
        "git init -q e; mv e/.git d; echo 'gitdir: ../d' > e/.git; git config -f d/config core.fsmonitor 'touch RAN'",
    ),
    (
        "settings of a worktree",
        "git init -q e; git -C e config extensions.worktreeConfig true; git -C e config --worktree core.fsmonitor 'touch RAN'",
    ),
    (
        "a work tree elsewhere",
        "git init -q e; git -C e config core.worktree ../../../home",
    ),
    (
        "a work tree elsewhere, by a link",
        "git init -q e; ln -s ../../home l; git -C e config core.worktree ../../l",
    ),
    (
        "objects of another repository",
        "git init -q e; mkdir -p e/.git/objects/info; echo /somewhere/.git/objects > e/.git/objects/info/alternates",
    ),
    (
        "included settings",
        "git init -q e; printf '[core]\\nfsmonitor = touch RAN\\n' > f; git -C e config include.path ../../f",
    ),
];

pub fn a_repository_made_inside_runs_nothing_outside(caller: Caller) {
    for (name, script) in ARMED {
        let place = Place::new(caller);
        place.on_host("git init -q -b main . && git config user.name t && git config user.email t@example.org && git commit -q --allow-empty -m one");
        let mut jail = place.start("[env]\nGIT_AUTHOR_NAME = \"a\"\nGIT_AUTHOR_EMAIL = \"a@example.org\"\nGIT_COMMITTER_NAME = \"a\"\nGIT_COMMITTER_EMAIL = \"a@example.org\"\n");
        // The index names the inner repository, so `git status` of the outer one enters it.
        let ran = jail.sh(&format!(
            "set -e; cd /workspace; git init -q seed; echo s > seed/s; git -C seed add s; git -C seed commit -qm s
                 commit=$(git -C seed rev-parse HEAD); rm -rf seed; git update-index --add --cacheinfo 160000,$commit,e
                 {script}"
        ));
        assert_eq!(ran.code(), Some(0), "{name}: {}", ran.stderr);
        jail.end();
        let told = left_files(&place);
        assert!(
            told.iter()
                .any(|line| line.starts_with("repository that runs something, disarmed: ")),
            "{name}: {told:?}"
        );
        place.on_host("git status > /dev/null 2>&1 || true; git diff > /dev/null 2>&1 || true; cd e; git status > /dev/null 2>&1 || true");
        assert_eq!(place.on_host("find . -name RAN"), "", "{name}");
        row(&format!("a repository made inside: {name}"), caller, "disarmed");
    }
}

pub fn a_plain_repository_made_inside_stays(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let ran = jail.sh("cd /workspace; git init -q lib && cd lib && git config user.name x && git config user.email x@example.org && git commit -q --allow-empty -m one && git remote add origin https://example.org/x.git");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    jail.end();
    assert_eq!(left_files(&place), [] as [&str; 0]);
    assert_eq!(place.on_host("git -C lib log --format=%s"), "one\n");
}

pub fn a_repository_that_was_there_keeps_its_own_hooks_however_deep_it_lies(caller: Caller) {
    let place = Place::new(caller);
    place.on_host(
        "mkdir -p node_modules/x && cd node_modules/x && git init -q && git config core.fsmonitor false
             echo '#!/bin/sh' > .git/hooks/pre-commit && git config user.name t && git config user.email t@example.org",
    );
    // The file system's clock is coarse: what was made within the same tick could be the task's.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let mut jail = place.start("");
    let ran = jail.sh("cd /workspace/node_modules/x; echo x > x; git add x; git commit -qnm x");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    jail.end();
    assert_eq!(left_files(&place), [] as [&str; 0]);
    assert_eq!(place.on_host("git -C node_modules/x log --format=%s"), "x\n");
}

pub fn git_writes_through_no_link_that_a_task_left(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("echo precious > ../precious; git init -q -b main . && echo a > a && git add a");
    let target = place.path().join("precious");
    let mut jail = place.start("");
    let ran = jail.sh(&format!(
        "cd /workspace/.git && mv index real && ln -s {} index && ln -s {} FETCH_HEAD",
        target.display(),
        target.display()
    ));
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    jail.end();
    assert_eq!(
        left_files(&place),
        [
            "link in a repository's folder, disarmed: /workspace/.git/FETCH_HEAD",
            "link in a repository's folder, disarmed: /workspace/.git/index"
        ]
    );
    place.on_host("echo b > b; git add b; git fetch -q . 2>/dev/null || true");
    assert_eq!(place.on_host("cat ../precious"), "precious\n");
    row("links in .git", caller, "disarmed");
}

pub fn what_a_repositorys_settings_lead_to_is_protected(caller: Caller) {
    let place = Place::new(caller);
    place.on_host(
            "git init -q -b main . && git config core.hooksPath tools/hooks && git config include.path ../.shared.conf
             mkdir -p tools/hooks && echo '#!/bin/sh' > tools/hooks/pre-commit && printf '[include]\\npath = more.conf\\n' > .shared.conf",
        );
    let mut jail = place.start("");
    for (name, script) in [
        ("hooks in another folder", "echo x > tools/hooks/pre-commit"),
        ("a new hook in another folder", "echo x > tools/hooks/post-checkout"),
        ("rename that folder's parent", "mv tools t"),
        ("included settings", "echo x >> .shared.conf"),
        ("settings that do not exist yet", "echo x > more.conf"),
    ] {
        let ran = jail.sh(&format!(
            "cd /workspace; if ({script}) >/dev/null 2>&1; then echo EXPOSED; else echo BLOCKED; fi"
        ));
        row(name, caller, ran.last_line());
        assert_eq!(ran.last_line(), "BLOCKED", "{name}");
    }
    jail.end();
}

pub fn a_rebase_that_was_left_half_way_runs_nothing_outside(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("git init -q -b main . && git config user.name t && git config user.email t@example.org && echo a > a && git add a && git commit -qm one && echo b > a && git commit -qam two");
    let mut jail = place.start("");
    let ran = jail.sh(
            "cd /workspace; export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
             GIT_SEQUENCE_EDITOR='printf \"break\\nexec touch RAN\\n\" >' git rebase -q -i HEAD~1; cat .git/rebase-merge/git-rebase-todo",
        );
    assert!(ran.stdout.contains("exec touch RAN"), "{}{}", ran.stdout, ran.stderr);
    jail.end();
    assert_eq!(
        left_files(&place),
        ["rebase that runs something, disarmed: /workspace/.git/rebase-merge/git-rebase-todo"]
    );
    place.on_host("git rebase --continue > /dev/null 2>&1 || true");
    assert_eq!(place.on_host("find . -name RAN"), "");
    row("a rebase left half-way", caller, "disarmed");
}

/// A strategy of merging is the end of a program's name: with a slash in it, git looks for the program in the work tree.
pub fn what_goes_on_after_a_conflict_merges_with_no_program_of_the_agents(caller: Caller) {
    let conflict = "git init -q -b main . && git config user.name t && git config user.email t@example.org && echo a > a && git add a && git commit -qm one
                    git checkout -qb topic && echo b > a && git commit -qam two && echo c > c && git add c && git commit -qm three
                    git checkout -q main && echo d > a && git commit -qam four";
    let program =
        "mkdir git-merge- && printf '#!/bin/sh\\ntouch RAN\\nexit 1\\n' > git-merge-/x && chmod +x git-merge-/x";
    for (name, script, file, go_on) in [
        (
            "a rebase's strategy",
            format!("git checkout -q topic; git rebase -q main; echo /x > .git/rebase-merge/strategy; {program}"),
            "rebase-merge/strategy",
            "git add a; GIT_EDITOR=true git rebase --continue",
        ),
        (
            "a cherry-pick's strategy",
            format!("git cherry-pick topic~1 topic; git config -f .git/sequencer/opts options.strategy /x; {program}"),
            "sequencer/opts",
            "git add a; GIT_EDITOR=true git cherry-pick --continue",
        ),
    ] {
        let place = Place::new(caller);
        place.on_host(conflict);
        let env = "[env]\nGIT_COMMITTER_NAME = \"a\"\nGIT_COMMITTER_EMAIL = \"a@example.org\"\n";
        let mut jail = place.start(env);
        let ran = jail.sh(&format!("cd /workspace; {script}; cat .git/{file}"));
        assert!(ran.stdout.contains("/x"), "{name}: {} {}", ran.stdout, ran.stderr);
        jail.end();
        assert_eq!(
            left_files(&place),
            [format!("rebase that runs something, disarmed: /workspace/.git/{file}")],
            "{name}"
        );
        place.on_host(&format!("({go_on}) > /dev/null 2>&1 || true"));
        assert_eq!(place.on_host("find . -name RAN"), "", "{name}");
        row(name, caller, "disarmed");
    }
}
