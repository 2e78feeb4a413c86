use super::*;
use crate::audit::journal::{Journal, JournalOptions};
use crate::audit::record::{Entry, Event};
use crate::audit::samples;

fn report_of(change: impl Fn(&mut Entry)) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), JournalOptions::default()).unwrap();
    for mut entry in samples::of_each_kind() {
        change(&mut entry);
        journal.append_blocking(entry).unwrap();
    }
    report(&journal.reader().unwrap(), &Filter::default(), "one <task>").unwrap()
}

#[test]
fn a_report_has_what_ran_what_was_refused_and_what_was_denied() {
    let report = report_of(|_| {});
    assert_eq!(
        (report.totals.execs, report.totals.failed, report.totals.refused),
        (1, 1, 1)
    );
    let exec = &report.execs[0];
    assert_eq!(
        (exec.command.as_str(), exec.cpu_seconds),
        ("/usr/bin/make deploy", 0.375)
    );
    assert_eq!((exec.memory_peak_bytes, exec.network_bytes), (5 << 20, 30));
    assert_eq!(report.tasks[0].user, "ada");
    assert_eq!(report.denied_connections[0].what, "example.org:443");
    assert_eq!(report.approvals[0].what, "approve by ada");
}

#[test]
fn what_was_used_is_spread_over_the_time_in_which_it_was() {
    let series = Series::over(240.0);
    assert_eq!(series.step_seconds, 1.0);
    let parts = |start, seconds| series.steps(start, seconds).collect::<Vec<_>>();
    assert_eq!(parts(1.5, 2.0), [(1, 0.25), (2, 0.5), (3, 0.25)]);
    assert_eq!(parts(10.0, 0.0), [(10, 1.0)]);
    // What is not wholly on the axis is counted whole.
    for (start, seconds) in [(-5.0, 10.0), (235.0, 50.0), (500.0, 1.0)] {
        let whole: f64 = parts(start, seconds).iter().map(|(_, part)| part).sum();
        assert!((whole - 1.0).abs() < 1e-9, "{start} {seconds}: {whole}");
    }
    let report = report_of(|_| {});
    let cpu: f64 = report
        .series
        .cpus
        .iter()
        .map(|cpus| cpus * report.series.step_seconds)
        .sum();
    assert!((cpu - report.totals.cpu_seconds).abs() < 1e-6, "{cpu}");
    assert_eq!(report.totals.network_bytes, 2100);
}

#[test]
fn what_a_command_is_called_does_not_run_in_the_page() {
    let attack = "</title><script>alert(1)</script>\" onload='x' \u{202e}";
    let report = report_of(|entry| match &mut entry.event {
        Event::ExecFinished(end) => end.argv = vec![attack.to_owned()],
        Event::ExecRefused { reason, .. } => *reason = attack.to_owned(),
        Event::TaskAdmitted { name, .. } => *name = attack.to_owned(),
        _ => {}
    });
    let page = html(&report);
    assert!(!page.contains("<script"), "{page}");
    assert!(!page.contains("onload='"), "{page}");
    assert!(!page.contains('\u{202e}'));
    assert!(page.contains("default-src 'none'"));
    assert!(page.contains("<title>one &lt;task&gt;</title>"));
    assert!(
        !page.contains("http:") && !page.contains("https:") && !page.contains("url("),
        "{page}"
    );
}

#[test]
fn a_long_span_keeps_the_largest_commands_and_counts_the_rest() {
    let mut report = Report::default();
    for n in 0..(EXECS_LIMIT as u64 + 5) {
        report.execs.push(Exec {
            seq: n,
            start: n as f64,
            cpu_seconds: n as f64,
            ..Exec::default()
        });
    }
    report.keep_the_largest();
    assert_eq!((report.execs.len(), report.execs_left_out), (EXECS_LIMIT, 5));
    assert_eq!(report.execs[0].seq, 5);
}
