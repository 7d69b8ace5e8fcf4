//! What `POST /job/pause` and `POST /job/resume` have in common: a job is switched off or on where it is stored, and its mark says from when
//! its fires count (design P7).

use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch, Timestamp};
use common::domain::enabling;
use common::domain::job::{Fault, Job, JobName};
use common::domain::mark::Mark;
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::{Kv, Op, Txn};
use common::schedule::Schedule;
use serde_json::json;

use super::stored::Stored;
use super::{CONFLICTS_MAX, job_name};
use crate::http::{Call, Refusal, Reply};
use crate::idempotency::Once;
use crate::store;

/// Switches the job that the call names on or off.
pub(super) async fn switch(kv: &dyn Kv, clock: &dyn Clock, call: &Call, on: bool) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let name = job_name(call, &call.fields(&["name"])?)?;
    let (route, what) = if on { ("resume", "resuming the job") } else { ("pause", "pausing the job") };
    let mut once = Once::of(call, route, &json!({ "name": name.as_str() }))?;
    let mut stored = Stored::read(kv, &name, &once).await?;
    for _ in 0..CONFLICTS_MAX {
        if let Some(answered) = once.answered(stored.kept.as_ref())? {
            return Ok(answered);
        }
        let plan = Plan::make(&name, &stored, on, clock.now())?;
        let mut warnings = plan.warnings;
        warnings.extend(call.query_warnings());
        let reply = Reply::new(plan.job.to_value(), warnings);
        if plan.puts.is_empty() && !once.is_named() {
            // It is so already: because it was, or because a try of ours whose answer was lost did it.
            return Ok(reply);
        }
        // The compares keep a request that lingers in the network from switching what is switched again or saved later.
        let otherwise = Stored::reads(&name, &once);
        let mut txn = Txn { when: stored.unchanged(&name), then: plan.puts, otherwise };
        once.guard(kv, &mut txn, &reply).await?;
        let written = store::write(kv, &txn, &since, what, once.is_named()).await?;
        if written.reply.succeeded {
            return Ok(reply);
        }
        stored = Stored::of(written.reply.replies);
    }
    let message = format!(
        "the job {:?} is being changed by others again and again, it was left as it is: send it again",
        name.as_str()
    );
    Err(Refusal::new(Kind::Conflict, message))
}

/// What is going to be written, and what will be said.
struct Plan {
    /// The job as it is afterwards.
    job: Job,
    puts: Vec<Op>,
    warnings: Vec<String>,
}

impl Plan {
    fn make(name: &JobName, stored: &Stored, on: bool, now: Timestamp) -> Result<Self, Refusal> {
        let Some(pair) = &stored.job else {
            let message = format!("name: there is no job {:?}: see the list for its name", name.as_str());
            return Err(Refusal::new(Kind::NotFound, message));
        };
        let no_job = |why: String| {
            let message = format!(
                "what is stored as {:?} is not a job ({why}), it was left as it is: save it anew",
                name.as_str()
            );
            Refusal::new(Kind::Conflict, message)
        };
        let read = |value: &[u8]| {
            Job::from_stored(name.as_str(), value).map_err(|fault: Fault| no_job(fault.to_string()))
        };
        let mark = stored.decoded_mark(name)?;
        let Some(value) = enabling::switched(&pair.value, on).map_err(|why| no_job(why.to_string()))? else {
            return Ok(Self { job: read(&pair.value)?, puts: Vec::new(), warnings: Vec::new() });
        };
        let job = read(&value)?;
        let mut warnings = Vec::new();
        if let Some(mark) = mark.as_ref().filter(|mark| !on && mark.plan_time > now && mark.run_id.is_some())
        {
            warnings.push(format!(
                "the fire at {} was already claimed: it may still start, unless its worker hears of this before",
                mark.plan_time
            ));
        }
        let fleet = stored.fleet()?;
        if on && !is_due_ever(&job, &fleet, now) {
            warnings.push("none of its times is still to come: it will not fire".to_owned());
        }
        // Fires of the time when the job is off are nobody's, and this moment is where that begins or ends.
        let mark = Mark::based(mark.as_ref(), now, job.schedule_hash(&fleet));
        let puts = vec![Op::put(keys::job(name), value), Op::put(keys::fired(name), mark.encode())];
        Ok(Self { job, puts, warnings })
    }
}

fn is_due_ever(job: &Job, fleet: &FleetSettings, now: Timestamp) -> bool {
    if job.options.after.is_some() {
        return true;
    }
    let schedule = Schedule::parse(&job.cron_expr, &fleet.of_job(job))
        .map(|schedule| schedule.within(job.options.window()));
    schedule.is_ok_and(|schedule| schedule.next_after(now).is_some())
}
