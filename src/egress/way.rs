//! One connection's way out, on one page: judge, ask, resolve, judge again, record, dial.
//!
//! The fronts read what their protocol says and come here; nothing else dials. What cannot be recorded is not done.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};

use super::account::{Account, Counts, End, Totals};
use super::ask::Questions;
use super::cache::Store;
use super::client::{Attribution, Client};
use super::dial::Dialler;
use super::gate::{Cleared, Denial, DenialKind, Destination, EgressJudgement, Gate, Protocol, Route};
use super::limits::Limits;
use super::pace::Pace;
use super::path::shown;
use super::request::Asked;
use super::resolve::Resolver;
use super::tls::Inspection;
use crate::audit::record::Event;
use crate::id::ExecId;

/// Writes to the audit journal, beside the exec that an event is put down to. Returns when the event is as safe as the journal
/// makes it.
pub trait Recorder: Send + Sync {
    fn record(&self, exec: Option<ExecId>, event: Event) -> BoxFuture<'_, Result<(), RecordError>>;

    /// The same for events that nobody waited for and that came together: in their order, and cheaper where they can be written as one.
    fn record_all(&self, events: Vec<End>) -> BoxFuture<'_, Result<(), RecordError>> {
        Box::pin(async move {
            for End { exec, event } in events {
                self.record(exec, event).await?;
            }
            Ok(())
        })
    }
}

/// The journal could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the record could not be written")]
pub struct RecordError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// What every connection of one task shares.
pub(super) struct Way {
    pub gate: watch::Receiver<Arc<Gate>>,
    pub recorder: Arc<dyn Recorder>,
    pub questions: Questions,
    pub attribution: Arc<dyn Attribution>,
    pub refusals: Pace,
    pub resolver: Arc<dyn Resolver>,
    pub dialler: Arc<dyn Dialler>,
    pub limits: Limits,
    pub inspection: Option<Arc<Inspection>>,
    pub store: Option<Arc<Store>>,
    pub totals: Arc<Totals>,
    /// Where in the sandbox datagrams are taken, if they are.
    pub datagrams: Option<SocketAddr>,
    /// SOCKS associations for datagrams that are open.
    pub associations: watch::Sender<usize>,
    /// To the task that writes the ends of connections.
    pub ends: mpsc::Sender<End>,
}

/// A request for a way out: where to, and who asks.
#[derive(Debug, Clone)]
pub(super) struct Asking {
    pub destination: Destination,
    pub client: Client,
    /// Known once it was looked for.
    pub exec: Option<ExecId>,
}

/// Who asks something within a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Who {
    /// It was looked for when the connection was made.
    Exec(Option<ExecId>),
    /// It has to be looked for.
    Client(Client),
}

/// A destination that was judged and recorded.
pub(super) struct Admitted {
    pub route: Route,
    pub exec: Option<ExecId>,
}

/// A connection that was judged, recorded and made.
pub(super) struct Passage {
    pub stream: TcpStream,
    pub route: Route,
    pub account: Arc<Account>,
}

