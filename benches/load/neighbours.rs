//! What a task feels of bombs in the task next door: its execs' latency, against a quiet machine's.

use std::time::Duration;

use belljar::supervisor::TaskHandle;

use super::live::{self, Bench};
use super::table::{Row, Unit};

/// Each bomb goes off again as soon as its limit has ended it.
const BOMBS: [(&str, &str); 4] = [
    (
        "a fork bomb",
        "bomb() { bomb | bomb & wait; }; while :; do (bomb) 2>/dev/null; done",
    ),
    (
        "a memory bomb",
        "while :; do python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))' 2>/dev/null; done",
    ),
    (
        "a disk bomb",
        "while :; do dd if=/dev/zero of=/tmp/full bs=1M 2>/dev/null; rm -f /tmp/full; done",
    ),
    ("an output flood", "exec cat /dev/zero"),
];

pub async fn measure(bench: &Bench, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let task = bench.task().await?;
    let quiet = middle(&task, rounds).await?;
    let mut rows = Vec::new();
    for (name, script) in BOMBS {
        let bad = bench
            .task_with(|args| {
                args.memory = Some("256MiB".to_owned());
                args.pids = Some("256".to_owned());
                args.disk = Some("128MiB".to_owned());
                args.output = Some("100GiB".to_owned());
            })
            .await?;
        let bomb = live::submit(&bad, &["/bin/sh", "-c", script])?;
        let reader = tokio::spawn(async move { live::drain(&bomb).await });
        // Time to go off.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let beside = middle(&task, rounds).await?;
        bad.stop().await;
        reader.await?;
        rows.push(
            Row::new(
                format!("exec beside {name}, against a quiet machine, p50"),
                Unit::Times,
                Some(beside / quiet),
            )
            .bound(2.0),
        );
    }
    task.stop().await;
    Ok(rows)
}

async fn middle(task: &TaskHandle, rounds: usize) -> anyhow::Result<f64> {
    let times = live::repeated(task, &["/bin/true"], rounds, Duration::from_millis(5)).await?;
    let spread = live::Spread::of(times).ok_or_else(|| anyhow::anyhow!("no rounds"))?;
    Ok(spread.p50.as_secs_f64())
}
