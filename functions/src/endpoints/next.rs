//! `GET /job/next`: what an expression means, in words and by its next fires. Nothing is saved, and nothing of it is a job.

use common::clock::{Clock, Timestamp};
use common::domain::job::{Fault, Job, Submitted};
use common::kv::Kv;
use lambda_http::Request;
use serde_json::{Map, Value, json};

use super::calendars;
use super::preview::{FIRES_DEFAULT, fires, fleet, language};
use super::save;
use crate::http::{Call, Fields, READ, Refusal, Reply, Response, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] =
    &["expr", "timezone", "count", "from", "dst", "dialect", "name", "lang", "exclude", "only"];
/// Most fires of one answer: some 26 kB.
const FIRES_MAX: usize = 1_000;

/// Serves `GET /job/next`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| next(kv, clock, &call).await).await
}

async fn next(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    let query = call.query()?;
    let submitted = job_of(kv, &query).await?;
    let (from, count, language) = (from(&query)?, count(&query)?, language(call, &query)?);
    let schedule = &submitted.schedule;
    let now = clock.now();
    if from.is_none() && schedule.next_after(now).is_none() {
        return Err(Refusal::bad(format!("expr: {}", save::never(&submitted.job, now).message)));
    }
    let data = json!({
        "description": schedule.describe(language),
        "next": fires(schedule, from.unwrap_or(now), count),
    });
    let mut warnings = submitted.warnings;
    warnings.extend(query.warnings(PARAMETERS));
    Ok(Reply::new(data, warnings))
}

/// The job that would have this schedule: read as a save reads it, so that the two cannot differ.
async fn job_of(kv: &dyn Kv, query: &Fields) -> Result<Submitted, Refusal> {
    let missing =
        "expr: is missing: give a cron expression, percent-encoded (a blank is + or %20, a + is %2B)";
    let expression = query.filled("expr").ok_or_else(|| Refusal::bad(missing))?;
    let mut job = Map::new();
    job.insert("name".to_owned(), query.filled("name").unwrap_or("preview").into());
    job.insert("command".to_owned(), "true".into());
    job.insert("cronExpr".to_owned(), expression.into());
    for option in ["timezone", "dst", "dialect"] {
        job.extend(query.filled(option).map(|value| (option.to_owned(), Value::from(value))));
    }
    let names = |parameter: &str| {
        let given = query.filled(parameter)?;
        Some((parameter.to_owned(), given.split(',').map(|name| Value::from(name.trim())).collect::<Value>()))
    };
    let calendars: Map<String, Value> = ["exclude", "only"].into_iter().filter_map(names).collect();
    if !calendars.is_empty() {
        job.insert("calendars".to_owned(), calendars.into());
    }
    let job = Value::Object(job);
    let fleet = calendars::known(kv, fleet(kv).await?.0, calendars::named_in(&job).as_ref()).await?;
    Job::from_submitted(job, &fleet).map_err(|faults| {
        let told = |fault: &Fault| {
            let parameter = match fault.field.as_str() {
                "cronExpr" => "expr",
                "calendars" => "exclude, only",
                parameter => parameter,
            };
            format!("{parameter}: {}", fault.message)
        };
        Refusal::bad(faults.iter().map(told).collect::<Vec<_>>().join("; "))
    })
}

/// From when on, exclusive.
fn from(query: &Fields) -> Result<Option<Timestamp>, Refusal> {
    // A plus that was not percent-encoded arrives as a blank, and no time has one.
    let from = query.filled("from").map(|from| from.replace(' ', "+"));
    let wrong =
        "from: is not a time in RFC 3339: write it with its offset from UTC, like 2027-01-31T08:00:00Z";
    from.map(|from| Timestamp::parse(&from).ok_or_else(|| Refusal::bad(wrong))).transpose()
}

fn count(query: &Fields) -> Result<usize, Refusal> {
    let Some(count) = query.filled("count") else { return Ok(FIRES_DEFAULT) };
    let number = count.parse().ok().filter(|count| (1..=FIRES_MAX).contains(count));
    number.ok_or_else(|| Refusal::bad(format!("count: is not a whole number from 1 to {FIRES_MAX}")))
}
