use std::str::FromStr;
use std::time::Duration;

use hickory_proto::op::Query;
use hickory_proto::rr::Name;

use super::*;
use crate::audit::record::Event;
use crate::egress::limits::Limits;
use crate::egress::testing::{Fixture, Options};

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message.set_edns(Edns::new());
    message
}

async fn ask_udp(fixture: &Fixture, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(bytes, fixture.dns_udp).await.unwrap();
    let mut answer = [0; 2048];
    let (length, _) = socket.recv_from(&mut answer).await.unwrap();
    Message::from_vec(&answer[..length]).unwrap()
}

async fn ask(fixture: &Fixture, name: &str, kind: RecordType) -> Message {
    ask_udp(fixture, &question(name, kind).to_vec().unwrap()).await
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

fn extended_error(message: &Message) -> (u16, String) {
    let options = message.edns.as_ref().unwrap().options();
    let Some(EdnsOption::Unknown(_, data)) = options.get(EDE.into()) else {
        panic!("{message:?}");
    };
    let (info, text) = data.split_first_chunk().unwrap();
    (u16::from_be_bytes(*info), String::from_utf8(text.to_vec()).unwrap())
}

const BOTH: &[(&str, &[&[&str]])] = &[
    ("www.example.com", &[&["93.184.216.34", "2606:2800::1"]]),
    ("inner.example.com", &[&["93.184.216.34", "10.0.0.1"]]),
    ("gone.example.com", &[&[]]),
];

#[tokio::test]
async fn an_allowed_name_is_answered_with_the_checked_addresses() {
    let fixture = Fixture::start(Options {
        answers: BOTH,
        ..Options::default()
    })
    .await;
    let a = ask(&fixture, "WWW.example.com.", RecordType::A).await;
    assert_eq!(
        (a.metadata.response_code, addresses(&a)),
        (ResponseCode::NoError, vec!["93.184.216.34".to_owned()])
    );
    let aaaa = ask(&fixture, "www.example.com.", RecordType::AAAA).await;
    assert_eq!(addresses(&aaaa), ["2606:2800::1"]);
    for kind in [
        RecordType::TXT,
        RecordType::HTTPS,
        RecordType::ANY,
        RecordType::MX,
        RecordType::NULL,
    ] {
        let other = ask(&fixture, "www.example.com.", kind).await;
        assert_eq!(
            (other.metadata.response_code, addresses(&other)),
            (ResponseCode::NoError, Vec::new()),
            "{kind}"
        );
    }
    let gone = ask(&fixture, "gone.example.com.", RecordType::A).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    fixture.finish().await;
}

#[tokio::test]
async fn a_name_that_is_not_allowed_is_refused_and_never_asked_outside() {
    let fixture = Fixture::start(Options {
        answers: BOTH,
        ..Options::default()
    })
    .await;
    for name in [
        "secret-data.evil.org.",
        "denied.example.com.",
        "localhost.",
        "metadata.google.internal.",
        "1.0.0.127.in-addr.arpa.",
        "127.0.0.1.",
        ".",
    ] {
        for kind in [RecordType::A, RecordType::TXT] {
            let refused = ask(&fixture, name, kind).await;
            assert_eq!(
                (refused.metadata.response_code, refused.answers.len()),
                (ResponseCode::Refused, 0),
                "{name}"
            );
            assert_eq!(extended_error(&refused).0, EDE_BLOCKED, "{name}");
        }
    }
    for label in [
        &b"www.example"[..],
        b"a b",
        b"\0",
        b"www\\",
        "\u{e9}".as_bytes(),
        &[b'a'; 63],
    ] {
        let name = Name::from_labels([label, b"evil", b"org"]).unwrap();
        let mut odd = question(".", RecordType::A);
        odd.queries[0].set_name(name);
        let refused = ask_udp(&fixture, &odd.to_vec().unwrap()).await;
        assert_eq!(refused.metadata.response_code, ResponseCode::Refused, "{label:?}");
    }
    assert!(fixture.seen.resolved.lock().unwrap().is_empty());
    let (_, text) = extended_error(&ask(&fixture, "evil.org.", RecordType::A).await);
    assert_eq!(
        text,
        "unknown: evil.org is not in the allow list; ask the person who runs the task to add \"evil.org\" to network.allow"
    );
    let inner = ask(&fixture, "inner.example.com.", RecordType::A).await;
    assert_eq!(
        inner.metadata.response_code,
        ResponseCode::Refused,
        "one private address closes the name"
    );
    let (events, _) = fixture.finish().await;
    let decisions: Vec<_> = events
        .iter()
        .map(|event| match event {
            Event::EgressJudged { decision, protocol, .. } => (decision.as_str(), protocol.as_str()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(decisions, vec![("deny", "dns"); 22]);
}

#[tokio::test]
async fn without_extensions_a_refusal_has_no_extended_error() {
    let fixture = Fixture::start(Options::default()).await;
    let mut plain = question("evil.org.", RecordType::A);
    plain.edns = None;
    let refused = ask_udp(&fixture, &plain.to_vec().unwrap()).await;
    assert_eq!(
        (refused.metadata.response_code, refused.edns),
        (ResponseCode::Refused, None)
    );
    fixture.finish().await;
}

#[tokio::test]
async fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
    let many: Vec<String> = (1..=40).map(|n| format!("93.184.216.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let fixture = Fixture::start(Options {
        answers: &[("www.example.com", &[&many])],
        ..Options::default()
    })
    .await;
    let mut plain = question("www.example.com.", RecordType::A);
    plain.edns = None;
    let bytes = plain.to_vec().unwrap();
    let cut = ask_udp(&fixture, &bytes).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let mut stream = TcpStream::connect(fixture.dns_tcp).await.unwrap();
    for _ in 0..2 {
        stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        let whole = Message::from_vec(&answer).unwrap();
        assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 32));
    }
    fixture.finish().await;
}

#[tokio::test]
async fn what_is_no_question_gets_an_error_or_nothing() {
    let fixture = Fixture::start(Options::default()).await;
    let code = async |message: &Message| {
        ask_udp(&fixture, &message.to_vec().unwrap())
            .await
            .metadata
            .response_code
    };
    let mut two = question("www.example.com.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two).await, ResponseCode::FormErr);
    let mut none = question("www.example.com.", RecordType::A);
    none.queries.clear();
    assert_eq!(code(&none).await, ResponseCode::FormErr);
    let mut update = question("www.example.com.", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&update).await, ResponseCode::NotImp);
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos).await, ResponseCode::Refused);
    let broken = ask_udp(&fixture, &[1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63]).await;
    assert_eq!(
        (broken.metadata.id, broken.metadata.response_code),
        (0x0102, ResponseCode::FormErr)
    );
    let answer = answer(
        &[1, 2, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63],
        Client::udp(fixture.dns_udp),
        fixture.way(),
    )
    .await;
    assert_eq!(answer, None, "an answer is not answered");
    let mut response = question("www.example.com.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    let answer = super::answer(&response.to_vec().unwrap(), Client::udp(fixture.dns_udp), fixture.way()).await;
    assert_eq!(answer, None);
    assert!(fixture.seen.resolved.lock().unwrap().is_empty());
    fixture.finish().await;
}

