//! What follows a switch to WebSocket: bytes both ways, counted.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::egress::account::Account;
use crate::egress::secret::mask::Masker;

const BUFFER: usize = 64 * 1024;

/// The two ends of a switched connection, as they will be handed over.
pub(super) struct Upgraded {
    pub client: OnUpgrade,
    pub server: OnUpgrade,
    /// Masks what the server sends: values of the same length fit into frames, which are not packed.
    pub masker: Option<Masker>,
}

/// Carries until one side ends.
pub(super) async fn carry(upgraded: Upgraded, account: &Arc<Account>) -> Result<(), String> {
    let (client, server) = tokio::try_join!(upgraded.client, upgraded.server).map_err(|error| error.to_string())?;
    let (client_read, client_write) = tokio::io::split(TokioIo::new(client));
    let (server_read, server_write) = tokio::io::split(TokioIo::new(server));
    let carried = tokio::try_join!(
        pump(client_read, server_write, None, |bytes| account.add_sent(bytes)),
        pump(server_read, client_write, upgraded.masker, |bytes| account
            .add_received(bytes)),
    );
    carried.map(drop).map_err(|error| error.to_string())
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut masker: Option<Masker>,
    count: impl Fn(usize),
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            if let Some(masker) = &mut masker {
                to.write_all(&masker.finish()).await?;
            }
            return to.shutdown().await;
        }
        match &mut masker {
            Some(masker) => to.write_all(&masker.push(&buffer[..length])).await?,
            None => to.write_all(&buffer[..length]).await?,
        }
        to.flush().await?;
        count(length);
    }
}
