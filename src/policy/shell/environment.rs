//! Variables that decide what runs: a value that is a command is read as one, and a name that changes what a command name
//! means makes the script opaque.

use super::{Dialect, Walk, Word};

/// Programs run the value of these as a command, and of all names that end so.
const COMMANDS: &[&str] = &[
    "FZF_DEFAULT_COMMAND",
    "GIT_EXTERNAL_DIFF",
    "GIT_PROXY_COMMAND",
    "GIT_SSH_COMMAND",
    "LESSCLOSE",
    "LESSOPEN",
    "PROMPT_COMMAND",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "VISUAL",
];
const COMMAND_ENDS: &[&str] = &["ASKPASS", "BROWSER", "EDITOR", "PAGER", "_RSH", "_SSH"];
/// Settings of Cargo's that name a program: `CARGO_TARGET_X_RUNNER`.
const CARGO_ENDS: &[&str] = &[
    "_LINKER",
    "_RUNNER",
    "_RUSTC",
    "_RUSTC_WRAPPER",
    "_RUSTC_WORKSPACE_WRAPPER",
];

/// These load code into what runs, or change what a name means.
const LOADERS: &[&str] = &[
    "BASHOPTS",
    "BASH_ALIASES",
    "BASH_CMDS",
    "BASH_COMPAT",
    "BASH_ENV",
    "BASH_LOADABLES_PATH",
    "DOTNET_STARTUP_HOOKS",
    "DYLD_INSERT_LIBRARIES",
    "ENV",
    "EXECIGNORE",
    "EXINIT",
    "FPATH",
    "GIT_CONFIG",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_SYSTEM",
    "GCONV_PATH",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_EXEC_PATH",
    "GIT_TEMPLATE_DIR",
    "HOME",
    "INPUTRC",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LD_AUDIT",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LOCPATH",
    "MAKEFILES",
    "MANOPT",
    "NLSPATH",
    "NODE_OPTIONS",
    "OPENSSL_CONF",
    "OPENSSL_ENGINES",
    "OPENSSL_MODULES",
    "PARALLEL",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "POSIXLY_CORRECT",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "RIPGREP_CONFIG_PATH",
    "RUBYOPT",
    "SHELL",
    "SHELLOPTS",
    "TAR_OPTIONS",
    // Where `$"…"` gets its translation from, which bash expands, substitutions and all.
    "TEXTDOMAIN",
    "TEXTDOMAINDIR",
    "VIMINIT",
    "XDG_CONFIG_HOME",
    "ZDOTDIR",
    "ZIPOPT",
    "_JAVA_OPTIONS",
];

/// bash evaluates what is put into these as arithmetic.
const INTEGERS: &[&str] = &[
    "BASHPID",
    "BASH_SUBSHELL",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "EUID",
    "HISTCMD",
    "LINENO",
    "OPTERR",
    "OPTIND",
    "PPID",
    "RANDOM",
    "SECONDS",
    "SRANDOM",
    "UID",
];

/// Options for a program; some of them name what it runs.
const OPTIONS: &[&str] = &["GNUMAKEFLAGS", "GOFLAGS", "MAKEFLAGS", "MFLAGS"];

/// bash expands these as it goes, substitutions and all.
const PROMPTS: &[&str] = &["PS0", "PS1", "PS2", "PS3", "PS4"];

/// Folders whose programs are the image's own: a search path of nothing else makes no name mean anything new.
const SYSTEM_FOLDERS: &[&str] = &["/usr/", "/bin/", "/sbin/", "/opt/"];

pub(super) fn weigh(walk: &mut Walk, name: &str, value: Option<&Word>) {
    if !name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_uppercase() || byte == b'_')
    {
        return;
    }
    if matches!(name, "LANG" | "LC_ALL" | "LC_CTYPE") {
        // In some encodings a backslash is the second byte of a letter, and bash reads on by them from here.
        let plain = |value: &str| {
            let value = value.to_ascii_lowercase();
            matches!(&*value, "" | "c" | "posix") || value.ends_with(".utf-8") || value.ends_with(".utf8")
        };
        if !value.and_then(Word::value).is_some_and(plain) {
            walk.opaque("an encoding that may change how the shell reads");
        }
        return;
    }
    if INTEGERS.contains(&name) && !value.is_some_and(super::is_number) {
        walk.opaque("a variable that is evaluated when it is set");
    }
    if name == "PATH" {
        if !value.is_some_and(is_plain_path) {
            walk.opaque("a search path that may change what a name means");
        }
    } else if is_loader(name) {
        walk.opaque("an environment variable that changes what a command does");
    } else if holds_command(name) {
        match value {
            Some(word) if word.value() == Some("") => {}
            Some(word) => walk.script(word, Dialect::Posix),
            None => walk.opaque("an environment variable that holds an unknown command"),
        }
    } else if OPTIONS.contains(&name) && !value.and_then(Word::value).is_some_and(is_harmless_options) {
        walk.opaque("an environment variable whose options may run commands");
    } else if PROMPTS.contains(&name)
        && value
            .and_then(Word::value)
            .is_none_or(|prompt| prompt.contains(['$', '`', '\\']))
    {
        walk.opaque("a prompt that may run commands");
    }
}

fn is_loader(name: &str) -> bool {
    const STARTS: &[&str] = &["BASH_FUNC_", "LD_", "LUA_INIT"];
    LOADERS.contains(&name) || STARTS.iter().any(|start| name.starts_with(start))
}

fn holds_command(name: &str) -> bool {
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    COMMANDS.contains(&name) || ends(COMMAND_ENDS) || (name.starts_with("CARGO_") && ends(CARGO_ENDS))
}

fn is_harmless_options(text: &str) -> bool {
    const HARMFUL: &[&str] = &["eval", "SHELL", "exec", "$(", "${", "-f", "-I", "-C"];
    !HARMFUL.iter().any(|word| text.contains(word))
}

/// Whether declaring `name` anew, without a value, changes what runs: bash looks for programs in the current folder where
/// there is no search path.
pub(super) fn matters(name: &str) -> bool {
    name == "PATH" || is_loader(name)
}

/// Whether a search path adds folders of the image only, or others behind the old ones.
fn is_plain_path(value: &Word) -> bool {
    let system =
        |folder: &str| !folder.contains("..") && SYSTEM_FOLDERS.iter().any(|system| folder.starts_with(system));
    let Some(unknown) = &value.unknown else {
        return value.text.split(':').all(system);
    };
    let starts = ["$PATH", "${PATH}"];
    let text = value.text.trim_matches('"');
    let Some(at) = starts
        .iter()
        .find_map(|path| text.find(path).map(|at| (at, path.len())))
    else {
        return false;
    };
    let (before, after) = (&text[..at.0], &text[at.0 + at.1..]);
    let ends_well = after.is_empty() || (after.starts_with(':') && !after.contains(['`', '(']));
    let before = before.trim_end_matches(':');
    ends_well && unknown.prefix.trim_end_matches(':') == before && (before.is_empty() || before.split(':').all(system))
}
