use std::sync::Arc;

use belljar::api::stdio::speak;
use belljar::approval::{Approvers, Nobody};
use belljar::supervisor::TaskHandle;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

use crate::live;

struct Harness {
    lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
    input: Option<WriteHalf<DuplexStream>>,
    speaking: JoinHandle<std::io::Result<()>>,
    task: TaskHandle,
    /// What came meanwhile and was not asked for yet.
    kept: Vec<Value>,
    _state: tempfile::TempDir,
}

impl Harness {
    async fn start() -> Self {
        Self::with(false).await
    }

    /// With a harness whose yes counts.
    async fn that_may_approve() -> Self {
        Self::with(true).await
    }

    async fn with(harness: bool) -> Self {
        let state = tempfile::tempdir().unwrap();
        let nobody = Nobody {
            why: "a program drives this task".to_owned(),
        };
        let approvers = Approvers {
            harness,
            ..Approvers::new(Arc::new(nobody))
        };
        let (task, _) = live::start_task_for("stdio", state.path(), approvers).await;
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (input, output) = tokio::io::split(theirs);
        let speaking = tokio::spawn(speak(task.clone(), None, input, output));
        let (output, input) = tokio::io::split(ours);
        Self {
            lines: BufReader::new(output).lines(),
            input: Some(input),
            speaking,
            task,
            kept: Vec::new(),
            _state: state,
        }
    }

    async fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string()).await;
    }

    async fn send_text(&mut self, text: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(format!("{text}\n").as_bytes()).await.unwrap();
    }

    /// The first message for which `wanted` holds, now or later.
    async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.kept.iter().position(&wanted) {
            return self.kept.remove(at);
        }
        loop {
            let line = self.lines.next_line().await.unwrap().expect("the output goes on");
            let message: Value = serde_json::from_str(&line).unwrap();
            if wanted(&message) {
                return message;
            }
            self.kept.push(message);
        }
    }

    async fn call(&mut self, id: u64, method: &str, params: Value) -> Value {
        self.send(&json!({"id": id, "method": method, "params": params})).await;
        self.until(|message| message["id"] == id).await
    }

    async fn event(&mut self, exec: &Value, kind: &str) -> Value {
        let is = |message: &Value| message["params"]["exec"] == *exec && message["params"]["type"] == kind;
        self.until(is).await["params"].clone()
    }
}

#[tokio::test]
async fn a_harness_drives_a_command_over_lines() {
    let mut harness = Harness::start().await;
    let started = harness
        .call(1, "exec.start", json!({"argv": ["cat"], "stdin": "stream"}))
        .await;
    let exec = started["result"]["id"].clone();
    assert_eq!(harness.event(&exec, "judged").await["judgement"], "allow");
    let sent = harness
        .call(2, "exec.stdin", json!({"exec": exec, "data": "aGVsbG8="}))
        .await;
    assert_eq!(sent, json!({"id": 2, "result": {}}));
    assert_eq!(harness.event(&exec, "output").await["data"], "aGVsbG8=");
    harness.call(3, "exec.stdin_close", json!({"exec": exec})).await;
    let ended = harness.event(&exec, "ended").await;
    assert_eq!(
        (&ended["end"]["kind"], &ended["end"]["exit_code"]),
        (&json!("finished"), &json!(0))
    );
    let waited = harness.call(4, "exec.wait", json!({"exec": exec})).await;
    assert_eq!(waited["result"]["state"], "ended");
    let listed = harness.call(5, "exec.list", Value::Null).await;
    assert_eq!(listed["result"][0]["id"], exec);
}

#[tokio::test]
async fn the_end_of_the_input_stops_the_task_and_the_summary_comes_last() {
    let mut harness = Harness::start().await;
    let started = harness.call(1, "exec.start", json!({"argv": ["sleep", "600"]})).await;
    let exec = started["result"]["id"].clone();
    harness.event(&exec, "started").await;
    let mut input = harness.input.take().unwrap();
    input.shutdown().await.unwrap();
    assert_eq!(harness.event(&exec, "ended").await["end"]["outcome"], "canceled");
    let summary = harness.until(|message| message["method"] == "task.ended").await;
    assert_eq!(summary["params"]["execs"][0]["id"], exec);
    drop(input);
    assert!(harness.lines.next_line().await.unwrap().is_none());
    harness.speaking.await.unwrap().unwrap();
}

