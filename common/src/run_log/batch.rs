//! How a batch is made ready: at most one record for each id and claim is left of it.

use std::collections::HashMap;

use super::{Duplicate, duplicate};
use crate::domain::record::{Record, RecordId};

/// A batch whose records of one id and one claim are down to the one that knows most.
#[derive(Debug, Default)]
pub(super) struct Folded<'a> {
    /// Passes to be stored one after the other; within a pass no id comes twice. The first pass holds the first claim of
    /// each id, so there is a second one only when a fire ran twice.
    pub(super) passes: Vec<Vec<&'a Record>>,
    /// Records that another one of the batch made superfluous.
    pub(super) superseded: usize,
}

/// Folds the records in their order by the rules of [`duplicate`].
pub(super) fn fold(records: &[Record]) -> Folded<'_> {
    let mut folded = Folded::default();
    // Of each id, where its claims are: the n-th claim is in the n-th pass, at this position.
    let mut places: HashMap<&RecordId, Vec<usize>> = HashMap::new();
    for record in records {
        let claims = places.entry(&record.id).or_default();
        let same = claims.iter().enumerate().find_map(|(pass, &at)| {
            let held = &mut folded.passes[pass][at];
            match duplicate(held, record) {
                Duplicate::Conflict => None,
                Duplicate::Replay => Some(()),
                Duplicate::Replace => {
                    *held = record;
                    Some(())
                }
            }
        });
        if same.is_some() {
            folded.superseded += 1;
            continue;
        }
        if claims.len() == folded.passes.len() {
            folded.passes.push(Vec::new());
        }
        let pass = &mut folded.passes[claims.len()];
        claims.push(pass.len());
        pass.push(record);
    }
    folded
}

/// The record as it is kept aside: its id also names its claim, so that keeping it again is a replay.
pub(super) fn kept_aside(record: &Record) -> Record {
    let claim = record.claim.as_ref().map_or("", |claim| claim.as_str());
    Record { id: RecordId::from_text(format!("{}@{claim}", record.id)), ..record.clone() }
}

/// As much of a stored record as decides about a new one.
pub(super) enum Stored {
    /// Readable.
    Known(Box<Record>),
    /// Of a newer version, or damaged: never overwritten. Its claim, where it has one.
    Foreign(Option<String>),
}

impl Stored {
    /// What to do with `new`.
    pub(super) fn compare(&self, new: &Record) -> Duplicate {
        match self {
            Self::Known(stored) => duplicate(stored, new),
            Self::Foreign(claim) if claim.as_deref() == new.claim.as_ref().map(|c| c.as_str()) => {
                Duplicate::Replay
            }
            Self::Foreign(_) => Duplicate::Conflict,
        }
    }
}
