#!/bin/bash
# Runs every bench of benches/ in release and gathers what they print in target/bench/table.md: tools/bench.sh [NAME…]
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p target/bench
table=target/bench/table.md
names=("$@")
if [ ${#names[@]} = 0 ]; then
    for bench in benches/*.rs; do names+=("$(basename "$bench" .rs)"); done
    for bench in benches/*/main.rs; do names+=("$(basename "$(dirname "$bench")")"); done
fi

cargo build --release --locked
cargo bench --locked --no-run
{
    echo "# Numbers"
    echo
    echo "$(date -u +%Y-%m-%dT%H:%M:%SZ), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(nproc) CPUs, Linux $(uname -r)."
    echo "All of one run on one machine; what counts are the ratios."
} >"$table.new"
for name in "${names[@]}"; do
    echo "== $name" >&2
    { printf '\n## %s\n\n```\n' "$name"; } >>"$table.new"
    cargo bench --quiet --locked --bench "$name" </dev/null | tee -a "$table.new"
    echo '```' >>"$table.new"
done
mv "$table.new" "$table"
echo "written to $table" >&2
