//! `POST /job/rollback`: stores what a job was once more, as a save of it would: checked anew, with fires that count from now on.

use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch};
use common::domain::audit::{Definition, EntryId};
use common::domain::job::JobName;
use common::history::{Query, Shelf};
use common::kv::Kv;
use common::run_log::RunLog;
use lambda_http::Request;
use serde_json::{Map, Value, json};

use super::job_name;
use super::save::{self, Wanted};
use super::stored::Stored;
use crate::http::{Call, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency::Once;
use crate::{audit, store};

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /job/rollback`.
pub async fn handle(kv: &dyn Kv, run_log: &dyn RunLog, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| rollback(kv, run_log, clock, &call).await).await
}

async fn rollback(
    kv: &dyn Kv,
    run_log: &dyn RunLog,
    clock: &dyn Clock,
    call: &Call,
) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let fields = call.fields(&["name", "version"])?;
    let name = job_name(call, &fields)?;
    let version = fields
        .filled("version")
        .and_then(EntryId::parse)
        .ok_or_else(|| Refusal::bad("version: is missing, or none: give a `version` of /job/versions"))?;
    let once = Once::of(call, "rollback", &json!({ "name": name.as_str(), "version": version }))?;
    let stored = Stored::read(kv, &name, &once).await?;
    if let Some(answered) = once.answered(stored.kept.as_ref())? {
        return Ok(answered);
    }
    let late = audit::catch_up(kv, run_log).await;
    let value = definition(run_log, &name, &version, late).await?;
    let details = Map::from_iter([("version".to_owned(), json!(version))]);
    let wanted = Wanted { name, value, once, action: "rollback", details };
    save::put(kv, clock, call, &since, wanted, stored).await
}

/// What the job was in that version.
async fn definition(
    run_log: &dyn RunLog,
    name: &JobName,
    version: &EntryId,
    late: Option<String>,
) -> Result<Value, Refusal> {
    let query = Query { id: Some(version.clone()), limit: 1, ..Query::of_job(name.as_str()) };
    let Some(entry) = store::kept(run_log, Shelf::Versions, &query).await?.pop() else {
        let late = late.map(|late| format!(" ({late})")).unwrap_or_default();
        let message = format!(
            "version: {:?} has no version {version}, nothing was changed: see /job/versions{late}",
            name.as_str()
        );
        return Err(Refusal::new(Kind::NotFound, message));
    };
    match entry.touched.after {
        Some(Definition::Whole(definition)) => Ok(Value::Object(definition)),
        None => Err(Refusal::bad(format!(
            "version: {version} is that {:?} was deleted, nothing was changed: give an earlier one, or delete it",
            name.as_str()
        ))),
        Some(_) => {
            let message = format!(
                "version: of {version} the definition is not kept whole, nothing was changed: save it anew"
            );
            Err(Refusal::new(Kind::Conflict, message))
        }
    }
}
