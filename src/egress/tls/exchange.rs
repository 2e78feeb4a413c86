//! One request within TLS: agree on the host, judge, record, rewrite, send, and give the answer back.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::time::timeout;

use super::Inspection;
use super::frames::{Guarding, Masking};
use super::serve::Upstream;
use super::websocket::Upgraded;
use crate::audit::record::Event;
use crate::egress::account::Account;
use crate::egress::body::{Carried, Failure};
use crate::egress::client::Client;
use crate::egress::front::http::{
    Answer, method_of, misplaced, plain, refusal, strip, unreachable, unreadable, whole_chain,
};
use crate::egress::gate::{Denial, DenialKind, Destination, Route};
use crate::egress::host::Authority;
use crate::egress::request::Asked;
use crate::egress::secret::answer::{Looking, Packing, mask_headers};
use crate::egress::secret::mask::Patterns;
use crate::egress::secret::{Outgoing, aws, found_in_head, unseen};
use crate::egress::way::{Way, Who};
use crate::task::SecretPlace;

/// A request's body on its way to a server.
pub(super) type Sent = UnsyncBoxBody<Bytes, Failure>;

pub(super) type Reply = Answer;

/// The longest body that is held whole: of a request to AWS whose client has not said its digest. Its control interfaces take less.
const SIGNED_BODY: usize = 1 << 20;

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// One client's connection and the one to the server that belongs to it.
pub(super) struct Session {
    pub(super) destination: Destination,
    /// By which the connection was let through.
    rule: String,
    upstream: Upstream,
    account: Arc<Account>,
    pub(super) way: Arc<Way>,
    pub(super) inspection: Arc<Inspection>,
    pub(super) client: Client,
    /// What finds the placeholders that have no business with the host.
    guard: Option<Arc<Patterns>>,
    upgrade: Mutex<Option<Upgraded>>,
}

/// A request that is ready to be sent.
struct Prepared {
    request: Request<Sent>,
    /// What is masked in the answer, where the host got a secret.
    patterns: Option<Arc<Patterns>>,
    /// What looks at the frames of a WebSocket, where other hosts got secrets.
    guarding: Option<Guarding>,
    /// The name of a secret whose placeholder was found in the body.
    found: Arc<OnceLock<String>>,
}

impl Session {
    pub fn new(
        route: &Route,
        upstream: Upstream,
        account: Arc<Account>,
        (way, inspection, client): (Arc<Way>, Arc<Inspection>, Client),
    ) -> Self {
        let Destination { host, port, .. } = route.destination();
        Self {
            guard: inspection.secrets().foreign(host, *port),
            destination: route.destination().clone(),
            rule: route.rule().to_owned(),
            upstream,
            account,
            way,
            inspection,
            client,
            upgrade: Mutex::default(),
        }
    }

