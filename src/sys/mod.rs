//! The kernel, wrapped: one system call a function, owned descriptors in and out. The only unsafe code on the host side.
//!
//! | file | wraps |
//! |---|---|
//! | `packet` | packet sockets that carry messages and descriptors; memory files, pipes |
//! | `guest` | the guest's program, carried inside, as a process on the host |
//! | `namespace` | clone3, id maps, pivot_root |
//! | `mount` | the new mount API: fsopen, open_tree, mount_setattr, move_mount |
//! | `process` | capabilities, seccomp, execveat, pidfds, terminals |
//! | `cgroup` | cgroup v1 and v2: leaves, limits, counters |
//! | `path` | opening paths without following symlinks |
//! | `user` | who runs this process |
//! | `watch` | folders whose entries change |

pub mod cgroup;
pub mod guest;
pub mod landlock;
pub mod mount;
pub mod namespace;
pub mod packet;
pub mod path;
pub mod process;
pub mod user;
pub mod watch;