#[tokio::test]
async fn bad_lines_are_answered_and_do_no_harm() {
    let mut harness = Harness::start().await;
    harness.send_text("{\"id\": 1,").await;
    let error = harness.until(|message| message["id"].is_null()).await;
    assert_eq!(error["error"]["code"], "bad_request");
    let error = harness.call(2, "exec.fly", json!({})).await;
    assert_eq!(error["error"]["message"], "there is no method \"exec.fly\"");
    let error = harness.call(3, "exec.start", json!({"argv": ["true"], "cwd": 7})).await;
    let message = error["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("field \"params.cwd\": invalid type: number"),
        "{message}"
    );
    let error = harness
        .call(
            4,
            "exec.signal",
            json!({"exec": belljar::id::ExecId::new(), "signal": 9}),
        )
        .await;
    assert_eq!(error["error"]["code"], "not_found");
    assert_eq!(
        harness.call(5, "task.info", Value::Null).await["result"]["name"],
        "stdio"
    );
    assert!(harness.task.execs().is_empty());
}

#[tokio::test]
async fn a_command_that_does_not_read_stdin_holds_up_nothing_else() {
    let mut harness = Harness::start().await;
    let started = harness
        .call(1, "exec.start", json!({"argv": ["sleep", "600"], "stdin": "stream"}))
        .await;
    let exec = started["result"]["id"].clone();
    harness.event(&exec, "started").await;
    // More than a pipe and the queue hold together.
    let data = "A".repeat(1 << 20);
    for id in 10..30 {
        harness
            .send(&json!({"id": id, "method": "exec.stdin", "params": {"exec": exec, "data": data}}))
            .await;
    }
    let error = harness.until(|message| message["error"].is_object()).await;
    assert_eq!(error["error"]["code"], "too_many");
    let killed = harness
        .call(40, "exec.signal", json!({"exec": exec, "signal": 9}))
        .await;
    assert_eq!(killed["result"], json!({}));
    assert_eq!(harness.event(&exec, "ended").await["end"]["signal"], 9);
}

#[tokio::test]
async fn the_same_start_twice_is_told_once() {
    let mut harness = Harness::start().await;
    let request = json!({"id": belljar::id::ExecId::new(), "argv": ["echo", "once"]});
    let first = harness.call(1, "exec.start", request.clone()).await;
    let exec = first["result"]["id"].clone();
    harness.event(&exec, "ended").await;
    let second = harness.call(2, "exec.start", request).await;
    assert_eq!(second["result"]["id"], exec);
    harness.call(3, "task.stop", Value::Null).await;
    harness.until(|message| message["method"] == "task.ended").await;
    let outputs = harness
        .kept
        .iter()
        .filter(|message| message["params"]["type"] == "output");
    assert_eq!(outputs.count(), 1);
}

#[tokio::test]
async fn a_harness_answers_questions_where_its_yes_counts() {
    let mut harness = Harness::that_may_approve().await;
    let start = json!({"id": 1, "method": "exec.start", "params": {"argv": ["question"]}});
    harness.send(&start).await;
    let asked = harness.until(|message| message["method"] == "approval.event").await;
    assert_eq!(
        (&asked["params"]["type"], &asked["params"]["approval"]["about"]),
        (&json!("asked"), &json!("question"))
    );
    let id = &asked["params"]["approval"]["id"];
    // The exec's own event names the question too.
    let told = harness.until(|message| message["params"]["type"] == "asked").await;
    assert_eq!(
        (&told["method"], &told["params"]["approval"]),
        (&json!("exec.event"), id)
    );
    let odd =
        json!({"id": 2, "method": "approval.answer", "params": {"approval": id, "decision": "approve", "sure": true}});
    harness.send(&odd).await;
    assert_eq!(
        harness.until(|message| message["id"] == 2).await["error"]["code"],
        "bad_request"
    );
    harness.send(&json!({"id": 3, "method": "approval.list"})).await;
    assert_eq!(
        &harness.until(|message| message["id"] == 3).await["result"][0]["id"],
        id
    );
    let yes = json!({"id": 4, "method": "approval.answer", "params": {"approval": id, "decision": "approve"}});
    harness.send(&yes).await;
    let settled = harness.until(|message| message["id"] == 4).await;
    assert_eq!(settled["result"]["scope"], "once");
    // There is no such program, so it was started and not found.
    let ended = harness.until(|message| message["params"]["type"] == "ended").await;
    assert_eq!(ended["params"]["end"]["kind"], "finished");
    assert_eq!(ended["params"]["end"]["approver"]["kind"], "harness");
    // The second answer comes too late.
    harness.send(&yes).await;
    let late = harness.until(|message| message["id"] == 4).await;
    assert_eq!(late["error"]["code"], "conflict");
}

#[tokio::test]
async fn a_harness_whose_yes_does_not_count_is_nobody_to_wait_for() {
    let mut harness = Harness::start().await;
    let start = json!({"id": 1, "method": "exec.start", "params": {"argv": ["question"]}});
    harness.send(&start).await;
    let ended = harness.until(|message| message["params"]["type"] == "ended").await;
    assert_eq!(ended["params"]["end"]["kind"], "refused");
    assert!(
        ended["params"]["end"]["reason"]
            .as_str()
            .unwrap()
            .contains("a program drives this task")
    );
}
