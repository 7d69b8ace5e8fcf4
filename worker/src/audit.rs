//! The audit: what is in the store under this worker's session, and what the worker knows of it (design P5). Nothing should ever be found.
//! What is would else stay for as long as the session lives: a lock that lets no fire of its job start, a claimed fire without a record.
//!
//! Why nothing is found that is only on its way: the store is read first, and compared with what is known afterwards. Whatever this session
//! has put was known before it was sent, and is forgotten only once the store has said that it is gone. So what is in the reading and unknown
//! after it has either been taken away in between, or is a leftover. The first is gone, or has another revision, when it is looked at again
//! half a minute later; what is found twice at one revision was there all the time, while nobody knew it.

use std::collections::BTreeMap;

use common::clock::Clock;
use common::domain::record::Record;
use common::domain::worker::Sid;
use common::keys;
use common::kv::{self, Compare, Key, Kv, Op, Pair, Range, Revision, Txn};
use common::run_log::RunLog;

use crate::claims::read_pages;
use crate::sweep::{self, Floor, close_all};

/// What hangs on a session, read at one time.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Its open runs.
    pub(crate) open: Vec<Pair>,
    /// The keys on its lease.
    pub(crate) leased: Vec<Key>,
}

/// Reads what hangs on a session. Members that lag are not asked: what they miss may be under way.
pub(crate) async fn read(kv: &dyn Kv, sid: Sid) -> Result<Reading, kv::Error> {
    let (open, _) = read_pages(kv, Range::prefix(keys::runs_of(sid))).await?;
    Ok(Reading { open, leased: kv.lease_keys(sid.lease()).await? })
}

/// What of a reading was unknown.
#[derive(Debug, Default)]
pub(crate) struct Unknown {
    pub(crate) open: Vec<Pair>,
    /// Locks, and registrations.
    pub(crate) leased: Vec<Key>,
}

/// What was found unknown the last time, at which revision.
#[derive(Debug, Default)]
pub(crate) struct Suspects(BTreeMap<Key, Revision>);

impl Suspects {
    /// Closes what is unknown for the second time, and remembers the rest for the next. Answers how much was closed.
    pub(crate) async fn judge(
        &mut self,
        kv: &dyn Kv,
        run_log: &dyn RunLog,
        clock: &dyn Clock,
        sid: Sid,
        unknown: Unknown,
    ) -> Result<usize, sweep::Error> {
        let before = std::mem::take(&mut self.0);
        let again = |pair: &Pair| before.get(&pair.key) == Some(&pair.mod_revision);
        let mut leased = Vec::new();
        for key in unknown.leased {
            leased.extend(kv.range(Range::key(key.as_bytes())).await?.pairs);
        }
        leased.retain(|pair| pair.lease == Some(sid.lease()));
        let suspects = unknown.open.iter().chain(&leased);
        self.0 = suspects.map(|pair| (pair.key.clone(), pair.mod_revision)).collect();
        let open: Vec<Pair> = unknown.open.into_iter().filter(again).collect();
        leased.retain(again);
        for pair in open.iter().chain(&leased) {
            tracing::error!(key = %pair.key, revision = pair.mod_revision, "this worker's, and it knows nothing of it: closed");
        }
        // If this process dies here, the session ends: a survivor closes its open runs, and its lease takes the rest.
        close_all(kv, run_log, clock, &open, Record::forgotten, Floor::NONE).await?;
        for pair in &leased {
            let txn = Txn {
                when: vec![Compare::unchanged(pair.key.clone(), pair.mod_revision)],
                then: vec![Op::delete(pair.key.clone())],
                otherwise: Vec::new(),
            };
            kv.txn(txn).await?;
        }
        Ok(open.len() + leased.len())
    }
}
