//! Scripts out of scripts.

use fastrand::Rng;

/// Pieces that shells read in odd ways.
const PIECES: &[&str] = &[
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
    "((",
    "[[ ",
    " ]]",
    "{ ",
    "; }",
    "{",
    "}",
    ",",
    "..",
    "(",
    "|",
    "||",
    "|&",
    "&",
    "&&",
    "&>",
    ";",
    ";;",
    ";&",
    "\n",
    "\\\n",
    " ",
    "\t",
    "\r",
    "\u{b}",
    "\u{a0}",
    "\u{feff}",
    "#",
    " #",
    "!",
    "! ",
    "~",
    "*",
    "?",
    "[",
    "]",
    "=",
    "+=",
    "<",
    ">",
    ">>",
    "<<",
    "<<-",
    "<<<",
    "<(",
    ">(",
    "2>",
    "2>&1",
    ">&",
    "<<E\n",
    "\nE\n",
    "<<'E'\n",
    "$'",
    "$\"",
    "$@",
    "\"$@\"",
    "$x",
    "${x:-",
    "${x#",
    "${x/",
    "x=",
    "x[0]=",
    "x=(",
    "@(",
    "!(",
    "if ",
    "; then ",
    "; fi",
    "else ",
    "elif ",
    "while ",
    "; do ",
    "; done",
    "for i in ",
    "case x in ",
    "esac",
    " in ",
    "x) ",
    "function f ",
    "f() ",
    "time ",
    "time -p ",
    "coproc ",
    "select ",
    "until ",
    "rm x",
    "rm",
    "ls",
    "rm y;",
    "\nrm x\n",
    "eval ",
    "exec ",
    "command ",
    "builtin ",
    "trap ",
    "'rm x' EXIT",
    "env ",
    "set -- ",
    "test ",
    "[ ",
    "echo ",
    "export ",
    "local ",
    "declare ",
    "printf ",
    "read ",
    "a[$(rm x)]",
    "'a[$(rm x)]'",
    "-v ",
    "-eq ",
    "let ",
    "unset ",
    "then",
    "do",
    "done",
    "fi",
    "\\r\\m",
    "\\rm x",
    "$(rm x)",
    "`rm x`",
    "\"$(rm x)\"",
    "<(rm x)",
    "{rm,x}",
    "${x:-$(rm x)}",
    "\\`",
    "\\$",
    "\\\"",
    "0",
    "1",
    "&1",
    "- ",
    "-c ",
    "bash -c ",
    "E",
    "EOF",
    "cat ",
    "<<\\E\n",
    "<<\"E\"\n",
    "}",
    "!!",
    "^",
    "%",
    ":",
    ": ",
    "'\n'",
    "\\'",
    "''",
    "\"\"",
    "{}",
    "{a}",
    "{1..3}",
    "x\\\ny",
    "<<a <<b\n",
    "\na\n",
    "\nb\n",
    "$((x))",
    "((x++))",
    "SRANDOM=",
    "OPTIND=",
    "PS4=",
    "set -x; ",
    "printf -v y ",
    "exec -a y ",
    "exec -l ",
    "mapfile -C ",
    "shopt -s nullglob; ",
    "*.zz",
    "{x}>",
    "<<-'\tE'\n\tE\n",
    "declare -n ",
    "local -n ",
    "wait -n -p ",
    "getopts a ",
    "[[ -v ",
    "test -v ",
    "${!x}",
    "${x@P}",
    "jobs -x ",
    "hash -p /stubs/rm ",
    "source /dev/stdin <<< ",
    "alias ls=",
    "command_not_found_handle() ",
];

/// Scripts to begin with: the cases of the tests, short scripts that use much of the grammar, and commands from `files`.
pub fn seeds(files: &[String]) -> Vec<String> {
    let mut seeds: Vec<String> = GRAMMAR.iter().map(|text| (*text).to_owned()).collect();
    for case in ["bash_truth", "shell_split"] {
        let path = format!("{}/../tests/data/policy/{case}.jsonl", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).expect("the cases are in the repository");
        for line in text.lines() {
            let case: serde_json::Value = serde_json::from_str(line).expect("a case is JSON");
            seeds.extend(case["argv"][2].as_str().map(str::to_owned));
        }
    }
    for file in files {
        let text = std::fs::read_to_string(file).expect("a file that was named");
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            seeds.extend(
                line["command"]
                    .as_str()
                    .filter(|command| command.len() < 160)
                    .map(str::to_owned),
            );
        }
    }
    seeds
}

