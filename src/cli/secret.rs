//! `belljar secret`: puts values into the keyring of the OS, names them, and takes them out. Nothing here prints a value.

use std::io::{self, IsTerminal, Read, Write};

use anyhow::{Context, bail};
use clap::Subcommand;

use super::terminal;
use crate::secret::{ExposeSecret, LENGTH_LIMIT, SecretString, keyring};

#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Puts a value into the keyring; it is read from stdin, never from the command line, which others can see
    Set {
        /// What `keyring:NAME` names in a spec
        name: String,
    },
    /// Names the secrets in the keyring
    Ls {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Takes secrets out of the keyring
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub fn run(command: SecretCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    match command {
        SecretCommand::Set { name } => {
            let value = value(&name)?;
            keyring::set(&name, value)?;
        }
        SecretCommand::Ls { json } => {
            let names = keyring::names()?;
            match json {
                true => writeln!(out, "{}", serde_json::json!({ "secrets": names }))?,
                false => names
                    .iter()
                    .try_for_each(|name| writeln!(out, "{}", terminal::clean(name)))?,
            }
        }
        SecretCommand::Rm { names } => {
            for name in names {
                keyring::remove(&name).with_context(|| format!("\"{name}\" was not removed"))?;
            }
        }
    }
    Ok(0)
}

/// Asked for at a terminal, else all of stdin without the line feed at its end.
fn value(name: &str) -> anyhow::Result<SecretString> {
    let value = match io::stdin().is_terminal() {
        true => terminal::read_hidden(&format!("value of {}: ", terminal::clean(name)))?,
        false => {
            let mut text = String::with_capacity(LENGTH_LIMIT + 2);
            io::stdin()
                .lock()
                .take(LENGTH_LIMIT as u64 + 2)
                .read_to_string(&mut text)
                .context("the value on stdin is no text")?;
            if text.ends_with('\n') {
                text.pop();
            }
            text.into()
        }
    };
    match value.expose_secret() {
        "" => bail!("the value is empty"),
        text if text.len() > LENGTH_LIMIT => bail!("the value is longer than {LENGTH_LIMIT} bytes"),
        text if text.contains('\0') => bail!("the value holds a NUL"),
        _ => Ok(value),
    }
}
