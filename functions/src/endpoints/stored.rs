//! What is stored of one job, read at one revision: what a change of it is decided from.

use common::api::errno::Kind;
use common::domain::job::JobName;
use common::domain::mark::Mark;
use common::keys;
use common::kv::{Compare, Kv, Op, OpReply, Pair, Txn};

use crate::http::Refusal;
use crate::idempotency::Once;
use crate::store;

/// The job, its mark, and the answer that may be kept.
pub(super) struct Stored {
    pub(super) job: Option<Pair>,
    pub(super) mark: Option<Pair>,
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
        let mut reads = vec![Op::get(keys::job(name)), Op::get(keys::fired(name))];
        reads.extend(once.read());
        reads
    }

    /// From the replies to [`Self::reads`].
    pub(super) fn of(replies: Vec<OpReply>) -> Self {
        let mut pairs = replies.into_iter().map(|reply| reply.first().cloned());
        let mut next = || pairs.next().flatten();
        Self { job: next(), mark: next(), kept: next() }
    }

    /// That job and mark are still as they were read.
    pub(super) fn unchanged(&self, name: &JobName) -> Vec<Compare> {
        let revision = |pair: &Option<Pair>| pair.as_ref().map_or(0, |pair| pair.mod_revision);
        vec![
            Compare::unchanged(keys::job(name), revision(&self.job)),
            Compare::unchanged(keys::fired(name), revision(&self.mark)),
        ]
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
