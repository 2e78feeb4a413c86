//! What every root file system needs, and the image `host`: the machine's own programs without its secrets.

use std::fs;
use std::path::Path;

use super::plan::{AGENT, Made, Mount, Owner, Source, What};
use crate::id::TaskId;
use crate::path::{HostPath, SandboxPath};
use crate::sys::mount::Attributes;

/// Entries at the top that hold programs and libraries; on merged-/usr systems most are links into /usr.
const SYSTEM: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// Entries of /etc that programs need to find their parts, and that hold no secret: alternatives, certificates, the linker's cache,
/// language runtimes' own settings, tables.
const ETC: [&str; 27] = [
    "alternatives",
    "bash.bashrc",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "inputrc",
    "java-11-openjdk",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "magic",
    "mime.types",
    "os-release",
    "perl",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "python3",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
];

/// How the machine's own files are mounted.
pub(super) const READ_ONLY: Attributes = Attributes {
    read_only: true,
    no_suid: true,
    no_dev: true,
    no_exec: false,
};

fn path(path: &str) -> SandboxPath {
    SandboxPath::new(path).expect("these paths are constants or checked before")
}

pub(super) fn folder(at: &str, mode: u32) -> Made {
    Made {
        path: path(at),
        what: What::Folder { mode },
        users: false,
    }
}

pub(super) fn file(at: &str, content: &str) -> Made {
    with_mode(at, content, 0o644)
}

pub(super) fn program(at: &str, content: &str) -> Made {
    with_mode(at, content, 0o755)
}

fn with_mode(at: &str, content: &str, mode: u32) -> Made {
    Made {
        path: path(at),
        what: What::File {
            content: content.to_owned(),
            mode,
        },
        users: false,
    }
}

/// The folders that every sandbox has.
pub fn folders() -> Vec<Made> {
    let mut made: Vec<_> = [
        "/etc",
        "/home",
        "/mnt",
        "/opt",
        "/run",
        "/srv",
        "/var",
        "/var/cache",
        "/var/lib",
        "/var/log",
    ]
    .into_iter()
    .map(|at| folder(at, 0o755))
    .collect();
    made.extend(["/tmp", "/var/tmp"].map(|at| folder(at, 0o1777)));
    made.extend(["/dev", "/proc", "/sys"].map(|at| folder(at, 0o755)));
    made.push(folder("/root", 0o700));
    made.push(Made {
        path: path("/home/agent"),
        what: What::Folder { mode: 0o755 },
        users: true,
    });
    made
}

/// The empty file that covers what must look absent.
pub const NOTHING: &str = "/run/belljar/nothing";

/// Who is who inside, and the names that resolve without a way out. An image keeps its own users; the agent is added.
pub fn identity(task: TaskId, host: bool) -> Vec<Made> {
    let mut made = vec![
        file("/etc/hostname", "belljar\n"),
        file("/etc/hosts", "127.0.0.1 localhost belljar\n::1 localhost\n"),
        file(
            "/etc/resolv.conf",
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        ),
        folder("/run/belljar", 0o755),
        file("/run/belljar/task", &format!("{task}\n")),
        Made {
            users: true,
            ..file(belljar_guest::LIMITS_FILE, "")
        },
        file(NOTHING, ""),
    ];
    if host {
        made.push(file(
            "/etc/passwd",
            &format!(
                "root:x:0:0:root:/root:/bin/sh\nagent:x:{AGENT}:{AGENT}:agent:/home/agent:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
            ),
        ));
        made.push(file(
            "/etc/group",
            &format!("root:x:0:\ntty:x:5:\nagent:x:{AGENT}:\nnogroup:x:65534:\n"),
        ));
        made.push(file(
            "/etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n",
        ));
        made.push(file("/etc/profile", "# made by belljar: nothing of the host's\n"));
        made.push(file("/etc/shells", "/bin/sh\n/bin/bash\n"));
    }
    made
}