const GRAMMAR: &[&str] = &[
    "if ls; then rm x; elif cat y; then rm z; else rm w; fi > out",
    "for i in a b; do rm $i; done; for ((i=0;i<3;i++)); do ls $i; done",
    "case x in a|b) rm a;; x) rm x;& *) rm b;; esac",
    "while read l; do rm $l; done <<E\na\nb\nE",
    "f() { rm \"$1\"; }; f x; function g { ls; }; g",
    "cat <<E <<-'F'\na $(rm x) `rm y`\nE\n\tb $(rm z)\n\tF\nls",
    "x=$(cat <<E\n$(rm x)\nE\n); ls \"$x\"",
    "a=(1 2 $(rm x)); a[1]=3; echo ${a[@]} ${#a[@]}; declare -a b=(x y)",
    "[[ -f x && $y == a* || ! ( z =~ ^(a|b)$ ) ]] && rm x",
    "{ ls; rm x; } 2>&1 | tee out & wait",
    "! time -p ls | rm x && (cd /; rm y) || { rm z; }",
    "echo \"a $(echo \"b $(rm x)\") c\" 'd' $'e\\'f' g\\ h",
    "exec 3<>/tmp/x; rm x >&3; exec 3>&-",
    "trap 'rm \"x y\"' EXIT; eval \"rm a; ls 'b c'\"",
    "diff <(rm a) <(rm b) > >(rm c)",
    "coproc X { rm x; }; coproc rm y",
    "echo ${x:-$(rm x)} ${x:+\"$(rm y)\"} \"${x-`rm z`}\" ${x%%$(rm w)}",
    "i=1; echo $((i+1)) $((1+$(nproc))); ((i++)); let i=i+2",
    "A=1 B=$(rm x) ls; export C=$(rm y); local D=`rm z`",
    "until rm x; do break; done; select s in a; do rm $s; done",
    "ls # comment 'rm x'\nrm y # \"\nrm z",
    "set -e; [ -z \"$x\" ] && rm x; test -f y || rm y",
    "x='a[$(rm x)]'; printf -v y -v z 1; read w <<< \"$x\"; test -v y",
    "shopt -s nullglob; rm *.zz; exec -a y rm x",
    "OPTIND=1; SECONDS=0; while getopts ab o; do rm $o; done",
    "mapfile -t -c 1 -C 'rm x' a <<< y; rm \"${a[@]}\"",
    "declare -A m=([x]=$(rm y)); m[x]=`rm z`; echo ${m[x]}",
    "f() { local IFS=,; rm \"$*\"; }; f a b | cat; function g() (rm x)",
    "cat <<E | while read l; do rm $l; done\n$(rm x)\nE",
    "bash <<'A' <<'B'\nrm x\nA\nrm y\nB",
    "exec 3>&1; ls 2>&1 1>&3- | rm x; {fd}>/tmp/f rm y",
    "trap 'rm x' DEBUG ERR EXIT; PS4='+ '; set -x; ls",
];

pub fn mutant(seeds: &[String], random: &mut Rng) -> String {
    let mut script = random.choice(seeds).cloned().unwrap_or_default();
    for _ in 0..random.usize(1..5) {
        mutate(&mut script, seeds, random);
    }
    script
}

