//! Where nobody asked for anything, what is demanded takes the place of what is built in.

use super::super::Requirements;
use super::fits;
use crate::config::{Egress, Journal, is_built_in};
use crate::document::Sited;
use crate::task::spec::TaskSpec;

impl Requirements {
    /// Where only the built-in configuration speaks, what is demanded takes its place: nobody asked for more.
    pub(in crate::config) fn fill(&self, spec: &mut TaskSpec, journal: &mut Journal) {
        fill(&mut spec.backend, &self.backends);
        fill(&mut spec.runtime, &self.runtimes);
        fill(&mut spec.user, &self.users);
        fill(&mut spec.network.unknown, &self.unknown);
        fill(&mut spec.gate.unmatched, &self.unmatched);
        fill(&mut spec.gate.reviewer, &self.reviewers);
        fill(&mut spec.gate.approvers, &self.approvers);
        if let (Some(accepted), Some(allowed)) = (&mut spec.accept_partial, &self.accept_partial) {
            accepted.retain(|one| !is_built_in(&one.origin) || allowed.value.contains(&one.value));
        }
        cap(&mut spec.limits.memory, &self.memory);
        cap(&mut spec.limits.cpus, &self.cpus);
        cap(&mut spec.limits.pids, &self.pids);
        cap(&mut spec.limits.disk, &self.disk);
        cap(&mut spec.limits.task_time, &self.task_time);
        cap(&mut spec.limits.exec_time, &self.exec_time);
        cap(&mut spec.limits.output, &self.output);
        cap(&mut spec.gate.approval_time, &self.approval_time);
        let mut events = Some(journal.agent_events.clone());
        fill(&mut events, &self.agent_events);
        journal.agent_events = events.expect("it was filled above");
        // A pattern is no image: only a plain name can take the place of "host".
        let plain = |images: &Sited<Vec<String>>| {
            let names = images
                .value
                .iter()
                .filter(|image| !image.contains('*'))
                .cloned()
                .collect();
            Sited::new(names, images.origin.clone())
        };
        if let Some(images) = &self.images
            && !images.value.iter().any(|pattern| fits(pattern, "host"))
        {
            fill(&mut spec.image, &Some(plain(images)));
        }
        if let Some(sync) = &self.sync
            && is_built_in(&journal.sync.origin)
        {
            journal.sync = sync.clone();
        }
        spec.network.deny.extend(self.deny.iter().cloned());
    }

    /// A proxy that is demanded takes the place of none.
    pub(in crate::config) fn fill_egress(&self, egress: &mut Egress) {
        egress.upstream = egress.upstream.take().or_else(|| self.upstream.clone());
    }
}

/// The first allowed value takes the place of a built-in one that is not allowed.
fn fill<T: Clone + PartialEq>(value: &mut Option<Sited<T>>, allowed: &Option<Sited<Vec<T>>>) {
    let Some(allowed) = allowed else { return };
    let gives_way = value
        .as_ref()
        .is_none_or(|value| is_built_in(&value.origin) && !allowed.value.contains(&value.value));
    if let (true, Some(first)) = (gives_way, allowed.value.first()) {
        *value = Some(Sited::new(first.clone(), allowed.origin.clone()));
    }
}

/// A cap takes the place of a built-in limit above it, or of none.
fn cap<T: Clone + PartialOrd>(value: &mut Option<Sited<T>>, most: &Option<Sited<T>>) {
    let Some(most) = most else { return };
    if value
        .as_ref()
        .is_none_or(|value| is_built_in(&value.origin) && value.value > most.value)
    {
        *value = Some(most.clone());
    }
}
