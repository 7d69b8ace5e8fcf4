//! Runs by their ids: open ones in the store of jobs, ended ones in the store of records.

use common::api::errno::Kind;
use common::domain::access::Principal;
use common::domain::record::Record;
use common::domain::run::{OpenRun, OpenRuns, RunId};
use common::keys;
use common::kv::{Key, Kv, Pair, Range, Span};
use common::run_log::RunLog;

use super::Pages;
use crate::http::{Fields, Refusal};
use crate::store;

/// A run, wherever it is found.
pub(super) enum Run {
    /// Claimed, waiting or going; or ended, and its record is not stored yet.
    Open(Box<OpenRun>, Key),
    /// Its record is stored.
    Ended(Box<Record>),
}

/// The field `id`.
pub(super) fn id(fields: &Fields) -> Result<&str, Refusal> {
    fields
        .filled("id")
        .ok_or_else(|| Refusal::bad("id: is missing: give a run's id, or the _id of a record, as ?id=…"))
}

/// Finds a run of a job that `whose` reaches, by its id or by the `_id` of its record. Of another's job it says what it says when there is no such
/// run: whether there is one is theirs to know.
pub(super) async fn find(
    kv: &dyn Kv,
    run_log: &dyn RunLog,
    id: &str,
    whose: &Principal,
) -> Result<Run, Refusal> {
    let run = look(kv, run_log, id).await?;
    let reached = match &run {
        Run::Open(open, _key) => whose.reaches(&open.job),
        Run::Ended(record) => whose.reaches_name(&record.job_name),
    };
    if reached { Ok(run) } else { Err(unknown(id)) }
}

async fn look(kv: &dyn Kv, run_log: &dyn RunLog, id: &str) -> Result<Run, Refusal> {
    if let Some((sid, seq)) = RunId::from_text(id).claim()
        && let Some((run, key)) = open_at(kv, keys::runs(sid, seq).into(), id).await?
    {
        return Ok(Run::Open(run, key));
    }
    if let Some(record) = store::get(run_log, id).await? {
        return Ok(Run::Ended(Box::new(record)));
    }
    // It may have moved to another session, or have an id that says nothing of its place.
    let mut pages = Pages::new(kv, Span::prefix(keys::RUNS));
    while let Some(pairs) = pages.next().await? {
        if let Some(found) = pairs.iter().find_map(|pair| among(pair, id)) {
            return Ok(Run::Open(found.0, found.1));
        }
    }
    // It may have ended between the looks: an open run goes once its record is stored. (While the record store is away for long it goes once
    // its record is on its worker's disk; then nobody knows it here until the store is back.)
    match store::get(run_log, id).await? {
        Some(record) => Ok(Run::Ended(Box::new(record))),
        None => Err(unknown(id)),
    }
}

/// The open run of this id under a key, with the key.
pub(super) async fn open_at(kv: &dyn Kv, key: Key, id: &str) -> Result<Option<(Box<OpenRun>, Key)>, Refusal> {
    let reply = store::range(kv, Range::key(key)).await?;
    Ok(reply.pairs.first().and_then(|pair| among(pair, id)))
}

fn among(pair: &Pair, id: &str) -> Option<(Box<OpenRun>, Key)> {
    let open = OpenRuns::decode(&pair.value).ok()?;
    let wanted = |run: &OpenRun| run.run_id.as_str() == id || run.record_id().as_str() == id;
    open.runs.into_iter().find(wanted).map(|run| (Box::new(run), pair.key.clone()))
}

fn unknown(id: &str) -> Refusal {
    let message = format!(
        "no run {id:?} is open and no record has this id: look for the run in /job/running or /job/log; its record may have been \
         removed since, for its age"
    );
    Refusal::new(Kind::NotFound, message)
}
