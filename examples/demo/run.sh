#!/bin/bash
# What belljar does, on a real project: examples/demo/run.sh PATH-OF-BELLJAR
#
# One task waits in the background; each step below is a command in it. The table at the end is the task's own.
set -euo pipefail
cd "$(dirname "$0")/../.."
belljar=$(realpath "${1:?usage: examples/demo/run.sh PATH-OF-BELLJAR}")
demo=target/demo
export BELLJAR_STATE=$PWD/$demo/state

say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }
[ -t 2 ] || say() { printf '\n== %s\n' "$*" >&2; }

# expect CODE COMMAND...: runs it, shows it, and stops where it ends otherwise.
expect() {
    local wanted=$1 code=0
    shift
    printf '$ belljar exec demo -- %s\n' "$*" >&2
    "$belljar" exec demo --reason "the demo's step" -- "$@" || code=$?
    if [ "$code" != "$wanted" ]; then
        printf 'demo: exit code %s, expected %s\n' "$code" "$wanted" >&2
        exit 1
    fi
    printf '(exit code %s)\n' "$code" >&2
}

# The task gets a copy of the sources, never the repository itself. What it built last time is kept.
mkdir -p "$demo/work" "$demo/state"
for part in Cargo.toml Cargo.lock build.rs README.md rustfmt.toml src images benches tests config; do
    [ -e "$part" ] || continue
    rm -rf "${demo:?}/work/$part"
    cp -a "$part" "$demo/work/$part"
done

cp examples/demo/reach.py "$demo/work/"

say "a task: a sandbox with the sources writable, the toolchain and the packages readable, nothing else"
"$belljar" run examples/demo/demo.toml \
    --read "$(rustc --print sysroot):/rust" \
    --read "${CARGO_HOME:-$HOME/.cargo}/registry:/cargo/registry" &
task=$!
trap 'kill $task 2>/dev/null || true; wait $task 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    "$belljar" task show demo >/dev/null 2>&1 && break
    kill -0 $task 2>/dev/null || { echo "demo: the task did not start" >&2; exit 1; }
    sleep 0.1
done

say "1. the guest package is built and tested inside"
expect 0 cargo test --locked --package belljar-guest

say "2. a command that a rule forbids: nothing is started"
expect 120 git push origin main

say "3. the same, hidden in a script"
expect 120 bash -c 'cd /workspace && (true; git push --force) > /tmp/out'

say "4. a host that the policy refuses: the proxy answers, the host is never asked"
expect 0 python3 reach.py http://pastebin.com/

say "the end: the sandbox goes, and the task tells what happened"
"$belljar" task stop demo >/dev/null
wait $task
trap - EXIT

say "the record of all of it holds together"
"$belljar" audit verify
