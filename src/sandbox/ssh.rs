//! The way out for `ssh`, which knows of no proxy in its environment: its system-wide configuration leads every connection through
//! a small program that asks the task's proxy for a tunnel. The proxy judges it as any other; a file of the user's own comes first.

use super::host_root::{file, folder, program};
use super::plan::{HTTP_PROXY_PORT, Made};

/// Where the small program lies inside.
const CONNECT: &str = "/run/belljar/connect";

/// What a task with a proxy gets. An image keeps its own configuration, which in Debian and its kin includes that of the folder.
pub fn made(host: bool) -> Vec<Made> {
    let config = format!(
        "# Made by belljar: the way out of this sandbox is its proxy.\nHost localhost 127.* ::1\n    ProxyCommand none\n\
         Host *\n    ProxyCommand {CONNECT} %h %p\n"
    );
    let mut made = vec![folder("/etc/ssh", 0o755), program(CONNECT, &connect())];
    if host {
        made.push(file("/etc/ssh/ssh_config", &config));
    } else {
        made.push(folder("/etc/ssh/ssh_config.d", 0o755));
        made.push(file("/etc/ssh/ssh_config.d/belljar.conf", &config));
    }
    made
}

/// Bash opens sockets by itself, and reads them byte by byte up to the end of a line: nothing of the tunnel is lost to it.
fn connect() -> String {
    format!(
        r#"#!/bin/bash
# connect HOST PORT: standard input and output, through a tunnel of the task's proxy.
case $1 in *:*) place="[$1]:$2" ;; *) place="$1:$2" ;; esac
exec 3<>/dev/tcp/127.0.0.1/{HTTP_PROXY_PORT} || exit 1
printf 'CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n' "$place" "$place" >&3
IFS= read -r status <&3
while IFS= read -r line <&3 && [ "$line" != $'\r' ]; do :; done
case $status in
"HTTP/1.1 200 "*) ;;
*)
    echo "belljar refuses: ${{status%$'\r'}}" >&2
    cat <&3 >&2
    exit 1
    ;;
esac
exec 4<&0
cat <&4 >&3 &
exec cat <&3
"#
    )
}
