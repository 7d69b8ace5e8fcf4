//! `POST /job/kill`: asks the workers that run a job to kill its runs, or to let a run go that nobody has claimed yet. It only writes a key;
//! workers watch for it.

use std::time::Duration;

use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch};
use common::domain::job::JobName;
use common::domain::kill::{KILL_TTL_SECONDS, KillRequest, Killed};
use common::domain::request::Request as RunRequest;
use common::domain::run::{LockHolder, RunId};
use common::keys;
use common::kv::{Compare, Key, Kv, Op, OpReply, Pair, Range, Revision, Txn, TxnReply};
use lambda_http::Request;
use serde_json::json;

use super::{CONFLICTS_MAX, job_name};
use crate::audit::Change;
use crate::http::{Call, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency::Once;
use crate::store;

/// Most runs that one request names besides the one with the lock: it is one value in the store, told to every worker.
const RUNS_MAX: usize = 1000;
/// So many are named to who asks for one that is not open.
const SHOWN_MAX: usize = 5;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /job/kill`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| kill(kv, clock, &call).await).await
}

async fn kill(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let fields = call.fields(&["name", "runId"])?;
    let name = job_name(call, &fields)?;
    let wanted = fields.filled("runId");
    let asked = json!({ "name": name.as_str(), "runId": wanted });
    let mut once = Once::of(call, "kill", &asked)?;
    for _ in 0..CONFLICTS_MAX {
        let found = store::read(kv, Txn { then: look(&name, wanted, &once), ..Txn::default() }).await?;
        if let Some(answered) = once.answered(found.pair(KEPT))? {
            return Ok(answered);
        }
        let open = Open::of(&name, &found)?;
        let (run_ids, warning) = match wanted {
            Some(wanted) => match (open.named(wanted), Waiting::of(&name, found.pair(REQUEST))) {
                (Some(run_id), _) => (vec![run_id], None),
                (None, None) => return Err(not_open(&name, &open, wanted)),
                (None, Some(waiting)) => match waiting.cancel(kv, clock, call, &mut once, &since).await? {
                    Some(reply) => return Ok(reply),
                    None => continue, // claimed just now: it is a run
                },
            },
            None => (open.run_ids(), open.warning(&name)),
        };
        return ask(kv, clock, call, &name, run_ids, warning, &mut once, &since).await;
    }
    let message = "the run is asked for, claimed and asked for again, it was left as it is: send it again";
    Err(Refusal::new(Kind::Conflict, message))
}

/// Puts the kill request for these runs.
#[expect(clippy::too_many_arguments, reason = "what `kill` has found out")]
async fn ask(
    kv: &dyn Kv,
    clock: &dyn Clock,
    call: &Call,
    name: &JobName,
    run_ids: Vec<RunId>,
    warning: Option<String>,
    once: &mut Once,
    since: &Stopwatch,
) -> Result<Reply, Refusal> {
    let lease = store::grant(kv, Duration::from_secs(KILL_TTL_SECONDS)).await?;
    // If the function dies here, the lease ends without a key and nothing was asked for.
    let request = KillRequest::new(run_ids.clone(), asked_by(call, clock)).encode();
    let mut warnings = call.query_warnings();
    warnings.extend(warning);
    let reply = Reply::new(json!({ "runIds": run_ids }), warnings);
    let change = Change::new(call, "kill", clock.now()).of_job(name, None, None).ending_something();
    let change = change.with("runIds", json!(run_ids));
    // Sending it twice is harmless: it names the runs, and a later one is none of them.
    let put = Op::put_leased(keys::killer(name), request, lease);
    let mut txn = Txn { then: vec![put], otherwise: once.read().into_iter().collect(), ..Txn::default() };
    once.guard(kv, &mut txn, &reply).await?;
    let written = store::write(kv, &txn, since, "the kill", once.is_named(), Some(&change)).await?;
    if written.reply.succeeded {
        return Ok(reply);
    }
    // Refused, so an answer is kept: that of a try of ours whose answer was lost, or of another request with the key.
    once.answered(written.reply.pair(0))?.ok_or_else(|| {
        let message =
            "the answer kept under this Idempotency-Key has just expired, nothing was changed: send it again";
        Refusal::new(Kind::Conflict, message)
    })
}

fn asked_by(call: &Call, clock: &dyn Clock) -> Killed {
    Killed { by: call.caller().unwrap_or("an unknown address").to_owned(), at: clock.now() }
}

/// A run that is asked for, and that nobody has claimed yet.
struct Waiting {
    request: RunRequest,
    key: Key,
    revision: Revision,
}

impl Waiting {
    fn of(name: &JobName, stored: Option<&Pair>) -> Option<Self> {
        let pair = stored?;
        let request = RunRequest::decode(&pair.value).ok().filter(|request| request.job == *name)?;
        Some(Self { request, key: pair.key.clone(), revision: pair.mod_revision })
    }

    /// Writes into the request that it is not to run: whoever claims it then writes the record of that. A claim compares the revision that this
    /// changes, so that either is first and the other sees it. `None` = it was claimed, or changed, meanwhile.
    async fn cancel(
        mut self,
        kv: &dyn Kv,
        clock: &dyn Clock,
        call: &Call,
        once: &mut Once,
        since: &Stopwatch,
    ) -> Result<Option<Reply>, Refusal> {
        let run_id = keys::parse_request(&self.key);
        let mut warnings = call.query_warnings();
        warnings.push("the run was waiting to begin: it is let go, with a record that says so".to_owned());
        let reply = Reply::new(json!({ "runIds": [run_id] }), warnings);
        let then = match &self.request.killed {
            Some(_before) if !once.is_named() => return Ok(Some(reply)),
            Some(_before) => Vec::new(), // whoever asked first stands in its record
            None => {
                self.request.killed = Some(asked_by(call, clock));
                vec![Op::put(self.key.clone(), self.request.encode())]
            }
        };
        let when = vec![Compare::unchanged(self.key, self.revision)];
        let mut txn = Txn { when, then, otherwise: once.read().into_iter().collect() };
        once.guard(kv, &mut txn, &reply).await?;
        let change = Change::new(call, "kill", clock.now()).of_job(&self.request.job, None, None);
        let change = change.with("runIds", json!([run_id])).ending_something();
        let written = store::write(kv, &txn, since, "the kill", once.is_named(), Some(&change)).await?;
        if written.reply.succeeded {
            return Ok(Some(reply));
        }
        once.answered(written.reply.pair(0))
    }
}

/// Where [`look`] has the request that is wanted, and the answer that may be kept.
const REQUEST: usize = 3;
const KEPT: usize = 4;

/// Reads the runs of a job that are open now, the one that is wanted also where there are too many to name, or its request, and the answer that
/// may be kept.
fn look(name: &JobName, wanted: Option<&str>, once: &Once) -> Vec<Op> {
    // No run has an empty id.
    let wanted = RunId::from_text(wanted.unwrap_or_default());
    let mut reads = vec![
        Op::get(keys::lock(name)),
        Op::Range(Range::prefix(keys::shared_of(name)).limit(RUNS_MAX)),
        Op::get(keys::shared(name, &wanted)),
        Op::get(keys::request(&wanted)),
    ];
    reads.extend(once.read());
    reads
}

/// Who runs the job now.
struct Open {
    /// The run that holds the lock.
    locked: Option<RunId>,
    /// A worker of the seed holds it, whose lock says nothing.
    seeds: bool,
    /// Runs without the lock.
    unlocked: Vec<RunId>,
    /// The one of them that was asked for.
    wanted: Option<RunId>,
    /// There are more than are named.
    more: bool,
}

impl Open {
    fn of(name: &JobName, found: &TxnReply) -> Result<Self, Refusal> {
        let lock = match found.pair(0).map(|lock| LockHolder::decode(&lock.value)) {
            None => None,
            Some(Ok(holder)) => Some(holder),
            Some(Err(why)) => {
                let message = format!(
                    "the lock of {:?} cannot be read ({why}), nothing was killed: bring the functions up to the workers' version",
                    name.as_str()
                );
                return Err(Refusal::new(Kind::Conflict, message));
            }
        };
        let run_id = |pair: &Pair| keys::parse_shared(&pair.key).map(|(_, run_id)| run_id);
        Ok(Self {
            seeds: matches!(lock, Some(None)),
            locked: lock.flatten().map(|holder| holder.run_id),
            unlocked: found.pairs(1).iter().filter_map(run_id).collect(),
            wanted: found.pair(2).and_then(run_id),
            more: found
                .replies
                .get(1)
                .is_some_and(|reply| matches!(reply, OpReply::Range(read) if read.more)),
        })
    }

    fn run_ids(&self) -> Vec<RunId> {
        self.locked.iter().chain(&self.unlocked).cloned().collect()
    }

    fn named(&self, wanted: &str) -> Option<RunId> {
        self.locked.iter().chain(&self.wanted).find(|run_id| run_id.as_str() == wanted).cloned()
    }

    fn warning(&self, name: &JobName) -> Option<String> {
        let name = name.as_str();
        if self.seeds {
            Some(
                "a worker of the older kind runs it: it is asked to kill its run, which has no id".to_owned(),
            )
        } else if self.more {
            Some(format!(
                "more runs of {name:?} are open than these {RUNS_MAX}: send it again when these are over"
            ))
        } else if self.run_ids().is_empty() {
            Some(format!("no run of {name:?} is open: there was nothing to kill"))
        } else {
            None
        }
    }
}

fn not_open(name: &JobName, open: &Open, wanted: &str) -> Refusal {
    let run_ids = open.run_ids();
    let shown: Vec<&str> = run_ids.iter().take(SHOWN_MAX).map(RunId::as_str).collect();
    let instead = match (&shown[..], run_ids.len()) {
        ([], _) if open.seeds => {
            "a run of an older worker is, which has no id: leave runId out to kill it".to_owned()
        }
        ([], _) => "none is".to_owned(),
        ([only], _) => format!("{only} is"),
        (shown, all) if shown.len() < all => format!("{} and others are", shown.join(", ")),
        (shown, _) => format!("{} are", shown.join(", ")),
    };
    Refusal::bad(format!("runId: the run {wanted:?} of {:?} is not open, {instead}", name.as_str()))
}
