//! `belljar doctor`: what this machine can enforce, control by control, why not more, and what would be needed. Found out by trying.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::audit::record::{Control, Enforced};
use crate::config::Surroundings;
use crate::document::Word as _;
use crate::sandbox::bundle::HardLimits;
use crate::sandbox::docker::{self, Engine};
use crate::sandbox::enforcement::Facts;
use crate::sandbox::outside;
use crate::sandbox::probe::{self, Trials};
use crate::sys::cgroup::{Cgroups, Version};
use crate::task::Guarantee;

/// Tells what this machine can enforce, and what would be needed for more.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// One control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub control: &'static str,
    pub enforced: Enforced,
    /// What was found.
    pub found: String,
    /// What would be needed for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed: Option<String>,
    /// Without it no task runs at all.
    pub required: bool,
}

/// 0 where tasks can run sealed, else 125.
pub fn run(args: DoctorArgs) -> anyhow::Result<u8> {
    let surroundings = Surroundings::of_process();
    let trials = probe::try_all(Path::new("/proc/self/exe"), &surroundings.state_folder())?;
    let found = Cgroups::detect();
    let guarantees = guarantees(&trials, &Facts::of_machine(&found, &[]));
    let mut findings = kernel(&trials, surroundings.uid);
    findings.extend(cgroups(&found));
    findings.extend(limits(HardLimits::of_process()));
    findings.extend(programs(surroundings.uid, &surroundings.user));
    findings.extend(
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(engines()),
    );
    let ready = findings
        .iter()
        .all(|finding| !finding.required || finding.enforced == Enforced::Full);
    let answer = match args.json {
        true => format!(
            "{:#}\n",
            serde_json::json!({ "ready": ready, "guarantees": guarantees, "controls": findings })
        ),
        false => text(&guarantees, &findings, ready),
    };
    std::io::stdout().write_all(answer.as_bytes())?;
    Ok(if ready { 0 } else { super::exit::FAILED })
}

/// What a sandbox would be given here, by the names of `accept_partial`. A setup without one of its steps starts nothing.
fn guarantees(trials: &Trials, facts: &Facts<'_>) -> Vec<Control> {
    let mut controls = facts.controls(|_| true);
    for control in &mut controls {
        let trial = match Guarantee::read(&control.control) {
            Ok(Guarantee::Namespaces) => &trials.namespaces,
            Ok(Guarantee::Ids) => &trials.user_namespace,
            Ok(Guarantee::Mounts) => &trials.mounts,
            Ok(Guarantee::MaskedPaths) => &trials.proc,
            Ok(Guarantee::Seccomp | Guarantee::Sockets) => &trials.seccomp,
            _ => &None,
        };
        if let Some(failed) = trial {
            (control.enforced, control.reason) = (Enforced::None, Some(failed.clone()));
        }
    }
    controls
}

fn text(guarantees: &[Control], findings: &[Finding], ready: bool) -> String {
    let mut text = "what a sandbox is given here (the names of accept_partial)\n\n".to_owned();
    for control in guarantees {
        let reason = control.reason.as_deref().unwrap_or_default();
        let line = format!("{:<17} {:<8} {reason}", control.control, word(control.enforced));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push_str("\nwhat it is made of\n\n");
    for finding in findings {
        let _ = writeln!(
            text,
            "{:<17} {:<8} {}",
            finding.control,
            word(finding.enforced),
            finding.found
        );
        if let Some(needed) = &finding.needed {
            let _ = writeln!(text, "{:<26} needed: {needed}", "");
        }
    }
    text.push_str(match ready {
        true => "\ntasks run sealed on this machine\n",
        false => "\ntasks cannot run on this machine: a control that no task does without is missing\n",
    });
    text
}

fn word(enforced: Enforced) -> &'static str {
    match enforced {
        Enforced::Full => "full",
        Enforced::Partial => "partial",
        Enforced::None => "none",
    }
}

fn finding(control: &'static str, enforced: Enforced, found: impl Into<String>) -> Finding {
    Finding {
        control,
        enforced,
        found: found.into(),
        needed: None,
        required: false,
    }
}

impl Finding {
    fn needs(mut self, needed: &str) -> Self {
        if self.enforced != Enforced::Full {
            self.needed = Some(needed.to_owned());
        }
        self
    }

    fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

/// A trial as a finding: all or nothing.
fn tried(control: &'static str, trial: &Option<String>, works: &str) -> Finding {
    match trial {
        None => finding(control, Enforced::Full, works),
        Some(failed) => finding(control, Enforced::None, failed.clone()),
    }
}

fn kernel(trials: &Trials, uid: u32) -> Vec<Finding> {
    let mut id_mapped = match (&trials.id_mapped, &trials.id_mapped_state) {
        (None, None) => finding("id-mapped mounts", Enforced::Full, "files keep their owner"),
        (None, Some(state)) => finding("id-mapped mounts", Enforced::Partial, state.clone())
            .needs("a state folder on a file system that can map ids (ext4, xfs, btrfs, tmpfs from Linux 6.3 on)"),
        (Some(system), _) => finding("id-mapped mounts", Enforced::None, system.clone())
            .needs("Linux 5.12 and a root file system that can map ids"),
    };
    if uid == 0 {
        id_mapped = id_mapped.required();
    } else {
        // Only root may; an ordinary user's own id is mapped by the user namespace, which is enough for that user's files.
        id_mapped = finding(
            "id-mapped mounts",
            Enforced::Partial,
            "an ordinary user cannot make them; the user's own files keep their owner all the same",
        )
        .needs("root");
    }
    vec![
        tried("user namespaces", &trials.user_namespace, "one can be made")
            .needs("kernel.unprivileged_userns_clone = 1, user.max_user_namespaces > 0, and no AppArmor restriction on them")
            .required(),
        tried("namespaces", &trials.namespaces, "user, mount, pid, net, ipc, uts and cgroup")
            .needs("a kernel with all of them, and room below user.max_*_namespaces")
            .required(),
        tried("mount API", &trials.mounts, "fsopen, open_tree, move_mount and mount_setattr")
            .needs("Linux 5.12")
            .required(),
        tried("own /proc", &trials.proc, "a pid namespace has its own")
            .needs("a /proc of which nothing is hidden (in a container: an unmasked one)")
            .required(),
        tried("own /sys", &trials.sysfs, "a net namespace has its own")
            .needs("a /sys of which nothing is hidden; tasks get an empty one until then"),
        tried("overlay", &trials.overlay, "layers of images can be stacked in a user namespace")
            .needs("Linux 5.11; the image host works without"),
        id_mapped,
        tried("seccomp", &trials.seccomp, "the filter loads")
            .needs("a kernel with CONFIG_SECCOMP_FILTER")
            .required(),
        tried("pidfd", &trials.pidfd, "processes are held by descriptor")
            .needs("Linux 5.3")
            .required(),
        tried("Landlock", &trials.landlock, "each command of a task has a domain of its own")
            .needs("a kernel with CONFIG_SECURITY_LANDLOCK, for exec_isolation; the box itself is no weaker without"),
        tried("KVM", &trials.kvm, "/dev/kvm can be used")
            .needs("a machine with virtualisation, and access to /dev/kvm; only microVMs use it"),
    ]
}

fn cgroups(cgroups: &Cgroups) -> Vec<Finding> {
    let why = |missing: &str| {
        let why = cgroups.why.clone();
        why.unwrap_or_else(|| format!("the {missing} controller is not there"))
    };
    let version = match cgroups.version() {
        Some(Version::V2) => finding("cgroups", Enforced::Full, "version 2"),
        Some(Version::V1) => finding(
            "cgroups",
            Enforced::Full,
            "version 1; counting starts slower after a pause than with version 2",
        ),
        None => finding("cgroups", Enforced::None, why("cgroup"))
            .needs("root, or a delegated subtree (systemd: Delegate=yes); execs are counted by rusage until then"),
    };
    let controls = cgroups.controls();
    let rows = [
        ("limit: memory", controls.memory, "memory"),
        ("limit: cpus", controls.cpu, "cpu"),
        ("limit: pids", controls.pids, "pids"),
        ("counter: I/O", controls.io, "io"),
    ];
    let mut findings = vec![version];
    findings.extend(rows.map(|(control, can, name)| match can {
        true => finding(control, Enforced::Full, format!("the {name} controller")),
        false => {
            finding(control, Enforced::None, why(name)).needs("that controller, in a subtree that belljar may use")
        }
    }));
    findings
}

/// Open files that 1,000 idle tasks take, and some room.
const OPEN_FILES_WANTED: u64 = 16_384;

fn limits(hard: HardLimits) -> Vec<Finding> {
    let enforced = if hard.open_files >= OPEN_FILES_WANTED {
        Enforced::Full
    } else {
        Enforced::Partial
    };
    vec![
        finding("open files", enforced, format!("at most {} a process", hard.open_files))
            .needs("a higher hard limit (ulimit -Hn), for many tasks at once"),
    ]
}

fn programs(uid: u32, user: &str) -> Vec<Finding> {
    vec![runc(), runsc(uid), newuidmap(uid, user)]
}

/// The first runc of each line that has the fixes of November 2025.
const RUNC_FIXED: [(u32, u32, u32); 2] = [(1, 2, 8), (1, 3, 3)];

fn runc() -> Finding {
    let Ok(program) = outside::find("runc") else {
        return finding("runc", Enforced::None, "not installed").needs("the package runc, for runtime = \"runc\"");
    };
    match first_line(&program, &["--version"]) {
        Some(line) => match version_of(&line) {
            Some(version) if is_fixed(version) => finding("runc", Enforced::Full, line),
            _ => finding(
                "runc",
                Enforced::Partial,
                format!(
                    "{line}: lacks the fixes of November 2025 (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: races with masked \
                     paths and /dev/console); belljar runs it inside a user namespace only"
                ),
            )
            .needs("runc 1.2.8, 1.3.3 or newer"),
        },
        None => finding("runc", Enforced::None, format!("{} does not answer", program.display()))
            .needs("a runc that runs"),
    }
}

fn is_fixed(version: (u32, u32, u32)) -> bool {
    let (major, minor, _) = version;
    match RUNC_FIXED.iter().find(|(a, b, _)| (*a, *b) == (major, minor)) {
        Some(fixed) => version >= *fixed,
        None => (major, minor) > (1, 3),
    }
}

fn runsc(uid: u32) -> Finding {
    let Ok(program) = outside::find("runsc") else {
        return finding("runsc", Enforced::None, "not installed").needs("the package runsc, for runtime = \"runsc\"");
    };
    let line = first_line(&program, &["--version"]).unwrap_or_else(|| "it does not answer".to_owned());
    match uid {
        0 if is_without_no_automount(&line) => finding(
            "runsc",
            Enforced::Partial,
            format!(
                "{line}; execs are counted by rusage; `ls`, `stat` and `cp` fail in it with \"Invalid argument\", for its calls do not \
                 know AT_NO_AUTOMOUNT"
            ),
        )
        .needs("a newer runsc"),
        0 => finding("runsc", Enforced::Full, format!("{line}; execs are counted by rusage")),
        _ => finding(
            "runsc",
            Enforced::None,
            format!("{line}; it needs more ids than an ordinary user has"),
        )
        .needs("root"),
    }
}

/// Releases have their day as a version. The one of Debian 12 is the newest of which this is known.
fn is_without_no_automount(line: &str) -> bool {
    let mut numbers = line.split(|sign: char| !sign.is_ascii_digit());
    numbers.any(|number| number.len() == 8 && number <= "20221219")
}

/// The engines of the `docker` backend, each at its usual socket; Docker's also where `DOCKER_HOST` says.
async fn engines() -> Vec<Finding> {
    let variable = |name: &str| std::env::var(name).ok();
    let asked = docker::socket(variable("DOCKER_HOST").as_deref(), None);
    let own = variable("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join("podman/podman.sock"));
    let podman = own
        .filter(|socket| socket.exists())
        .unwrap_or_else(|| "/run/podman/podman.sock".into());
    vec![
        match asked {
            Ok(socket) => engine("docker", &socket, "a running dockerd").await,
            Err(error) => finding("docker", Enforced::None, error.to_string()).needs("an engine on a unix socket"),
        },
        engine("podman", &podman, "a running \"podman system service\" there").await,
    ]
}

async fn engine(control: &'static str, socket: &Path, needed: &str) -> Finding {
    match Engine::connect(socket).await {
        Ok(engine) => {
            let runtimes: Vec<&str> = engine.facts.runtimes.keys().map(String::as_str).collect();
            let runtimes = runtimes.join(", ");
            let about = super::terminal::clean(&format!("{}; runtimes {runtimes}", engine.facts.about));
            match engine.facts.maps_ids {
                true => finding(control, Enforced::Full, about),
                false => finding(
                    control,
                    Enforced::Partial,
                    format!("{about}; ids inside are ids outside"),
                )
                .needs("dockerd --userns-remap, or a rootless engine"),
            }
        }
        Err(error) => finding(control, Enforced::None, error.to_string()).needs(needed),
    }
}

fn newuidmap(uid: u32, user: &str) -> Finding {
    let control = "newuidmap";
    if uid == 0 {
        return finding(control, Enforced::Full, "root maps ids without it");
    }
    let range = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
    let has_range = range.lines().any(|line| {
        let owner = line.split(':').next();
        owner == Some(user) || owner == Some(&uid.to_string())
    });
    match (outside::find(control), has_range) {
        (Ok(program), true) => finding(control, Enforced::Full, program.display().to_string()),
        (Ok(_), false) => finding(
            control,
            Enforced::None,
            "installed, and /etc/subuid has no range for this user",
        )
        .needs("a range in /etc/subuid and /etc/subgid; tasks have one id until then"),
        (Err(_), _) => finding(control, Enforced::None, "not installed")
            .needs("the package uidmap, and a range in /etc/subuid and /etc/subgid; tasks have one id until then"),
    }
}

/// The first line that a program answers with, if it ends well.
fn first_line(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let line = String::from_utf8_lossy(&output.stdout)
        .lines()
        .next()?
        .trim()
        .to_owned();
    (output.status.success() && !line.is_empty()).then(|| super::terminal::clean(&line))
}

/// The first `1.2.3` in a line; what follows the third number (`+ds1`, `-rc.1`) is left out, but for a release candidate.
fn version_of(line: &str) -> Option<(u32, u32, u32)> {
    let word = line
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = word.splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    let rest = parts.next()?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let patch: u32 = rest[..digits].parse().ok()?;
    // A candidate comes before its release.
    match rest[digits..].starts_with("-rc") || rest[digits..].starts_with("~rc") {
        true => Some((major, minor, patch.checked_sub(1)?)),
        false => Some((major, minor, patch)),
    }
}

#[cfg(test)]
mod tests;
