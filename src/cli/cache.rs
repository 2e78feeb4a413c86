//! `belljar cache fill|ls|rm`: the store of answers that tasks in the mode `cached` are served from.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::terminal::clean;
use crate::config::{Config, Surroundings};
use crate::egress::cache::fetch::Fetcher;
use crate::egress::cache::{Store, Stored, Url};
use crate::egress::host::Authority;

/// Fills, lists and empties the store of answers.
#[derive(Debug, clap::Subcommand)]
pub enum CacheCommand {
    /// Fetches URLs and keeps the answers, redirects on the way too
    Fill {
        #[arg(required = true, value_name = "URL")]
        urls: Vec<String>,
        #[arg(long)]
        json: bool,
    },
    /// Lists the stored answers
    Ls {
        #[arg(long)]
        json: bool,
    },
    /// Removes stored answers
    Rm {
        #[arg(required = true, value_name = "URL")]
        urls: Vec<String>,
    },
}

/// Does what was asked, with the configuration of this user.
pub async fn run(command: CacheCommand) -> anyhow::Result<u8> {
    let config = Config::load(&Surroundings::of_process())?;
    let store = store(&config);
    let out = &mut io::stdout();
    match command {
        CacheCommand::Fill { urls, json } => {
            let urls = urls.iter().map(|url| Url::parse(url)).collect::<Result<Vec<_>, _>>()?;
            let settings = super::egress::settings(&config);
            let fetcher = Fetcher::new(&settings.extra_roots, settings.upstream.as_ref())?;
            for url in urls {
                let forbids = |authority: &Authority| config.forbids_host(authority);
                let stored = fetcher.fill(&store, url.clone(), &forbids).await;
                for stored in stored.with_context(|| format!("could not fetch {}", clean(url.as_str())))? {
                    show(&stored, json, out)?;
                }
            }
        }
        CacheCommand::Ls { json } => {
            for stored in store.list()? {
                show(&stored, json, out)?;
            }
        }
        CacheCommand::Rm { urls } => {
            for url in urls {
                let url = Url::parse(&url)?;
                if !store.remove(&url)? {
                    bail!("no answer for {} is in this store", clean(url.as_str()));
                }
                writeln!(out, "{}", clean(url.as_str()))?;
            }
        }
    }
    Ok(0)
}

/// The stores that a configuration names.
pub fn store(config: &Config) -> Store {
    let others = config
        .egress
        .cache
        .iter()
        .map(|path| PathBuf::from(&path.value))
        .collect();
    Store::new(&config.state, others)
}

fn show(stored: &Stored, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    match json {
        true => writeln!(out, "{}", serde_json::to_string(stored)?)?,
        false => writeln!(
            out,
            "{}  {:>10}  {}  {}",
            stored.status,
            stored.bytes,
            &stored.digest[..12.min(stored.digest.len())],
            clean(&stored.url)
        )?,
    }
    Ok(())
}
