//! Bodies on their way between a client and a server: counted, cut where a limit is reached, looked through where secrets are
//! about, and never held whole.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::account::Account;
use super::front::http::whole_chain;
use super::secret::answer::Looking;
use super::secret::mask::Masker;

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A body that passes through the proxy.
pub(super) struct Carried {
    body: Incoming,
    account: Arc<Account>,
    direction: Direction,
    sight: Sight,
    /// Whether the end of the body is the end of the exchange.
    completes: bool,
    keeps_trailers: bool,
    trailers: Option<HeaderMap>,
    is_over: bool,
}

enum Direction {
    Request { left: u64 },
    Response,
}

/// How far a body is looked into.
enum Sight {
    None,
    /// Placeholders must not pass; the name of one that was found is kept.
    Guard {
        guard: Masker,
        found: Arc<OnceLock<String>>,
    },
    /// Values are masked.
    Mask(Box<Looking>),
}

impl Carried {
    /// A request's body of at most `limit` bytes.
    pub fn request(body: Incoming, account: Arc<Account>, limit: u64) -> Self {
        Self::new(body, account, Direction::Request { left: limit })
    }

    pub fn response(body: Incoming, account: Arc<Account>) -> Self {
        Self::new(body, account, Direction::Response)
    }

    fn new(body: Incoming, account: Arc<Account>, direction: Direction) -> Self {
        Self {
            body,
            account,
            direction,
            sight: Sight::None,
            completes: false,
            keeps_trailers: true,
            trailers: None,
            is_over: false,
        }
    }

    /// Ends in an error where a placeholder stands in it, whose secret `found` then names.
    #[must_use]
    pub fn guarded(mut self, guard: Option<Masker>, found: &Arc<OnceLock<String>>) -> Self {
        if let Some(guard) = guard {
            let found = found.clone();
            self.sight = Sight::Guard { guard, found };
        }
        self
    }

    #[must_use]
    pub fn masked(mut self, looking: Option<Looking>) -> Self {
        if let Some(looking) = looking {
            self.sight = Sight::Mask(Box::new(looking));
        }
        self
    }

    /// For one exchange a connection: its end completes the account, and trailers are dropped, for nobody asked for them.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.completes = matches!(self.direction, Direction::Response);
        self.keeps_trailers = false;
        self.note_end();
        self
    }

    fn note_end(&self) {
        if self.completes && (self.is_over || self.body.is_end_stream()) {
            self.account.complete();
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

    /// The next bytes to pass on; `None` at the end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Failure>> {
        loop {
            if let Sight::Mask(looking) = &mut self.sight
                && let Some(more) = looking.more()?
            {
                if more.is_empty() {
                    continue;
                }
                return Poll::Ready(Ok(Some(more.into())));
            }
            if self.is_over {
                return Poll::Ready(Ok(None));
            }
            let passed = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => {
                    self.is_over = true;
                    self.note_end();
                    self.rest()?
                }
                Some(Err(error)) => return Poll::Ready(Err(whole_chain(&error).into())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.count(data.len())?;
                        let passed = self.look(data)?;
                        self.note_end();
                        passed
                    }
                    Err(_) if !self.keeps_trailers => continue,
                    Err(frame) => {
                        self.is_over = true;
                        let mut trailers = frame.into_trailers().unwrap_or_default();
                        if let Sight::Mask(looking) = &self.sight {
                            looking.mask(&mut trailers);
                        }
                        self.trailers = Some(trailers);
                        self.rest()?
                    }
                },
            };
            if !passed.is_empty() {
                return Poll::Ready(Ok(Some(passed)));
            }
        }
    }

    fn look(&mut self, data: Bytes) -> Result<Bytes, Failure> {
        match &mut self.sight {
            Sight::None => Ok(data),
            Sight::Guard { guard, found } => guarded(guard.guard(&data, false), found),
            Sight::Mask(looking) => Ok(looking.take(data).into()),
        }
    }

    fn rest(&mut self) -> Result<Bytes, Failure> {
        match &mut self.sight {
            Sight::None => Ok(Bytes::new()),
            Sight::Guard { guard, found } => guarded(guard.guard(&[], true), found),
            Sight::Mask(looking) => Ok(looking.finish()?.into()),
        }
    }
}

fn guarded(passed: Result<Vec<u8>, String>, found: &OnceLock<String>) -> Result<Bytes, Failure> {
    passed.map(Bytes::from).map_err(|name| {
        let text = format!("the placeholder of {name} stands in the request's body");
        let _ = found.set(name);
        text.into()
    })
}

impl Body for Carried {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match ready!(self.poll(cx)) {
            Ok(Some(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Ok(None) => Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => {
                self.is_over = true;
                self.account.fail(error.to_string());
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.sight {
            Sight::None => self.body.is_end_stream() && self.trailers.is_none(),
            Sight::Guard { guard, .. } => self.body.is_end_stream() && guard.is_empty() && self.trailers.is_none(),
            Sight::Mask(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.sight {
            Sight::Mask(looking) if looking.changes_length() => SizeHint::default(),
            Sight::None | Sight::Guard { .. } | Sight::Mask(_) => self.body.size_hint(),
        }
    }
}
