//! `GET` and `POST /fleet/settings`: in which zone, by which dialect and rules jobs fire that say nothing of their own.

use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch};
use common::domain::audit::SETTINGS;
use common::domain::job::Fault;
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::{Compare, Kv, Op, Pair, Txn, TxnReply};
use lambda_http::Request;
use lambda_http::http::Method;
use serde_json::{Map, Value};

use super::CONFLICTS_MAX;
use super::stored::fleet_settings;
use crate::audit::Change;
use crate::http::{Call, Payload, Refusal, Reply, Response, answer};
use crate::idempotency::Once;
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = &["GET", "HEAD", "POST"];

/// Serves `/fleet/settings`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    let writes = request.method() == Method::POST;
    answer(
        METHODS,
        request,
        async |call| {
            if writes { set(kv, clock, &call).await } else { get(kv, &call).await }
        },
    )
    .await
}

async fn get(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let warnings = call.query()?.warnings(&[]);
    let look = Txn { then: vec![Op::get(keys::SETTINGS)], ..Txn::default() };
    let settings = fleet_settings(store::read(kv, look).await?.pair(0))?;
    Ok(Reply::new(Value::Object(settings.to_value()), warnings))
}

/// What is stored, and the answer that may be kept.
struct Found {
    settings: Option<Pair>,
    kept: Option<Pair>,
}

impl Found {
    fn reads(once: &Once) -> Vec<Op> {
        [Op::get(keys::SETTINGS)].into_iter().chain(once.read()).collect()
    }

    fn of(reply: &TxnReply) -> Self {
        Self { settings: reply.pair(0).cloned(), kept: reply.pair(1).cloned() }
    }
}

async fn set(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let submitted = match call.payload()? {
        Payload::Json(value) => value,
        Payload::Form(fields) => {
            fields.only(&["settings"])?;
            let settings = fields.get("settings").ok_or_else(|| {
                Refusal::bad(
                    "settings: is missing: send the form field settings={…}, or the settings as a JSON body",
                )
            })?;
            serde_json::from_str(settings)
                .map_err(|e| Refusal::bad(format!("settings: is not valid JSON: {e}")))?
        }
    };
    let settings = FleetSettings::from_submitted(&submitted).map_err(|faults| {
        let said: Vec<String> = faults.iter().map(Fault::to_string).collect();
        Refusal::bad(said.join("; "))
    })?;
    let value = settings.encode();
    let mut once = Once::of(call, "fleet_settings", &Value::Object(settings.to_value()))?;
    let look = Txn { then: Found::reads(&once), ..Txn::default() };
    let mut found = Found::of(&store::read(kv, look).await?);
    for _ in 0..CONFLICTS_MAX {
        if let Some(answered) = once.answered(found.kept.as_ref())? {
            return Ok(answered);
        }
        // What cannot be read is replaced: this is how it is mended.
        let before = found.settings.as_ref().map(|pair| FleetSettings::decode(&pair.value));
        let mut warnings = call.query_warnings();
        let previous = match before {
            None => {
                warnings.extend(changes(&Map::new(), &settings.to_value()));
                Value::Null
            }
            Some(Ok(before)) => {
                warnings.extend(changes(&before.to_value(), &settings.to_value()));
                Value::Object(before.to_value())
            }
            Some(Err(why)) => {
                warnings.push(format!("what stood there before could not be read and is replaced: {why}"));
                Value::Null
            }
        };
        let reply = Reply::new(previous, warnings);
        let stands = found.settings.as_ref().is_some_and(|pair| pair.value == value);
        if stands && !once.is_named() {
            // It is so already: because it was, or because a try of ours whose answer was lost did it.
            return Ok(reply);
        }
        let revision = found.settings.as_ref().map_or(0, |pair| pair.mod_revision);
        // The same value put again would be an edit of nothing, and have every worker look at every job.
        let then = if stands { Vec::new() } else { vec![Op::put(keys::SETTINGS, value.clone())] };
        let change = (!stands).then(|| {
            let change = Change::new(call, "fleet_settings", clock.now());
            change.touching(SETTINGS, found.settings.as_ref(), Some(&value))
        });
        let when = vec![Compare::unchanged(keys::SETTINGS, revision)];
        let mut txn = Txn { when, then, otherwise: Found::reads(&once) };
        once.guard(kv, &mut txn, &reply).await?;
        let (what, named) = ("setting the fleet's defaults", once.is_named());
        let written = store::write(kv, &txn, &since, what, named, change.as_ref()).await?;
        if written.reply.succeeded {
            return Ok(reply);
        }
        found = Found::of(&written.reply);
    }
    let message = "the settings are being changed by others again and again, they were left as they are: send them again";
    Err(Refusal::new(Kind::Conflict, message))
}

/// What the change means for jobs, and which settings are gone.
fn changes(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<String> {
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let mut warnings: Vec<String> = gone
        .map(|name| format!("the previous settings had {name:?}: it is gone, its own default counts again"))
        .collect();
    let moves = ["dialect", "timezone", "dst"].iter().any(|name| before.get(*name) != after.get(*name));
    if moves {
        warnings.push(
            "jobs that do not say it themselves fire at other times from now on: fires missed before this are not caught up on, and \
             expressions that mean nothing by the new dialect do not fire"
                .to_owned(),
        );
    }
    warnings
}