    /// The connection that a request has switched, to be carried on as bytes.
    pub fn take_upgrade(&self) -> Option<Upgraded> {
        self.upgrade.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub async fn answer(&self, request: Request<Incoming>) -> Reply {
        let who = Who::Exec(self.account.exec());
        let asked = Asked {
            method: request.method().as_str(),
            path: request.uri().path_and_query().map_or("/", |path| path.as_str()),
            headers: request.headers(),
        };
        if let Err(denial) = agree(&self.destination, &request) {
            self.way.refuse_request(who, &self.destination, asked, &denial).await;
            return misdirected(&denial);
        }
        let admitted = self
            .way
            .admit_request(who, &self.destination, asked, Some(&self.rule))
            .await;
        if let Err(denial) = admitted {
            return refusal(&denial);
        }
        self.forward(request).await
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Reply {
        let (destination, account, limits) = (&self.destination, &self.account, self.way.limits);
        if let Upstream::Failed(error) = &self.upstream {
            return unreachable(destination, error);
        }
        if request.body().size_hint().lower() > limits.request_body {
            let error = "the request's body is over the limit";
            return plain(StatusCode::PAYLOAD_TOO_LARGE, destination, error);
        }
        let switch = is_websocket(&request).then(|| hyper::upgrade::on(&mut request));
        let prepared = match self.prepare(request, switch.is_some()).await {
            Ok(prepared) => prepared,
            Err(reply) => return *reply,
        };
        let Prepared {
            request,
            patterns,
            guarding,
            found,
        } = prepared;
        let answered = match timeout(limits.response_time, self.send(request)).await {
            Ok(answered) => answered,
            Err(_) => {
                let error = "the server did not answer in time";
                account.fail(error);
                return plain(StatusCode::GATEWAY_TIMEOUT, destination, error);
            }
        };
        match answered {
            Ok(response) => self.give_back(response, switch.map(|client| (client, guarding)), patterns),
            Err(_) if let Some(name) = found.get() => {
                let denial = misplaced(destination, name);
                self.record_refusal(&denial).await;
                refusal(&denial)
            }
            Err(error) => {
                let error = whole_chain(&error);
                account.fail(error.clone());
                unreachable(destination, &error)
            }
        }
    }

    /// The answer as the client gets it: masked, where the host got a secret.
    fn give_back(
        &self,
        mut response: Response<Incoming>,
        switch: Option<(OnUpgrade, Option<Guarding>)>,
        patterns: Option<Arc<Patterns>>,
    ) -> Reply {
        let (destination, account) = (&self.destination, &self.account);
        let failed = |error: &str| {
            account.fail(error);
            unreachable(destination, error)
        };
        if response.status() == StatusCode::UNAUTHORIZED {
            self.inspection
                .secrets()
                .forget_tokens(&destination.host, destination.port);
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let is_websocket = response.headers().get(header::UPGRADE).is_some_and(says_websocket);
            // Nothing that could be packed was offered (RFC 6455, 9.1); a server that packs all the same is not understood.
            let is_looked_through = patterns.is_some() || matches!(switch, Some((_, Some(_))));
            let is_packed = is_looked_through && response.headers().contains_key(header::SEC_WEBSOCKET_EXTENSIONS);
            let (Some((client, guarding)), true, false) = (switch, is_websocket, is_packed) else {
                return failed("the server switched protocols unasked");
            };
            let server = hyper::upgrade::on(&mut response);
            *self.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(Upgraded {
                client,
                server,
                guarding,
                masking: patterns.clone().map(Masking::new),
            });
            let (mut parts, _) = response.into_parts();
            clean(&mut parts.headers);
            if let Some(patterns) = &patterns {
                mask_headers(&mut parts.headers, patterns, Packing::Plain);
            }
            parts
                .headers
                .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            parts
                .headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
            return Response::from_parts(parts, body);
        }
        let (mut parts, body) = response.into_parts();
        let packing = Packing::of(&parts.headers);
        clean(&mut parts.headers);
        parts.version = Version::default();
        parts.extensions.clear();
        let mut body = Carried::response(body, account.clone());
        if let Some(patterns) = patterns {
            let packing = match packing {
                Ok(packing) => packing,
                Err(error) => return failed(&error),
            };
            mask_headers(&mut parts.headers, &patterns, packing);
            body = body.masked(Some(Looking::new(patterns, packing)));
        }
        Response::from_parts(parts, body.boxed_unsync())
    }

    /// The request as the server gets it: written anew, without foreign placeholders, the secrets of the host put in, and each use
    /// of one in the record.
    async fn prepare(&self, request: Request<Incoming>, switch: bool) -> Result<Prepared, Box<Reply>> {
        let Destination { host, port, .. } = &self.destination;
        let secrets = self.inspection.secrets();
        let guard = &self.guard;
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let misplaced_in_head = guard
            .as_ref()
            .and_then(|guard| found_in_head(guard, path, request.headers()));
        if let Some(name) = misplaced_in_head {
            return Err(self.refuse(&misplaced(&self.destination, &name)).await);
        }
        if let Some(reason) = guard.as_ref().and_then(|_| unseen(&request)) {
            return Err(self.refuse(&unreadable(&self.destination, &reason)).await);
        }
        let found = Arc::new(OnceLock::new());
        let (mut parts, body) = request.into_parts();
        if guard.is_some() {
            // Frames that are packed cannot be looked at.
            parts.headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
        }
        let guarding = guard.clone().map(Guarding::new);
        let mut body = Carried::request(body, self.account.clone(), self.way.limits.request_body).guarded(
            guard.clone(),
            &parts.headers,
            &found,
        );
        if secrets.are_for(host, *port) {
            body = body.without_credentials();
        }
        let mut body = body.boxed_unsync();
        if let Err(error) = self.rewrite(&mut parts, switch) {
            return Err(Box::new(unreachable(&self.destination, &error.to_string())));
        }
        if !secrets.are_for(host, *port) {
            let request = Request::from_parts(parts, body);
            return Ok(Prepared {
                request,
                patterns: None,
                guarding,
                found,
            });
        }
        let live = match secrets.live(host, *port, self).await {
            Ok(live) => live,
            Err(error) => return Err(self.refuse(&self.unable(error.name(), error.to_string())).await),
        };
        let mut digest = None;
        let signs = live.iter().any(|live| matches!(live.place, SecretPlace::Aws { .. }));
        if signs && aws::needs_body(&parts.headers) {
            match whole(body).await {
                Ok(whole) => {
                    digest = Some(aws::digest(&whole));
                    body = Full::new(whole).map_err(|never| match never {}).boxed_unsync();
                }
                Err(error) => {
                    let what = format!("the body that has to be signed cannot be had whole: {error}");
                    return Err(self.refuse(&self.unable(&live[0].name, what)).await);
                }
            }
        }
        let out = match Outgoing::put(&mut parts, &live, &self.authority(), digest.as_deref()) {
            Ok(out) => out,
            Err(error) => return Err(self.refuse(&self.unable(error.name(), error.to_string())).await),
        };
        if let Err(denial) = self.record_secrets(&out).await {
            return Err(Box::new(refusal(&denial)));
        }
        Ok(Prepared {
            request: Request::from_parts(parts, body),
            patterns: Some(Arc::new(Patterns::masking(&live))),
            guarding,
            found,
        })
    }

    async fn record_secrets(&self, out: &Outgoing) -> Result<(), Denial> {
        let (exec, destination) = (self.account.exec(), &self.destination);
        for (name, place) in &out.used {
            let event = Event::SecretUsed {
                name: name.clone(),
                host: destination.host.to_string(),
                place: place.clone(),
            };
            self.way.write(exec, destination, event).await?;
        }
        if out.removed.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "taken out, for only the task's secrets go there: {}",
            out.removed.join(", ")
        );
        self.way
            .record_event(exec, destination, ("allow", "secrets", &reason))
            .await
    }

    /// A refusal for want of a secret: nothing is sent without it.
    fn unable(&self, name: &str, reason: String) -> Denial {
        Denial::new(
            &self.destination,
            DenialKind::Unable,
            &format!("secrets.{name}"),
            reason,
        )
    }

    async fn refuse(&self, denial: &Denial) -> Box<Reply> {
        self.record_refusal(denial).await;
        Box::new(refusal(denial))
    }

    /// Writes down that a connection which was switched is ended, for what was about to be sent on it.
    pub async fn refuse_midway(&self, name: &str) -> String {
        let denial = misplaced(&self.destination, name);
        self.record_refusal(&denial).await;
        denial.reason
    }

    async fn record_refusal(&self, denial: &Denial) {
        let judgement = ("deny", denial.rule.as_str(), denial.reason.as_str());
        if let Err(denial) = self
            .way
            .record_event(self.account.exec(), &self.destination, judgement)
            .await
        {
            tracing::error!(reason = denial.reason, "a refusal is missing in the record");
        }
    }

    fn authority(&self) -> Authority {
        Authority {
            host: self.destination.host.clone(),
            port: self.destination.port,
        }
    }

    /// Leaves of a head what the server shall get: the judged host, no headers of the client's connection but what a body's end and
    /// a switch to WebSocket need.
    fn rewrite(&self, parts: &mut Parts, switch: bool) -> Result<(), hyper::http::Error> {
        let takes_trailers = parts.headers.get_all(header::TE).iter().any(|te| te == TRAILERS);
        let trailer = parts.headers.remove(header::TRAILER);
        strip(&mut parts.headers);
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::EXPECT);
        if takes_trailers {
            parts.headers.insert(header::TE, TRAILERS);
        }
        if let Some(trailer) = trailer {
            parts.headers.insert(header::TRAILER, trailer);
        }
        if switch {
            parts
                .headers
                .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            parts
                .headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let authority = self.authority().for_scheme_port(443);
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        match &self.upstream {
            Upstream::Http2(_) => {
                // The authority stands in the line, and nowhere else.
                parts.headers.remove(header::HOST);
                parts.uri = Uri::builder()
                    .scheme("https")
                    .authority(authority)
                    .path_and_query(path)
                    .build()?;
                parts.version = Version::HTTP_2;
            }
            Upstream::Http1(_) | Upstream::Failed(_) => {
                parts.headers.insert(header::HOST, HeaderValue::from_str(&authority)?);
                parts.uri = Uri::try_from(path)?;
                parts.version = Version::HTTP_11;
            }
        }
        parts.extensions.clear();
        Ok(())
    }

    async fn send(&self, request: Request<Sent>) -> Result<Response<Incoming>, hyper::Error> {
        match &self.upstream {
            Upstream::Http1(sender) => {
                let sent = {
                    let mut sender = sender.lock().await;
                    sender.ready().await?;
                    sender.send_request(request)
                };
                sent.await
            }
            Upstream::Http2(sender) => {
                let mut sender = sender.clone();
                sender.ready().await?;
                sender.send_request(request).await
            }
            Upstream::Failed(_) => unreachable!("a failed connection was answered before"),
        }
    }
}

/// A body that has to be signed, as a whole.
async fn whole(mut body: Sent) -> Result<Bytes, String> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else {
            continue;
        };
        if whole.len() + data.len() > SIGNED_BODY {
            return Err(format!("it is longer than {SIGNED_BODY} bytes"));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Whether a request asks for WebSocket and nothing else (RFC 6455, 4.1); any other switch is not passed on.
fn is_websocket(request: &Request<Incoming>) -> bool {
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && request.headers().get(header::UPGRADE).is_some_and(says_websocket)
        && request.headers().contains_key(header::SEC_WEBSOCKET_KEY)
}

fn says_websocket(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"websocket")
}

/// Removes what is the connection's own, and the offer to come back by another protocol or port.
fn clean(headers: &mut HeaderMap) {
    let trailer = headers.remove(header::TRAILER);
    strip(headers);
    if let Some(trailer) = trailer {
        headers.insert(header::TRAILER, trailer);
    }
    headers.remove(HeaderName::from_static("alt-svc"));
}

/// Whether the request is for the host that the tunnel was allowed for, and can be read in one way only.
pub(super) fn agree(destination: &Destination, request: &Request<Incoming>) -> Result<(), Denial> {
    let denied = |reason: String| Err(Denial::new(destination, DenialKind::Denied, "authority", reason));
    let method = request.method();
    if let Err(reason) = method_of(request) {
        return denied(reason);
    }
    if method == Method::CONNECT || method == Method::TRACE {
        return denied(format!("{method} is not let through"));
    }
    let uri = request.uri();
    if uri.path_and_query().is_none() && method != Method::OPTIONS {
        return denied("the request has no path".to_owned());
    }
    if uri.scheme_str().is_some_and(|scheme| scheme != "https") {
        return denied("the request is not for https".to_owned());
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return denied("the request has several Host headers".to_owned());
    }
    let host = match host.map(HeaderValue::to_str) {
        Some(Err(_)) => return denied("the Host header cannot be read".to_owned()),
        Some(Ok(host)) => Some(host),
        None => None,
    };
    let named: Vec<&str> = uri
        .authority()
        .map(|authority| authority.as_str())
        .into_iter()
        .chain(host)
        .collect();
    if named.is_empty() {
        return denied("the request names no host".to_owned());
    }
    let expected = Authority {
        host: destination.host.clone(),
        port: destination.port,
    };
    for name in named {
        match Authority::parse(name, Some(443)) {
            Ok(asked) if asked == expected => {}
            Ok(asked) => return denied(format!("the request is for {asked}, and the connection for {expected}")),
            Err(error) => return denied(format!("the request's host: {error}")),
        }
    }
    Ok(())
}

/// Of several hosts that share a certificate, a connection is for one (RFC 9110, 15.5.20).
pub(super) fn misdirected(denial: &Denial) -> Reply {
    let mut reply = refusal(denial);
    *reply.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    reply
}
