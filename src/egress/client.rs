//! Who in the sandbox asked: the other end of a connection to the proxy, and the exec that it belongs to.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::account::Totals;
use crate::id::ExecId;

/// The other end of a connection to the proxy, as the sandbox's own network numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client {
    pub address: SocketAddr,
    pub transport: Transport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Client {
    pub fn tcp(address: SocketAddr) -> Self {
        let transport = Transport::Tcp;
        Self { address, transport }
    }

    pub fn udp(address: SocketAddr) -> Self {
        let transport = Transport::Udp;
        Self { address, transport }
    }
}

/// Finds the exec whose process holds a client's socket. It is evidence and decides nothing: processes of one task can hand
/// sockets to one another.
pub trait Attribution: Send + Sync {
    /// `None` where nobody or more than one exec holds it, or it cannot be told.
    fn exec_of(&self, client: Client) -> BoxFuture<'_, Option<ExecId>>;

    /// Where the bytes of a new connection of this exec are counted, beside the task's own count.
    fn totals_of(&self, _exec: Option<ExecId>) -> Option<Arc<Totals>> {
        None
    }
}

/// Knows of no exec.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unattributed;

impl Attribution for Unattributed {
    fn exec_of(&self, _: Client) -> BoxFuture<'_, Option<ExecId>> {
        Box::pin(async { None })
    }
}
