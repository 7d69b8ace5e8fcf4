//! `POST /job/run`: asks for a run of a job now, whatever its schedule says. It only writes a request; workers watch for it, and whoever
//! claims it gives the run the request's id.

use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch};
use common::domain::execution::Environment;
use common::domain::job::{Job, JobName};
use common::domain::options::Concurrency;
use common::domain::request::Request as RunRequest;
use common::domain::run::RunId;
use common::ids::random_id;
use common::keys;
use common::kv::{Compare, Kv, Op, Pair, Txn};
use lambda_http::Request;
use serde_json::{Value, json};

use super::job_name;
use crate::audit::Change;
use crate::http::{Call, Fields, Payload, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency::Once;
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /job/run`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| run(kv, clock, &call).await).await
}

async fn run(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let (name, env) = asked(call)?;
    // Sent again after its run has begun, the request would be another one: nothing in the store but a kept answer tells that it was made.
    let mut once = Once::always(call, "run", &json!({ "name": name.as_str(), "env": env }))?;
    let (job, paused, lock) = (keys::job(&name), keys::PAUSED, keys::lock(&name));
    let reads = [Op::get(job.as_str()), Op::get(paused), Op::get(lock)].into_iter().chain(once.read());
    let found = store::read(kv, Txn { then: reads.collect(), ..Txn::default() }).await?;
    if let Some(answered) = once.answered(found.pair(3))? {
        return Ok(answered);
    }
    let definition = can_run(&name, found.pair(0), &env)?;
    let run_id = RunId::from_text(&random_id());
    let mut warnings = call.query_warnings();
    if found.pair(1).is_some() {
        warnings
            .push("the fleet is paused: the run begins when that ends, if it does within a day".to_owned());
    }
    let options = &definition.options;
    if options.is_broadcast() {
        warnings.push(format!("the job runs on every worker: the id of each run begins with {run_id}~"));
    } else if found.pair(2).is_some() && options.concurrency() != Concurrency::Allow {
        warnings.push("a run of the job is going: this one begins when that has ended".to_owned());
    }
    let reply = Reply::new(json!({ "runId": run_id }), warnings);
    // Names alone: values may be what not everybody is to read.
    let variables: Vec<String> = env.iter().map(|(name, _)| name.to_owned()).collect();
    let change = Change::new(call, "run", clock.now()).of_job(&name, None, None);
    let change = change.with("runId", run_id.as_str()).with("env", variables);
    let mut request = RunRequest::manual(run_id.clone(), name.clone(), env, clock.now());
    request.trace = call.trace();
    if let Some(caller) = call.caller() {
        request.by = caller.to_owned();
    }
    let mut txn = Txn {
        when: vec![Compare::exists(job)],
        then: vec![Op::put(keys::request(&run_id), request.encode())],
        otherwise: once.read().into_iter().collect(),
    };
    once.guard(kv, &mut txn, &reply).await?;
    let written = store::write(kv, &txn, &since, "the request", once.is_named(), Some(&change)).await?;
    if written.reply.succeeded {
        return Ok(reply);
    }
    // Refused: an answer is kept, that of a try of ours or of another request with the key; or else the job was deleted just now.
    once.answered(written.reply.pair(0))?.ok_or_else(|| no_such_job(&name))
}

/// The fields of the body: the job's name, and the variables for this run.
fn asked(call: &Call) -> Result<(JobName, Environment), Refusal> {
    let (fields, env) = match call.payload()? {
        Payload::Json(Value::Object(mut object)) => {
            let env = object.shift_remove("env").unwrap_or_default();
            (Fields::of_json(object)?, env)
        }
        Payload::Json(_) => {
            return Err(Refusal::bad("the body is not a JSON object: send one like {\"name\":…}"));
        }
        Payload::Form(fields) => {
            let env = fields.filled("env").map_or(Ok(Value::Null), serde_json::from_str);
            let env = env.map_err(|e| Refusal::bad(format!("env: is not valid JSON: {e}")))?;
            (fields, env)
        }
    };
    fields.only(&["name", "env"])?;
    let env = Some(env)
        .filter(|env| !env.is_null())
        .map_or(Ok(Environment::default()), |env| Environment::parse(&env));
    Ok((job_name(call, &fields)?, env.map_err(|why| Refusal::bad(format!("env: {why}")))?))
}

fn can_run(name: &JobName, stored: Option<&Pair>, env: &Environment) -> Result<Job, Refusal> {
    let stored = stored.ok_or_else(|| no_such_job(name))?;
    let job = Job::from_stored(name.as_str(), &stored.value).map_err(|fault| {
        let message = format!("what is stored as {:?} is not a job ({fault}): save it anew", name.as_str());
        Refusal::new(Kind::Conflict, message)
    })?;
    // Who may run a job may not hand it secrets that its author did not.
    if let Some(secret) = env.secrets().next() {
        return Err(Refusal::bad(format!("env: {secret} is for jobs alone: save it in the job's own env")));
    }
    if job.options.execution.http.is_some() && !env.is_empty() {
        return Err(Refusal::bad("env: means nothing to the request that this job sends: leave it out"));
    }
    Ok(job)
}

fn no_such_job(name: &JobName) -> Refusal {
    let message = format!("name: there is no job {:?}, nothing was asked for: see /job/list", name.as_str());
    Refusal::new(Kind::NotFound, message)
}
