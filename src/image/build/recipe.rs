//! A recipe: what an image holds, in a few lines of TOML.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::document::{Document, Fault, Faults, Origin, Sited, Table, read_file};
use crate::path::SandboxPath;

/// The recipes that belljar brings along, so that it needs nothing beside its one file.
const OWN: [(&str, &str); 4] = [
    ("base", include_str!("../../../images/base/recipe.toml")),
    ("node", include_str!("../../../images/node/recipe.toml")),
    ("python", include_str!("../../../images/python/recipe.toml")),
    ("rust", include_str!("../../../images/rust/recipe.toml")),
];

/// What goes into an image, the recipe that it is based on included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub summary: String,
    /// The release of Debian.
    pub suite: String,
    /// Sorted, each once.
    pub packages: Vec<String>,
    pub files: Vec<RecipeFile>,
    /// Lines for the image's own shell, in order, as its root and without a network of the image's own.
    pub run: Vec<String>,
    pub env: BTreeMap<String, String>,
}

/// A file beside the recipe that goes into the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeFile {
    pub from: PathBuf,
    pub to: String,
    pub mode: u32,
}

impl Recipe {
    /// The names of the recipes that belljar brings along.
    pub fn names() -> impl Iterator<Item = &'static str> {
        OWN.iter().map(|(name, _)| *name)
    }

    /// A recipe of belljar's own by its name, or the one in a folder.
    pub fn find(name_or_folder: &str) -> Result<Recipe, Faults> {
        if let Some((name, text)) = OWN.iter().find(|(name, _)| *name == name_or_folder) {
            return Self::from_toml(text, &format!("images/{name}/recipe.toml"), Path::new("/nonexistent"));
        }
        let folder = Path::new(name_or_folder);
        let file = folder.join("recipe.toml");
        if !name_or_folder.contains('/') && !file.exists() {
            let names: Vec<&str> = Self::names().collect();
            let what = format!(
                "no recipe of this name ({} are there; a folder is written ./NAME)",
                names.join(", ")
            );
            return Err(Faults::one(Origin::Flag("NAME"), "", what));
        }
        Self::from_toml(&read_file(&file)?, &file.display().to_string(), folder)
    }

    fn from_toml(text: &str, file: &str, folder: &Path) -> Result<Recipe, Faults> {
        let (based_on, own) = Document::parse(text, file)?.read(|root| read(root, folder))?;
        let Some(base) = based_on else {
            return Ok(own);
        };
        let (name, text) = OWN
            .iter()
            .find(|(name, _)| *name == base.value)
            .ok_or_else(|| unknown_base(&base))?;
        let base = Self::from_toml(text, &format!("images/{name}/recipe.toml"), Path::new("/nonexistent"))?;
        Ok(own.upon(base))
    }

    fn upon(self, base: Recipe) -> Recipe {
        let joined = |mut low: Vec<String>, high: Vec<String>| {
            low.extend(high);
            low
        };
        let mut packages = joined(base.packages, self.packages);
        packages.sort();
        packages.dedup();
        Recipe {
            summary: self.summary,
            suite: if self.suite.is_empty() { base.suite } else { self.suite },
            packages,
            files: base.files.into_iter().chain(self.files).collect(),
            run: joined(base.run, self.run),
            env: base.env.into_iter().chain(self.env).collect(),
        }
    }
}

fn unknown_base(base: &Sited<String>) -> Faults {
    let names: Vec<&str> = Recipe::names().collect();
    Faults::check(vec![Fault {
        origin: base.origin.clone(),
        key: "base".to_owned(),
        what: format!("\"{}\" is not one of {}", base.value, names.join(", ")),
    }])
    .expect_err("there is a fault")
}

fn read(root: &Table<'_>, folder: &Path) -> (Option<Sited<String>>, Recipe) {
    if let Some(version) = root.required("version", "version = 1") {
        version.integer(1..=1);
    }
    let based_on = root.parsed("base", |text| Ok(text.to_owned()));
    let summary = root
        .required("summary", "what the image is")
        .and_then(|value| value.parsed(line));
    let suite = root.parsed("suite", |text| word(text, "a release of Debian"));
    if based_on.is_none() && suite.is_none() && root.value("suite").is_none() {
        root.required(
            "suite",
            "a release of Debian, or base = the recipe that this one adds to",
        );
    }
    let mut packages: Vec<String> = values(root.list("packages", |text| word(text, "a package")));
    packages.sort();
    packages.dedup();
    let mut env = BTreeMap::new();
    for (name, value) in root.table("env").map(Table::open).unwrap_or_default() {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.value.is_empty() || !name.value.chars().all(plain) {
            value.fault(format!("{:?} is not the name of an environment variable", name.value));
        }
        if let Some(text) = value.parsed(line) {
            env.insert(name.value, text.value);
        }
    }
    let recipe = Recipe {
        summary: summary.map(|text| text.value).unwrap_or_default(),
        suite: suite.map(|text| text.value).unwrap_or_default(),
        packages,
        files: root
            .tables("files")
            .iter()
            .filter_map(|table| file(table, folder))
            .collect(),
        run: values(root.list("run", no_nul)),
        env,
    };
    (based_on, recipe)
}

fn file(table: &Table<'_>, folder: &Path) -> Option<RecipeFile> {
    let from = table.required("from", "a file beside the recipe").and_then(|value| {
        value.parsed(|text| {
            // As a path inside: absolute and upward ones are told apart by the same rule as everywhere.
            let inside = SandboxPath::new(&format!("/{text}")).map_err(|error| error.to_string())?;
            let path = folder.join(inside.relative());
            match !text.starts_with('/') && path.is_file() {
                true => path.canonicalize().map_err(|error| error.to_string()),
                false => Err(format!("\"{text}\" is not a file beside the recipe")),
            }
        })
    });
    let to = table.required("to", "a path in the image").and_then(|value| {
        value.parsed(|text| {
            SandboxPath::new(text)
                .map(|path| path.to_string())
                .map_err(|error| error.to_string())
        })
    });
    let mode = table.parsed("mode", |text| match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("\"{text}\" is not a mode from 0000 to 0777")),
    });
    Some(RecipeFile {
        from: from?.value,
        to: to?.value,
        mode: mode.map_or(0o644, |mode| mode.value),
    })
}

fn values(list: Vec<Sited<String>>) -> Vec<String> {
    list.into_iter().map(|text| text.value).collect()
}

/// A name as Debian has them, perhaps with `=VERSION`, never something that could be read as an option or a list.
fn word(text: &str, what: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.:=~_".contains(c);
    match text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not {what}")),
    }
}

fn line(text: &str) -> Result<String, String> {
    match text.chars().any(char::is_control) {
        true => Err("the text holds a control character".to_owned()),
        false => Ok(text.to_owned()),
    }
}

fn no_nul(text: &str) -> Result<String, String> {
    match text.contains('\0') {
        true => Err("the text holds a NUL".to_owned()),
        false => Ok(text.to_owned()),
    }
}
