//! How much of the proxy one task may use.

use std::time::Duration;

/// Bounds of one task's proxy. Each keeps one client from holding what others need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, over all fronts; more are refused. Each holds two descriptors and, while idle, no buffer;
    /// `make bench` tells its memory.
    pub connections: usize,
    /// Bytes of a request's or response's line and headers. Big cookies and tokens fit.
    pub header_bytes: usize,
    /// Headers of one request or response.
    pub headers: usize,
    /// Time for a client to send its headers, a SOCKS greeting or a TLS hello; also how long it may keep a connection without
    /// asking for anything.
    pub header_time: Duration,
    /// Time to reach one of a destination's addresses.
    pub dial_time: Duration,
    /// Time for a person to answer about an unknown host.
    pub ask_time: Duration,
    /// Questions that wait for an answer at once; more unknown hosts are refused unasked.
    pub questions: usize,
    /// Time for a server to begin its answer to a plain request. Some think for minutes.
    pub response_time: Duration,
    /// Time without a byte in either direction after which a connection ends.
    pub idle_time: Duration,
    /// Bytes of a plain request's body.
    pub request_body: u64,
    /// Refusals that are answered at once, and how many a second after that: each is a record.
    pub refusals_at_once: u32,
    pub refusals_per_second: u32,
    /// DNS questions at once.
    pub dns_questions: usize,
    /// Flows of datagrams at once; each holds a descriptor and 64 KiB.
    pub datagram_flows: usize,
    /// Time without a datagram in either direction after which a flow ends.
    pub datagram_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            header_bytes: 64 * 1024,
            headers: 128,
            header_time: Duration::from_secs(30),
            dial_time: Duration::from_secs(15),
            ask_time: Duration::from_secs(600),
            questions: 32,
            response_time: Duration::from_secs(900),
            idle_time: Duration::from_secs(3600),
            request_body: 16 * 1024 * 1024 * 1024,
            refusals_at_once: 1000,
            refusals_per_second: 100,
            dns_questions: 256,
            datagram_flows: 256,
            datagram_idle: Duration::from_secs(120),
        }
    }
}
