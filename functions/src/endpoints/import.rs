//! `POST /job/import`: a crontab, or jobs as JSON, against what is stored: a plan, which is carried out when that is asked for.

use std::collections::BTreeSet;

use common::clock::Clock;
use common::crontab::{self, Crontab, Entry, Format, Reading, Refused};
use common::domain::access::Principal;
use common::domain::audit::Origin;
use common::domain::job::{Fault, Job, JobName};
use common::domain::settings::FleetSettings;
use common::kv::{Kv, Revision};
use common::schedule::Language;
use lambda_http::Request;
use serde_json::Value;

use super::calendars;
use super::importing::{self, Wish};
use super::preview::{fleet, language};
use crate::http::{Call, Fields, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// What may be asked, behind `?` or in a form or a JSON object beside the `text`.
const PARAMETERS: &[&str] = &["format", "prefix", "source", "timezone", "apply", "prune", "lang"];
/// The field with the file.
const TEXT: &str = "text";
/// The label of jobs from files of which nobody said where they come from.
const SOURCE_DEFAULT: &str = "crontab";

/// Serves `POST /job/import`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| import(kv, clock, &call).await).await
}

async fn import(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    let (fields, text) = asked(call)?;
    let prefix = fields.filled("prefix").unwrap_or_default();
    if !prefix.is_empty() {
        JobName::parse(prefix).map_err(|why| Refusal::bad(format!("prefix: {why}")))?;
    }
    let named = fields.filled("source").or(fields.filled("prefix"));
    let source = named.unwrap_or(SOURCE_DEFAULT);
    let fleet = fleet_with_calendars(kv).await?;
    let reading =
        |format| Reading { format, prefix, source, timezone: fields.filled("timezone"), fleet: &fleet.0 };
    let crontab = match fields.filled("format").unwrap_or("user") {
        "user" | "crontab" => crontab::read(&text, &reading(Format::User)),
        "system" => crontab::read(&text, &reading(Format::System)),
        "json" => jobs(&text, prefix, &fleet.0)?,
        _ => return Err(Refusal::bad("format: is none of user, system and json: write one of them")),
    };
    let (apply, prune) = (fields.switch("apply")?, fields.switch("prune")?);
    let wish = Wish {
        prefix,
        source,
        prune,
        apply,
        language: language(call, &fields)?,
        fleet,
        whose: call.principal(),
        origin: call.origin(),
    };
    let mut reply = importing::import(kv, clock, &wish, crontab).await?;
    if call.headers().contains_key(idempotency::HEADER) {
        let needless = "the Idempotency-Key is not kept: an import that is sent again changes only what is not yet as it says";
        reply.warnings.push(needless.to_owned());
    }
    Ok(reply)
}

/// The settings with all calendars: any of the file's jobs may name any of them.
async fn fleet_with_calendars(kv: &dyn Kv) -> Result<(FleetSettings, Revision), Refusal> {
    let (fleet, revision) = fleet(kv).await?;
    Ok((calendars::all(kv, fleet).await?, revision))
}

/// Imports a crontab as [`handle`] does with `apply`, and what became of it in lines for people.
///
/// # Errors
/// Why it was not done, or not to its end.
pub async fn file(
    kv: &dyn Kv,
    clock: &dyn Clock,
    text: &[u8],
    format: Format,
    prefix: &str,
    source: &str,
) -> Result<Vec<String>, String> {
    let fleet = fleet_with_calendars(kv).await.map_err(|refusal| refusal.message)?;
    let reading = Reading { format, prefix, source, timezone: None, fleet: &fleet.0 };
    let crontab = crontab::read(text, &reading);
    let mut lines: Vec<String> = Vec::new();
    for refused in &crontab.refused {
        lines.push(format!("line {} at character {}: {}", refused.line, refused.character, refused.why));
    }
    for remark in &crontab.remarks {
        lines.push(format!("line {}: {}", remark.line, remark.what));
    }
    let origin = Origin { from: Some("the command line".to_owned()), ..Origin::default() };
    let wish = Wish {
        prefix,
        source,
        prune: true,
        apply: true,
        language: Language::English,
        fleet,
        whose: &Principal::anybody(),
        origin: &origin,
    };
    let reply = importing::import(kv, clock, &wish, crontab).await.map_err(|refusal| refusal.message)?;
    lines.extend(reply.warnings);
    lines.push(format!("{}", reply.data["counts"]));
    Ok(lines)
}

/// The parameters and the file: the body as it is, or its field `text`. `curl --data-binary @file` sends a file as a form, which it then is not.
fn asked(call: &Call) -> Result<(Fields, Vec<u8>), Refusal> {
    let body = call.body()?;
    let query = call.query()?;
    query.only(PARAMETERS)?;
    let media_type = call.media_type()?.unwrap_or_default();
    let beside = if media_type == "application/json" || media_type.ends_with("+json") {
        match serde_json::from_slice(body) {
            Ok(Value::Object(object)) if object.contains_key(TEXT) => Some(Fields::of_json(object)?),
            _ => None,
        }
    } else if media_type == "application/x-www-form-urlencoded" {
        Fields::decode(body.trim_ascii(), "the form").ok().filter(|form| form.get(TEXT).is_some())
    } else {
        None
    };
    let Some(beside) = beside else { return Ok((query, body.to_vec())) };
    let text = beside.get(TEXT).unwrap_or_default().as_bytes().to_vec();
    let all = query.and(beside);
    all.only(&[PARAMETERS, &[TEXT]].concat())?;
    match all.repeated() {
        Some(name) => Err(Refusal::bad(format!("{name:?} is given twice: give it once"))),
        None => Ok((all, text)),
    }
}

/// Jobs as JSON: a list of them, as `/job/export?format=json` and `/job/list` answer it, alone or with their envelope. The line of each is its
/// place in the list.
fn jobs(text: &[u8], prefix: &str, fleet: &FleetSettings) -> Result<Crontab, Refusal> {
    let value: Value =
        serde_json::from_slice(text).map_err(|e| Refusal::bad(format!("the text is not valid JSON: {e}")))?;
    let list = match value {
        Value::Array(list) => Some(list),
        Value::Object(mut object) => match object.shift_remove("data") {
            Some(Value::Array(list)) => Some(list),
            _ => None,
        },
        _ => None,
    };
    let list = list.ok_or_else(|| Refusal::bad("the text is no list of jobs: send [{\"name\":…}, …]"))?;
    let mut read = Crontab::default();
    let mut names = BTreeSet::new();
    for (n, value) in list.into_iter().enumerate() {
        let (line, text) = (n + 1, value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned());
        let taken = Job::from_submitted(value, fleet).and_then(|submitted| {
            let name = submitted.job.name.as_str();
            if !name.starts_with(prefix) {
                return Err(vec![Fault::new("name", format!("does not begin with {prefix:?}"))]);
            }
            if !names.insert(name.to_owned()) {
                return Err(vec![Fault::new("name", "stands in the list twice")]);
            }
            Ok(submitted)
        });
        match taken {
            Ok(submitted) => read.entries.push(Entry { line, submitted }),
            Err(faults) => {
                let why = faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ");
                read.refused.push(Refused { line, character: 1, text, why });
            }
        }
    }
    Ok(read)
}
