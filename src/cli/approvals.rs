//! `belljar approvals`: the questions of live tasks, from another shell.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use futures_util::stream::SelectAll;

use super::terminal::clean;
use crate::api::approvals::{Approval, ApprovalAnswer, ApprovalChange, ApprovalDecision, ApprovalSettled};
use crate::api::client::{self, ClientError, Task};
use crate::approval::Session;
use crate::approval::session::Kept;
use crate::id::{ApprovalId, TaskId};
use crate::policy::Scope;

#[derive(Debug, clap::Subcommand)]
pub enum ApprovalsCommand {
    /// Lists the questions that wait for an answer
    Ls(ListArgs),
    /// Shows questions as they come, and what becomes of them; as long as it runs, questions wait for an answer
    Watch(Json),
    /// Says yes to a question
    Approve(ApproveArgs),
    /// Says no to a question
    Deny(DenyArgs),
    /// Lets an answer for the session hold no longer
    Forget(ForgetArgs),
}

#[derive(Debug, clap::Args)]
pub struct Json {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// The answers that hold for the session, instead
    #[arg(long)]
    session: bool,
    #[command(flatten)]
    form: Json,
}

#[derive(Debug, clap::Args)]
pub struct ApproveArgs {
    /// The question: its id, or a unique beginning or end of it
    id: String,
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    form: Json,
}

#[derive(Debug, clap::Args)]
pub struct DenyArgs {
    /// The question: its id, or a unique beginning or end of it
    id: String,
    /// What the agent is told
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    form: Json,
}

