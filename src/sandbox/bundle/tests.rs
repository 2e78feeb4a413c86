use super::*;
use crate::path::HostPath;
use crate::sandbox::host_root;
use crate::sandbox::plan::{Limits, Made, Mount as PlanMount, Owner, Process, Root, What};
use crate::sandbox::seccomp::ALLOWED;
use crate::task::NetworkMode;

fn plan() -> Plan {
    let path = |text: &str| SandboxPath::new(text).unwrap();
    let mut mounts = host_root::kernel_mounts();
    for (at, read_only) in [("/usr", true), ("/workspace", false)] {
        mounts.push(PlanMount {
            path: path(at),
            source: Source::Bind {
                host: HostPath::new(at).unwrap(),
                owner: if read_only { Owner::Same } else { Owner::User },
            },
            attributes: Attributes {
                read_only,
                no_suid: true,
                no_dev: true,
                no_exec: false,
            },
        });
    }
    Plan {
        task: "019a0000-0000-7000-8000-000000000001".parse().unwrap(),
        hostname: "belljar".to_owned(),
        ids: Ids::Range {
            base: 1 << 30,
            user: None,
        },
        root: Root {
            layers: Vec::new(),
            bytes: 4 << 30,
            inodes: 1000,
            made: vec![Made {
                path: path("/etc"),
                what: What::Folder { mode: 0o755 },
                users: false,
            }],
        },
        mounts,
        masked: vec![path("/proc/kcore")],
        read_only: vec![path("/proc/sys")],
        process: Process {
            uid: 1000,
            gid: 1000,
            cwd: path("/workspace"),
            env: Default::default(),
            open_files: 65_536,
        },
        limits: Limits {
            memory_bytes: Some(1 << 30),
            cpus: Some(2.0),
            pids: Some(512),
        },
        network: NetworkMode::None,
        seccomp: "sha256:0".to_owned(),
    }
}

const HARD: HardLimits = HardLimits {
    open_files: 20_000,
    locked_bytes: 1 << 30,
    processes: 4096,
};

#[test]
fn a_plan_has_one_bundle() {
    let few: Vec<_> = ALLOWED
        .iter()
        .filter(|one| ["read", "write", "clone", "socketpair"].contains(&one.syscall.as_str()))
        .cloned()
        .collect();
    insta::assert_json_snapshot!(of(&plan(), &few, HARD, Carry::Descriptors).unwrap());
}

/// Whether a call with this argument is let through by any of the entries.
fn lets_through(spec: &Spec, name: &str, arguments: [u64; 6]) -> bool {
    let seccomp = spec.linux().as_ref().unwrap().seccomp().as_ref().unwrap();
    seccomp.syscalls().as_ref().unwrap().iter().any(|entry| {
        entry.names().iter().any(|one| one == name)
            && entry.args().iter().flatten().all(|arg| {
                assert_eq!(arg.op(), LinuxSeccompOperator::ScmpCmpMaskedEq);
                arguments[arg.index()] & arg.value() == arg.value_two().unwrap()
            })
    })
}

#[test]
fn the_bundles_filter_lets_through_what_the_list_does() {
    let spec = of(&plan(), &ALLOWED, HARD, Carry::Descriptors).unwrap();
    // The kernel takes 32 bits of an ioctl's number: a bit above them must not open what is closed.
    for (name, arguments, through) in [
        ("ioctl", [0, 0x5412, 0, 0, 0, 0], false),
        ("ioctl", [0, 0x541c, 0, 0, 0, 0], false),
        ("ioctl", [0, 0x1_0000_5412, 0, 0, 0, 0], false),
        ("ioctl", [0, 0x5413, 0, 0, 0, 0], true),
        ("ioctl", [0, 0x5401, 0, 0, 0, 0], true),
        ("ioctl", [0, 0xffff_ffff, 0, 0, 0, 0], true),
        ("socket", [1, 0, 0, 0, 0, 0], true),
        ("socket", [16, 0, 0, 0, 0, 0], false),
        ("clone", [0x1200011, 0, 0, 0, 0, 0], true),
        ("clone", [0x1000_0011, 0, 0, 0, 0, 0], false),
        ("personality", [0xffff_ffff, 0, 0, 0, 0, 0], true),
        ("read", [7, 7, 7, 7, 7, 7], true),
        ("mount", [0; 6], false),
    ] {
        assert_eq!(lets_through(&spec, name, arguments), through, "{name} {arguments:x?}");
    }
}

#[test]
fn all_numbers_but_some_are_exactly_that() {
    let prefixes = all_but(1, &[0x5412, 0x541c]);
    let holds = |number: u32| prefixes.iter().filter(|one| number & one.mask == one.value).count();
    for number in (0..0x6000).chain([u32::MAX, 1 << 31, 0x8000_5412]) {
        let wanted = usize::from(number != 0x5412 && number != 0x541c);
        assert_eq!(holds(number), wanted, "{number:x}");
    }
}

#[test]
fn no_argument_is_compared_twice_in_one_entry() {
    let spec = of(&plan(), &ALLOWED, HARD, Carry::Descriptors).unwrap();
    let seccomp = spec.linux().as_ref().unwrap().seccomp().as_ref().unwrap();
    for entry in seccomp.syscalls().as_ref().unwrap() {
        let mut indexes: Vec<_> = entry.args().iter().flatten().map(LinuxSeccompArg::index).collect();
        let all = indexes.len();
        indexes.dedup();
        assert_eq!(indexes.len(), all, "{:?}", entry.names());
    }
}

#[test]
fn no_bundle_asks_for_more_than_the_machine_gives() {
    let spec = of(&plan(), &[], HARD, Carry::Descriptors).unwrap();
    let limits = spec.process().as_ref().unwrap().rlimits().as_ref().unwrap();
    assert!(
        limits
            .iter()
            .all(|limit| limit.hard() <= 20_000 || limit.typ() == PosixRlimitType::RlimitMemlock)
    );
}
