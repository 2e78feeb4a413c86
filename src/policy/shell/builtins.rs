//! What the shell does itself: some builtins run commands, some change what later ones mean, and a few evaluate a name as
//! arithmetic, which can run commands too.

use super::lexer::Reader;
use super::programs::{Found, assignment, carry, from_input, skip_options};
use super::word::Fit;
use super::{Dialect, Role, SimpleCommand, Walk, Word, environment};

/// Nothing where `name` is no builtin that matters here.
pub(super) fn look_through(walk: &mut Walk, name: &str, command: &SimpleCommand) -> Option<Found> {
    let args = &command.argv[1..];
    match name {
        "eval" => {
            eval(walk, args);
            return Some(Found::role(Role::Carries));
        }
        "command" => return Some(command_builtin(walk, args, command)),
        "builtin" => return Some(carry(walk, args, command)),
        "exec" => return Some(exec(walk, args, command)),
        "source" | "." => {
            if args.first().and_then(Word::value) == Some("/dev/stdin") {
                return Some(from_input(walk, command, walk.dialect));
            }
            walk.opaque("a file that is read into the shell");
        }
        "trap" => trap(walk, args),
        "alias"
            if args
                .iter()
                .any(|word| word.value().is_none_or(|word| word.contains('='))) =>
        {
            walk.opaque("an alias");
        }
        "enable" | "bind" | "fc" => walk.opaque("a builtin that changes what commands mean"),
        "hash" if args.iter().any(|word| has_letter(word, 'p')) => {
            walk.opaque("a builtin that changes what commands mean");
        }
        "complete" | "compgen" => walk.opaque("a completion that may run commands"),
        "set" => set(walk, args),
        "shopt" => {
            // Others change how words are read, or bring aliases in.
            const HARMLESS: &[&str] = &["dotglob", "failglob", "nocaseglob", "globstar", "huponexit", "lastpipe"];
            // With this one a glob may become nothing, if the script was seen to say so before it was read.
            let knows = walk.nullglob;
            let harmless = |word: &Word| {
                word.value().is_some_and(|word| {
                    word.starts_with('-') || HARMLESS.contains(&word) || (knows && word == "nullglob")
                })
            };
            if !args.iter().all(harmless) {
                walk.opaque("an option that changes how the shell reads");
            }
        }
        "let" => {
            for word in args {
                match word.value() {
                    Some(text) => {
                        let text = text.to_owned();
                        if walk.depth < super::DEPTH_LIMIT {
                            let _ = Reader::new(&text, walk, Dialect::Bash).expression_to_end();
                        }
                    }
                    None => walk.opaque("arithmetic that is put together when it runs"),
                }
            }
        }
        "declare" | "typeset" | "local" | "export" | "readonly" => {
            if matches!(name, "declare" | "typeset" | "local")
                && args.iter().any(|word| word.value().is_some_and(environment::matters))
            {
                walk.opaque("a declaration that hides what commands are found by");
            }
            declare(walk, args);
        }
        "read" => names(walk, args, "ersE", "adinNptu"),
        "mapfile" | "readarray" => {
            if let Some(at) = args.iter().position(|word| has_letter(word, 'C')) {
                match args.get(at).and_then(Word::value) {
                    Some("-C") => match args.get(at + 1).and_then(Word::value) {
                        // bash adds two words: the index and the line.
                        Some(callback) => walk.nested(&format!("{callback} \"$1\" \"$2\""), Dialect::Bash),
                        None => walk.opaque("a callback that is not known"),
                    },
                    _ => walk.opaque("a callback that is not known"),
                }
            }
            names(walk, args, "t", "CcdnOsu");
            for name in args.iter().filter_map(Word::value) {
                walk.numbers.array(name);
            }
        }
        "getopts" => names(walk, args.get(1..2).unwrap_or(&[]), "", ""),
        "unset" => names(walk, args, "fvn", ""),
        "wait" => {
            if let Some(at) = args.iter().position(|word| has_letter(word, 'p')) {
                names(walk, args.get(at + 1..at + 2).unwrap_or(&[]), "", "");
            }
        }
        "printf" => {
            let mut at = 0;
            // The last one counts, and each is looked at.
            while args.get(at).is_some_and(|word| word.starts_with("-v") != Fit::No) {
                match args[at].value() {
                    Some("-v") => names(walk, args.get(at + 1..at + 2).unwrap_or(&[]), "", ""),
                    _ => walk.opaque("a variable whose name is not known"),
                }
                at += 2;
            }
        }
        "test" | "[" => test(walk, args),
        "at" | "batch" => {
            let queue = args
                .iter()
                .any(|word| ['f', 'l', 'd', 'r', 'c'].iter().any(|letter| has_letter(word, *letter)));
            if !queue {
                return Some(from_input(walk, command, Dialect::Posix));
            }
        }
        "history" => {
            let file = args
                .windows(2)
                .find(|pair| ['a', 'w'].iter().any(|letter| has_letter(&pair[0], *letter)));
            return Some(Found {
                role: Role::Runs,
                writes: file.map(|pair| pair[1].clone()).into_iter().collect(),
            });
        }
        "jobs" => {
            if let Some(at) = args.iter().position(|word| has_letter(word, 'x')) {
                return Some(carry(walk, args.get(at + 1..).unwrap_or(&[]), command));
            }
        }
        _ => return None,
    }
    Some(Found::role(Role::Runs))
}

