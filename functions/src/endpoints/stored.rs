//! What is stored of one job, read at one revision: what a change of it is decided from.

use common::api::errno::Kind;
use common::domain::job::JobName;
use common::domain::mark::Mark;
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::{Compare, Kv, Op, OpReply, Pair, Revision, Txn};

use super::after;
use crate::http::Refusal;
use crate::idempotency::Once;
use crate::store;

/// The job, its mark, the fleet's settings, and the answer that may be kept.
pub(super) struct Stored {
    pub(super) job: Option<Pair>,
    pub(super) mark: Option<Pair>,
    settings: Option<Pair>,
    pub(super) kept: Option<Pair>,
}

impl Stored {
    /// Reads them.
    pub(super) async fn read(kv: &dyn Kv, name: &JobName, once: &Once) -> Result<Self, Refusal> {
        let look = Txn { then: Self::reads(name, once), ..Txn::default() };
        Ok(Self::of(store::read(kv, look).await?.replies))
    }

    /// The operations that read them.
    pub(super) fn reads(name: &JobName, once: &Once) -> Vec<Op> {
        let mut reads = vec![Op::get(keys::job(name)), Op::get(keys::fired(name)), Op::get(keys::SETTINGS)];
        reads.extend(once.read());
        reads
    }

    /// From the replies to [`Self::reads`].
    pub(super) fn of(replies: Vec<OpReply>) -> Self {
        let mut pairs = replies.into_iter().map(|reply| reply.first().cloned());
        let mut next = || pairs.next().flatten();
        Self { job: next(), mark: next(), settings: next(), kept: next() }
    }

    /// That job, mark and settings are still as they were read: the mark's hash depends on all three.
    pub(super) fn unchanged(&self, name: &JobName) -> Vec<Compare> {
        let revision = |pair: &Option<Pair>| pair.as_ref().map_or(0, |pair| pair.mod_revision);
        vec![
            Compare::unchanged(keys::job(name), revision(&self.job)),
            Compare::unchanged(keys::fired(name), revision(&self.mark)),
            Compare::unchanged(keys::SETTINGS, self.settings_revision()),
        ]
    }

    /// Of the fleet's settings, and of the calendars with them.
    pub(super) fn settings_revision(&self) -> Revision {
        self.settings.as_ref().map_or(0, |pair| pair.mod_revision)
    }

    /// The fleet's settings, without calendars.
    pub(super) fn fleet(&self) -> Result<FleetSettings, Refusal> {
        fleet_settings(self.settings.as_ref())
    }

    /// The mark. One that cannot be read is not written over: it would forget which fires were claimed. So it is left to whoever can read it.
    pub(super) fn decoded_mark(&self, name: &JobName) -> Result<Option<Mark>, Refusal> {
        self.mark.as_ref().map(|pair| Mark::decode(&pair.value)).transpose().map_err(|why| {
            let message = format!(
                "how far {:?} has fired cannot be read ({why}), nothing was changed: bring the functions up to the workers' version",
                name.as_str()
            );
            Refusal::new(Kind::Conflict, message)
        })
    }
}

/// What goes when a job is deleted: it, the successes that it waits for, and what was told of it. Its mark stays (design P6).
pub(super) fn deletion(name: &JobName) -> [Op; 3] {
    [Op::delete(keys::job(name)), after::begin_anew(name), Op::delete(keys::notify(name))]
}

/// The fleet's settings as they are stored. What cannot be read is not guessed at: a job would fire at other times than its author was told.
pub(super) fn fleet_settings(stored: Option<&Pair>) -> Result<FleetSettings, Refusal> {
    let settings = stored.map(|pair| FleetSettings::decode(&pair.value)).transpose().map_err(|why| {
        let message = format!(
            "the fleet's settings cannot be read ({why}), nothing was changed: set them anew (POST /fleet/settings), or bring the functions up to the version that has put them"
        );
        Refusal::new(Kind::Conflict, message)
    })?;
    Ok(settings.unwrap_or_default())
}
