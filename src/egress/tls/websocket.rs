//! What follows a switch to WebSocket: bytes both ways, counted.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::egress::account::Account;

const BUFFER: usize = 64 * 1024;

/// The two ends of a switched connection, as they will be handed over.
pub(super) struct Upgraded {
    pub client: OnUpgrade,
    pub server: OnUpgrade,
}

/// Carries until one side ends.
pub(super) async fn carry(upgraded: Upgraded, account: &Arc<Account>) -> Result<(), String> {
    let (client, server) = tokio::try_join!(upgraded.client, upgraded.server).map_err(|error| error.to_string())?;
    let (client_read, client_write) = tokio::io::split(TokioIo::new(client));
    let (server_read, server_write) = tokio::io::split(TokioIo::new(server));
    let carried = tokio::try_join!(
        pump(client_read, server_write, |bytes| account.add_sent(bytes)),
        pump(server_read, client_write, |bytes| account.add_received(bytes)),
    );
    carried.map(drop).map_err(|error| error.to_string())
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: impl Fn(usize),
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        count(length);
    }
}