/// The machine's own programs: what is a link at the top stays one, what is a folder is mounted read-only.
pub fn system() -> (Vec<Made>, Vec<Mount>) {
    let (mut made, mut mounts) = (Vec::new(), Vec::new());
    for name in SYSTEM {
        entry(name, &mut made, &mut mounts);
    }
    for name in ["ssl", "pki", "pki/tls"] {
        let at = format!("/etc/{name}");
        if Path::new(&at).is_dir() {
            made.push(folder(&at, 0o755));
        }
    }
    for name in ETC {
        entry(&format!("/etc/{name}"), &mut made, &mut mounts);
    }
    (made, mounts)
}

fn entry(at: &str, made: &mut Vec<Made>, mounts: &mut Vec<Mount>) {
    let Ok(metadata) = fs::symlink_metadata(at) else { return };
    if metadata.is_symlink() {
        let target = fs::read_link(at)
            .ok()
            .and_then(|target| target.to_str().map(str::to_owned));
        made.extend(target.map(|target| Made {
            path: path(at),
            what: What::Link { target },
            users: false,
        }));
        return;
    }
    let what = if metadata.is_dir() {
        What::Folder { mode: 0o755 }
    } else {
        What::File {
            content: String::new(),
            mode: 0o644,
        }
    };
    made.push(Made {
        path: path(at),
        what,
        users: false,
    });
    mounts.push(Mount {
        path: path(at),
        source: Source::Bind {
            host: HostPath::new(at).expect("these paths are constants"),
            owner: Owner::Same,
        },
        attributes: READ_ONLY,
    });
}

/// The kernel's own file systems, and a minimal /dev.
pub fn kernel_mounts() -> Vec<Mount> {
    let strict = Attributes {
        read_only: false,
        no_suid: true,
        no_dev: true,
        no_exec: true,
    };
    let device = Attributes {
        no_dev: false,
        ..strict
    };
    let mount = |at: &str, source, attributes| Mount {
        path: path(at),
        source,
        attributes,
    };
    let mut mounts = vec![
        mount("/proc", Source::Proc, strict),
        mount(
            "/sys",
            Source::Sysfs,
            Attributes {
                read_only: true,
                ..strict
            },
        ),
        mount(
            "/dev",
            Source::Tmpfs {
                bytes: 65_536,
                inodes: 64,
                mode: 0o755,
            },
            device,
        ),
        mount("/dev/pts", Source::Devpts, device),
        mount(
            "/dev/shm",
            Source::Tmpfs {
                bytes: 64 << 20,
                inodes: 4096,
                mode: 0o1777,
            },
            strict,
        ),
        mount("/dev/mqueue", Source::Mqueue, strict),
    ];
    // The host's own nodes, which open for writing all the same; read-only, so that nobody inside can change their modes, whoever that
    // is outside.
    let node = Attributes {
        read_only: true,
        ..device
    };
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        mounts.push(mount(
            &format!("/dev/{name}"),
            Source::Device { name: name.to_owned() },
            node,
        ));
    }
    mounts
}

/// Links that programs expect in /dev; made once it is mounted.
pub const DEV_LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// What the OCI runtimes mask by default, and more that tells of the host or of other sandboxes.
pub fn masked() -> Vec<SandboxPath> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/buddyinfo",
        "/proc/config.gz",
        "/proc/dynamic_debug",
        "/proc/interrupts",
        "/proc/iomem",
        "/proc/ioports",
        "/proc/kallsyms",
        "/proc/kcore",
        "/proc/keys",
        "/proc/key-users",
        "/proc/kmsg",
        "/proc/kpagecgroup",
        "/proc/kpagecount",
        "/proc/kpageflags",
        "/proc/latency_stats",
        "/proc/modules",
        "/proc/mtd",
        "/proc/pagetypeinfo",
        // The whole machine's; newer kernels watch it for anybody who asks.
        "/proc/pressure",
        "/proc/scsi",
        "/proc/sched_debug",
        "/proc/slabinfo",
        "/proc/softirqs",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/vmallocinfo",
        "/sys/dev",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
        "/sys/fs/bpf",
        "/sys/fs/cgroup",
        "/sys/fs/selinux",
        "/sys/kernel/debug",
        "/sys/kernel/security",
        "/sys/kernel/tracing",
        "/sys/module",
    ]
    .map(path)
    .to_vec()
}

/// What stays readable and must never be written, whoever one is inside.
pub fn read_only() -> Vec<SandboxPath> {
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        .map(path)
        .to_vec()
}
