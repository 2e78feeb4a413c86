//! Any bytes to the SOCKS front, after a good greeting or without one: it lets go, and dials nothing but the allowed host.
#![no_main]

mod fixture;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (greet, bytes) = input;
    let greeting: &[u8] = if greet { &[5, 1, 0] } else { &[] };
    fixture::FIXTURE.with(|fixture| {
        let all = [greeting, bytes].concat();
        let answer = fixture.runtime.block_on(fixture::exchange(fixture.socks, &all));
        assert!(answer.is_empty() || answer[0] == 5);
    });
});
