//! What changes leave behind: every change puts a note into etcd by the very transaction that makes it, so that there is none without the other.
//! A worker, or a function that reads what is known of changes, moves it to the store of records; nothing of that is in the way of the change.

use std::time::Duration;

use common::clock::Timestamp;
use common::domain::access::Principal;
use common::domain::audit::{self, JOB, Note, Origin, Touched};
use common::domain::job::JobName;
use common::history::moving::move_waiting;
use common::kv::{Compare, Kv, Op, Pair, Txn, TxnReply};
use common::run_log::RunLog;
use common::{clock, keys};
use lambda_http::Request;
use serde_json::{Map, Value};

use crate::caller;
use crate::http::Call;
use crate::invocation::RequestId;

/// Who sends a request, as far as that can be known.
pub(crate) fn origin(request: &Request) -> Origin {
    Origin {
        by: request.extensions().get::<Principal>().cloned(),
        from: caller::of(request),
        request_id: request.extensions().get::<RequestId>().map(|id| id.0.clone()),
    }
}

/// What a change is going to leave behind.
pub(crate) struct Change {
    note: Note,
    key: String,
    ends_something: bool,
}

impl Change {
    /// A change that is made now by the function `action`.
    pub(crate) fn new(call: &Call, action: &'static str, now: Timestamp) -> Self {
        Self::of(call.origin(), action, now)
    }

    /// [`Self::new`] for somebody who did not call.
    pub(crate) fn of(origin: &Origin, action: &'static str, now: Timestamp) -> Self {
        let key = keys::audit(&audit::note_id(now));
        Self { note: Note::new(now, action, origin.clone()), key, ends_something: false }
    }

    /// It touches something of which there is one: its stored value before and after.
    pub(crate) fn touching(mut self, thing: &str, before: Option<&Pair>, after: Option<&[u8]>) -> Self {
        let before = before.map(|pair| pair.value.as_slice());
        self.note.touched.push(Touched::new(thing, "", before, after));
        self
    }

    /// It touches a job: the stored definition before and after.
    pub(crate) fn of_job(mut self, name: &JobName, before: Option<&Pair>, after: Option<&[u8]>) -> Self {
        self.touch_job(name.as_str(), before, after);
        self
    }

    /// As [`Self::of_job`]; several may be touched.
    pub(crate) fn touch_job(&mut self, name: &str, before: Option<&Pair>, after: Option<&[u8]>) {
        let before = before.map(|pair| pair.value.as_slice());
        self.note.touched.push(Touched::new(JOB, name, before, after));
    }

    /// What there is to say beside definitions.
    pub(crate) fn with(mut self, detail: &str, value: impl Into<Value>) -> Self {
        self.note.details.insert(detail.to_owned(), value.into());
        self
    }

    /// [`Self::with`], for all of these.
    pub(crate) fn with_all(mut self, details: &Map<String, Value>) -> Self {
        self.note.details.extend(details.clone());
        self
    }

    /// It ends something that may do harm: it is let through also where nothing more should wait. It leaves little.
    pub(crate) fn ending_something(mut self) -> Self {
        self.ends_something = true;
        self
    }

    /// Makes `txn` leave the note. Where too much waits it is refused, and reads that, behind what it reads otherwise.
    pub(crate) fn join(&self, txn: &mut Txn) {
        txn.then.push(Op::put(self.key.as_str(), self.note.encode()));
        if !self.ends_something {
            txn.when.push(Compare::absent(keys::AUDIT_FULL));
            txn.otherwise.push(Op::get(keys::AUDIT_FULL));
        }
    }

    /// Of a transaction that was refused: takes what [`Self::join`] has read off its end, and says whether too much waits.
    pub(crate) fn is_too_much(&self, refused: &mut TxnReply) -> bool {
        !self.ends_something && refused.replies.pop().is_some_and(|full| full.first().is_some())
    }
}

/// Notes that a request moves at most, before it reads what is known.
const MOVED_MAX: usize = 64;
/// It may take so long.
const MOVE_MAX: Duration = Duration::from_secs(2);

/// Moves what waits, so that whoever reads finds what was changed a moment ago. Where not all could be moved, what to tell the reader.
pub(crate) async fn catch_up(kv: &dyn Kv, run_log: &dyn RunLog) -> Option<String> {
    let late = match clock::timeout(MOVE_MAX, move_waiting(kv, run_log, MOVED_MAX)).await {
        Ok(Ok(moved)) => moved.more || moved.unread > 0,
        Ok(Err(error)) => {
            tracing::warn!(%error, "changes not moved to the store of records");
            true
        }
        Err(elapsed) => {
            tracing::warn!(%elapsed, "changes not moved to the store of records");
            true
        }
    };
    late.then(|| "the newest changes are not here yet: ask again in a moment".to_owned())
}
