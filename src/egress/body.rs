//! Bodies on their way between a client and a server: counted, cut where a limit is reached, and never held whole.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::account::Account;
use super::front::http::whole_chain;

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A body that passes through the proxy within TLS.
pub(super) struct Carried {
    body: Incoming,
    account: Arc<Account>,
    direction: Direction,
}

enum Direction {
    Request { left: u64 },
    Response,
}

impl Carried {
    /// A request's body of at most `limit` bytes.
    pub fn request(body: Incoming, account: Arc<Account>, limit: u64) -> Self {
        let direction = Direction::Request { left: limit };
        Self {
            body,
            account,
            direction,
        }
    }

    pub fn response(body: Incoming, account: Arc<Account>) -> Self {
        Self {
            body,
            account,
            direction: Direction::Response,
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), Failure> {
        match &mut self.direction {
            Direction::Response => self.account.add_received(bytes),
            Direction::Request { left } => {
                *left = left
                    .checked_sub(bytes as u64)
                    .ok_or("the request's body is over the limit")?;
                self.account.add_sent(bytes);
            }
        }
        Ok(())
    }
}

impl Body for Carried {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let counted = match frame {
            Ok(frame) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.count(bytes).map(|()| frame)
            }
            Err(error) => Err(whole_chain(&error).into()),
        };
        if let Err(error) = &counted {
            this.account.fail(error.to_string());
        }
        Poll::Ready(Some(counted))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
