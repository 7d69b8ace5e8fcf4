//! `POST /calendar/save`: stores a calendar, from dates or from an iCalendar file.

use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch};
use common::domain::calendars::{CALENDARS_MAX, Calendar, CalendarName};
use common::domain::job::Fault;
use common::keys;
use common::kv::{Compare, Kv, Op, Range, Span, Txn};
use common::schedule::Zone;
use lambda_http::Request;
use serde_json::{Map, Value};

use super::CONFLICTS_MAX;
use super::calendar_list::served;
use super::calendars::{CALENDAR, contended, with_settings};
use crate::audit::Change;
use crate::http::{Call, Fields, Payload, Refusal, Reply, Response, WRITE, answer};
use crate::icalendar;
use crate::idempotency::Once;
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// What may be said beside an iCalendar file.
const PARAMETERS: [&str; 4] = ["name", "description", "timezone", PREVIEW];
/// Only tells what would be saved.
const PREVIEW: &str = "preview";
/// The field with the file, in a form or in JSON.
const TEXT: &str = "text";
/// How every iCalendar file begins.
const FILE_BEGINS: &[u8] = b"BEGIN:VCALENDAR";

/// Serves `POST /calendar/save`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| {
        let wanted = wanted(&call)?;
        if wanted.preview {
            return Ok(Reply::new(served(wanted.name.as_str(), &wanted.calendar), wanted.warnings));
        }
        save(kv, clock, &call, wanted).await
    })
    .await
}

/// What somebody wants to have.
struct Wanted {
    name: CalendarName,
    calendar: Calendar,
    warnings: Vec<String>,
    /// Only to be told, not to be saved.
    preview: bool,
}

impl Wanted {
    fn new(name: &str, calendar: Calendar, warnings: Vec<String>, preview: bool) -> Result<Self, Refusal> {
        let name = CalendarName::parse(name).map_err(|why| Refusal::bad(format!("name: {why}")))?;
        calendar.check_size().map_err(|why| Refusal::bad(format!("dates: {why}")))?;
        Ok(Self { name, calendar, warnings, preview })
    }
}

const NO_NAME: &str = "name: is missing: give the calendar's name";

/// A file as the body, or in the field `text`; or else a calendar as JSON.
fn wanted(call: &Call) -> Result<Wanted, Refusal> {
    let body = call.body()?.trim_ascii_start();
    let begins = body.get(..FILE_BEGINS.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(FILE_BEGINS));
    // `curl --data-binary @file` sends a file as a form, which it then is not.
    if begins || call.media_type()?.as_deref() == Some("text/calendar") {
        return of_file(call.query()?, &String::from_utf8_lossy(body));
    }
    let fields = match call.payload()? {
        Payload::Json(Value::Object(object)) if object.contains_key(TEXT) => Fields::of_json(object)?,
        Payload::Form(form) if form.get(TEXT).is_some() => form,
        payload => return of_dates(payload),
    };
    let text = fields.get(TEXT).unwrap_or_default().to_owned();
    of_file(call.query()?.and(fields), &text)
}

/// A calendar as JSON, as it is listed.
fn of_dates(payload: Payload) -> Result<Wanted, Refusal> {
    let value = match payload {
        Payload::Json(value) => value,
        Payload::Form(fields) => {
            fields.only(&["calendar"])?;
            let missing =
                "calendar: is missing: send the form field calendar={…}, or the calendar as a JSON body";
            let calendar = fields.get("calendar").ok_or_else(|| Refusal::bad(missing))?;
            serde_json::from_str(calendar)
                .map_err(|e| Refusal::bad(format!("calendar: is not valid JSON: {e}")))?
        }
    };
    let Value::Object(mut fields) = value else {
        return Err(Refusal::bad("the calendar is not a JSON object like {\"name\":…,\"dates\":[…]}"));
    };
    let name = fields.shift_remove("name");
    let name = name.as_ref().and_then(Value::as_str).ok_or_else(|| Refusal::bad(NO_NAME))?;
    fields.shift_remove("days"); // the list tells how many there are, and what is listed may be sent back
    let preview = Fields::of_json(fields.shift_remove_entry(PREVIEW).into_iter().collect())?;
    let preview = preview.switch(PREVIEW)?;
    let calendar = Calendar::from_submitted(&fields).map_err(|faults| {
        let said: Vec<String> = faults.iter().map(Fault::to_string).collect();
        Refusal::bad(said.join("; "))
    })?;
    Wanted::new(name, calendar, Vec::new(), preview)
}

