//! One entry of each kind with every field filled, for tests.

use serde_json::json;

use super::record::{
    Control, Enforced, Entry, Event, ExecFinished, ExecOutcome, Identity, OomLimit, Opinion, Pressure, TaskOutcome,
    Usage, UsageSource,
};
use crate::id::{ApprovalId, ExecId, TaskId};
use crate::policy::{Approver, ApproverKind, Decision, RuleMatch};

pub(super) const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

pub(super) fn approver() -> Approver {
    Approver {
        kind: ApproverKind::Person,
        name: "ada".into(),
        via: "terminal".into(),
    }
}

pub(super) fn rules() -> Vec<RuleMatch> {
    vec![
        RuleMatch {
            id: "make-ok".into(),
            file: "agent.rules".into(),
            line: 3,
            decision: Decision::Allow,
            justification: None,
            person_only: false,
        },
        RuleMatch {
            id: "make-deploy".into(),
            file: "/etc/belljar/rules/base.rules".into(),
            line: 40,
            decision: Decision::Prompt,
            justification: Some("deploys reach customers".into()),
            person_only: true,
        },
    ]
}

pub(super) fn usage() -> Usage {
    Usage {
        source: UsageSource::CgroupV2,
        cpu_user_seconds: 0.25,
        cpu_system_seconds: 0.125,
        memory_peak_bytes: Some(5 << 20),
        io_read_bytes: Some(1 << 20),
        io_write_bytes: Some(4096),
        pids_peak: Some(3),
        oom_kills: Some(1),
        oom_limit: Some(OomLimit::Task),
        memory_limit_hits: Some(4),
        cpu_throttled_seconds: Some(0.5),
        pressure: Some(Pressure {
            cpu_seconds: 0.25,
            memory_seconds: 0.125,
            io_seconds: 0.0625,
        }),
    }
}

pub(super) fn exec_finished() -> ExecFinished {
    ExecFinished {
        argv: vec!["/usr/bin/make".into(), "deploy".into()],
        cwd: "/workspace".into(),
        env_names: vec!["CI".into()],
        outcome: ExecOutcome::Exited,
        exit_code: Some(2),
        signal: Some(9),
        error: Some("the output was cut".into()),
        wall_seconds: 1.5,
        usage: usage(),
        network_bytes_sent: Some(10),
        network_bytes_received: Some(20),
        stdout_bytes: 5,
        stderr_bytes: 7,
        stdout_digest: Some("sha256:01".into()),
        stderr_digest: Some("sha256:02".into()),
        image_digest: Some("sha256:03".into()),
        plan_digest: Some("sha256:04".into()),
        requirements_digest: Some("sha256:05".into()),
        rules: rules(),
        approver: Some(approver()),
        reason: Some("bring the fix out".into()),
        call_id: Some("call_1".into()),
        traceparent: Some(TRACEPARENT.into()),
    }
}

