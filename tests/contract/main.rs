//! What every backend promises: each promise is written once, in `promises`, and runs for every runtime.
//!
//! A runtime that is not installed is skipped with a message; where `CI` is `true` that is a failure.

mod engines;
mod killed;
mod live;
mod promises;
mod relay;
mod v2;

use live::{Live, Runtime};

macro_rules! promised_by {
    ($module:ident, $runtime:expr, $($promise:ident),* $(,)?) => {
        mod $module {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    if let Some(runtime) = live::installed($runtime) {
                        promises::$promise(runtime).await;
                    }
                }
            )*
        }
    };
}

/// One engine serves all promises, one after the other; each that is broken is named.
macro_rules! promised_by_engine {
    ($test:ident, $daemon:expr, $($promise:ident),* $(,)?) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            let Some(daemon) = $daemon else { return };
            let runtime = Runtime::Engine(daemon.socket());
            let mut broken: Vec<&str> = Vec::new();
            $(
                if tokio::spawn(promises::$promise(runtime)).await.is_err() {
                    broken.push(stringify!($promise));
                }
            )*
            assert!(broken.is_empty(), "broken: {broken:#?}");
        }
    };
}

macro_rules! promises {
    ($($promise:ident),* $(,)?) => {
        promised_by!(builtin, Runtime::Builtin, $($promise),*);
        promised_by!(runc, Runtime::Runc, $($promise),*);
        promised_by!(runsc, Runtime::Runsc, $($promise),*);
        promised_by_engine!(docker_keeps_every_promise, engines::Daemon::docker(), $($promise),*);
    };
}

promises!(
    the_command_is_the_agent_and_its_files_belong_to_the_caller,
    the_environment_is_the_tasks_and_nothing_else,
    the_command_starts_in_its_folder,
    exit_codes_come_through,
    signals_reach_the_whole_exec,
    bytes_go_in_and_out_unchanged,
    a_flood_of_output_arrives_whole_and_in_order,
    a_terminal_has_its_size_and_follows_a_resize,
    a_command_out_of_time_ends_with_what_it_said,
    output_beyond_the_limit_is_cut,
    memory_beyond_the_limit_is_told_apart,
    counters_come_from_the_kernel,
    what_a_command_leaves_running_ends_with_it,
    a_detached_command_answers_before_what_it_leaves_ends,
    a_pipe_in_the_hands_of_another_command_holds_nobody_up,
    killing_what_watches_over_commands_harms_no_later_one,
    two_commands_run_at_once,
    the_box_is_sealed,
    read_only_roots_and_masked_paths_hold,
    the_way_out_is_the_proxy_alone,
    the_systems_certificates_include_the_tasks_own,
    an_images_layers_stay_as_they_are,
    nothing_is_left_behind,
    a_killed_sandbox_leaves_nothing_running,
);

// Without two: Podman 4.3 leaves the home unwritable (`read_only_roots_and_masked_paths_hold`), and makes no cgroup namespace on cgroups
// of version 1, which is reported (`the_box_is_sealed`).
promised_by_engine!(
    podman_keeps_its_promises,
    engines::Daemon::podman(),
    the_command_is_the_agent_and_its_files_belong_to_the_caller,
    the_environment_is_the_tasks_and_nothing_else,
    the_command_starts_in_its_folder,
    exit_codes_come_through,
    signals_reach_the_whole_exec,
    bytes_go_in_and_out_unchanged,
    a_terminal_has_its_size_and_follows_a_resize,
    a_command_out_of_time_ends_with_what_it_said,
    output_beyond_the_limit_is_cut,
    memory_beyond_the_limit_is_told_apart,
    counters_come_from_the_kernel,
    what_a_command_leaves_running_ends_with_it,
    a_detached_command_answers_before_what_it_leaves_ends,
    a_pipe_in_the_hands_of_another_command_holds_nobody_up,
    killing_what_watches_over_commands_harms_no_later_one,
    two_commands_run_at_once,
    the_way_out_is_the_proxy_alone,
    the_systems_certificates_include_the_tasks_own,
    an_images_layers_stay_as_they_are,
    nothing_is_left_behind,
    a_killed_sandbox_leaves_nothing_running,
);

#[test]
fn a_killed_belljar_leaves_nothing_at_its_engine() {
    if let Some(daemon) = engines::Daemon::docker() {
        killed::a_killed_belljar_is_cleared_up_after(&daemon);
    }
}

#[tokio::test]
async fn a_runtime_that_is_not_installed_is_named() {
    let state = tempfile::tempdir().unwrap();
    let error = Live::begin(state.path(), "no-such-runtime", |_| {})
        .await
        .err()
        .unwrap();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(
        text.contains("\"no-such-runtime\" is not installed (package: no-such-runtime)"),
        "{text}"
    );
}

#[tokio::test]
async fn what_a_failing_runtime_says_reaches_the_caller() {
    let state = tempfile::tempdir().unwrap();
    let error = Live::begin(state.path(), "false", |_| {}).await.err().unwrap();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("the guest is gone"), "{text}");
    let state = tempfile::tempdir().unwrap();
    let error = Live::begin(state.path(), "cat", |_| {}).await.err().unwrap();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("the runtime said: "), "{text}");
}
