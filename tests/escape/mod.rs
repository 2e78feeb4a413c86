//! Attacks on the box, each tried in real sandboxes through the built program: as root, as an ordinary user, with runc, with runsc and
//! at an engine of Docker's; at Podman what engines differ in.
//!
//! | threat | defence | tests |
//! |---|---|---|
//! | system calls that reach around a sandbox (mounts, namespaces, keyrings, bpf, perf, ptrace, clocks, other architectures) | seccomp allow-list, no capabilities, no_new_privs | `probes`: KRN |
//! | kernel files that tell of the host or change it | masked and read-only /proc and /sys | `probes`: PRC, `kernel` |
//! | devices | a /dev of six harmless ones, nodev everywhere | `probes`: DEV, FT-007, `kernel` |
//! | becoming somebody else | user namespace, nosuid, no capabilities | `probes`: IDN; `mounts` |
//! | changing the system's files | a disposable layer that belongs to root inside, read-only system | `probes`: FS, FT |
//! | network past the proxy | a net namespace with loopback only, socket families | `probes`: NET, SOC |
//! | using up the machine | cgroup limits, capped file systems, resource limits | `probes`: RES, `bounds`, and `v2` on cgroups of version 2 |
//! | looking into other execs, killing what watches over one | a Landlock domain a slot, nothing dumpable | `neighbours` |
//! | the faults of other sandboxes: inherited descriptors, typing into the terminal, remounts, `/proc/PID/exe`, exotic sockets, swapped roots | `close_range`, seccomp, locked mounts, `openat2` without links | `cves` |
//! | images that lead their runtime astray | every path below the root is opened within it | `images` |
//! | what shows only from outside: floods, leftovers, names that terminals act on | limits, namespaces, escaping | `lifecycle` |
//! | what the host's tools obey later: hooks, settings, agents', editors' and shells' files, there or not yet | mounts over names and their parents | `protected` |
//! | files that come back: set-id bits, FIFOs, sockets, repositories and links that git outside would follow | looked at and disarmed when the task is over | `left` |
//! | a promise that this machine cannot keep | each guarantee is looked at before the start; the task is refused | `enforced` |
//! | the host's environment and sockets | nothing is inherited or mounted | `probes`: ENV, SOC |
//!
//! What is mounted, swapped and shared is tried in `mounts`; what is open while its name changes, and what would make a reader outside wait,
//! in `files`; all of the kernel's own files and devices in `kernel`; using something up in `bounds`.
//!
//! The faults of others that concern runtimes, mounts, images and processes, each with the test that tries it here:
//!
//! | fault | test |
//! |---|---|
//! | CVE-2019-5736 | `cves::the_programs_that_watch_cannot_be_changed` |
//! | CVE-2024-21626 | `cves::no_descriptor_of_the_host_is_a_way_out`; of an image: `image::config` |
//! | CVE-2025-31133, CVE-2025-52565, CVE-2025-52881, CVE-2025-62161, CVE-2025-62596 | `mounts`: roots, and what names lie in, swapped by a neighbour; `probes` PRC-040 |
//! | CVE-2026-41579 | `images::links_of_an_image_lead_nowhere_outside` |
//! | CVE-2026-53488 | `image::config`: labels are not read; CVE-2026-53492, CVE-2026-95837 are of checkpoints, which there are none of |
//! | CVE-2024-41110, CVE-2026-34040, CVE-2026-33997 | no socket of an engine is inside: `probes` SOC; none can be a root: `config` |
//! | CVE-2026-96812 | no device is inside, nor can one be made: `kernel::no_device_is_anywhere_but_the_harmless_ones`; none can be a root: `config` |
//! | CVE-2026-46695, CVE-2026-47243 | `mounts::a_readable_root_stays_so` |
//! | CVE-2026-46703 | `image::layer`: nothing is written through a link |
//! | CVE-2026-77179, CVE-2026-50549 | `mounts::a_root_that_is_swapped_for_a_link_is_mounted_or_refused_and_never_followed`, `files::what_is_open_is_not_looked_up_again_by_its_name` |
//! | CVE-2026-31431, CVE-2026-43284, CVE-2026-43500, CVE-2026-46300, CVE-2026-31635, CVE-2026-46243 | `cves::exotic_sockets_and_calls_do_not_exist` |
//! | CVE-2025-32463 | no set-id program gives anything: `probes` IDN |
//! | CVE-2026-109569 | `cves::an_exec_is_in_every_namespace_of_its_sandbox` |
//! | CVE-2026-65093 | `cves::no_helper_comes_from_a_folder_that_a_task_wrote_to` |
//! | CVE-2026-65083, CVE-2025-66479 | lists are of what is allowed: `config` |
//! | CVE-2026-65086, CVE-2026-65091 | `cves::what_an_exec_is_made_of_is_no_script` |
//! | CVE-2025-59532, CVE-2026-50548 | `cves::a_folder_of_work_opens_nothing` |
//! | CVE-2026-25725, CVE-2026-26268, CVE-2026-48124, CVE-2026-39861 | `protected`, `left` |
//! | CVE-2017-5226, CVE-2019-10063, CVE-2023-28100 | `cves::nobody_types_into_the_terminal` |
//!
//! What is no boundary: tasks that share a writable folder. They hand each other files there, and by a socket in it descriptors too; so
//! each can do for the other what it may do itself, and they count as one. A program outside that listens in a folder is reached by whom
//! the folder was given to, but where it is a writable one and the program was there before the task: then it is covered. And within one task processes see each other's names and
//! arguments and may signal one another, for they are one user's, as on a host; only memory, environment and descriptors are closed
//! between execs.
//!
//! `make escape` prints a row an attack, `| attack | backend | result |`.

