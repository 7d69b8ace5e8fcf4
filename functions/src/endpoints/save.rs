//! `POST /job/save`: stores a job, and with it the time from which its fires count (design P7).

use common::api::envelope::Next;
use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch, Timestamp};
use common::domain::job::{Fault, Job, JobName, Submitted};
use common::domain::mark::Mark;
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::{Compare, Kv, Op, Pair, Txn};
use common::schedule::Window;
use lambda_http::Request;
use serde_json::{Map, Value};

use super::CONFLICTS_MAX;
use super::after::{self, Before};
use super::preview::{FIRES_DEFAULT, accepted, fires};
use super::stored::Stored;
use crate::http::{Call, Payload, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency::Once;
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /job/save`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| save(kv, clock, &call).await).await
}

async fn save(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let value = submitted_value(call)?;
    let name = name_of(&value)?;
    call.reach(&name)?;
    let mut once = Once::of(call, "save", &in_order(&name, &value))?;
    let mut stored = Stored::read(kv, &name, &once).await?;
    if let Some(answered) = once.answered(stored.kept.as_ref())? {
        return Ok(answered);
    }
    for _ in 0..CONFLICTS_MAX {
        let fleet = stored.fleet()?;
        let submitted = Job::from_submitted(value.clone(), &fleet).map_err(|faults| refusal(&faults))?;
        if submitted.job.options.after.is_none() && submitted.schedule.next_after(clock.now()).is_none() {
            return Err(refusal(&[never(&submitted.job, clock.now())]));
        }
        let before = Before::of(kv, &submitted.job, call.principal()).await?;
        let plan = Plan::make(&submitted, &stored, before, &fleet, clock.now())?;
        let reply = plan.reply(&submitted, call, clock.now());
        let mut txn = plan.txn(&submitted.job, &stored, &once);
        once.guard(kv, &mut txn, &reply).await?;
        let written = store::write(kv, &txn, &since, "the save", once.is_named()).await?;
        if written.reply.succeeded {
            return Ok(reply);
        }
        let found = Stored::of(written.reply.replies);
        if let Some(answered) = once.answered(found.kept.as_ref())? {
            return Ok(answered);
        }
        // The first try may have been applied and only its answer lost: then what stands there now is what we put. With a key there is no
        // such guessing: had it been applied, its answer would be kept.
        if !once.is_named() && written.doubted && plan.stands_in(&found, &stored) {
            return Ok(reply);
        }
        stored = found;
    }
    let message = format!(
        "the job {:?} is being changed by others again and again, nothing was saved: send it again",
        name.as_str()
    );
    Err(Refusal::new(Kind::Conflict, message))
}

/// The job in the form field `job`, or as the JSON body itself.
fn submitted_value(call: &Call) -> Result<Value, Refusal> {
    match call.payload()? {
        Payload::Json(value) => Ok(value),
        Payload::Form(fields) => {
            fields.only(&["job"])?;
            let job = fields.get("job").ok_or_else(|| {
                Refusal::bad("job: is missing: send the form field job={…}, or the job as a JSON body")
            })?;
            serde_json::from_str(job).map_err(|e| Refusal::bad(format!("job: is not valid JSON: {e}")))
        }
    }
}

/// The name, where nothing is wrong with the job that the store need not be asked about. What its expression means depends on the fleet's settings.
fn name_of(value: &Value) -> Result<JobName, Refusal> {
    let faults = match Job::from_submitted(value.clone(), &FleetSettings::default()) {
        Ok(submitted) => return Ok(submitted.job.name),
        Err(faults) => faults,
    };
    match value.get("name").and_then(Value::as_str).map(JobName::parse) {
        Some(Ok(name))
            if faults.iter().all(|fault| fault.field == "cronExpr")
                && value.get("cronExpr").is_some_and(Value::is_string) =>
        {
            Ok(name)
        }
        _ => Err(refusal(&faults)),
    }
}

/// The job with its fields in the order in which they are stored, so that the order in which they were sent is nothing to a kept answer.
fn in_order(name: &JobName, job: &Value) -> Value {
    Job::from_stored(name.as_str(), job.to_string().as_bytes())
        .map_or_else(|_| job.clone(), |job| job.to_value())
}

/// Why a job has no fire any more.
pub(super) fn never(job: &Job, now: Timestamp) -> Fault {
    let Window { from, until } = job.options.window();
    if until.is_some_and(|until| until <= now) {
        let over =
            "has passed, so the job would never fire: give a time that is still to come, or leave it out";
        return Fault::new("endAt", over);
    }
    let why = if from.or(until).is_none() {
        "all its times are over, so the job would never fire: give one that is still to come"
    } else {
        "none of its times that are still to come lies between startAt and endAt, so the job would never fire: give another time, or a longer stretch"
    };
    Fault::new("cronExpr", why)
}

fn refusal(faults: &[Fault]) -> Refusal {
    let said: Vec<String> = faults.iter().map(Fault::to_string).collect();
    Refusal::bad(said.join("; "))
}

/// What a save is going to write, and what it will say.
pub(super) struct Plan {
    job: Vec<u8>,
    mark: Option<Mark>,
    previous: Option<Job>,
    /// That what it waits for has not changed.
    pub(super) unchanged: Vec<Compare>,
    /// It waits for other jobs than before: their successes count from now on.
    waits_anew: bool,
    pub(super) warnings: Vec<String>,
}

impl Plan {
    pub(super) fn make(
        submitted: &Submitted,
        stored: &Stored,
        before: Before,
        fleet: &FleetSettings,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        let (job, hash) = (&submitted.job, submitted.job.schedule_hash(fleet));
        let Before { unchanged, mut warnings } = before;
        let mark = stored.decoded_mark(&job.name)?;
        let previous = match stored.job.as_ref().map(|pair| Job::from_stored(job.name.as_str(), &pair.value))
        {
            None => None,
            Some(Ok(previous)) => Some(previous),
            Some(Err(fault)) => {
                warnings.push(format!("what stood there before was not a job and is replaced: {fault}"));
                None
            }
        };
        let (before, after) = (previous.as_ref().map(Job::to_value), job.to_value());
        for option in before.iter().filter_map(Value::as_object).flat_map(Map::keys) {
            if after.get(option).is_none() {
                warnings.push(format!("the previous definition had the option {option:?}: it is gone"));
            }
        }
        if let Some(mark) = mark.as_ref().filter(|mark| mark.plan_time > now && mark.run_id.is_some()) {
            warnings.push(format!(
                "the fire at {} was already claimed: this one may still run the old definition",
                mark.plan_time
            ));
        }
        // An edit that leaves the fire times alone must not move the base: it would swallow the fires missed before it.
        let same_times = previous.as_ref().is_some_and(|previous| previous.schedule_hash(fleet) == hash)
            && mark.as_ref().is_some_and(|mark| mark.hash == hash);
        let mark = (!same_times).then(|| Mark::based(mark.as_ref(), now, hash));
        let waited_for = previous.as_ref().and_then(|previous| previous.options.after.as_ref());
        let waits_anew = job.options.after.as_ref() != waited_for;
        let job = job.to_value().to_string().into_bytes();
        Ok(Self { job, mark, previous, unchanged, waits_anew, warnings })
    }

    fn txn(&self, job: &Job, stored: &Stored, once: &Once) -> Txn {
        let mut when = stored.unchanged(&job.name);
        when.extend(self.unchanged.iter().cloned());
        Txn { when, then: self.puts(&job.name), otherwise: Stored::reads(&job.name, once) }
    }

    /// The job, its mark when it is to be another, and that what it waits for counts anew when that is something else than before.
    pub(super) fn puts(&self, name: &JobName) -> Vec<Op> {
        let mut puts = vec![Op::put(keys::job(name), self.job.clone())];
        puts.extend(self.mark.as_ref().map(|mark| Op::put(keys::fired(name), mark.encode())));
        puts.extend(self.waits_anew.then(|| after::begin_anew(name)));
        puts
    }

    /// Whether `found` is what this plan puts when applied to `before`. A claim may have moved the mark since, which keeps base and hash.
    fn stands_in(&self, found: &Stored, before: &Stored) -> bool {
        let revision = before.job.as_ref().map_or(0, |pair| pair.mod_revision);
        let ours = |pair: &Pair| pair.value == self.job && pair.mod_revision > revision;
        let job_put = found.job.as_ref().is_some_and(ours);
        let mark_put = self.mark.as_ref().is_none_or(|ours| {
            let found = found.mark.as_ref().and_then(|pair| Mark::decode(&pair.value).ok());
            found.is_some_and(|found| found.base == ours.base && found.hash == ours.hash)
        });
        job_put && mark_put
    }

    fn reply(&self, submitted: &Submitted, call: &Call, now: Timestamp) -> Reply {
        let mut warnings = submitted.warnings.clone();
        warnings.extend(self.warnings.iter().cloned());
        warnings.extend(call.query_warnings());
        let next = if submitted.job.options.is_enabled() {
            fires(&submitted.schedule, now, FIRES_DEFAULT)
        } else {
            Vec::new()
        };
        Reply {
            next: Some(Next::Fires(next)),
            // One that runs after others has no times to tell.
            description: (submitted.job.options.after.is_none())
                .then(|| submitted.schedule.describe(accepted(call))),
            ..Reply::new(self.previous.as_ref().map_or(Value::Null, Job::to_value), warnings)
        }
    }
}
