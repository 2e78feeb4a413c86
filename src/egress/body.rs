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
use super::secret::answer::{Looking, Peek};
use super::secret::mask::{Masker, Patterns};
use super::secret::{credential, found_in_head};

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
    keeps_credentials: bool,
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
    /// Placeholders must not pass.
    Guard(Box<Guard>),
    /// Values are masked.
    Mask(Box<Looking>),
}

/// What looks for placeholders in a request's body.
struct Guard {
    guard: Masker,
    /// Into a packed body, whose bytes are looked at as they are too.
    peek: Option<(Peek, Masker)>,
    /// The name of the secret whose placeholder was found.
    found: Arc<OnceLock<String>>,
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
            keeps_credentials: true,
            trailers: None,
            is_over: false,
        }
    }

    /// Ends in an error where a placeholder stands in it, whose secret `found` then names.
    #[must_use]
    pub fn guarded(mut self, guard: Option<Arc<Patterns>>, headers: &HeaderMap, found: &Arc<OnceLock<String>>) -> Self {
        if let Some(guard) = guard {
            self.sight = Sight::Guard(Box::new(Guard {
                peek: Peek::of(headers).map(|peek| (peek, Masker::new(guard.clone()))),
                found: found.clone(),
                guard: Masker::new(guard),
            }));
        }
        self
    }

    /// For a host whose credentials are ours to put in: what comes behind the body holds none.
    #[must_use]
    pub fn without_credentials(mut self) -> Self {
        self.keeps_credentials = false;
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
                        match &self.sight {
                            Sight::None => {}
                            Sight::Guard(guard) => guard.look_at(&trailers)?,
                            Sight::Mask(looking) => looking.mask(&mut trailers),
                        }
                        if !self.keeps_credentials {
                            credential::take_headers(&mut trailers, |_| false);
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
            Sight::Guard(guard) => guard.pass(data, false),
            Sight::Mask(looking) => Ok(looking.take(data).into()),
        }
    }

    fn rest(&mut self) -> Result<Bytes, Failure> {
        match &mut self.sight {
            Sight::None => Ok(Bytes::new()),
            Sight::Guard(guard) => guard.pass(Bytes::new(), true),
            Sight::Mask(looking) => Ok(looking.finish()?.into()),
        }
    }
}

impl Guard {
    /// The bytes that may go on.
    fn pass(&mut self, data: Bytes, is_end: bool) -> Result<Bytes, Failure> {
        let mut name = None;
        if let Some((peek, inner)) = &mut self.peek {
            let looked = peek.look(data.clone(), |piece| {
                let passed = inner.guard(piece, false);
                passed.map(drop).map_err(|found| {
                    name = Some(found);
                    String::new()
                })
            });
            match (&name, looked) {
                (Some(_), _) | (None, Ok(())) => {}
                (None, Err(why)) => return Err(why.into()),
            }
            if name.is_none() && is_end {
                name = inner.guard(&[], true).err();
            }
        }
        match name.map_or_else(|| self.guard.guard(&data, is_end), Err) {
            Ok(passed) => Ok(passed.into()),
            Err(name) => Err(self.stop(name)),
        }
    }

    fn look_at(&self, trailers: &HeaderMap) -> Result<(), Failure> {
        match found_in_head(self.guard.patterns(), "", trailers) {
            Some(name) => Err(self.stop(name)),
            None => Ok(()),
        }
    }

    fn stop(&self, name: String) -> Failure {
        let text = format!("the placeholder of {name} stands in the request's body");
        let _ = self.found.set(name);
        text.into()
    }
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
            Sight::Guard(guard) => self.body.is_end_stream() && guard.guard.is_empty() && self.trailers.is_none(),
            Sight::Mask(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.sight {
            Sight::Mask(looking) if looking.changes_length() => SizeHint::default(),
            Sight::None | Sight::Guard(_) | Sight::Mask(_) => self.body.size_hint(),
        }
    }
}
