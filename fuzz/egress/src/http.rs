//! Any bytes to the HTTP front: it lets go, and dials nothing but the allowed host. What begins as SOCKS is the other target's.
#![no_main]

mod fixture;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fixture::FIXTURE.with(|fixture| {
        let answer = fixture.runtime.block_on(fixture::exchange(fixture.http, bytes));
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.") || bytes.starts_with(&[5]));
    });
});