/// An iCalendar file, and what is said of it beside.
fn of_file(fields: Fields, text: &str) -> Result<Wanted, Refusal> {
    fields.only(&[&PARAMETERS[..], &[TEXT]].concat())?;
    if let Some(name) = fields.repeated() {
        return Err(Refusal::bad(format!("{name:?} is given twice: give it once")));
    }
    let zone = fields.filled("timezone").map(Zone::parse).transpose();
    let zone = zone.map_err(|why| Refusal::bad(format!("timezone: {why}")))?;
    let read = icalendar::read(text, zone.as_ref()).map_err(|why| Refusal::bad(format!("the file {why}")))?;
    let mut about = Map::from_iter([("dates".to_owned(), Value::Array(Vec::new()))]);
    about.extend(fields.filled("description").map(|text| ("description".to_owned(), Value::from(text))));
    let calendar = Calendar::from_submitted(&about).map_err(|faults| {
        let said: Vec<String> = faults.iter().map(Fault::to_string).collect();
        Refusal::bad(said.join("; "))
    })?;
    let name = fields.filled("name").ok_or_else(|| Refusal::bad(NO_NAME))?;
    let preview = fields.switch(PREVIEW)?;
    Wanted::new(name, Calendar { days: read.days, ..calendar }, read.warnings, preview)
}

async fn save(kv: &dyn Kv, clock: &dyn Clock, call: &Call, wanted: Wanted) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let (name, value) = (wanted.name.as_str(), wanted.calendar.encode());
    let mut once = Once::of(call, "calendar_save", &served(name, &wanted.calendar))?;
    let key = keys::calendar(&wanted.name);
    let reads: Vec<Op> =
        [Op::get(key.as_str()), Op::get(keys::SETTINGS)].into_iter().chain(once.read()).collect();
    let mut found = store::read(kv, Txn { then: reads.clone(), ..Txn::default() }).await?;
    for _ in 0..CONFLICTS_MAX {
        if let Some(answered) = once.answered(found.pair(2))? {
            return Ok(answered);
        }
        let mut warnings = wanted.warnings.clone();
        let stored = found.pair(0);
        let changed = match stored.map(|pair| Calendar::decode(&pair.value)) {
            None => {
                check_room(kv).await?;
                false
            }
            Some(Ok(before)) => before.days != wanted.calendar.days,
            Some(Err(why)) => {
                warnings.push(format!("what stood there before could not be read and is replaced: {why}"));
                true
            }
        };
        if changed {
            warnings.push(
                "jobs that name this calendar fire by its new days from now on: fires missed before this are not caught up on"
                    .to_owned(),
            );
        }
        let reply = Reply::new(served(name, &wanted.calendar), warnings);
        let stands = stored.is_some_and(|pair| pair.value == value);
        if stands && !once.is_named() {
            // It is so already: because it was, or because a try of ours whose answer was lost did it.
            return Ok(reply);
        }
        let (unchanged, again) = with_settings(found.pair(1));
        let when =
            vec![Compare::unchanged(key.as_str(), stored.map_or(0, |pair| pair.mod_revision)), unchanged];
        // The same value put again would have every worker look at every job, for nothing.
        let then = if stands { Vec::new() } else { vec![Op::put(key.as_str(), value.clone()), again] };
        let mut txn = Txn { when, then, otherwise: reads.clone() };
        once.guard(kv, &mut txn, &reply).await?;
        let change = Change::new(call, "calendar_save", clock.now()).with("calendar", name);
        let change = (!stands).then(|| change.touching(CALENDAR, stored, Some(&value)));
        let what = "saving the calendar";
        let written = store::write(kv, &txn, &since, what, once.is_named(), change.as_ref()).await?;
        if written.reply.succeeded {
            return Ok(reply);
        }
        found = written.reply;
    }
    Err(contended())
}

/// One more fits in. Two that are made at once may be one too many, which harms nobody.
async fn check_room(kv: &dyn Kv) -> Result<(), Refusal> {
    let many =
        store::range(kv, Range::all(Span::prefix(keys::CALENDARS)).limit(CALENDARS_MAX)).await?.pairs.len();
    if many < CALENDARS_MAX {
        return Ok(());
    }
    let message =
        format!("there are {CALENDARS_MAX} calendars, more do not fit in: delete one that no job names");
    Err(Refusal::new(Kind::Conflict, message))
}
