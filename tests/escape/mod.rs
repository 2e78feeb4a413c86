//! Attacks on the box, each tried in real sandboxes through the built program, as root, as an ordinary user, and with runc.
//!
//! | threat | defence | tests |
//! |---|---|---|
//! | system calls that reach around a sandbox (mounts, namespaces, keyrings, bpf, perf, ptrace, clocks, other architectures) | seccomp allow-list, no capabilities, no_new_privs | `probes`: KRN |
//! | kernel files that tell of the host or change it | masked and read-only /proc and /sys | `probes`: PRC |
//! | devices | a /dev of six harmless ones, nodev everywhere | `probes`: DEV, FT-007 |
//! | becoming somebody else | user namespace, nosuid, no capabilities | `probes`: IDN |
//! | changing the system's files | a disposable layer that belongs to root inside, read-only system | `probes`: FS, FT |
//! | network past the proxy | a net namespace with loopback only, socket families | `probes`: NET, SOC |
//! | using up the machine | cgroup limits, capped file systems, resource limits | `probes`: RES |
//! | looking into other execs, killing what watches over one | a Landlock domain a slot, nothing dumpable | `neighbours` |
//! | the faults of other sandboxes: inherited descriptors, typing into the terminal, remounts, `/proc/PID/exe`, exotic sockets, swapped roots | `close_range`, seccomp, locked mounts, `openat2` without links | `cves` |
//! | images that lead their runtime astray | every path below the root is opened within it | `images` |
//! | what shows only from outside: floods, leftovers, names that terminals act on | limits, namespaces, escaping | `lifecycle` |
//! | what the host's tools obey later: hooks, settings, agents', editors' and shells' files, there or not yet | mounts over names and their parents | `protected` |
//! | files that come back: set-id bits, FIFOs, sockets, repositories and links that git outside would follow | looked at and disarmed when the task is over | `left` |
//! | a promise that this machine cannot keep | each guarantee is looked at before the start; the task is refused | `enforced` |
//! | the host's environment and sockets | nothing is inherited or mounted | `probes`: ENV, SOC |
//!
//! What is no boundary: processes of one task see each other's names and arguments and may signal one another, for they are one
//! user's, as on a host; only memory, environment and descriptors are closed between execs.
//!
//! `make escape` prints a row an attack, `| attack | backend | result |`.

mod cves;
mod enforced;
mod images;
mod jail;
mod left;
mod lifecycle;
mod neighbours;
mod probes;
mod protected;