mod bounds;
mod cves;
mod enforced;
#[path = "../contract/engines.rs"]
#[allow(dead_code, reason = "one kind of engine stands for all")]
mod engines;
mod files;
mod images;
mod jail;
mod kernel;
mod left;
mod lifecycle;
#[path = "../tools/machine.rs"]
mod machine;
mod mounts;
mod neighbours;
mod probes;
mod protected;
mod v2;

use jail::{Caller, available, tried};

macro_rules! tried_by {
    ($backend:ident, $caller:expr, $($module:ident::$attack:ident),*) => {
        mod $backend {
            use super::*;

            $(
                #[test]
                fn $attack() {
                    if let Some(caller) = available($caller)
                        && let Err(fault) = tried(stringify!($attack), caller, $module::$attack)
                    {
                        std::panic::resume_unwind(fault);
                    }
                }
            )*
        }
    };
}

/// One engine stands all attacks, one after the other; each that it does not withstand is named.
macro_rules! tried_at_an_engine {
    ($test:ident, $daemon:expr, $label:literal, $($module:ident::$attack:ident),* $(,)?) => {
        #[test]
        fn $test() {
            let Some(daemon) = $daemon else {
                println!("| {:<40} | {:<17} | skipped: this engine cannot be started here |", "all", $label);
                return;
            };
            let caller = Caller::Docker(daemon.socket(), $label);
            let mut broken: Vec<&str> = Vec::new();
            $(
                if tried(stringify!($attack), caller, $module::$attack).is_err() {
                    broken.push(stringify!($module::$attack));
                }
            )*
            assert!(broken.is_empty(), "broken: {broken:#?}");
        }
    };
}

macro_rules! attacks {
    ($($module:ident::$attack:ident),* $(,)?) => {
        tried_by!(root, Caller::Root, $($module::$attack),*);
        tried_by!(ordinary, Caller::Ordinary, $($module::$attack),*);
        tried_by!(runc, Caller::Runc, $($module::$attack),*);
        tried_by!(runsc, Caller::Runsc, $($module::$attack),*);
        tried_at_an_engine!(docker_withstands_every_attack, engines::Daemon::docker(), "docker, root", $($module::$attack),*);
    };
}

