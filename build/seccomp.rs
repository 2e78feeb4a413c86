//! Compiles `config/seccomp.json` into one BPF program.
//!
//! The library compiles each system call by itself; here these pieces are put under a binary search by the call's number. As one list,
//! which is how the library would put them, 300 calls are 1,500 instructions, and the kernel walks through them for every number there
//! is when it loads the filter: that alone took 0.6 ms of each start of a sandbox.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, TargetArch, sock_filter};
use serde_json::{Value, json};

// linux/bpf_common.h
const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// The check of the architecture, and the load of the call's number.
const PRELUDE: usize = 4;

/// What is done with the calls from a number on.
enum Leaf {
    Allow,
    Refuse,
    /// The arguments decide.
    Arguments(Vec<sock_filter>),
}

/// The program for a list, in the bytes of `struct sock_filter` in this machine's order; panics with what is wrong in it.
pub fn compile_bytes(list: &str, arch: TargetArch) -> Vec<u8> {
    let bytes = |one: &sock_filter| {
        let sock_filter { code, jt, jf, k } = one;
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&code.to_le_bytes());
        (bytes[2], bytes[3]) = (*jt, *jf);
        bytes[4..].copy_from_slice(&k.to_le_bytes());
        bytes
    };
    compile(list, arch).iter().flat_map(bytes).collect()
}

fn compile(list: &str, arch: TargetArch) -> BpfProgram {
    let list: Value = serde_json::from_str(list).expect("config/seccomp.json is JSON");
    let mut rules: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for allowed in list["allow"]
        .as_array()
        .expect("config/seccomp.json has a list \"allow\"")
    {
        let name = allowed["syscall"].as_str().expect("each entry names its system call");
        rules.entry(name).or_default().push(rule(allowed));
    }
    let mut prelude = Vec::new();
    let mut calls = BTreeMap::new();
    for (name, rules) in rules {
        let is_free = rules.iter().any(|rule| rule.get("args").is_none());
        let program = alone(&rules, arch);
        assert_eq!(
            program[PRELUDE].code, JUMP_IF_EQUAL,
            "{name}: the library's programs look different now"
        );
        let number = program[PRELUDE].k;
        let leaf = if is_free {
            Leaf::Allow
        } else {
            Leaf::Arguments(program[PRELUDE..].to_vec())
        };
        assert!(
            calls.insert(number, leaf).is_none(),
            "{name} has the number of another call"
        );
        prelude = program[..PRELUDE].to_vec();
    }
    assert_eq!(
        prelude.last().map(|load| load.code),
        Some(LOAD_WORD),
        "the number is not loaded last"
    );
    let mut program = prelude;
    search(&ranges(calls), &mut program);
    program
}

/// The library's program for one system call.
fn alone(rules: &[Value], arch: TargetArch) -> BpfProgram {
    let refusal = json!({ "errno": enosys() });
    let filter = json!({ "one": { "mismatch_action": refusal, "match_action": "allow", "filter": rules } });
    let mut programs =
        seccompiler::compile_from_json(filter.to_string().as_bytes(), arch).expect("config/seccomp.json compiles");
    programs.remove("one").expect("it was asked for")
}

/// An entry as the library reads it.
fn rule(allowed: &Value) -> Value {
    let mut rule = json!({ "syscall": allowed["syscall"] });
    if let Some(args) = allowed["args"].as_array() {
        let argument =
            |arg: &Value| json!({ "index": arg["index"], "type": "dword", "op": arg["op"], "val": arg["value"] });
        rule["args"] = args.iter().map(argument).collect();
    }
    rule
}

/// Every number has its leaf: neighbours with the same one share it.
fn ranges(calls: BTreeMap<u32, Leaf>) -> Vec<(u32, Leaf)> {
    let mut ranges = Vec::new();
    let mut next = 0;
    for (number, leaf) in calls {
        if number != next {
            ranges.push((next, Leaf::Refuse));
        }
        let goes_on = matches!((&leaf, ranges.last()), (Leaf::Allow, Some((_, Leaf::Allow)))) && number == next;
        if !goes_on {
            ranges.push((number, leaf));
        }
        next = number + 1;
    }
    ranges.push((next, Leaf::Refuse));
    ranges
}

fn search(ranges: &[(u32, Leaf)], program: &mut BpfProgram) {
    let (below, from) = ranges.split_at(ranges.len() / 2);
    let [(pivot, _), ..] = from else { return };
    if below.is_empty() {
        return leaf(&from[0].1, program);
    }
    let mut less = Vec::new();
    search(below, &mut less);
    match u8::try_from(less.len()) {
        Ok(length) => program.push(jump_if_at_least(*pivot, length, 0)),
        Err(_) => {
            program.push(jump_if_at_least(*pivot, 0, 1));
            program.push(instruction(JUMP, less.len() as u32));
        }
    }
    program.append(&mut less);
    search(from, program);
}

fn leaf(leaf: &Leaf, program: &mut BpfProgram) {
    match leaf {
        Leaf::Allow => program.push(instruction(RETURN, libc::SECCOMP_RET_ALLOW)),
        Leaf::Refuse => program.push(instruction(RETURN, libc::SECCOMP_RET_ERRNO | enosys())),
        Leaf::Arguments(decide) => program.extend_from_slice(decide),
    }
}

fn enosys() -> u32 {
    libc::ENOSYS.unsigned_abs()
}

fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump_if_at_least(k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: JUMP_IF_AT_LEAST,
        jt,
        jf,
        k,
    }
}
