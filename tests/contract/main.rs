//! What every backend promises: each promise is written once, in `promises`, and runs for every runtime.
//!
//! A runtime that is not installed is skipped with a message; where `CI` is `true` that is a failure.

mod callers;
mod engines;
mod killed;
mod live;
#[path = "../tools/machine.rs"]
mod machine;
mod own_images;
mod promises;
mod ready;
#[path = "../tools/registry.rs"]
mod registry;
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
        promised_by_engine!($test, $daemon, Runtime::Engine, $($promise),*);
    };
    ($test:ident, $daemon:expr, $runtime:expr, $($promise:ident),* $(,)?) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            let Some(daemon) = $daemon else { return };
            let runtime = $runtime(daemon.socket());
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

promised_by_engine!(
    podman_keeps_its_promises,
    engines::Daemon::podman(),
    Runtime::EnginePodman,
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
    the_box_is_sealed,
    read_only_roots_and_masked_paths_hold,
    the_way_out_is_the_proxy_alone,
    the_systems_certificates_include_the_tasks_own,
    an_images_layers_stay_as_they_are,
    nothing_is_left_behind,
    a_killed_sandbox_leaves_nothing_running,
);

// Another runtime of an engine's, which it has by a name of its admin's choice. Its processes are none of this machine's: none of them
// is ours to kill.
promised_by_engine!(
    gvisor_at_docker_keeps_its_promises,
    engines::Daemon::docker_with_gvisor(),
    Runtime::EngineGvisor,
    the_command_is_the_agent_and_its_files_belong_to_the_caller,
    the_environment_is_the_tasks_and_nothing_else,
    exit_codes_come_through,
    signals_reach_the_whole_exec,
    bytes_go_in_and_out_unchanged,
    a_command_out_of_time_ends_with_what_it_said,
    memory_beyond_the_limit_is_told_apart,
    counters_come_from_the_kernel,
    what_a_command_leaves_running_ends_with_it,
    two_commands_run_at_once,
    read_only_roots_and_masked_paths_hold,
    the_way_out_is_the_proxy_alone,
    nothing_is_left_behind,
);

#[tokio::test]
async fn a_runtime_that_an_engine_does_not_have_is_refused_with_those_that_it_has() {
    for (daemon, says) in [
        (
            engines::Daemon::docker(),
            "the engine has no runtime \"no-such-runtime\", only ",
        ),
        (
            engines::Daemon::podman(),
            "Podman's service runs everything with the one runtime that it was started with, which is runc and not \"no-such-runtime\"",
        ),
    ] {
        let Some(daemon) = daemon else { continue };
        let state = tempfile::tempdir().unwrap();
        let begun = Live::begin_at(daemon.socket(), state.path(), "no-such-runtime").await;
        let text = format!("{:#}", anyhow::Error::from(begun.err().unwrap()));
        assert!(text.contains(says) && text.contains("runc"), "{text}");
    }
}

#[test]
fn an_engines_own_images_are_run_and_never_obeyed() {
    if let Some(daemon) = engines::Daemon::docker() {
        own_images::an_engines_own_image_is_run_and_never_obeyed(&daemon);
        own_images::an_image_of_a_registrys_digest_is_the_engines_where_it_has_it(&daemon);
    }
}

#[test]
fn who_is_at_an_engine_gets_what_it_can_give_and_hears_of_the_rest() {
    if let Some(daemon) = engines::Daemon::docker() {
        callers::an_ordinary_user_works_at_an_engine_that_lets_it_in(&daemon);
        callers::a_root_whose_ids_cannot_be_mapped_is_refused(&daemon);
        callers::nobody_is_root_at_an_engine_that_maps_no_ids(&daemon);
    }
    if let Some(daemon) = engines::Daemon::docker_with_gvisor() {
        callers::a_runtime_that_ignores_limits_is_not_given_any(&daemon);
    }
    if let Some(daemon) = engines::Daemon::docker_with_ids_of_its_own() {
        callers::an_engine_that_maps_ids_gives_all_to_root_and_says_what_others_lack(&daemon);
    }
    if let Some(daemon) = engines::Daemon::podman_of_a_user() {
        callers::an_ordinary_user_works_at_a_podman_of_its_own(&daemon);
    }
}

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