attacks!(
    probes::every_probe_from_inside_is_blocked,
    cves::no_descriptor_of_the_host_is_a_way_out,
    cves::nobody_types_into_the_terminal,
    cves::the_programs_that_watch_cannot_be_changed,
    cves::exotic_sockets_and_calls_do_not_exist,
    cves::a_folder_of_work_opens_nothing,
    cves::an_exec_is_in_every_namespace_of_its_sandbox,
    cves::what_an_exec_is_made_of_is_no_script,
    cves::no_helper_comes_from_a_folder_that_a_task_wrote_to,
    kernel::nothing_of_the_kernels_opens_for_writing,
    kernel::no_device_is_anywhere_but_the_harmless_ones,
    mounts::a_readable_root_stays_so,
    mounts::no_mount_honours_set_id_bits_or_devices,
    mounts::a_root_that_is_swapped_for_a_link_is_mounted_or_refused_and_never_followed,
    mounts::names_that_a_neighbour_swaps_while_a_task_starts_lead_nowhere,
    mounts::what_the_host_mounts_later_does_not_show_inside,
    mounts::a_root_on_an_overlay_is_its_owners_and_no_task_is_root_unasked,
    mounts::the_root_of_a_user_namespace_gives_its_own_id,
    neighbours::no_exec_looks_into_another_one,
    neighbours::an_exec_still_looks_into_its_own_children,
    neighbours::files_move_between_folders_as_ever,
    neighbours::a_command_that_kills_its_watcher_dies_with_it_and_that_is_told,
    neighbours::pid_1_cannot_be_killed_from_inside,
    neighbours::no_descriptor_crosses_from_task_to_task,
    files::what_is_open_is_not_looked_up_again_by_its_name,
    files::no_attribute_that_gives_rights_comes_back,
    files::nobody_speaks_to_a_program_outside_that_listens_in_a_root,
    files::no_reader_outside_waits_at_what_a_task_left,
    files::no_other_spelling_passes_for_a_repository,
    files::a_worktree_opens_nothing_of_its_repository,
    bounds::no_place_can_be_filled_beyond_its_bound,
    bounds::a_file_larger_than_memory_is_written,
    bounds::descriptors_that_are_used_up_are_the_execs_own,
    bounds::nothing_that_ended_stays_in_the_table,
    bounds::arguments_beyond_what_the_kernel_takes_end_that_exec_alone,
    images::links_of_an_image_lead_nowhere_outside,
    lifecycle::a_sparse_file_takes_no_room_on_the_host,
    lifecycle::names_of_files_write_neither_to_the_terminal_nor_into_records,
    lifecycle::shared_memory_ends_with_its_task,
    lifecycle::a_flood_of_output_is_cut_off_and_costs_no_memory,
    lifecycle::death_by_a_signal_is_told_as_such,
    lifecycle::fifty_execs_at_once_have_streams_of_their_own,
    lifecycle::a_fork_bomb_stays_small_whoever_runs_it,
    lifecycle::a_disk_bomb_fills_the_disposable_layer_and_no_more,
    lifecycle::nothing_inside_is_in_the_callers_groups_or_beyond_its_bounds,
    lifecycle::what_an_exec_leaves_is_gone_when_its_end_is_told,
    left::special_files_that_come_back_are_in_the_record,
    left::a_task_that_leaves_only_files_has_nothing_to_tell,
    left::a_repository_made_inside_runs_nothing_outside,
    left::a_plain_repository_made_inside_stays,
    left::a_repository_that_was_there_keeps_its_own_hooks_however_deep_it_lies,
    left::git_writes_through_no_link_that_a_task_left,
    left::what_a_repositorys_settings_lead_to_is_protected,
    left::a_rebase_that_was_left_half_way_runs_nothing_outside,
    left::what_goes_on_after_a_conflict_merges_with_no_program_of_the_agents,
    protected::what_git_and_other_tools_obey_cannot_be_changed,
    protected::ordinary_work_with_git_goes_on,
    protected::a_submodule_can_be_worked_in,
    protected::a_worktree_can_be_worked_in_when_its_repository_is_a_root_too,
    protected::git_status_on_the_host_runs_nothing_of_the_agents,
    protected::a_root_without_a_repository_gets_none,
    protected::an_open_repository_is_the_agents_and_a_read_only_one_stays_as_it_is,
    protected::names_of_the_task_itself_are_protected_too,
    protected::names_that_are_links_are_held_with_what_they_name,
    protected::placeholders_are_shared_and_go_with_the_last_task_of_a_root,
    protected::after_a_kill_the_next_start_removes_placeholders,
    protected::placeholders_do_not_show_in_git_status,
    protected::a_protected_file_is_held_by_all_its_names,
    protected::protected_names_are_held_however_they_are_written,
    enforced::every_guarantee_is_in_the_record_as_the_doctor_tells_it,
    enforced::a_named_limit_that_cannot_be_kept_refuses_the_task_and_a_default_one_is_reported,
    enforced::names_that_cannot_be_protected_refuse_the_task_unless_that_is_accepted,
    enforced::what_a_backend_cannot_keep_refuses_the_task_unless_it_is_accepted,
);

// Podman gets the same container as Docker in words of its own: what those could differ in is tried there too.
tried_at_an_engine!(
    podman_withstands_what_engines_differ_in,
    engines::Daemon::podman(),
    "docker at podman",
    probes::every_probe_from_inside_is_blocked,
    cves::no_descriptor_of_the_host_is_a_way_out,
    cves::the_programs_that_watch_cannot_be_changed,
    cves::exotic_sockets_and_calls_do_not_exist,
    kernel::nothing_of_the_kernels_opens_for_writing,
    kernel::no_device_is_anywhere_but_the_harmless_ones,
    mounts::a_readable_root_stays_so,
    neighbours::no_exec_looks_into_another_one,
    files::what_is_open_is_not_looked_up_again_by_its_name,
    files::nobody_speaks_to_a_program_outside_that_listens_in_a_root,
    bounds::no_place_can_be_filled_beyond_its_bound,
    bounds::descriptors_that_are_used_up_are_the_execs_own,
    lifecycle::a_fork_bomb_stays_small_whoever_runs_it,
    images::links_of_an_image_lead_nowhere_outside,
    protected::what_git_and_other_tools_obey_cannot_be_changed,
);
