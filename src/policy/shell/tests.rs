use serde_json::Value;

use super::*;

fn cases(file: &str) -> Vec<Value> {
    let path = format!("{}/tests/data/policy/{file}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn argv(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

fn bash(script: &str) -> Understanding {
    understand(&["bash".into(), "-c".into(), script.into()])
}

/// What a script lists beside the shell itself, as text.
fn listed(script: &str) -> Vec<Vec<String>> {
    let found = bash(script);
    assert_eq!(found.opaque, None, "{script}");
    texts(&found)
}

fn texts(found: &Understanding) -> Vec<Vec<String>> {
    found
        .commands
        .iter()
        .skip(1)
        .map(|command| command.argv.iter().map(|word| word.text.clone()).collect())
        .collect()
}

fn is_opaque(script: &str) -> bool {
    bash(script).opaque.is_some()
}

/// Whether a listed command may have become this argv.
fn covers(listed: &[Word], real: &[String]) -> bool {
    let Some((word, rest)) = listed.split_first() else {
        return real.is_empty();
    };
    match word.unknown.as_ref().map(|unknown| unknown.fields) {
        None => real.first() == Some(&word.text) && covers(rest, &real[1..]),
        Some(Fields::One) => !real.is_empty() && covers(rest, &real[1..]),
        Some(Fields::Some) => (1..=real.len()).any(|taken| covers(rest, &real[taken..])),
        Some(Fields::Any) => (0..=real.len()).any(|taken| covers(rest, &real[taken..])),
    }
}

#[test]
fn every_command_that_bash_ran_is_listed_or_the_script_is_opaque() {
    let mut holes = Vec::new();
    let mut understood = 0;
    for case in cases("bash_truth") {
        let found = understand(&argv(&case["argv"]));
        if found.opaque.is_some() {
            continue;
        }
        understood += 1;
        for real in case["expected"]["external_execs"].as_array().unwrap() {
            let real = argv(real);
            if !found.commands.iter().any(|command| covers(&command.argv, &real)) {
                holes.push(format!("{} {}: {real:?}", case["id"], case["argv"]));
            }
        }
    }
    assert!(holes.is_empty(), "{}", holes.join("\n"));
    assert!(understood >= 80, "only {understood} cases are understood");
}

#[test]
fn what_codex_lists_is_listed_word_for_word() {
    // Where Codex is not right, bash decides.
    const BASH_DIFFERS: &[(&str, &str)] = &[
        ("ep-0240", "bash takes the backslash away: the argument is $HOME"),
        (
            "ep-0241",
            "bash takes the backslash away: the command is \"rm -rf\", one word",
        ),
    ];
    let mut faults = Vec::new();
    for case in cases("shell_split") {
        let id = case["id"].as_str().unwrap();
        let Some(expected) = case["expected"]["commands"].as_array() else {
            continue;
        };
        if BASH_DIFFERS.iter().any(|(differs, _)| *differs == id) {
            continue;
        }
        let found = understand(&argv(&case["argv"]));
        for command in expected {
            let real = argv(command);
            if !found.commands.iter().any(|command| covers(&command.argv, &real)) {
                faults.push(format!("{id} {}: {:?}", case["argv"], found));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_here_document_never_hides_what_else_runs() {
    for case in cases("heredoc_prefix") {
        let argv = argv(&case["argv"]);
        let found = understand(&argv);
        if argv[0] == "zsh" {
            // Codex lists python3; its own reader of zsh is bash's, which we do not trust that far.
            assert!(found.opaque.is_some());
            continue;
        }
        assert_eq!(found.opaque, None, "{argv:?}");
        let heads: Vec<String> = texts(&found).into_iter().map(|words| words[0].clone()).collect();
        let expected: &[&str] = match case["id"].as_str().unwrap() {
            "ep-0361" => &["python3", "echo"],
            "ep-0363" => &["python3"],
            _ => &["echo"],
        };
        assert_eq!(heads, expected, "{argv:?}");
        let writes = found
            .commands
            .iter()
            .any(|command| command.redirects.iter().any(Redirect::writes_file));
        assert_eq!(writes, case["id"] == "ep-0363");
    }
}

#[test]
fn a_carrier_that_is_not_the_images_own_runs_itself() {
    let role = |script: &str| bash(script).commands[1].role;
    assert_eq!(role("env ls"), Role::Carries);
    assert_eq!(role("/usr/bin/env ls"), Role::Carries);
    assert_eq!(role("./env ls"), Role::Runs);
    assert_eq!(role("/tmp/bash -c ls"), Role::Runs);
}

#[test]
fn wrappers_are_seen_through() {
    for script in [
        "env -u X A=1 rm x",
        "sudo -u root -- rm x",
        "timeout -k 5 10 rm x",
        "nice -n 5 nohup rm x",
        "stdbuf -oL rm x",
        "command -p rm x",
        "exec -a y rm x",
        "su -c 'rm x' root",
        "bash -euo pipefail -c 'rm x'",
        "trap 'rm x' EXIT",
        "eval rm x",
        "eval 'eval \"rm x\"'",
        "coproc rm x",
        "time -p rm x",
        "ls | time rm x",
        "flock /l rm x",
        "script -qec 'rm x' /dev/null",
        "script --command='rm x'",
        "busybox rm x",
        "uv run --with y rm x",
        "docker run --rm -v a:b image sh -c 'rm x'",
        "ssh h rm x",
        "git -c core.pager='rm x' log",
        "GIT_PAGER='rm x' git log",
        "watch -n 1 rm x",
        "find . -exec rm x \\;",
        "bash <<< 'rm x'",
        "bash -s <<'E'\nrm x\nE",
        "sudo sh <<E\nrm x\nE",
        "python3 -c 'import os; os.system(\"rm x\")'",
        "python3 -Iuc 'import os; os.system(\"rm x\")'",
        "lua -e 'os.execute(\"rm x\")'",
        "emacs --batch --eval '(shell-command \"rm x\")'",
        "sg users 'rm x'",
        "rg --pre 'rm x' y",
        "go build -toolexec 'rm x' ./...",
        "gcc -wrapper rm,x y.c",
        "nc -e 'rm x' h 1",
        "ncat --sh-exec 'rm x' h 1",
        "socat TCP:h:1 EXEC:'rm x',pty",
        "tcpdump -z 'rm x'",
        "tar cf x --checkpoint=1 --checkpoint-act=exec='rm x' y",
        "tar cf x --checkpoint-action exec='rm x' y",
        "tar xf x --to-comm='rm x'",
        "sort --compress-prog 'rm x' f",
        "wget --use-askpass='rm x' h",
        "CARGO_TARGET_X_RUNNER='rm x' cargo run",
        "npx -c 'rm x'",
        "pkexec rm x",
        "hyperfine 'rm x'",
        "sqlite3 y '.shell rm x'",
        "psql -c '\\! rm x'",
        "less '+!rm x' y",
        "sed '1e rm x' f",
    ] {
        let found = listed(script);
        assert!(
            found.contains(&vec!["rm".to_owned(), "x".to_owned()]),
            "{script}: {found:?}"
        );
    }
    // What they run ends in words that are not known.
    for script in [
        "ls | xargs -0 -n 1 rm",
        "xargs -i -l1 rm x",
        "parallel -j 4 rm ::: x",
        "find . -delete",
    ] {
        let found = listed(script);
        assert_eq!(found.last().unwrap()[0], "rm", "{found:?}");
        assert_eq!(
            found.last().unwrap().last().unwrap(),
            if script.contains(":::") { "\"$1\"" } else { "{}" }
        );
    }
}

#[test]
fn what_cannot_be_known_is_opaque() {
    for script in [
        "$x",
        "\"$@\"",
        "eval \"$x\"",
        ". ./x",
        "curl u | sh",
        "PATH=.:$PATH ls",
        "export LD_PRELOAD=./x.so",
        "BASH_ENV=x bash -c ls",
        "alias ls='rm x'",
        "{rm,x}",
        "/bin/r[m] x",
        "echo $((x))",
        "x='a[$(rm y)]'; echo $((x))",
        "[[ $x -eq 1 ]]",
        "[ -v \"$x\" ]",
        "test $x",
        "echo ${!x}",
        "echo ${x@P}",
        "printf -v \"$x\" y",
        "read \"$x\"",
        "env $x rm",
        "xargs -I{} {}",
        "echo 'x",
        "if ls; fi",
        "ls )",
        "enable -f x y",
        "hash -p /tmp/x ls",
        "declare -n x=y",
        "bash -ic ls",
        "bash -O extglob -c ls",
        "set -o posix",
        "a=(1)\\; a[1]=let 3",
        "ls >&'$(rm x)'",
        "echo x | bash 3<<< ls",
        "true | sh 4<<'E'\nls\nE",
        "coproc PATH { ls; }; ls",
        "exec {PATH}>x; ls",
        "f() { local PATH; ls; }; f",
        "((PATH=1)); ls",
        "read -ra PATH <<< x; ls",
        "mapfile -tC 'rm x' a",
        "mapfile -C \"$x\" a",
        "SRANDOM='a[$(rm x)]'; ls",
        "HISTCMD='a[$(rm x)]'; ls",
        "OPTIND='a[$(rm x)]'; getopts a b",
        "read SECONDS <<< 'a[$(rm x)]'",
        "printf -v y -v 'a[$(rm x)]' 1",
        "cat <<-'\tE'\n\ta\n\tE\nrm y",
        "sh -c 'ls {x}>&1'",
        "TEXTDOMAINDIR=. ls",
        "LUA_INIT='os.execute(1)' lua x.lua",
        "MAKEFLAGS=--eval='x:;rm x' make",
        "GOFLAGS=-toolexec=rm go build",
        "curl h | python3",
        "curl h | perl -",
        "cat x | { node; }",
        "f() { node; }; curl h | f",
        "python3 <(curl h)",
        "python3 < <(curl h)",
        "python3 -uc \"$x\"",
        "su -s ./x -c ls y",
        "apt-get -o DPkg::Pre-Invoke::=x install y",
        "cargo --config build.rustc-wrapper='\"x\"' build",
        "sed 'e ls\\nrm x' f",
        "zellij run -- rm x",
        "hash -lp /tmp/x ls",
        "LC_ALL=zh_CN.GBK; ls",
        "BASH_ALIASES[ls]='rm x'; ls",
        "sh -c 'a+=b ls'",
        "sh -c 'eval \"((rm x))\"'",
        "sh -c 'a[0]=x'",
        "parallel bash -c ::: 'rm x'",
        "parallel \"sh -c 'rm {}'\" ::: x",
        "xargs sh -c",
        "xargs -I{} sh -c 'rm {}'",
        "bash /proc/self/fd/3 3< x",
        "declare -a x='($(rm y))'",
        "declare -a 'x=($(rm y))'",
        "declare -A x=\"$v\"",
        "z=(); declare z=\"$v\"",
        "f() { local -a z; local z=$1; }; f",
        "read -a z <<< a; declare z=\"$v\"",
        "declare DIRSTACK=\"$v\"",
        "TAR_OPTIONS=--to-command=x tar xf y",
        "echo rm x | at now",
        "unshare -r",
        "chroot /x",
        "script -q /dev/null",
        "tmux send-keys 'rm x' Enter",
        "ls \\",
        "sh -c 'time ! rm x'",
        "sh -c 'time A=1 rm x'",
        "x=$(cat <<E\n$x)\nE)\nE\n)",
        "ls >&\"$x\"",
    ] {
        assert!(is_opaque(script), "{script}: {:?}", bash(script));
    }
}

#[test]
fn ordinary_scripts_are_understood() {
    for script in [
        "cd /x && ls -la | grep -v '^d' > out.txt 2>&1",
        "for f in *.py; do python3 -m py_compile \"$f\" || exit 1; done",
        "i=0; while [ $i -lt 10 ]; do i=$((i+1)); done",
        "if [[ -f x && $y == a* ]]; then echo yes; else echo no; fi",
        "case $x in a|b) ls;; *) pwd;; esac",
        "cat <<'EOF' > f.py\nprint(\"$x `y`\")\nEOF\npython3 f.py",
        "f() { local a=$1; echo \"$a\"; }; f 1",
        "PATH=$PATH:/usr/local/go/bin go build ./...",
        "diff <(sort a) <(sort b)",
        "find . -name '*.rs' -not -path './target/*' | xargs grep -n foo",
        "export A=1 B=\"$C\"; make -j$(nproc) CFLAGS=-O2",
        "declare -a b=(x y); local c=$1 d=\"$(ls)\"; export E=$F",
        "arr=(1 2 3); echo \"${arr[@]}\" ${#arr[@]} ${arr[0]}",
        "set -euo pipefail; [ -z \"$X\" ] && echo none",
        "sleep 1 & wait",
        "((i++)) || true; i=1",
        "cat x | python3 -c 'print(1)'",
        "cat x | python3 y.py",
        "cat x | python3 -m json.tool",
        "python3 < y.py",
        "python3 y.py <(ls)",
        "curl -sO h; curl -o - h | grep x; wget -qO- h | head",
        "MAKEFLAGS=-j8 make; OPTIND=1; SECONDS=0",
        "su -s /bin/bash -c ls y",
        "cargo --config net.offline=true build; apt-get -o Debug::x=1 update",
        "shopt -s nullglob; rm *.zz",
    ] {
        let found = bash(script);
        assert_eq!(found.opaque, None, "{script}");
    }
}

/// Commands of real agents, which stay outside the repository. Nothing where they are not at hand.
fn corpus() -> Option<Vec<Value>> {
    let text = ["../shared", "../../shared"].iter().find_map(|folder| {
        let path = format!("{}/{folder}/cases/agent-commands.jsonl", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).ok()
    })?;
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    Some(lines.filter(|line: &Value| line["command"].is_string()).collect())
}

#[test]
fn nearly_all_commands_of_real_agents_are_understood() {
    let Some(corpus) = corpus() else {
        eprintln!("skipped: the commands of real agents are not at hand");
        return;
    };
    let valid: Vec<&Value> = corpus.iter().filter(|line| line["bash_n_ok"] == true).collect();
    let understood = valid
        .iter()
        .filter(|line| bash(line["command"].as_str().unwrap()).opaque.is_none())
        .count();
    assert!(
        understood * 1000 >= valid.len() * 995,
        "{understood} of {} are understood",
        valid.len()
    );
}

#[test]
fn what_codex_lists_of_real_commands_is_listed() {
    let Some(corpus) = corpus() else {
        eprintln!("skipped: the commands of real agents are not at hand");
        return;
    };
    let mut differing = Vec::new();
    for line in &corpus {
        let script = line["command"].as_str().unwrap();
        let Some(split) = line["codex"]["split"].as_array() else {
            continue;
        };
        // Codex keeps backslashes that bash takes away.
        if script.contains(['\\', '\r', '\u{b}', '\u{c}', '\u{feff}']) {
            continue;
        }
        let found = bash(script);
        for command in split {
            let real = argv(command);
            // A keyword to bash.
            if real[0] == "time" {
                continue;
            }
            if found.opaque.is_none() && !found.commands.iter().any(|command| covers(&command.argv, &real)) {
                differing.push(format!("{script:?}: {real:?}"));
            }
        }
    }
    assert!(
        differing.is_empty(),
        "{} differ: {}",
        differing.len(),
        differing[..differing.len().min(20)].join("\n")
    );
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Scripts of pieces that matter to a shell, so that the odd combinations are met.
    fn scripts() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "'",
            "\"",
            "\\",
            "`",
            "$",
            "$(",
            ")",
            "${",
            "}",
            "$((",
            "))",
            "[[ ",
            " ]]",
            "{ ",
            "; }",
            "(",
            "|",
            "&&",
            "&",
            ";",
            "\n",
            " ",
            "#",
            "<",
            ">",
            "<<E\n",
            "\nE\n",
            "<<<",
            "<(",
            "$'",
            "x",
            "x=",
            "a[",
            "]",
            "ls",
            "rm x",
            "if ",
            "then ",
            "fi",
            "for i in ",
            "do ",
            "done",
            "case x in ",
            "esac",
            "eval ",
            "bash -c ",
            "env ",
            "é",
            "\u{a0}",
            "\\\n",
            "*",
            "{a,b}",
            "!",
            "~",
            "E",
        ]);
        prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_script_makes_the_splitter_panic(script in scripts()) {
            understand_script(&script);
        }

        #[test]
        fn no_text_makes_the_splitter_panic(words in prop::collection::vec(any::<String>(), 0..4), script: String) {
            understand_script(&script);
            understand(&words);
        }

        #[test]
        fn no_bytes_make_the_splitter_panic(bytes: Vec<u8>) {
            understand_script(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn a_literal_argv_is_listed_whatever_stands_around_it(before in scripts(), word in "[a-z]{3,8}") {
            // Whatever the script before it does, a line that bash gets to is listed, or the script is opaque.
            let found = understand_script(&format!("{word} y\n{before}"));
            let real = vec![word.clone(), "y".to_owned()];
            prop_assert!(found.opaque.is_some() || found.commands.iter().any(|command| covers(&command.argv, &real)));
        }
    }
}

#[test]
fn nesting_costs_no_stack_and_length_no_more_than_its_share() {
    for (open, close) in [
        ("(", ")"),
        ("$(", ")"),
        ("{ ", "; }"),
        ("\"$(", ")\""),
        ("${x:-", "}"),
        ("$((", "))"),
        ("if ", ""),
    ] {
        let script = format!("{}ls{}", open.repeat(50_000), close.repeat(50_000));
        assert!(is_opaque(&script), "{open}");
    }
    let mut script = String::from("rm x");
    for _ in 0..60 {
        script = format!("eval {}", shlex::try_quote(&script).unwrap().into_owned());
        if script.len() > 100_000 {
            break;
        }
    }
    understand_script(&script);
    assert!(bash(&"npx ".repeat(5_000)).commands.len() < 100);
    assert_eq!(bash(&"ls; ".repeat(5_000)).commands.len(), 5_001);
    assert!(is_opaque(&"ls; ".repeat(50_000)));
}

#[test]
fn little_languages_list_the_commands_that_they_run() {
    for script in [
        r#"awk '{print | "rm x"}' f"#,
        r#"awk 'BEGIN { "rm x" | getline y }'"#,
        r#"gawk 'BEGIN { print "a" |& "rm x" }'"#,
        "sed -n '1e rm x' f",
        "sed --expression='$!{1e rm x\n}' f",
        "sed -i.bak -e 's/a/[/e]/g' -e '/b/I,+3e rm x' f",
        "vim -c ':!rm x' f",
        "vi '+!rm x' f",
        "ex -c 'silent !rm x' f",
        "gdb -batch -ex 'shell rm x'",
        "expect -c 'spawn rm x'",
        "git config alias.x '!rm x'",
        "git clone 'ext::rm x' y",
        "perl -e 'system \"rm x\"'",
        "perl -le 'print `rm x`'",
        "python3 - <<'E'\nimport os\nos.system('rm x')\nE",
        "python3 <<< \"subprocess.run(['rm', 'x'])\"",
        "/lib64/ld-linux-x86-64.so.2 rm x",
        "nsenter -t 1 -m rm x",
        "bwrap --bind / / --dev /dev rm x",
        "npm exec rm x",
        "split --filter='rm x' f",
        "man -P 'rm x' ls",
        "sort --compress-program='rm x' f",
    ] {
        let found = bash(script);
        let rm = |command: &SimpleCommand| command.argv.iter().map(|word| word.text.as_str()).eq(["rm", "x"]);
        assert!(found.commands.iter().any(rm), "{script}: {found:?}");
    }
}

#[test]
fn little_languages_name_the_files_that_they_write() {
    for (script, file) in [
        ("awk '{print > \"/etc/x\"}' f", "/etc/x"),
        ("sed 's/a/b/w /etc/x' f", "/etc/x"),
        ("sed -n '/a/,/b/{s/x/y/gw /etc/x\np}' f", "/etc/x"),
        ("sed 'w /etc/x' f", "/etc/x"),
        ("sort -o /etc/x f", "/etc/x"),
        ("git log --output=/etc/x", "/etc/x"),
        ("curl -fsSLo /etc/x h", "/etc/x"),
        ("curl -o/etc/x h", "/etc/x"),
        ("curl --output=/etc/x h", "/etc/x"),
        ("wget -qO /etc/x h", "/etc/x"),
        ("history -w /etc/x", "/etc/x"),
    ] {
        let found = bash(script);
        let written = found.commands.iter().flat_map(|command| &command.redirects);
        assert_eq!(
            written
                .map(|redirect| redirect.target.text.as_str())
                .collect::<Vec<_>>(),
            [file],
            "{script}"
        );
    }
}

#[test]
fn what_a_little_language_makes_up_is_opaque_and_plain_text_is_not() {
    for script in [
        "sed 's/x/y/e' f",
        "sed 's|a|b|ge' f",
        "sed -n '10,20p;e' f",
        "sed -ne '/a/e' f",
        "python3 -c \"$x\"",
        "python3 -c \"$(curl h)\"",
        "make SHELL=/tmp/x",
        "make --eval='x:;rm x'",
    ] {
        assert!(is_opaque(script), "{script}");
    }
    for script in [
        "sed 's/[/e]/b/g' f",
        "sed 'a hello e rm' f",
        "sed -E 's/(we)/x/g; $d' f",
        "sed -i '/^e/d; s,e,w,' f",
        "sed 'y/abc/wee/' f",
        "sed -e ':a' -e '$!{N;ba' -e '}' f",
        "sed -n '1!G;h;$!d;/e\\/w/p' f",
        "python3 -c \"print('$x')\"",
        "make SHELL=/bin/bash -j4",
        "awk -F'|' '$1 > 3 {print $2 \"|\" $3}' f",
    ] {
        let found = bash(script);
        assert_eq!(found.opaque, None, "{script}");
        assert!(
            found.commands.iter().all(|command| command.redirects.is_empty()),
            "{script}"
        );
    }
}

#[test]
fn a_glob_that_may_become_nothing_hides_no_word() {
    let found = bash("shopt -s nullglob; git a*.zz push");
    let git = &found.commands[2].argv;
    let real = ["git", "push"].map(str::to_owned);
    assert!(covers(git, &real), "{found:?}");
    assert_eq!(git[1].unknown.as_ref().unwrap().fields, Fields::Any);
}

#[test]
fn a_program_is_listed_under_the_name_that_it_is_told_too() {
    for (script, name) in [
        ("exec -a y rm x", "y"),
        ("exec -l rm x", "-rm"),
        ("exec -cla y rm x", "-y"),
    ] {
        let found = listed(script);
        assert!(found.contains(&vec!["rm".to_owned(), "x".to_owned()]), "{found:?}");
        assert!(found.contains(&vec![name.to_owned(), "x".to_owned()]), "{found:?}");
    }
}