/// In the order in which one task would write them.
pub(super) fn of_each_kind() -> Vec<Entry> {
    let identity = Identity {
        uid: 1000,
        user: "ada".into(),
        login: Some(crate::task::Login {
            issuer: "https://login.example".into(),
            subject: "u-1".into(),
            name: Some("ada@example.org".into()),
            workspace: Some("platform".into()),
            groups: vec!["developers".into()],
        }),
    };
    let argv = vec!["/usr/bin/make".to_owned(), "deploy".to_owned()];
    let (task, exec, approval) = (TaskId::new(), ExecId::new(), ApprovalId::new());
    let of_none = |event| Entry {
        task: None,
        exec: None,
        event,
    };
    let of_task = |event| Entry {
        task: Some(task),
        exec: None,
        event,
    };
    let of_exec = |event| Entry {
        task: Some(task),
        exec: Some(exec),
        event,
    };
    vec![
        of_none(Event::JournalOpened {
            journal: "019abcde-0000-7000-8000-000000000000".into(),
            program_version: "0.1.0".into(),
            pid: 4711,
            open_starts: 1,
            sync: "batch".into(),
        }),
        of_none(Event::ConfigLoaded {
            files: vec!["/etc/belljar/config.toml".into()],
            digest: "sha256:06".into(),
            error: Some("agent.rules:3: unknown function".into()),
        }),
        of_task(Event::TaskRefused {
            name: "fix".into(),
            reasons: vec!["limits.memory: more than the admin allows".into()],
            identity: identity.clone(),
        }),
        of_task(Event::TaskAdmitted {
            name: "fix".into(),
            purpose: Some("make the tests pass".into()),
            task_spec: json!({"image": "host"}),
            requirements_digest: Some("sha256:05".into()),
            identity,
            traceparent: Some(TRACEPARENT.into()),
        }),
        of_task(Event::SandboxEnforced {
            controls: vec![
                Control {
                    control: "seccomp".into(),
                    enforced: Enforced::Full,
                    reason: None,
                },
                Control {
                    control: "disk".into(),
                    enforced: Enforced::None,
                    reason: Some("the file system has no quota".into()),
                },
            ],
        }),
        of_task(Event::TaskStarted {
            backend: "oci".into(),
            runtime: "builtin".into(),
            image: "host".into(),
            image_digest: Some("sha256:03".into()),
            plan_digest: "sha256:04".into(),
            start_seconds: 0.004,
        }),
        of_exec(Event::ExecJudged {
            argv: argv.clone(),
            cwd: "/workspace".into(),
            env_names: vec!["CI".into()],
            judgement: "ask".into(),
            rules: rules(),
            opaque: false,
            digest: "sha256:07".into(),
            reason: Some("bring the fix out".into()),
            call_id: Some("call_1".into()),
            traceparent: Some(TRACEPARENT.into()),
        }),
        of_exec(Event::ApprovalAsked {
            approval,
            about: "make deploy".into(),
            reason: "deploys reach customers".into(),
            rules: rules(),
            named_files: vec!["/workspace/x.sh sha256:00".into()],
        }),
        of_exec(Event::ApprovalAnswered {
            approval,
            answer: "approve".into(),
            scope: Some("once".into()),
            approver: approver(),
            reason: Some("looked at it".into()),
            wait_seconds: 12.5,
            opinion: Some(Opinion {
                risk_level: Some("high".into()),
                user_authorization: Some("medium".into()),
                rationale: Some("the user asked for it".into()),
                failure: Some("timed_out".into()),
                attempts: 2,
            }),
        }),
        of_none(Event::RuleAdded {
            file: "/home/ada/.config/belljar/my.rules".into(),
            rule: "prefix_rule(pattern = [\"make\"])".into(),
            approver: approver(),
        }),
        of_exec(Event::ExecRefused {
            argv: argv.clone(),
            reason: "not today".into(),
            rules: rules(),
            approver: Some(approver()),
        }),
        of_exec(Event::ExecStarted {
            argv,
            cwd: "/workspace".into(),
            tty: true,
            approver: Some(approver()),
        }),
        of_task(Event::EgressJudged {
            host: "example.org".into(),
            port: 443,
            protocol: "https_connect".into(),
            method: Some("GET".into()),
            path: Some("/simple/left-pad".into()),
            decision: "deny".into(),
            rule: "network.unknown".into(),
            reason: "no list names it".into(),
            address: Some("192.0.2.7".into()),
        }),
        of_task(Event::SecretUsed {
            name: "GITHUB_TOKEN".into(),
            host: "api.github.com".into(),
            place: "header authorization".into(),
        }),
        of_task(Event::EgressFinished {
            host: "example.org".into(),
            port: 443,
            protocol: "https_connect".into(),
            method: Some("CONNECT".into()),
            decision: Some("allow".into()),
            rule: Some("network.allow example.org".into()),
            address: Some("192.0.2.7".into()),
            bytes_sent: 100,
            bytes_received: 2000,
            wall_seconds: 0.25,
            error: Some("the peer closed".into()),
        }),
        of_exec(Event::AgentEvent {
            name: "tool_call".into(),
            call_id: Some("call_1".into()),
            body: json!({"tool": "exec_command"}),
        }),
        of_exec(Event::ExecFinished(Box::new(exec_finished()))),
        of_task(Event::TaskFinished {
            outcome: TaskOutcome::Finished,
            reason: Some("the command ended".into()),
            wall_seconds: 2.0,
            execs: 1,
            refused: 1,
            usage: usage(),
            network_bytes_sent: Some(100),
            network_bytes_received: Some(2000),
            left_files: vec!["/workspace/core".into()],
        }),
        of_none(Event::JournalPruned {
            first_seq: 1,
            last_seq: 7,
            last_hash: "ab".repeat(32),
            reason: "age".into(),
            archive: Some("journal-00000000000000000001.jsonl.zst".into()),
            archive_digest: Some("sha256:08".into()),
        }),
        of_none(Event::JournalArchiveRemoved {
            archive: "journal-00000000000000000001.jsonl.zst".into(),
            archive_digest: "sha256:08".into(),
            reason: "age".into(),
        }),
        of_none(Event::JournalCheckpoint {
            journal: "019abcde-0000-7000-8000-000000000000".into(),
            through_seq: 18,
            hash: "ab".repeat(32),
            signature: "cd".repeat(64),
            public_key: format!("ed25519:{}", "ef".repeat(32)),
        }),
    ]
}