#[derive(Debug, clap::Args)]
pub struct ForgetArgs {
    /// The question that was answered: its id, or a unique beginning or end of it
    #[arg(required_unless_present = "all")]
    id: Option<String>,
    /// All answers of all sessions
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    form: Json,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct ScopeArgs {
    /// For the requests that wait now (the default)
    #[arg(long)]
    once: bool,
    /// For the whole task
    #[arg(long)]
    task: bool,
    /// For all tasks of the session
    #[arg(long)]
    session: bool,
    /// Always: adds the rule that is shown to the file that is shown
    #[arg(long)]
    rule: bool,
}

impl ScopeArgs {
    fn scope(&self) -> Scope {
        match self {
            Self { task: true, .. } => Scope::Task,
            Self { session: true, .. } => Scope::Session,
            Self { rule: true, .. } => Scope::Rule,
            _ => Scope::Once,
        }
    }
}

/// How often new tasks are looked for while watching.
const LOOK_AROUND: Duration = Duration::from_secs(1);

pub async fn run(command: ApprovalsCommand) -> anyhow::Result<u8> {
    let state = super::state_folder();
    match command {
        ApprovalsCommand::Ls(args) if args.session => kept(&state, args.form.json),
        ApprovalsCommand::Ls(args) => list(&state, args.form.json).await,
        ApprovalsCommand::Watch(form) => watch(&state, form.json).await,
        ApprovalsCommand::Approve(ApproveArgs { id, scope, form }) => {
            let answer = ApprovalAnswer {
                decision: ApprovalDecision::Approve,
                scope: scope.scope(),
                reason: None,
            };
            answer_one(&state, &id, answer, form.json).await
        }
        ApprovalsCommand::Deny(DenyArgs {
            id,
            reason,
            scope,
            form,
        }) => {
            let answer = ApprovalAnswer {
                decision: ApprovalDecision::Deny,
                scope: scope.scope(),
                reason,
            };
            answer_one(&state, &id, answer, form.json).await
        }
        ApprovalsCommand::Forget(args) => forget(&state, args),
    }
}

/// The questions of all live tasks, each with the task whose process keeps it.
async fn open(state: &Path) -> anyhow::Result<Vec<(Task, Approval)>> {
    let mut all: BTreeMap<ApprovalId, (Task, Approval)> = BTreeMap::new();
    for card in client::cards(state)? {
        let task = Task::new(state, card.id);
        match task.approvals().await {
            Ok(open) => all.extend(open.into_iter().map(|one| (one.id, (task.clone(), one)))),
            // Its process is gone, and its questions with it.
            Err(ClientError::Connect { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all.into_values().collect())
}

async fn list(state: &Path, json: bool) -> anyhow::Result<u8> {
    let open: Vec<Approval> = open(state).await?.into_iter().map(|(_, approval)| approval).collect();
    if json {
        println!("{}", serde_json::to_string(&open)?);
    } else {
        open.iter().for_each(|approval| print!("{}", shown(approval)));
    }
    Ok(0)
}

async fn answer_one(state: &Path, id: &str, answer: ApprovalAnswer, json: bool) -> anyhow::Result<u8> {
    let open = open(state).await?;
    let ids = open.iter().map(|(_, approval)| approval.id);
    let settled = match (named(id, ids), id.parse::<ApprovalId>()) {
        (Ok(id), _) => {
            let (task, _) = open
                .iter()
                .find(|(_, approval)| approval.id == id)
                .context("the question is gone")?;
            task.answer(id, &answer).await?
        }
        // Answered already, perhaps: its task knows by whom.
        (Err(_), Ok(id)) => ask_each(state, id, &answer).await?,
        (Err(error), Err(_)) => return Err(error),
    };
    if json {
        println!("{}", serde_json::to_string(&settled)?);
    } else {
        print!("{}", told(&settled, answer.decision));
    }
    Ok(0)
}

async fn ask_each(state: &Path, id: ApprovalId, answer: &ApprovalAnswer) -> anyhow::Result<ApprovalSettled> {
    let mut last = None;
    for card in client::cards(state)? {
        match Task::new(state, card.id).answer(id, answer).await {
            Ok(settled) => return Ok(settled),
            Err(ClientError::Connect { .. }) => {}
            Err(error) if is_unknown(&error) => last = last.or(Some(error)),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.into()),
        None => bail!("there is no open question {id}"),
    }
}

fn is_unknown(error: &ClientError) -> bool {
    let ClientError::Refused(refused) = error else {
        return false;
    };
    refused.0.code == crate::api::messages::ErrorCode::NotFound
}

/// The one id that is, begins with or ends in this text.
fn named(text: &str, ids: impl Iterator<Item = ApprovalId>) -> anyhow::Result<ApprovalId> {
    let wanted = text.to_ascii_lowercase();
    let fits = |id: &ApprovalId| {
        let id = id.to_string();
        !wanted.is_empty() && (id.starts_with(&wanted) || id.ends_with(&wanted))
    };
    let found: Vec<ApprovalId> = ids.filter(fits).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => bail!("no open question is called \"{}\"", clean(text)),
        more => {
            let ids: Vec<String> = more.iter().map(ApprovalId::to_string).collect();
            bail!("\"{}\" could be any of {}", clean(text), ids.join(", "))
        }
    }
}

fn told(settled: &ApprovalSettled, decision: ApprovalDecision) -> String {
    let what = match decision {
        ApprovalDecision::Approve => "approved",
        ApprovalDecision::Deny => "denied",
    };
    let scope = match settled.scope {
        Scope::Once => "once",
        Scope::Task => "for the task",
        Scope::Session => "for the session",
        Scope::Rule => "as a rule",
    };
    let note = settled
        .note
        .as_ref()
        .map_or(String::new(), |note| format!(" ({})", clean(note)));
    format!("{what} {scope}{note}\n")
}

/// Everything that a person needs to see before saying yes, made safe to show.
fn shown(approval: &Approval) -> String {
    let mut text = format!("{}\n", clean(&approval.about));
    let mut row = |name: &str, value: &str| text.push_str(&format!("  {:<9}{}\n", clean(name), clean(value)));
    row("id", &approval.id.to_string());
    row("task", &format!("{} ({})", approval.task_name, approval.task));
    if let Some(purpose) = &approval.purpose {
        row("purpose", purpose);
    }
    for fact in &approval.facts {
        row(&fact.name, &fact.value);
    }
    row("because", &approval.reason);
    if approval.person_only {
        row("for", "a person only");
    }
    if approval.waiting > 1 {
        row(
            "waiting",
            &format!("{} requests, all for this one answer", approval.waiting),
        );
    }
    if let (Some(rule), Some(file)) = (&approval.rule, &approval.rule_file) {
        row("--rule", &format!("adds {rule} to {file}"));
    }
    row("until", &approval.until);
    text
}

/// Shows what happens in all tasks, those that are still to come among them.
async fn watch(state: &Path, json: bool) -> anyhow::Result<u8> {
    let mut seen: HashSet<ApprovalId> = HashSet::new();
    let mut watched: HashSet<TaskId> = HashSet::new();
    let mut changes = SelectAll::new();
    let mut look = tokio::time::interval(LOOK_AROUND);
    loop {
        tokio::select! {
            _ = look.tick() => {
                let live = client::cards(state)?;
                watched.retain(|id| live.iter().any(|card| card.id == *id));
                for card in live {
                    // One that does not answer yet is tried again.
                    if !watched.contains(&card.id)
                        && let Ok(approvals) = Task::new(state, card.id).watch_approvals().await
                    {
                        watched.insert(card.id);
                        let stream = futures_util::stream::unfold(approvals, |mut approvals| async move {
                            Some((approvals.next().await?, approvals))
                        });
                        changes.push(stream.boxed());
                    }
                }
            }
            Some(change) = changes.next(), if !changes.is_empty() => tell(&change?, &mut seen, json)?,
        }
    }
}

fn tell(change: &ApprovalChange, seen: &mut HashSet<ApprovalId>, json: bool) -> anyhow::Result<()> {
    if let ApprovalChange::Asked { approval } = change
        && !seen.insert(approval.id)
    {
        return Ok(());
    }
    if json {
        println!("{}", serde_json::to_string(change)?);
        return Ok(());
    }
    match change {
        ApprovalChange::Asked { approval } => print!("{}", shown(approval)),
        ApprovalChange::Answered { id, answer, approver } => {
            println!(
                "{id}: {} by {} ({})",
                clean(answer),
                clean(&approver.name),
                clean(&approver.via)
            );
        }
        ApprovalChange::Missed => eprintln!("belljar: some questions were missed: belljar approvals ls"),
    }
    Ok(())
}

fn kept(state: &Path, json: bool) -> anyhow::Result<u8> {
    let kept = Session::of_boot(state, None)?.list()?;
    if json {
        println!("{}", serde_json::to_string(&kept)?);
        return Ok(0);
    }
    for one in &kept {
        let session = match one.session.as_str() {
            "" => String::new(),
            name => format!(" in session {}", clean(name)),
        };
        println!(
            "{}: {:?} by {}{session}, until {}: {}",
            one.approval,
            one.answer,
            clean(&one.approver.name),
            one.until,
            clean(&one.about)
        );
    }
    Ok(0)
}

fn forget(state: &Path, args: ForgetArgs) -> anyhow::Result<u8> {
    let session = Session::of_boot(state, None)?;
    let count = match args.id {
        Some(id) => {
            let kept = session.list()?;
            let id = named(&id, kept.iter().map(|one| one.approval))?;
            session.forget(|one: &Kept| one.approval == id)?
        }
        None => session.forget(|_| true)?,
    };
    if args.form.json {
        println!("{}", serde_json::json!({ "forgotten": count }));
    } else {
        println!("forgotten: {count}");
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_named_by_its_beginning_or_end_if_that_is_unique() {
        let ids: [ApprovalId; 2] = [
            "01920000-0000-7000-8000-00000000000a".parse().unwrap(),
            "01920000-0000-7000-8000-00000000000b".parse().unwrap(),
        ];
        let named = |text: &str| named(text, ids.into_iter()).map_err(|error| error.to_string());
        assert_eq!(named("0A"), Ok(ids[0]));
        assert_eq!(named(&ids[1].to_string()), Ok(ids[1]));
        assert!(named("0192").unwrap_err().contains("could be any of"));
        assert!(named("").is_err() && named("zz").is_err());
    }

    #[test]
    fn what_is_shown_is_cleaned() {
        let approval = Approval {
            id: "01920000-0000-7000-8000-00000000000a".parse().unwrap(),
            task: TaskId::new(),
            task_name: "t\u{1b}[2J".to_owned(),
            purpose: None,
            exec: None,
            about: "ls\u{202e}".to_owned(),
            facts: Vec::new(),
            reason: "no rule\nallows it".to_owned(),
            rules: Vec::new(),
            person_only: true,
            since: String::new(),
            until: "soon".to_owned(),
            waiting: 3,
            scopes: vec![Scope::Once],
            rule: None,
            rule_file: None,
        };
        let shown = shown(&approval);
        assert!(shown.starts_with("ls\\u{202e}\n  id "), "{shown}");
        assert!(
            shown.contains("t\\u{1b}[2J") && shown.contains("no rule\\nallows it"),
            "{shown}"
        );
        assert!(
            shown.contains("a person only") && shown.contains("3 requests"),
            "{shown}"
        );
    }
}
