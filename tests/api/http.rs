use std::os::unix::fs::PermissionsExt;

use belljar::api::client::{ClientError, find};
use belljar::api::folder;
use belljar::api::messages::{AgentEvent, ErrorCode, ExecEnd, ExecState};
use belljar::audit::query::{self, Filter, Take};
use belljar::audit::record::ExecOutcome;
use belljar::id::{ExecId, TaskId};
use serde_json::json;

use crate::live::{Live, finished, start, start_task};

#[tokio::test]
async fn a_command_is_started_waited_for_and_listed() {
    let live = Live::start().await;
    let exec = live.task.start(&start(&["sh", "-c", "exit 7"])).await.unwrap();
    let ended = live.task.wait_exec(exec.id).await.unwrap();
    assert_eq!(ended.state, ExecState::Ended);
    assert_eq!(finished(&ended.end.unwrap()).exit_code, Some(7));
    let listed: Vec<ExecId> = live.task.execs().await.unwrap().iter().map(|e| e.id).collect();
    assert_eq!(listed, [exec.id]);
    assert_eq!(live.task.info().await.unwrap().execs.finished, 1);
}

#[tokio::test]
async fn a_refusal_and_an_end_stay_apart() {
    let live = Live::start().await;
    let end = async |program: &str| {
        let exec = live.task.start(&start(&[program])).await.unwrap();
        let end = live.task.wait_exec(exec.id).await.unwrap().end.unwrap();
        serde_json::to_value(end).unwrap()
    };
    let refused = end("forbidden").await;
    assert_eq!(
        (&refused["kind"], &refused["rules"][0]["line"]),
        (&json!("refused"), &json!(2))
    );
    let unanswered = end("question").await;
    assert_eq!(
        (&unanswered["kind"], &unanswered["approver"]["kind"]),
        (&json!("refused"), &json!("nobody"))
    );
    let finished = end("true").await;
    assert_eq!(
        (&finished["kind"], &finished["outcome"]),
        (&json!("finished"), &json!("exited"))
    );
}

#[tokio::test]
async fn the_same_id_twice_is_one_exec() {
    let live = Live::start().await;
    let mut request = start(&["sh", "-c", "cat; exit 3"]);
    request.id = Some(ExecId::new());
    let first = live.task.start(&request).await.unwrap();
    let second = live.task.start(&request).await.unwrap();
    assert_eq!((first.id, live.task.execs().await.unwrap().len()), (second.id, 1));
}

#[tokio::test]
async fn a_signal_reaches_the_command_and_is_told_apart_from_an_exit() {
    let live = Live::start().await;
    let mut request = start(&["cat"]);
    request.stdin = belljar::policy::Stdin::Stream;
    let exec = live.task.start(&request).await.unwrap();
    let (_input, mut output) = live.task.attach(exec.id, 0).await.unwrap();
    while !matches!(
        output.next().await.unwrap().unwrap(),
        belljar::api::messages::Event::Started
    ) {}
    live.task.signal(exec.id, 15).await.unwrap();
    let end = live.task.wait_exec(exec.id).await.unwrap().end.unwrap();
    assert_eq!(
        (finished(&end).outcome, finished(&end).signal),
        (ExecOutcome::Signaled, Some(15))
    );
    let late = live.task.signal(exec.id, 15).await.unwrap_err();
    assert!(matches!(late, ClientError::Refused(error) if error.0.code == ErrorCode::Conflict));
}

#[tokio::test]
async fn bad_json_is_answered_with_its_field_and_line() {
    let live = Live::start().await;
    let (status, body) = live
        .raw(
            "POST",
            "/tasks/{task}/execs",
            "{\"argv\": [\"true\"],\n \"cwd\": \"here\"}",
        )
        .await;
    assert_eq!(status, 400);
    assert_eq!(
        body,
        json!({"error": {"code": "bad_request", "message": "field \"cwd\": \"here\" is not absolute at line 2 column 15"}})
    );
    let (status, body) = live
        .raw("POST", "/tasks/{task}/execs", "{\"argv\": [\"true\"], \"timeout\": 3}")
        .await;
    assert_eq!(status, 400);
    let message = body["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("field \"timeout\": unknown field `timeout`, expected one of"),
        "{message}"
    );
}

#[tokio::test]
async fn all_faults_of_a_request_are_told_at_once() {
    let live = Live::start().await;
    let body = json!({"argv": [], "env": {"A=B": "1"}, "tty": {"rows": 0, "cols": 80}, "timeout_seconds": -1.0});
    let (status, body) = live.raw("POST", "/tasks/{task}/execs", &body.to_string()).await;
    assert_eq!(status, 400);
    assert_eq!(
        body["error"]["faults"],
        json!([
            "field \"argv\": the command is empty",
            "field \"env\": \"A=B\" is not the name of a variable",
            "field \"tty\": 0 rows by 80 columns is not a terminal's size",
            "field \"timeout_seconds\": -1 is not a length of time",
        ])
    );
    assert!(live.handle.execs().is_empty());
}

