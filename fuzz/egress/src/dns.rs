//! Any datagram to the DNS front: the answer, if there is one, has the question's id and says that it is an answer.
#![no_main]

mod fixture;

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokio::net::UdpSocket;

/// A question that is always answered: it tells when the proxy is done with the one before.
const KNOWN: &[u8] = b"\xff\xfe\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x03com\x00\x00\x01\x00\x01";

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > 1024 || bytes.starts_with(&KNOWN[..2]) {
        return;
    }
    fixture::FIXTURE.with(|fixture| {
        fixture.runtime.block_on(async {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback is there");
            for question in [bytes, KNOWN] {
                socket
                    .send_to(question, fixture.dns)
                    .await
                    .expect("loopback takes datagrams");
            }
            let mut answer = [0; 4096];
            loop {
                let read = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut answer));
                let length = read
                    .await
                    .expect("the proxy goes on")
                    .expect("loopback gives datagrams");
                assert!(length >= 12 && length <= 1232 && answer[2] & 0x80 != 0);
                if answer.starts_with(&KNOWN[..2]) {
                    break;
                }
                assert_eq!(answer[..2], bytes[..2]);
            }
        });
    });
});