/// A flow of datagrams that was judged and recorded, with its socket.
pub(super) struct Flow {
    pub socket: UdpSocket,
    pub route: Route,
    pub account: Account,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Closed {
    Denied(Denial),
    /// It was allowed, and the other side could not be reached.
    Unreachable {
        destination: Destination,
        error: String,
    },
}

impl Way {
    /// The whole way to a connection.
    pub async fn open(&self, destination: Destination, client: Client) -> Result<Passage, Closed> {
        let Admitted { route, exec } = self.admit(destination, client).await.map_err(Closed::Denied)?;
        let account = Arc::new(self.account(&route, exec).await?);
        let dialled = tokio::time::timeout(self.limits.dial_time, self.dialler.dial(&route)).await;
        let error = match dialled {
            Ok(Ok(stream)) => {
                if let Ok(address) = stream.peer_addr() {
                    account.reached(address);
                }
                return Ok(Passage { stream, route, account });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {} s", self.limits.dial_time.as_secs()),
        };
        account.fail(error.clone());
        let destination = route.destination().clone();
        Err(Closed::Unreachable { destination, error })
    }

    /// The whole way to a flow of datagrams.
    pub async fn open_flow(&self, destination: Destination, client: Client) -> Result<Flow, Closed> {
        let Admitted { route, exec } = self.admit(destination, client).await.map_err(Closed::Denied)?;
        let account = self.account(&route, exec).await?;
        match self.dialler.dial_datagrams(&route).await {
            Ok(socket) => {
                account.reached(route.addresses()[0]);
                Ok(Flow { socket, route, account })
            }
            Err(error) => {
                account.fail(error.to_string());
                let (destination, error) = (route.destination().clone(), error.to_string());
                Err(Closed::Unreachable { destination, error })
            }
        }
    }

    /// The account of what was admitted. A place for its end's record is taken before there is anything to end. The queue is as
    /// long as there may be connections, so this waits only while the journal is behind.
    async fn account(&self, route: &Route, exec: Option<ExecId>) -> Result<Account, Closed> {
        let place = self.ends.clone().reserve_owned().await.map_err(|_| {
            let reason = "the proxy is shutting down".to_owned();
            Closed::Denied(Denial::new(route.destination(), DenialKind::Unable, "shutdown", reason))
        })?;
        let counts = Counts {
            of_task: self.totals.clone(),
            of_exec: self.attribution.totals_of(exec),
        };
        Ok(Account::new(route, exec, counts, place))
    }

    /// Judges and resolves, and writes down what came of it. Also all that a DNS question needs.
    pub async fn admit(&self, destination: Destination, client: Client) -> Result<Admitted, Denial> {
        let mut asking = Asking {
            destination,
            client,
            exec: None,
        };
        let judged = self.judge(&mut asking).await;
        let Asking { destination, exec, .. } = asking;
        match judged {
            Ok(route) => {
                self.record_judgement(exec, &destination, "allow", route.rule(), route.reason(), Some(&route))
                    .await?;
                Ok(Admitted { route, exec })
            }
            Err(denial) => {
                self.refusals.turn().await;
                self.record_judgement(exec, &destination, "deny", &denial.rule, &denial.reason, None)
                    .await?;
                Err(denial)
            }
        }
    }

    async fn judge(&self, asking: &mut Asking) -> Result<Route, Denial> {
        // The gate of this moment judges the whole of it: a reload in between ends the connection by itself.
        let gate = self.gate.borrow().clone();
        let judged = gate.judge(&asking.destination);
        // While the client waits its socket is there to be looked at.
        let looked_for = self.attribution.exec_of(asking.client);
        let cleared = match judged {
            EgressJudgement::Deny(denial) => {
                asking.exec = looked_for.await;
                return Err(denial);
            }
            EgressJudgement::Allow(cleared) => cleared,
            EgressJudgement::Ask(unknown) => {
                asking.exec = looked_for.await;
                let (exec, destination) = (asking.exec, &asking.destination);
                self.record_judgement(exec, destination, "ask", unknown.rule(), unknown.reason(), None)
                    .await?;
                let answer = self.questions.ask(&unknown, exec).await;
                return self.resolve(&gate, unknown.answer(answer)?).await;
            }
        };
        // Both are waiting: for a name server, and for the kernel's tables.
        let (route, exec) = tokio::join!(self.resolve(&gate, cleared), looked_for);
        asking.exec = exec;
        route
    }

    async fn resolve(&self, gate: &Gate, cleared: Cleared) -> Result<Route, Denial> {
        match cleared {
            Cleared::Address(route) => Ok(route),
            Cleared::Name(clearance) => {
                let answer = self.resolver.resolve(&clearance).await;
                gate.judge_addresses(clearance, answer)
            }
        }
    }

    /// Judges one request to a host that was let through by its name, and writes that down. Where no rule speaks of the host's
    /// requests, `otherwise` is the rule that let the connection through; without one that judgement stands for them.
    pub async fn admit_request(
        &self,
        who: Who,
        destination: &Destination,
        asked: Asked<'_>,
        otherwise: Option<&str>,
    ) -> Result<(), Denial> {
        let gate = self.gate.borrow().clone();
        let judged = gate.judge_request(destination, asked);
        let (decision, rule, reason) = match (&judged, otherwise) {
            (Ok(None), None) => return Ok(()),
            (Ok(None), Some(rule)) => ("allow", rule, "no rule speaks of the host's requests"),
            (Ok(Some(rule)), _) => ("allow", rule.as_str(), "the request is among those that are allowed"),
            (Err(denial), _) => ("deny", denial.rule.as_str(), denial.reason.as_str()),
        };
        self.record_request(who, destination, asked, (decision, rule, reason))
            .await?;
        judged.map(drop)
    }

    /// Writes down that one request is refused, for a reason that the gate does not know.
    pub async fn refuse_request(&self, who: Who, destination: &Destination, asked: Asked<'_>, denial: &Denial) {
        let judgement = ("deny", denial.rule.as_str(), denial.reason.as_str());
        if let Err(denial) = self.record_request(who, destination, asked, judgement).await {
            tracing::error!(reason = denial.reason, "a refusal is missing in the record");
        }
    }

    /// Writes down what became of a request whose path is in the record already.
    pub async fn record_event(
        &self,
        exec: Option<ExecId>,
        destination: &Destination,
        (decision, rule, reason): (&str, &str, &str),
    ) -> Result<(), Denial> {
        self.record_judgement(exec, destination, decision, rule, reason, None)
            .await
    }

    pub async fn record_request(
        &self,
        who: Who,
        destination: &Destination,
        asked: Asked<'_>,
        (decision, rule, reason): (&str, &str, &str),
    ) -> Result<(), Denial> {
        let exec = match who {
            Who::Exec(exec) => exec,
            Who::Client(client) => self.attribution.exec_of(client).await,
        };
        if decision == "deny" {
            self.refusals.turn().await;
        }
        let event = Event::EgressJudged {
            host: destination.host.to_string(),
            port: destination.port,
            protocol: destination.protocol.as_str().to_owned(),
            method: Some(shown(asked.method)),
            path: Some(shown(asked.path)),
            decision: decision.to_owned(),
            rule: rule.to_owned(),
            reason: reason.to_owned(),
            address: None,
        };
        self.write(exec, destination, event).await
    }

    /// The store that requests are answered from, where nothing else may answer them.
    pub fn stored(&self) -> Option<&Arc<Store>> {
        self.store.as_ref().filter(|_| self.gate.borrow().is_for_stored())
    }

    /// Judges a request that is answered out of the store.
    pub fn admit_stored(&self, destination: &Destination, asked: Asked<'_>) -> Result<(), Denial> {
        self.gate.borrow().judge_stored(destination, asked)
    }

    /// What a connection's TLS is looked into with, if it has to be.
    pub fn inspects(&self, route: &Route) -> Result<Option<&Arc<Inspection>>, Denial> {
        let destination = route.destination();
        let Destination { host, port, .. } = destination;
        let is_restricted = self.gate.borrow().restricts_requests(destination);
        let mut secrets = self.inspection.iter().map(|inspection| inspection.secrets());
        if !is_restricted && !secrets.any(|secrets| secrets.are_for(host, *port)) {
            return Ok(None);
        }
        self.inspection.as_ref().map(Some).ok_or_else(|| {
            let reason = "its requests have to be seen, and there is nothing here to see them with".to_owned();
            Denial::new(destination, DenialKind::Unable, "inspection", reason)
        })
    }

    /// Writes down a request that could not be read as a destination.
    pub async fn record_malformed(&self, client: Client, protocol: Protocol, method: Option<String>, denial: &Denial) {
        let event = Event::EgressJudged {
            host: denial.host.clone(),
            port: denial.port,
            protocol: protocol.as_str().to_owned(),
            method,
            path: None,
            decision: "deny".to_owned(),
            rule: denial.rule.clone(),
            reason: denial.reason.clone(),
            address: None,
        };
        let exec = self.attribution.exec_of(client).await;
        self.refusals.turn().await;
        // It is refused either way.
        if let Err(error) = self.recorder.record(exec, event).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a refusal is missing in the record"
            );
        }
    }

