//! Violations as they are put into words: what is asked, where, and which demand is against it.

use std::time::Duration;

use crate::document::{Fault, Origin, Sited, Word};

/// What was found so far.
pub(super) struct Violations(pub Vec<Fault>);

impl Violations {
    pub fn push(&mut self, origin: &Origin, key: &str, what: String) {
        let key = match origin {
            Origin::Flag(_) => String::new(),
            Origin::File { .. } => key.to_owned(),
        };
        self.0.push(Fault {
            origin: origin.clone(),
            key,
            what,
        });
    }

    pub fn note(&mut self, origin: &Origin, key: &str, asked: String, allowed: &[String], by: &Origin) {
        let allowed = match allowed {
            [] => "nothing".to_owned(),
            some => some
                .iter()
                .map(|one| format!("\"{one}\""))
                .collect::<Vec<_>>()
                .join(", "),
        };
        self.push(origin, key, format!("{asked} is not allowed, only {allowed} ({by})"));
    }

    pub fn word<T: Word + PartialEq>(&mut self, key: &str, asked: &Option<Sited<T>>, allowed: &Option<Sited<Vec<T>>>) {
        if let (Some(asked), Some(allowed)) = (asked, allowed)
            && !allowed.value.contains(&asked.value)
        {
            let words: Vec<String> = allowed.value.iter().map(|word| word.word().to_owned()).collect();
            self.note(&asked.origin, key, quoted(asked.value), &words, &allowed.origin);
        }
    }

    pub fn limit<T: PartialOrd>(
        &mut self,
        key: &str,
        asked: &Option<Sited<T>>,
        most: &Option<Sited<T>>,
        show: impl Fn(&T) -> String,
    ) {
        if let (Some(asked), Some(most)) = (asked, most)
            && asked.value > most.value
        {
            let what = format!(
                "{} is more than the {} that {} allows",
                show(&asked.value),
                show(&most.value),
                most.origin
            );
            self.push(&asked.origin, key, what);
        }
    }
}

pub(super) fn quoted<T: Word + PartialEq>(word: T) -> String {
    format!("\"{}\"", word.word())
}

pub(super) fn time(time: &Duration) -> String {
    format!("{time:?}")
}
