//! What `concurrency` decides: which runs take their job's lock, and how a fire takes the place of the run before.
//!
//! *Allow*: such a run takes no lock. In its place it holds a key of its own, so that others can see it: whoever takes the lock of the job
//! next, once it is edited to another concurrency, compares that there are no such keys. The mark says whether there may be any, so that
//! jobs which never had such runs compare nothing more.
//!
//! *Replace*: a fire finds the lock held at its time and has the run killed; it is claimed when the lock is free. It waits no longer than
//! any fire does that cannot be claimed; when a newer one comes meanwhile, that one waits in its place.

use std::collections::BTreeSet;

use common::clock::Timestamp;
use common::domain::kill::Killed;
use common::domain::options::Concurrency;
use common::domain::record::SkipReason;
use common::domain::run::RunId;
use common::schedule::{Fires, Schedule};

use crate::exec::work::Kill;

use super::event::{Action, Claim, Holder};
use super::job_state::Pending;
use super::terms::Terms;
use super::{SKIP_COUNT_MAX, Scheduler};

/// A fire that is to take the place of a run elsewhere is claimed again after this, in ms: nobody tells when a lock is freed.
const CLAIM_AGAIN_MS: i64 = 200;
/// And whoever runs it is asked again after this, in ms: the request may not have come to the store.
const ASK_AGAIN_MS: i64 = 2_000;

/// Runs elsewhere that were asked to end.
#[derive(Debug)]
pub(super) struct Asked {
    at: Timestamp,
    run_ids: BTreeSet<RunId>,
}

/// Why a run ends that makes room for the fire at `due`.
pub(super) fn replaced_by(due: Timestamp, now: Timestamp) -> Killed {
    Killed { by: format!("replaced by the run of {due}"), at: now }
}

/// Of the fires between the two times, all but the newest: only that one starts, it would replace the others at once.
pub(super) fn older_than_newest(schedule: &Schedule, after: Timestamp, now: Timestamp) -> Option<Fires> {
    let newest = schedule.fires_between(after, now, 0)?.last;
    schedule.fires_between(after, newest.plus_ms(-1), SKIP_COUNT_MAX)
}

impl Terms {
    pub(super) fn replaces(&self) -> bool {
        self.concurrency == Concurrency::Replace
    }
}

impl Scheduler {
    /// Whether the job's next run takes the lock. While a seed worker is in the fleet every run does: it runs whatever it can lock, so that
    /// without the lock each fire would run here and there (P17).
    ///
    /// Runs of a job that runs on every worker never do: each worker knows its own, and others do not matter.
    pub(super) fn takes_lock(&self, terms: &Terms) -> bool {
        let is_one_at_a_time = terms.concurrency != Concurrency::Allow || !self.members.seeds.is_empty();
        is_one_at_a_time && !terms.is_broadcast
    }

    /// Runs elsewhere keep a fire from being claimed whose time has come: they are killed, and it is claimed again. Nothing has been claimed
    /// yet, unless a sending of the claim is still under way (`ambiguous`); then it goes again as it was, or is given up by a skip (P2).
    pub(super) fn replace_elsewhere(
        &mut self,
        now: Timestamp,
        claim: Claim,
        ambiguous: bool,
        holders: Vec<Holder>,
        out: &mut Vec<Action>,
    ) {
        let (name, due) = (claim.open.job.clone(), claim.open.plan_time);
        let Some(mut state) = self.jobs.get_mut(&name) else { return };
        let nominal = now.plus_ms(-state.jitter_ms());
        if let Some(definition) = state.terms()
            && let Ok(schedule) = &definition.runnable
        {
            if nominal.ms_since(due) > definition.rule.waits_ms() {
                return self.give_up(now, &claim, SkipReason::Misfire, out);
            }
            if schedule.next_after(due).is_some_and(|newer| newer <= nominal) {
                return self.give_up(now, &claim, SkipReason::Replaced, out);
            }
        }
        let again = now.plus_ms(CLAIM_AGAIN_MS);
        match &mut state.pending {
            Pending::Claiming { resend_at, .. } if ambiguous => *resend_at = Some(again),
            pending => *pending = Pending::None,
        }
        self.set_timer(&name, Some(again));
        let (own, elsewhere): (Vec<Holder>, Vec<Holder>) =
            holders.into_iter().partition(|held| self.runs.contains_key(&held.run_id));
        let killed = replaced_by(due, now);
        for held in own {
            // Claimed before the job was edited from `allow`.
            self.kill_run(now, &held.run_id, Kill::Gracefully, killed.clone(), out);
        }
        let run_ids: BTreeSet<RunId> = elsewhere.iter().map(|held| held.run_id.clone()).collect();
        let asked = |asked: &Asked| {
            now < asked.at.plus_ms(ASK_AGAIN_MS) && asked.at <= now && run_ids.is_subset(&asked.run_ids)
        };
        if !run_ids.is_empty() && !self.asked.get(&name).is_some_and(asked) {
            self.asked.insert(name, Asked { at: now, run_ids });
            out.push(Action::Replace { claim: Box::new(claim), holders: elsewhere, killed });
        }
    }
}