    /// Writes down that a live connection was ended by a judgement.
    pub async fn record_end(&self, route: &Route, exec: Option<ExecId>, denial: &Denial) {
        let Denial { rule, reason, .. } = denial;
        if let Err(denial) = self
            .record_judgement(exec, route.destination(), "deny", rule, reason, Some(route))
            .await
        {
            tracing::error!(
                reason = denial.reason,
                "the end of a connection is missing in the record"
            );
        }
    }

    async fn record_judgement(
        &self,
        exec: Option<ExecId>,
        destination: &Destination,
        decision: &str,
        rule: &str,
        reason: &str,
        route: Option<&Route>,
    ) -> Result<(), Denial> {
        let event = Event::EgressJudged {
            host: destination.host.to_string(),
            port: destination.port,
            protocol: destination.protocol.as_str().to_owned(),
            method: destination.method.clone(),
            path: None,
            decision: decision.to_owned(),
            rule: rule.to_owned(),
            reason: reason.to_owned(),
            address: route
                .and_then(|route| route.addresses().first())
                .map(ToString::to_string),
        };
        self.write(exec, destination, event).await
    }

    /// Writes down what must stand in the record before it takes effect.
    pub async fn write(&self, exec: Option<ExecId>, destination: &Destination, event: Event) -> Result<(), Denial> {
        self.recorder.record(exec, event).await.map_err(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a connection is refused for want of a record"
            );
            let reason = "the record could not be written, so nothing is let out".to_owned();
            Denial::new(destination, DenialKind::Unable, "record", reason)
        })
    }

    /// Waits until a live connection has to end: the policy changed against it, or it was idle for too long.
    pub async fn watch_over(&self, route: &Route, account: &Account) -> Denial {
        let mut gate = self.gate.clone();
        gate.mark_unchanged();
        let mut progress = account.progress();
        // A gate that changed between the judgement and now counts as well.
        if let Err(denial) = gate.borrow().rejudge(route) {
            return denial;
        }
        loop {
            tokio::select! {
                changed = gate.changed() => {
                    if changed.is_err() {
                        // The handle is gone: whoever serves the connection drops it now.
                        std::future::pending::<()>().await;
                    }
                    if let Err(denial) = gate.borrow_and_update().rejudge(route) {
                        return denial;
                    }
                }
                () = tokio::time::sleep(self.limits.idle_time) => {
                    let now = account.progress();
                    if now == progress {
                        let reason = format!("nothing was sent or received for {} s", self.limits.idle_time.as_secs());
                        return Denial::new(route.destination(), DenialKind::Unable, "idle", reason);
                    }
                    progress = now;
                }
            }
        }
    }
}
