//! `belljar plan`: what a task's sandbox would be, and the OCI bundle that follows from it. Nothing is started.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::flags::{Ready, TaskArgs};
use super::terminal::clean;
use super::unpacking::UnpackingLine;
use crate::audit::record::Control;
use crate::image::Store;
use crate::sandbox::bundle::{self, HardLimits};
use crate::sandbox::launcher::Launcher;
use crate::sandbox::plan::{Ids, Plan, Source, What};
use crate::sandbox::{enforcement, outside, protect, seccomp, unfold};
use crate::supervisor::{self, Heard, RootFacts};
use crate::sys::cgroup::Cgroups;
use crate::task::Backend;

/// Prints the isolation that a task would get, and the bundle that an OCI runtime would be given; starts nothing.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    task: TaskArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: PlanArgs) -> anyhow::Result<u8> {
    let Ready { task, config, .. } = args.task.admit()?;
    let (image, engine) = {
        let heard: Heard = Arc::new(UnpackingLine::new(args.json));
        let found = async {
            let engine = match task.backend {
                Backend::Docker => Some(supervisor::own_engine().await?),
                Backend::Oci => None,
            };
            let store = Store::of_state(&config.state);
            let image = supervisor::find(&task.image, &store, engine.as_ref(), &heard).await?;
            Ok::<_, anyhow::Error>((image, engine))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(found)?
    };
    if let Some(engine) = &engine {
        engine.facts.runtime(&task.runtime)?;
    }
    let protected = protect::look(&task.roots)?;
    let launcher = Mutex::new(Launcher::start(Path::new("/proc/self/exe"))?);
    let unmapped = supervisor::unmapped(&task.roots, &launcher)?;
    let facts = RootFacts {
        gaps: &protected.gaps,
        unmapped: unmapped.as_ref(),
    };
    let controls = supervisor::enforced(&task, &Cgroups::detect(), facts, engine.as_ref());
    let lacking = enforcement::lacking(&controls, &task);
    let plan = supervisor::plan(&task, &image)
        .with_user(unmapped.map(|at| at.owner))
        .with_protected(&protected);
    let runtime = supervisor::runtime_name(&task.runtime);
    let carry = outside::carry(&runtime);
    let bundle = bundle::of(&plan, &seccomp::ALLOWED, HardLimits::of_process(), carry)?;
    let answer = if args.json {
        let answer = serde_json::json!({
            "runtime": runtime, "plan": plan, "digest": plan.digest().to_string(), "bundle": bundle,
            "enforced": controls, "refused": lacking,
        });
        format!("{answer:#}\n")
    } else {
        let config = serde_json::to_string_pretty(&bundle)?;
        let enforced = enforced(&controls, &lacking);
        format!("{}{enforced}\nbundle (config.json)\n{config}\n", text(&plan, &runtime))
    };
    std::io::stdout().write_all(answer.as_bytes())?;
    Ok(0)
}

/// How far each guarantee would be kept, and because of which the task would be refused.
fn enforced(controls: &[Control], lacking: &[&Control]) -> String {
    let mut text = String::new();
    for control in controls {
        let word = serde_json::json!(control.enforced);
        let reason = control.reason.as_deref().map(|reason| format!(": {}", clean(reason)));
        let refused = if lacking.contains(&control) {
            " (the task is refused)"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "{:<12} {} {}{refused}{}",
            "enforced",
            control.control,
            word.as_str().unwrap_or_default(),
            reason.unwrap_or_default()
        );
    }
    text
}

/// The plan for people. Paths come from the spec, so they are cleaned of what a terminal would act on.
fn text(plan: &Plan, runtime: &str) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {}", clean(&value));
    };
    line("runtime", runtime.to_owned());
    line("plan", plan.digest().to_string());
    line("hostname", plan.hostname.clone());
    line(
        "ids",
        match plan.ids {
            Ids::Range { base, user } => {
                let user = user.map(|user| format!(", but {} is {}", plan.process.uid, user.uid));
                let last = base + 65_535;
                format!("0-65535 inside are {base}-{last} outside{}", user.unwrap_or_default())
            }
            Ids::Single { inside, uid, .. } => format!("{inside} inside is {uid} outside, all others are nobody"),
        },
    );
    line(
        "user",
        format!(
            "{}:{}, no capabilities, no_new_privs",
            plan.process.uid, plan.process.gid
        ),
    );
    line("workdir", plan.process.cwd.to_string());
    line("network", format!("{:?}", plan.network).to_lowercase());
    let limit = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    line(
        "memory",
        limit(plan.limits.memory_bytes.map(|bytes| format!("{bytes} bytes"))),
    );
    line("cpus", limit(plan.limits.cpus.map(|cpus| cpus.to_string())));
    line("pids", limit(plan.limits.pids.map(|pids| pids.to_string())));
    line(
        "disk",
        format!("{} bytes, {} files, disposable", plan.root.bytes, plan.root.inodes),
    );
    line("open files", plan.process.open_files.to_string());
    line(
        "seccomp",
        format!("{} system calls allowed, {}", seccomp::ALLOWED.len(), plan.seccomp),
    );
    for layer in &plan.root.layers {
        line("layer", layer.to_string());
    }
    for mount in &plan.mounts {
        let source = match &mount.source {
            Source::Bind { host, .. } => host.to_string(),
            Source::Tmpfs { bytes, .. } => format!("tmpfs, {bytes} bytes"),
            Source::Proc => "proc".to_owned(),
            Source::Sysfs => "sysfs".to_owned(),
            Source::Devpts => "devpts".to_owned(),
            Source::Mqueue => "mqueue".to_owned(),
            Source::Device { name } => format!("the device {name}"),
            Source::Itself { .. } => "itself, so that it stays".to_owned(),
            Source::Nothing { .. } => "an empty file".to_owned(),
        };
        let access = if mount.attributes.read_only { "ro" } else { "rw" };
        line("mount", format!("{} {access} <- {source}", mount.path));
    }
    // Of folders that the machine fills there are hundreds, which all say the same.
    let mut linked = BTreeMap::<&str, usize>::new();
    for made in &plan.root.made {
        if let What::Link { target } = &made.what
            && let (Some((to, _)), Some((folder, _))) = (target.rsplit_once('/'), made.path.as_str().rsplit_once('/'))
            && to.starts_with(unfold::PLACE)
        {
            *linked.entry(folder).or_default() += 1;
            continue;
        }
        let what = match &made.what {
            What::Folder { mode } => format!("a folder, {mode:04o}"),
            What::File { content, mode } => format!("a file, {mode:04o}, {} bytes", content.len()),
            What::Bytes { content, mode } => format!("a file, {mode:04o}, {} bytes", content.len()),
            What::Link { target } => format!("a link to {target}"),
        };
        line("made", format!("{}: {what}", made.path));
    }
    for (folder, count) in linked {
        line("made", format!("{folder}: links to {count} of the machine's own files"));
    }
    for path in &plan.masked {
        line("masked", path.to_string());
    }
    for path in &plan.read_only {
        line("read-only", path.to_string());
    }
    for (name, value) in &plan.process.env {
        line("env", format!("{name}={value}"));
    }
    text
}