/// Whether a word may be an option with this letter in it.
fn has_letter(word: &Word, letter: char) -> bool {
    match word.value() {
        Some(option) => option.starts_with('-') && option.contains(letter),
        None => word.starts_with("-") != Fit::No,
    }
}

fn eval(walk: &mut Walk, args: &[Word]) {
    let args = match args.first().and_then(Word::value) {
        Some("--") => &args[1..],
        _ => args,
    };
    match args.iter().map(Word::value).collect::<Option<Vec<_>>>() {
        Some(words) => walk.nested(&words.join(" "), walk.dialect),
        None => walk.opaque("a script that is put together when it runs"),
    }
}

fn command_builtin(walk: &mut Walk, args: &[Word], command: &SimpleCommand) -> Found {
    let mut at = 0;
    while let Some(option) = args.get(at).and_then(Word::value).filter(|word| word.starts_with('-')) {
        at += 1;
        match option {
            "--" => break,
            "-p" => {}
            // It only says what would run.
            _ if option[1..].contains(['v', 'V']) => return Found::role(Role::Runs),
            _ => {
                walk.opaque("an option of command that is not known");
                return Found::role(Role::Runs);
            }
        }
    }
    carry(walk, &args[at..], command)
}

fn exec(walk: &mut Walk, args: &[Word], command: &SimpleCommand) -> Found {
    match skip_options(args, "cl", "a", &[]) {
        Some(at) => {
            // The name that the program sees itself called by.
            let named = args[..at].iter().rposition(|word| has_letter(word, 'a'));
            let login = args[..at].iter().any(|word| has_letter(word, 'l'));
            if let Some(called) = named.and_then(|named| args[..at].get(named + 1)).or(args.get(at))
                && (named.is_some() || login)
                && at < args.len()
            {
                let name = format!("{}{}", if login { "-" } else { "" }, called.text);
                let mut argv = vec![Word {
                    text: name,
                    ..called.clone()
                }];
                argv.extend_from_slice(&args[at + 1..]);
                walk.shadow(argv);
            }
            carry(walk, &args[at..], command)
        }
        None => {
            walk.opaque("a wrapper whose options are not known");
            Found::role(Role::Carries)
        }
    }
}

fn trap(walk: &mut Walk, args: &[Word]) {
    let args = match args.first().and_then(Word::value) {
        Some("--") => &args[1..],
        Some("-p" | "-l" | "-P") => return,
        _ => args,
    };
    if args.len() < 2 && args.iter().all(|word| word.is_single()) {
        return;
    }
    match args.first() {
        Some(script) if script.value() == Some("-") => {}
        Some(script) => {
            walk.script(script, walk.dialect);
        }
        None => {}
    }
}

fn set(walk: &mut Walk, args: &[Word]) {
    const HARMLESS: &[&str] = &[
        "allexport",
        "errexit",
        "errtrace",
        "functrace",
        "ignoreeof",
        "monitor",
        "noclobber",
        "noexec",
        "noglob",
        "notify",
        "nounset",
        "pipefail",
        "verbose",
        "xtrace",
    ];
    let mut at = 0;
    while let Some(word) = args.get(at) {
        at += 1;
        let Some(option) = word.value() else {
            if word.starts_with("-") != Fit::No || word.starts_with("+") != Fit::No {
                walk.opaque("an option that changes how the shell reads");
            }
            return;
        };
        let Some(letters) = option.strip_prefix(['-', '+']) else {
            return;
        };
        if letters.is_empty() || letters == "-" {
            return;
        }
        for letter in letters.chars() {
            match letter {
                'a' | 'b' | 'C' | 'e' | 'E' | 'f' | 'm' | 'n' | 'T' | 'u' | 'v' | 'x' => {}
                'o' => {
                    let name = args.get(at);
                    if name.is_some_and(|name| name.value().is_none_or(|name| !HARMLESS.contains(&name))) {
                        walk.opaque("an option that changes how the shell reads");
                    }
                    at += 1;
                }
                _ => walk.opaque("an option that changes how the shell reads"),
            }
        }
    }
}

