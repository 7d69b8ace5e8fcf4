//! `POST /calendar/delete`: deletes a calendar, unless jobs name it: those would not run any more.

use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch};
use common::domain::calendars::{Calendar, CalendarName};
use common::keys;
use common::kv::{Compare, Kv, Op, Txn};
use lambda_http::Request;
use serde_json::{Value, json};

use super::CONFLICTS_MAX;
use super::calendar_list::served;
use super::calendars::{CALENDAR, contended, users, with_settings};
use crate::audit::Change;
use crate::http::{Call, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency::Once;
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /calendar/delete`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| delete(kv, clock, &call).await).await
}

async fn delete(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let fields = call.fields(&["name", "force"])?;
    let missing = "name: is missing: give the calendar's name in the body, as name=…";
    let name = fields.get("name").ok_or_else(|| Refusal::bad(missing))?;
    let name = CalendarName::parse(name).map_err(|why| Refusal::bad(format!("name: {why}")))?;
    let force = fields.switch("force")?;
    let mut once = Once::of(call, "calendar_delete", &json!({ "name": name.as_str(), "force": force }))?;
    let key = keys::calendar(&name);
    let reads: Vec<Op> =
        [Op::get(key.as_str()), Op::get(keys::SETTINGS)].into_iter().chain(once.read()).collect();
    let mut found = store::read(kv, Txn { then: reads.clone(), ..Txn::default() }).await?;
    for _ in 0..CONFLICTS_MAX {
        if let Some(answered) = once.answered(found.pair(2))? {
            return Ok(answered);
        }
        let mut warnings = call.query_warnings();
        let Some(stored) = found.pair(0) else {
            // Gone: because a try of ours whose answer was lost did it, or because it was not there.
            return Ok(Reply::new(Value::Null, warnings));
        };
        let users = users(kv, &name).await?;
        match (users.told, users.more, force) {
            (Some(told), _, false) => {
                let message = format!(
                    "jobs name this calendar, it was left: {told}: they would not run without it; change them first, or send force=true"
                );
                return Err(Refusal::new(Kind::Conflict, message));
            }
            (None, true, false) => {
                let message = "there are more jobs than can be looked at for who names this calendar, it was left: send force=true if none does";
                return Err(Refusal::new(Kind::Conflict, message));
            }
            (Some(told), _, true) => {
                warnings.push(format!(
                    "these jobs name the calendar and do not run until it is there again: {told}"
                ));
            }
            (None, ..) => {}
        }
        let previous = Calendar::decode(&stored.value).map_or(Value::Null, |was| served(name.as_str(), &was));
        let reply = Reply::new(previous, warnings);
        // A job that is saved between the look and this may name it all the same: it does not run, and its worker says why.
        let (unchanged, again) = with_settings(found.pair(1));
        let mut txn = Txn {
            when: vec![Compare::unchanged(key.as_str(), stored.mod_revision), unchanged],
            then: vec![Op::delete(key.as_str()), again],
            otherwise: reads.clone(),
        };
        once.guard(kv, &mut txn, &reply).await?;
        let change = Change::new(call, "calendar_delete", clock.now())
            .with("calendar", name.as_str())
            .touching(CALENDAR, Some(stored), None);
        let written = store::write(kv, &txn, &since, "the deletion", once.is_named(), Some(&change)).await?;
        if written.reply.succeeded {
            return Ok(reply);
        }
        if written.doubted && !once.is_named() && written.reply.pair(0).is_none() {
            return Ok(reply);
        }
        found = written.reply;
    }
    Err(contended())
}