#[tokio::test]
async fn what_is_not_there_is_a_404_in_the_same_shape() {
    let live = Live::start().await;
    let other = TaskId::new();
    for (method, path) in [
        ("GET", "/nothing".to_owned()),
        ("DELETE", "/tasks".to_owned()),
        ("GET", format!("/tasks/{other}")),
        ("GET", format!("/tasks/{{task}}/execs/{}", ExecId::new())),
        ("GET", format!("/tasks/{{task}}/execs/{}/attach", ExecId::new())),
    ] {
        let (status, body) = live.raw(method, &path, "").await;
        assert_eq!(
            (status, &body["error"]["code"]),
            (404, &json!("not_found")),
            "{method} {path}"
        );
    }
    assert_eq!(live.raw("GET", "/tasks/nonsense", "").await.0, 400);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_turned_away() {
    let live = Live::start().await;
    let body = format!("{{\"argv\": [\"{}\"]}}", "a".repeat(17 << 20));
    let (status, body) = live.raw("POST", "/tasks/{task}/execs", &body).await;
    assert_eq!((status, &body["error"]["code"]), (413, &json!("too_large")));
}

#[tokio::test]
async fn what_the_harness_says_is_recorded() {
    let live = Live::start().await;
    let event = AgentEvent {
        name: "tool_call".to_owned(),
        call_id: Some("c1".to_owned()),
        body: json!({"tool": "bash"}),
    };
    live.task.record(&event).await.unwrap();
    let filter = Filter {
        kinds: vec!["agent.event".to_owned()],
        ..Filter::default()
    };
    let records = query::ls(&live.journal.reader().unwrap(), &filter, Take::Oldest(9)).unwrap();
    assert_eq!(records.len(), 1);
}

#[tokio::test]
async fn stop_ends_what_runs_and_answers_with_the_summary() {
    let mut live = Live::start().await;
    let exec = live.task.start(&start(&["sleep", "600"])).await.unwrap();
    let (waited, stopped) = tokio::join!(live.task.wait(), live.task.stop());
    let (waited, stopped) = (waited.unwrap(), stopped.unwrap());
    assert_eq!((waited.execs[0].id, stopped.execs[0].id), (exec.id, exec.id));
    let end = stopped.execs[0].end.as_ref().unwrap();
    assert_eq!(finished(end).outcome, ExecOutcome::Canceled);
    assert_eq!(live.handle.info().state, belljar::supervisor::TaskState::Ended);
    live.server.take().unwrap().stop().await;
    assert!(matches!(
        live.task.info().await.unwrap_err(),
        ClientError::Connect { .. }
    ));
}

#[tokio::test]
async fn the_socket_and_its_folder_are_the_owners_alone() {
    let live = Live::start().await;
    let folder = folder::of_task(live.state.path(), live.handle.id());
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&folder.join("api.sock"))), (0o700, 0o600));
}

#[tokio::test]
async fn a_task_is_found_by_id_beginning_and_name() {
    let live = Live::named("fix-net").await;
    let id = live.handle.id();
    for name in [id.to_string(), id.to_string()[..13].to_owned(), "fix-net".to_owned()] {
        assert_eq!(find(live.state.path(), &name).unwrap().id(), id);
    }
    assert!(matches!(
        find(live.state.path(), "other"),
        Err(ClientError::NoSuchTask { .. })
    ));
    assert!(matches!(
        find(live.state.path(), ""),
        Err(ClientError::NoSuchTask { .. })
    ));
}

#[tokio::test]
async fn a_name_that_two_tasks_have_is_not_guessed() {
    let live = Live::named("twin").await;
    let mut card = folder::cards(live.state.path()).unwrap().remove(0);
    card.id = TaskId::new();
    let folder = folder::of_task(live.state.path(), card.id);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("task.json"), serde_json::to_vec(&card).unwrap()).unwrap();
    let error = find(live.state.path(), "twin").unwrap_err();
    assert!(
        matches!(error, ClientError::Ambiguous { ref found, .. } if found.len() == 2),
        "{error}"
    );
}

#[tokio::test]
async fn a_state_folder_with_a_long_path_works_too() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path().join("a".repeat(120));
    let (handle, _) = start_task("far", &state).await;
    let _server = belljar::api::Server::start(handle.clone(), handle.folder()).unwrap();
    let info = find(&state, "far").unwrap().info().await.unwrap();
    assert_eq!(info.id, handle.id());
}

#[tokio::test]
async fn the_schema_names_every_message() {
    let live = Live::start().await;
    let (status, schema) = live.raw("GET", "/schema", "").await;
    assert_eq!(status, 200);
    let names: Vec<&String> = schema["$defs"].as_object().unwrap().keys().collect();
    for name in [
        "ExecStart",
        "ExecInfo",
        "TaskSummary",
        "Event",
        "Control",
        "ErrorBody",
        "ExecFinished",
    ] {
        assert!(names.iter().any(|n| *n == name), "{name} is not in {names:?}");
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_found_ends_with_127() {
    let live = Live::start().await;
    let exec = live.task.start(&start(&["no-such-program-here"])).await.unwrap();
    let end = live.task.wait_exec(exec.id).await.unwrap().end.unwrap();
    assert!(
        matches!(&end, ExecEnd::Finished(finished) if finished.exit_code == Some(127)),
        "{end:?}"
    );
}
