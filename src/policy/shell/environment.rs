//! Variables that decide what runs: a value that is a command is read as one, and a name that changes what a command name
//! means makes the script opaque.

use super::{Dialect, Walk, Word};

/// Programs run the value of these as a command, and of all names that end so.
const COMMANDS: &[&str] = &[
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

/// These load code into what runs, or change what a name means.
const LOADERS: &[&str] = &[
    "BASHOPTS",
    "BASH_ALIASES",
    "BASH_CMDS",
    "BASH_COMPAT",
    "BASH_ENV",
    "BASH_LOADABLES_PATH",
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
    "JAVA_TOOL_OPTIONS",
    "LD_AUDIT",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "NODE_OPTIONS",
    "OPENSSL_CONF",
    "PARALLEL",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "POSIXLY_CORRECT",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "RUBYOPT",
    "SHELL",
    "SHELLOPTS",
    "TAR_OPTIONS",
    "VIMINIT",
    "XDG_CONFIG_HOME",
    "ZDOTDIR",
    "_JAVA_OPTIONS",
];

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
    if name == "PATH" {
        if !value.is_some_and(is_plain_path) {
            walk.opaque("a search path that may change what a name means");
        }
    } else if LOADERS.contains(&name) || name.starts_with("BASH_FUNC_") || name.starts_with("LD_") {
        walk.opaque("an environment variable that changes what a command does");
    } else if COMMANDS.contains(&name) || COMMAND_ENDS.iter().any(|end| name.ends_with(end)) {
        match value {
            Some(word) if word.value() == Some("") => {}
            Some(word) => walk.script(word, Dialect::Posix),
            None => walk.opaque("an environment variable that holds an unknown command"),
        }
    } else if PROMPTS.contains(&name)
        && value
            .and_then(Word::value)
            .is_none_or(|prompt| prompt.contains(['$', '`', '\\']))
    {
        walk.opaque("a prompt that may run commands");
    }
}

/// Whether declaring `name` anew, without a value, changes what runs: bash looks for programs in the current folder where
/// there is no search path.
pub(super) fn matters(name: &str) -> bool {
    name == "PATH" || LOADERS.contains(&name)
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
