//! What follows a switch to WebSocket: bytes both ways, counted, and looked through where secrets are about.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frames::{Guarding, Masking, Stop};
use crate::egress::account::Account;

const BUFFER: usize = 64 * 1024;

/// The two ends of a switched connection, as they will be handed over.
pub(super) struct Upgraded {
    pub client: OnUpgrade,
    pub server: OnUpgrade,
    /// Looks at what the client sends, where a placeholder could be that is not for this host.
    pub guarding: Option<Guarding>,
    /// Masks what the server sends, where it got a secret.
    pub masking: Option<Masking>,
}

/// Why it ended before both sides were done.
#[derive(Debug)]
pub(super) enum Ended {
    Failed(String),
    /// The placeholder of this secret was about to be sent.
    Placeholder(String),
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Ended::Failed(error.to_string())
    }
}

impl From<Stop> for Ended {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Placeholder(name) => Ended::Placeholder(name),
            Stop::Unreadable(why) => Ended::Failed(why.to_owned()),
        }
    }
}

/// Carries until one side ends.
pub(super) async fn carry(upgraded: Upgraded, account: &Arc<Account>) -> Result<(), Ended> {
    let Upgraded {
        client,
        server,
        mut guarding,
        mut masking,
    } = upgraded;
    let switched = tokio::try_join!(client, server);
    let (client, server) = switched.map_err(|error| Ended::Failed(error.to_string()))?;
    let (client_read, client_write) = tokio::io::split(TokioIo::new(client));
    let (server_read, server_write) = tokio::io::split(TokioIo::new(server));
    let up = pump(client_read, server_write, |bytes| {
        account.add_sent(bytes.len());
        if let Some(guarding) = &mut guarding {
            guarding.look(bytes)?;
        }
        Ok(None)
    });
    let down = pump(server_read, client_write, |bytes| {
        account.add_received(bytes.len());
        masking.as_mut().map(|masking| masking.push(bytes)).transpose()
    });
    tokio::try_join!(up, down).map(drop)
}

/// Moves bytes until the end; `look` may put others in their place.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut look: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, Stop>,
) -> Result<(), Ended> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(to.shutdown().await?);
        }
        match look(&buffer[..length])? {
            Some(others) => to.write_all(&others).await?,
            None => to.write_all(&buffer[..length]).await?,
        }
        to.flush().await?;
    }
}
