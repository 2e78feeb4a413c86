//! DNS over UDP and TCP (RFC 1035, RFC 7766) for what cannot be told of a proxy.
//!
//! Only the addresses of allowed names are answered, as the gate checked them; every other question about an allowed name has
//! an empty answer, since records of other kinds can carry anything. Any other name is REFUSED with an extended error
//! (RFC 8914), and nothing of it is asked outside.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::egress::client::{Client, Transport};
use crate::egress::gate::{Denial, DenialKind, Destination, Protocol};
use crate::egress::host::Host;
use crate::egress::way::{Admitted, Way};

/// How long clients may keep an answer. Short: each connection is judged anew anyway.
const TTL_SECONDS: u32 = 30;
/// What a UDP answer may be at most, whatever the client says it can take (DNS flag day 2020): larger ones are fragmented.
const UDP_MAX: u16 = 1232;
/// The longest question that is read: one name, and room for options.
const QUESTION_MAX: usize = 1024;

const EDE: u16 = 15;
const EDE_OTHER: u16 = 0;
const EDE_BLOCKED: u16 = 15;
const EDE_NOT_READY: u16 = 14;
/// Texts are cut so that a refusal always fits.
const EDE_TEXT_MAX: usize = 400;

/// Answers datagrams until it is dropped.
pub(in crate::egress) async fn serve_udp(socket: UdpSocket, way: Arc<Way>) {
    let socket = Arc::new(socket);
    let slots = Arc::new(Semaphore::new(way.limits.dns_questions));
    let mut answers = JoinSet::new();
    let mut buffer = [0; QUESTION_MAX];
    loop {
        while answers.try_join_next().is_some() {}
        // Without a free place nothing is read: the kernel drops what is too much, and clients ask again.
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Such as an ICMP error for an answer that nobody waited for.
                tracing::debug!(%error, "a DNS datagram could not be read");
                continue;
            }
        };
        let question = buffer[..length].to_vec();
        let (socket, way) = (socket.clone(), way.clone());
        answers.spawn(async move {
            let _slot = slot;
            if let Some(answer) = answer(&question, Client::udp(from), &way).await {
                send(&socket, &answer, from).await;
            }
        });
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(answer, to).await {
        tracing::debug!(%error, "a DNS answer could not be sent");
    }
}

/// Answers one connection's questions, one after the other.
pub(in crate::egress) async fn serve_tcp(mut stream: TcpStream, client: Client, way: Arc<Way>) {
    let mut question = vec![0; QUESTION_MAX];
    loop {
        let read = timeout(way.limits.header_time, async {
            let length = usize::from(stream.read_u16().await?);
            if length > QUESTION_MAX {
                return Err(std::io::Error::from(std::io::ErrorKind::InvalidData));
            }
            stream.read_exact(&mut question[..length]).await
        });
        let Ok(Ok(length)) = read.await else { return };
        let Some(answer) = answer(&question[..length], client, &way).await else {
            return;
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return;
        };
        let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
        match timeout(way.limits.header_time, stream.write_all(&framed)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// The answer to one question; `None` where not even an error can be addressed.
async fn answer(bytes: &[u8], client: Client, way: &Way) -> Option<Vec<u8>> {
    let Ok(question) = Message::from_vec(bytes) else {
        let id = u16::from_be_bytes(*bytes.first_chunk()?);
        // An answer to an answer would let two servers talk for ever.
        let is_answer = bytes.get(2)? & 0x80 != 0;
        let refused = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        return if is_answer { None } else { refused.to_vec().ok() };
    };
    if question.metadata.message_type != MessageType::Query {
        return None;
    }
    let reply = reply(&question, client, way).await;
    let limit = match client.transport {
        Transport::Udp => question.max_payload().min(UDP_MAX),
        Transport::Tcp => u16::MAX,
    };
    let encoded = reply.to_vec().ok()?;
    if encoded.len() <= usize::from(limit) {
        return Some(encoded);
    }
    reply.truncate().to_vec().ok()
}

async fn reply(question: &Message, client: Client, way: &Way) -> Message {
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&question.queries);
    if let Some(asked) = &question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MAX);
        if asked.version() != 0 {
            reply.metadata.response_code = ResponseCode::BADVERS;
            edns.set_rcode_high(1);
            reply.set_edns(edns);
            return reply;
        }
        reply.set_edns(edns);
    }
    if question.metadata.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return reply;
    }
    let [query] = question.queries.as_slice() else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return reply;
    };
    if query.query_class() != DNSClass::IN {
        refuse(
            &mut reply,
            ResponseCode::Refused,
            EDE_OTHER,
            "only the Internet's names are answered",
        );
        return reply;
    }
    let host = match Host::parse(&query.name().to_ascii()) {
        Ok(host) => host,
        Err(error) => {
            let denial = Denial::malformed(error.to_string(), error.canonical(), 0);
            way.record_malformed(client, Protocol::Dns, Some(query.query_type().to_string()), &denial)
                .await;
            refuse(&mut reply, ResponseCode::Refused, EDE_BLOCKED, &denial.reason);
            return reply;
        }
    };
    let destination = Destination {
        host,
        port: 0,
        protocol: Protocol::Dns,
        method: Some(query.query_type().to_string()),
    };
    match way.admit(destination, client).await {
        Ok(Admitted { route, .. }) => {
            let kind = query.query_type();
            let record = |ip: IpAddr| match (ip, kind) {
                (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(ip))),
                (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(ip))),
                _ => None,
            };
            let found = route.addresses().iter().filter_map(|address| record(address.ip()));
            reply
                .answers
                .extend(found.map(|data| Record::from_rdata(query.name().clone(), TTL_SECONDS, data)));
        }
        Err(denial) => match denial.kind {
            DenialKind::Denied | DenialKind::Local | DenialKind::Unknown | DenialKind::Malformed => {
                let text = format!("{}: {}; {}", denial.rule, denial.reason, denial.how_to_ask);
                refuse(&mut reply, ResponseCode::Refused, EDE_BLOCKED, &text);
            }
            DenialKind::Unresolved => refuse(&mut reply, ResponseCode::NXDomain, EDE_OTHER, &denial.reason),
            DenialKind::Unable => refuse(&mut reply, ResponseCode::ServFail, EDE_NOT_READY, &denial.reason),
        },
    }
    reply
}

/// Refuses with an extended error, where the client said that it knows extensions.
fn refuse(reply: &mut Message, code: ResponseCode, info: u16, text: &str) {
    reply.metadata.response_code = code;
    if let Some(edns) = &mut reply.edns {
        let text: String = text.chars().filter(char::is_ascii).take(EDE_TEXT_MAX).collect();
        let data = [&info.to_be_bytes(), text.as_bytes()].concat();
        edns.options_mut().insert(EdnsOption::Unknown(EDE, data));
    }
}

#[cfg(test)]
mod tests;