fn mutate(script: &mut String, seeds: &[String], random: &mut Rng) {
    let at = place(script, random);
    match random.u8(..12) {
        0..=4 => script.insert_str(at, random.choice(PIECES).copied().unwrap_or("")),
        5 | 6 => {
            let to = place(script, random);
            let (from, to) = (at.min(to), at.max(to));
            let to = if to - from > 12 { from } else { to };
            script.replace_range(from..to, "");
        }
        7 => {
            let to = place(script, random);
            let piece = script[at.min(to)..at.max(to)].to_owned();
            let into = place(script, random);
            script.insert_str(into, &piece);
        }
        8 => {
            let other = random.choice(seeds).cloned().unwrap_or_default();
            let glue = random.choice(["\n", "; ", " | ", " && ", " ", ""]).unwrap_or("");
            *script = format!("{script}{glue}{other}");
        }
        9 => {
            let other = random.choice(seeds).cloned().unwrap_or_default();
            script.insert_str(at, &other);
        }
        _ => {
            let to = place(script, random);
            let (from, to) = (at.min(to), at.max(to));
            let inside = &script[from..to];
            let wrapped = match random.u8(..10) {
                0 => format!("$({inside})"),
                1 => format!("`{inside}`"),
                2 => format!("\"{inside}\""),
                3 => format!("'{inside}'"),
                4 => format!("({inside})"),
                5 => format!("{{ {inside}; }}"),
                6 => format!("${{x:-{inside}}}"),
                7 => format!("<<E\n{inside}\nE\n"),
                8 => format!("$(({inside}))"),
                _ => format!("eval \"{inside}\""),
            };
            script.replace_range(from..to, &wrapped);
        }
    }
}

