#!/bin/bash
# Runs every bench of benches/ in release, and puts the rows of all of them into target/bench/table.md: tools/bench.sh [NAME…]
set -euo pipefail
cd "$(dirname "$0")/.."
rows=target/bench/rows
table=target/bench/table.md
mkdir -p "$rows"
names=("$@")
if [ ${#names[@]} = 0 ]; then
    rm -f "$rows"/*.md
    for bench in benches/*.rs; do names+=("$(basename "$bench" .rs)"); done
    for bench in benches/*/main.rs; do names+=("$(basename "$(dirname "$bench")")"); done
fi

cargo build --release --locked
cargo bench --locked --no-run
failed=()
for name in "${names[@]}"; do
    echo "== $name" >&2
    cargo bench --quiet --locked --bench "$name" </dev/null || failed+=("$name")
done

{
    echo "# Numbers"
    echo
    echo "$(date -u +%Y-%m-%dT%H:%M:%SZ), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(nproc) CPUs, Linux $(uname -r)."
    echo "All of one run on one machine; what counts are the ratios: \"docker 55 ms (60 x)\" says that belljar was 60 times better."
    echo
    echo "| what | belljar | beside it | target | met |"
    echo "|---|---|---|---|---|"
    cat "$rows"/*.md
} >"$table"
echo >&2
cat "$table"
echo "written to $table" >&2
if [ ${#failed[@]} -gt 0 ]; then
    echo "bench: these did not come to their end: ${failed[*]}" >&2
    exit 1
fi