/// Arguments that are names of variables: a subscript in one is arithmetic.
fn names(walk: &mut Walk, args: &[Word], flags: &str, values: &str) {
    let Some(at) = skip_options(args, flags, values, &[]) else {
        return walk.opaque("arguments that may name a variable with a subscript");
    };
    for word in &args[at..] {
        match word.value() {
            Some(name) if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
                walk.assigned(name, false);
                walk.binds(name, None);
            }
            _ => walk.opaque("arguments that may name a variable with a subscript"),
        }
    }
    if values.contains('a')
        && let Some(array) = args[..at].windows(2).find(|pair| has_letter(&pair[0], 'a'))
    {
        match array[0].value() {
            Some(option) if option.ends_with('a') => {
                if let Some(name) = array[1].value() {
                    walk.numbers.array(name);
                }
                names(walk, &array[1..], "", "");
            }
            _ => walk.opaque("an array whose name is not known"),
        }
    }
}

fn declare(walk: &mut Walk, args: &[Word]) {
    const EVALUATES: &str = "a declaration that evaluates what it is given";
    let array = args.iter().any(|word| has_letter(word, 'a') || has_letter(word, 'A'));
    for word in args {
        if let Some(option) = word.value().filter(|word| word.starts_with(['-', '+'])) {
            // A reference is a name that is evaluated, an integer a value that is.
            if option.contains(['n', 'i']) && !option.starts_with("--") {
                walk.opaque(EVALUATES);
            }
            continue;
        }
        let Some((name, value)) = assignment(word) else {
            match word.value() {
                Some(name) if is_name(name) => {
                    if array {
                        walk.numbers.array(name);
                    }
                }
                Some(name) if is_plain_element(name) => {}
                _ => walk.opaque("a declaration that is put together when it runs"),
            }
            continue;
        };
        let name = name.trim_end_matches('+');
        if !word.is_single() || !(is_name(name) || is_plain_element(name)) {
            walk.opaque(EVALUATES);
        }
        if array {
            walk.numbers.array(name);
        }
        // Without quotes it is an array that the parser has read already.
        let literal = word.unknown.is_some() && word.text.starts_with(&format!("{name}=("))
            || word.unknown.is_some() && word.text.starts_with(&format!("{name}+=("));
        if literal {
            continue;
        }
        match value.starts_with("(") {
            Fit::No => {}
            Fit::Maybe if !array => walk.numbers.declares(name),
            Fit::Maybe | Fit::Yes => walk.opaque(EVALUATES),
        }
        walk.assigned(name, super::is_number(&value));
        walk.binds(name, Some(&value));
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_plain_element(name: &str) -> bool {
    name.split_once('[').is_some_and(|(name, key)| {
        is_name(name)
            && key
                .strip_suffix(']')
                .is_some_and(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// `[ … ]`: harmless unless `-v` meets a name that is not plain, so every place where `-v` could come from must be known.
fn test(walk: &mut Walk, args: &[Word]) {
    const REASON: &str = "a test whose operators are not known";
    for (at, word) in args.iter().enumerate() {
        let Some(text) = word.value() else {
            if matches!(word.text.as_str(), "$#" | "$?" | "$$" | "$!") {
                continue;
            }
            if !word.is_single() && word.fits("-v") == Fit::Maybe {
                // Unquoted it may become any words, unless all that it ever holds are numbers.
                let name = word.text.strip_prefix('$').map(|name| name.trim_matches(['{', '}']));
                match name.filter(|name| is_name(name)) {
                    Some(name) => walk.numbers.uses(name.to_owned()),
                    None => return walk.opaque(REASON),
                }
                continue;
            }
            let known = |at: Option<usize>| at.and_then(|at| args.get(at)).and_then(Word::value);
            let before = known(at.checked_sub(1));
            let after = known(Some(at + 1));
            let operand = before
                .is_some_and(|before| before.starts_with('-') && before.len() > 1 || is_comparison(before))
                || after.is_some_and(|after| is_comparison(after) || matches!(after, "]" | "-a" | "-o"))
                || at + 1 == args.len();
            if word.fits("-v") == Fit::Maybe && !operand {
                return walk.opaque(REASON);
            }
            continue;
        };
        if matches!(text, "-v" | "-R") {
            match args.get(at + 1).map(Word::value) {
                None => {}
                Some(Some(name)) if is_name(name) || is_plain_element(name) || name == "]" => {}
                _ => return walk.opaque("a test of a variable whose name is not known"),
            }
        }
    }
}

fn is_comparison(word: &str) -> bool {
    matches!(
        word,
        "=" | "==" | "!=" | "<" | ">" | "-eq" | "-ne" | "-lt" | "-le" | "-gt" | "-ge" | "-nt" | "-ot" | "-ef"
    )
}