/// A boundary between two letters.
fn place(script: &str, random: &mut Rng) -> usize {
    let mut at = random.usize(..=script.len());
    while !script.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Programs that carry others, with words that they may take for options, values or the command.
const CARRIERS: &[(&str, &[&str])] = &[
    (
        "env",
        &[
            "-i",
            "-u",
            "X",
            "-C",
            "/",
            "-S",
            "rm x",
            "-",
            "--",
            "A=1",
            "-0",
            "-v",
            "--unset=X",
            "-uX",
            "-S rm",
            "--chdir",
            "-a",
            "--ignore-environment",
            "--split-string=rm x",
            "-vS",
            "--argv0=y",
        ],
    ),
    (
        "timeout",
        &[
            "-k",
            "1",
            "5",
            "-s",
            "9",
            "--signal",
            "--sig",
            "--kill-after=1",
            "--foreground",
            "--",
            "-v",
            "--preserve-status",
            "-k1",
            "1s",
            "-p",
            "-f",
        ],
    ),
    (
        "nice",
        &["-n", "5", "-5", "--adjustment", "--adj=3", "--", "-n5", "--5", "-10"],
    ),
    ("nohup", &["--", "-", "--help"]),
    ("setsid", &["-c", "-f", "-w", "--wait", "--", "-fw"]),
    (
        "stdbuf",
        &[
            "-o",
            "L",
            "-oL",
            "-i0",
            "-e",
            "0",
            "--output",
            "--output=L",
            "--out",
            "--",
        ],
    ),
    ("ionice", &["-c", "2", "-n", "7", "-t", "-c2", "--class", "3", "--"]),
    (
        "flock",
        &[
            "/w/l",
            "-c",
            "rm x",
            "-n",
            "-w",
            "1",
            "-x",
            "-E",
            "9",
            "--command",
            "--timeout",
            "--",
            "-o",
        ],
    ),
    (
        "xargs",
        &[
            "-n",
            "1",
            "-n1",
            "-I",
            "{}",
            "-I{}",
            "-i",
            "-0",
            "-r",
            "-P",
            "2",
            "-L",
            "1",
            "-t",
            "--max-args",
            "--max-a",
            "-d",
            "\\n",
            "-d,",
            "--",
            "-a",
            "/dev/null",
            "-E",
            "e",
            "-e",
            "-l",
            "-l1",
            "--replace",
            "--replace=x",
            "--null",
            "-s",
            "99",
            "-x",
            "sh",
            "-c",
            "rm x",
            "env",
            "rm {}",
            "bash",
        ],
    ),
    (
        "find",
        &[
            "/few",
            ".",
            "-maxdepth",
            "0",
            "-name",
            "*",
            "-exec",
            "-execdir",
            "-ok",
            ";",
            "+",
            "{}",
            "sh",
            "-c",
            "rm x",
            "(",
            ")",
            "-o",
            "!",
            "-print",
            "-type",
            "d",
            "-delete",
            "rm {}",
            "env",
        ],
    ),
    (
        "bash",
        &[
            "-c", "rm x", "-l", "-lc", "-e", "-ec", "-x", "+x", "-o", "pipefail", "--norc", "--", "-", "-s", "--posix",
            "-u", "-c-", "-cl", "--login", "-O", "extglob", "+o", "+c", "y",
        ],
    ),
    (
        "dash",
        &[
            "-c", "rm x", "-l", "-lc", "-e", "-ec", "-x", "+x", "-o", "nounset", "--", "-", "-s", "-u", "-cl", "+c",
            "y",
        ],
    ),
    (
        "busybox",
        &[
            "sh", "-c", "rm x", "env", "ash", "timeout", "5", "nice", "nohup", "xargs", "-n", "1", "A=1", "find", ".",
            "-exec", ";", "{}",
        ],
    ),
    (
        "script",
        &[
            "-c",
            "rm x",
            "-q",
            "/dev/null",
            "-e",
            "-qc",
            "--command",
            "--command=rm x",
            "-qec",
            "-f",
            "--return",
            "-cq",
        ],
    ),
    ("unshare", &["-r", "-U", "--", "-m"]),
    ("taskset", &["-c", "0", "1", "-a", "-pc", "--"]),
    ("chroot", &["/", "--", "--userspec=0:0"]),
];

/// A command line of a carrier, or of several in a row.
pub fn carrier(random: &mut Rng) -> Vec<String> {
    if random.u8(..3) == 0 {
        return sed(random);
    }
    let mut argv = Vec::new();
    for _ in 0..random.usize(1..3) {
        let Some((name, words)) = random.choice(CARRIERS) else {
            continue;
        };
        argv.push((*name).to_owned());
        for _ in 0..random.usize(0..5) {
            argv.extend(random.choice(*words).map(|word| (*word).to_owned()));
        }
    }
    argv.extend(["rm", "x"].map(str::to_owned));
    if random.bool() {
        argv.extend(random.choice([";", "+", "{}"]).map(str::to_owned));
    }
    argv
}

/// Pieces of scripts for sed that run `rm x`, and all that may hide it.
const SED: &[&str] = &[
    "e rm x\n",
    "e rm x",
    "e",
    "1e",
    "s/one/rm x/e",
    "s/o/rm x/ge",
    "s/.*/rm x/",
    "w f",
    "s/o/e/w f\n",
    "/e/",
    "/[/]e/",
    "\\%e%",
    "{",
    "}",
    ";",
    "\n",
    "a\\\n",
    "a e",
    "i\\\n",
    "c rm x",
    "c\\",
    "y/e/w/",
    "y/abc/\\n\\\\e/",
    ":a",
    "ba",
    "ta",
    "$!",
    "$",
    "1,2",
    "1~2",
    "0,/o/",
    "I",
    "M",
    "s|[|e]|e|",
    "s,/,e,",
    "s/[]/e]/e/",
    "s/[^]/]/e/",
    "s/\\//e/",
    "s/a/b\\\nc/",
    "n",
    "N",
    "d",
    "p",
    "r f\n",
    "R f",
    "W f\n",
    "#e\n",
    " ",
    "!",
    "g",
    "G",
    "h",
    "x",
    "=",
    "l",
    "l 1",
    "q",
    "D",
    "P",
    "F",
    "z",
    "2",
    "+1",
    "m",
    "s/o/x/2p",
    "s/x/y/;",
    "} e",
    "v",
    "L",
    "e\n",
];

/// A command line of sed with a script put together at random.
fn sed(random: &mut Rng) -> Vec<String> {
    let script = |random: &mut Rng| -> String {
        let pieces = random.usize(1..6);
        (0..pieces).filter_map(|_| random.choice(SED)).copied().collect()
    };
    let mut argv = vec!["sed".to_owned()];
    argv.extend(
        random
            .choice(["-n", "-E", "-s", "-i", "-z", "-nE", "-u"])
            .map(str::to_owned)
            .filter(|_| random.bool()),
    );
    match random.u8(..5) {
        0 => argv.extend(["-e".to_owned(), script(random), "-e".to_owned(), script(random)]),
        1 => argv.push(format!("-e{}", script(random))),
        2 => argv.push(format!("--expression={}", script(random))),
        3 => argv.extend(["--expr".to_owned(), script(random)]),
        _ => argv.push(script(random)),
    }
    argv.extend(
        random
            .choice(["-", "/etc/passwd", "-s"])
            .map(str::to_owned)
            .filter(|_| random.u8(..3) == 0),
    );
    argv
}
