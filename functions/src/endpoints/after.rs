//! Who waits for whom (`after`): what a save must look at, and what a delete tells.

use std::collections::BTreeMap;

use common::domain::access::Principal;
use common::domain::job::{Job, JobName};
use common::keys;
use common::kv::{self, Compare, Kv, Op, Pair, Span, Txn};

use super::{Pages, broadcast};
use crate::access::reach;
use crate::http::Refusal;
use crate::store;

/// Most jobs that are followed from one that is saved: more than any chain of jobs has that somebody can still tell apart.
const FOLLOWED_MAX: usize = 1000;
/// Of these, so many are compared when the job is put, which a transaction has room for beside what it compares in any case. A circle that two
/// saves make at once of which neither saw the other, further away than that, is one that the workers break.
const COMPARED_MAX: usize = 100;
/// Most jobs that are looked at for those that wait for one that is deleted. In a larger fleet the workers' logs alone tell.
const LOOKED_AT_MAX: usize = 5_000;
/// Of those that wait for it, so many are named.
const NAMED_MAX: usize = 5;

/// What a job waits for, as it is stored.
#[derive(Default)]
pub(super) struct Before {
    /// That it has not changed.
    pub(super) unchanged: Vec<Compare>,
    /// What the author should know.
    pub(super) warnings: Vec<String>,
}

impl Before {
    /// Follows the jobs that `job` waits for, those that these wait for, and so on.
    ///
    /// # Errors
    /// It would wait for itself, or for one that runs on every worker, or others wait for it and it is such a one; or the store does not answer.
    pub(super) async fn of(kv: &dyn Kv, job: &Job, whose: &Principal) -> Result<Self, Refusal> {
        // That another's job has succeeded is not the caller's to know, nor whether there is such a job.
        job.options.after.iter().flat_map(|after| after.names()).try_for_each(|name| reach(whose, name))?;
        let mut before = Self::default();
        // Each with the job that waits for it.
        let mut waited_by: BTreeMap<JobName, JobName> = BTreeMap::new();
        let mut waiting = vec![job.clone()];
        while !waiting.is_empty() {
            let mut next = Vec::new();
            for job in &waiting {
                for name in job.options.after.iter().flat_map(|after| after.names()) {
                    if !waited_by.contains_key(name) {
                        waited_by.insert(name.clone(), job.name.clone());
                        next.push(name.clone());
                    }
                }
            }
            if waited_by.contains_key(&job.name) {
                return Err(circle(&job.name, &waited_by, whose));
            }
            if waited_by.len() > FOLLOWED_MAX {
                let long = format!("after: more than {FOLLOWED_MAX} jobs come before this one: name fewer");
                return Err(Refusal::bad(long));
            }
            let is_first = waiting.iter().any(|one| one.name == job.name);
            waiting = Vec::new();
            for some in next.chunks(kv::OPS_MAX) {
                let reads = some.iter().map(|name| Op::get(keys::job(name))).collect();
                let found = store::read(kv, Txn { then: reads, ..Txn::default() }).await?;
                for (index, name) in some.iter().enumerate() {
                    let stored = found.pair(index);
                    let predecessor = stored.and_then(job_of);
                    if is_first && predecessor.as_ref().is_some_and(|job| job.options.is_broadcast()) {
                        return Err(broadcast::no_predecessor(name));
                    }
                    if stored.is_none() && is_first {
                        before.warnings.push(format!(
                            "after: there is no job {:?} yet: this one runs once it is there and has succeeded",
                            name.as_str()
                        ));
                    }
                    if before.unchanged.len() < COMPARED_MAX {
                        let revision = stored.map_or(0, |pair| pair.mod_revision);
                        before.unchanged.push(Compare::unchanged(keys::job(name), revision));
                    }
                    // What is no job waits for nobody.
                    waiting.extend(predecessor);
                }
            }
        }
        before.warnings.extend(broadcast::look(kv, job, whose).await?);
        Ok(before)
    }
}

fn job_of(pair: &Pair) -> Option<Job> {
    Job::from_stored(pair.key.strip_prefix(keys::JOBS)?, &pair.value).ok()
}

/// Names the jobs of the circle, from the one that is saved back to it.
fn circle(name: &JobName, waited_by: &BTreeMap<JobName, JobName>, whose: &Principal) -> Refusal {
    let shown =
        |name: &'_ JobName| if whose.reaches(name) { name.to_string() } else { "a job of others".to_owned() };
    let mut path = vec![shown(name)];
    let mut at = name;
    while let Some(by) = waited_by.get(at) {
        path.push(shown(by));
        if by == name {
            break;
        }
        at = by;
    }
    path.reverse();
    Refusal::bad(format!(
        "after: the jobs would wait for each other in a circle, each for the next: {}: leave one of them out",
        path.join(", ")
    ))
}

/// Forgets what the job waits for has succeeded so far: it counts from now on.
pub(super) fn begin_anew(name: &JobName) -> Op {
    Op::Delete(Span::prefix(keys::after_of(name)))
}

/// The warning that other jobs wait for this one, which is about to be deleted; those that the caller reaches.
pub(super) async fn waited_for(
    kv: &dyn Kv,
    name: &JobName,
    whose: &Principal,
) -> Result<Option<String>, Refusal> {
    let named = who_waits(kv, name, whose).await?.0;
    Ok(named.map(|named| format!("jobs wait for this one (after) and do not run without it: {named}")))
}

/// Names the jobs that wait for this one and that the caller reaches, and says whether there are any.
pub(super) async fn who_waits(
    kv: &dyn Kv,
    name: &JobName,
    whose: &Principal,
) -> Result<(Option<String>, bool), Refusal> {
    let mut any = false;
    let mut waiting: Vec<String> = Vec::new();
    let (mut pages, mut looked_at) = (Pages::new(kv, Span::prefix(keys::JOBS)), 0);
    while looked_at < LOOKED_AT_MAX
        && let Some(pairs) = pages.next().await?
    {
        looked_at += pairs.len();
        let waits = |job: &Job| job.options.after.iter().any(|after| after.names().any(|one| one == name));
        for job in pairs.iter().filter_map(job_of).filter(waits) {
            any = true;
            if whose.reaches(&job.name) {
                waiting.push(format!("{:?}", job.name.as_str()));
            }
        }
    }
    let (named, more) = (waiting.len().min(NAMED_MAX), waiting.len().saturating_sub(NAMED_MAX));
    let named = (named > 0).then(|| {
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", waiting[..named].join(", "))
    });
    Ok((named, any))
}