#[tokio::test]
async fn a_slow_or_long_question_over_tcp_is_given_up() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            header_time: Duration::from_millis(50),
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    for bytes in [&[0][..], &[0, 40, 1, 2], &[0xff, 0xff, 1, 2]] {
        let mut stream = TcpStream::connect(fixture.dns_tcp).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
    fixture.finish().await;
}

#[tokio::test]
async fn questions_beyond_the_limit_wait_for_a_place() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            dns_questions: 2,
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let send = async |name| {
        let bytes = question(name, RecordType::A).to_vec().unwrap();
        socket.send_to(&bytes, fixture.dns_udp).await.unwrap();
    };
    send("held.example.com.").await;
    send("held.example.com.").await;
    while fixture.seen.resolved.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    send("evil.org.").await;
    // Another front is served meanwhile, and the third question is not even read.
    let refused = fixture
        .exchange("CONNECT other.org:443 HTTP/1.1\r\nHost: other.org:443\r\n\r\n")
        .await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    assert_eq!(fixture.seen.events.lock().unwrap().len(), 1);
    fixture.seen.release.send_replace(true);
    let mut codes = Vec::new();
    for _ in 0..3 {
        let mut answer = [0; 2048];
        let (length, _) = socket.recv_from(&mut answer).await.unwrap();
        codes.push(Message::from_vec(&answer[..length]).unwrap().metadata.response_code);
    }
    assert_eq!(
        codes.iter().filter(|code| **code == ResponseCode::Refused).count(),
        1,
        "{codes:?}"
    );
    fixture.finish().await;
}
