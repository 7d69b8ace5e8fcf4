//! The only module that builds or parses a key of the store. One entry for each: who writes it, its value, how long it
//! lives, what its absence means.

use crate::domain::calendars::CalendarName;
use crate::domain::idempotency::IdempotencyKey;
use crate::domain::job::JobName;
use crate::domain::run::RunId;
use crate::domain::token::TokenId;
use crate::domain::worker::Sid;

/// `/cron/jobs/{name}`: written by the functions (and by other hands); the job's JSON; lives until deleted. The seed's
/// `JOB_SAVE_DIR`.
pub const JOBS: &str = "/cron/jobs/";
/// `/cron/killer/{name}`: written by the `kill` function, or empty by a seed master; a kill request; goes with its lease. The seed's
/// `JOB_KILLER_DIR`.
pub const KILLER: &str = "/cron/killer/";
/// `/cron/lock/{name}`: written by the worker that runs the job, empty by a seed worker; absent = no run of the job is going. The
/// seed's `JOB_LOCK_DIR`.
pub const LOCK: &str = "/cron/lock/";
/// `/cron/shared/{name}/{run id}`: written by the worker that claims a run of a job with `concurrency: allow`, in the place of the lock; goes
/// with the run's end or its session; none = no such run of the job is going.
pub const SHARED: &str = "/cron/shared/";
/// `/cron/workers/{id}`: written by the worker of that id, empty by a seed worker; absent = no such worker, or it drains. The seed's
/// `JOB_WORKER_DIR`.
pub const WORKERS: &str = "/cron/workers/";
/// `/cron/sessions/{sid}`: written by a worker with its lease; absent = the session is over (or was never there), and nothing can be
/// claimed under it any more.
pub const SESSIONS: &str = "/cron/sessions/";
/// `/cron/fired/{slot}/{name}`: written by claims, saves and adoptions; the mark; outlives its job by a day; absent = nothing was ever
/// claimed and nobody has adopted the job.
pub const FIRED: &str = "/cron/fired/";
/// `/cron/runs/{sid}/{seq}`: written by claims; the open runs; lives until their records are stored.
pub const RUNS: &str = "/cron/runs/";
/// `/cron/requests/{runId}`: written by the `run` function, and by workers for retries; a run that is to be; deleted by its claim; absent = it was
/// claimed, or never asked for.
pub const REQUESTS: &str = "/cron/requests/";
/// `/cron/notify/{name}`: written by workers that tell of a job, by compare-and-swap and only while the job is there; what was told; deleted with
/// the job; absent = nothing was ever told of it.
pub const NOTIFY: &str = "/cron/notify/";
/// `/cron/after/{name}/{predecessor}`: written by the worker whose run of the predecessor has succeeded, in the transaction that closes that
/// run; the success; lives until all that the job `name` waits for have one, or it is deleted; absent = none since successes last led to a run of it.
pub const AFTER: &str = "/cron/after/";
/// `/cron/paused`: written by the function `fleet_pause`, or with any value by other hands; who paused, when and why; lives until deleted;
/// present = nobody claims.
pub const PAUSED: &str = "/cron/paused";
/// `/cron/base`: written by whoever lifts the pause, in the same transaction; when that was; nothing before it is caught up on. Also by the
/// worker that notices first that the store was put back to an earlier state: up to when what is in it may be of before. Absent = neither ever
/// happened.
pub const BASE: &str = "/cron/base";
/// `/cron/settings`: written by the function `fleet_settings`; in which zone, by which dialect and rules jobs fire that say nothing themselves; lives until
/// deleted; absent = UTC and the defaults of the options. Put again by whatever function changes a calendar, in the same transaction: its revision
/// stands for all that the times of jobs depend on beside the jobs, and is what claims, adoptions and saves compare. Put by workers, saying nothing, where
/// it is missing and there are calendars: other hands have deleted it.
pub const SETTINGS: &str = "/cron/settings";
/// `/cron/calendars/{name}`: written by the functions of calendars, which put [`SETTINGS`] with it; the days; lives until deleted; absent = jobs that
/// name it do not run.
pub const CALENDARS: &str = "/cron/calendars/";
/// `/cron/idempotency/{digest}`: written by whatever function changes something, in the transaction of the change itself, when the client named it by an
/// `Idempotency-Key`; the first answer; goes with its lease of an hour; absent = no request with that key was served, or it was too long ago.
pub const IDEMPOTENCY: &str = "/cron/idempotency/";
/// `/cron/tokens/{id}`: written by the function `token_create` and by `local-dev token`; who the token stands for, and its hash; lives until
/// revoked; absent = there is no such token, or not any more.
pub const TOKENS: &str = "/cron/tokens/";
/// `/cron/tokens_used/{id}`: written by the functions, rarely and only while the token is there; when the token was last used; deleted with the token;
/// absent = it was not used.
pub const TOKENS_USED: &str = "/cron/tokens_used/";
/// `/cron/tokens_changed`: written by whatever adds or revokes a token that may do everything, which compares that it is as it was: so two such
/// changes come one after the other. Absent = there was none yet.
pub const TOKENS_CHANGED: &str = "/cron/tokens_changed";
/// `/cron/refused`: written by the functions, with a note under [`AUDIT`] of tokens that were refused, at most once a minute; when such a note was last
/// left; stays; absent = never.
pub const REFUSED: &str = "/cron/refused";
/// `/cron/audit/{note id}`: written by whatever function changes something, in the transaction of the change itself; who did what; lives until
/// it is moved to the store of records; none = nothing waits.
pub const AUDIT: &str = "/cron/audit/";
/// `/cron/audit-full`: written by a worker when too much waits under [`AUDIT`]; lives until that is moved; present = changes are refused that
/// would leave more there.
pub const AUDIT_FULL: &str = "/cron/audit-full";

/// Number of slots: many more than workers, so that they spread evenly; few enough to list.
pub const SLOTS: u16 = 4096;

/// A job's slot: XXH3 of its name, modulo [`SLOTS`].
#[must_use]
pub fn slot(name: &JobName) -> u16 {
    let hash = xxhash_rust::xxh3::xxh3_64(name.as_str().as_bytes()) % u64::from(SLOTS);
    u16::try_from(hash).expect("a remainder of 4096 fits")
}

/// The job's definition.
#[must_use]
pub fn job(name: &JobName) -> String {
    format!("{JOBS}{name}")
}

/// The job's kill request.
#[must_use]
pub fn killer(name: &JobName) -> String {
    format!("{KILLER}{name}")
}

/// The job's lock.
#[must_use]
pub fn lock(name: &JobName) -> String {
    format!("{LOCK}{name}")
}

/// What a run without the lock holds in its place.
#[must_use]
pub fn shared(name: &JobName, run_id: &RunId) -> String {
    format!("{}{run_id}", shared_of(name))
}

/// What all runs of the job hold that go without the lock. Names have no `/`: it is no other job's.
#[must_use]
pub fn shared_of(name: &JobName) -> String {
    format!("{SHARED}{name}/")
}

/// The days of a calendar.
#[must_use]
pub fn calendar(name: &CalendarName) -> String {
    format!("{CALENDARS}{name}")
}

/// A worker's registration.
#[must_use]
pub fn worker(id: &str) -> String {
    format!("{WORKERS}{id}")
}

/// A session's own key.
#[must_use]
pub fn session(sid: Sid) -> String {
    format!("{SESSIONS}{sid}")
}

/// All marks of a slot.
#[must_use]
pub fn fired_slot(slot: u16) -> String {
    format!("{FIRED}{slot:03x}/")
}

/// The job's mark.
#[must_use]
pub fn fired(name: &JobName) -> String {
    format!("{}{name}", fired_slot(slot(name)))
}

/// All open runs of a session.
#[must_use]
pub fn runs_of(sid: Sid) -> String {
    format!("{RUNS}{sid}/")
}

/// The open runs of claim number `seq` of a session; 16 digits, so that key order is claim order.
#[must_use]
pub fn runs(sid: Sid, seq: u64) -> String {
    format!("{}{seq:016x}", runs_of(sid))
}

/// The request for the run of this id.
#[must_use]
pub fn request(run_id: &RunId) -> String {
    format!("{REQUESTS}{run_id}")
}

/// Who the token of this id stands for.
#[must_use]
pub fn token(id: &TokenId) -> String {
    format!("{TOKENS}{id}")
}

/// When the token of this id was last used.
#[must_use]
pub fn token_used(id: &TokenId) -> String {
    format!("{TOKENS_USED}{id}")
}

/// What was told of the job.
#[must_use]
pub fn notify(name: &JobName) -> String {
    format!("{NOTIFY}{name}")
}

/// The success of a job that the job `name` waits for.
#[must_use]
pub fn after(name: &JobName, predecessor: &JobName) -> String {
    format!("{}{predecessor}", after_of(name))
}

/// The successes of all that the job `name` waits for. Names have no `/`: it is no other job's.
#[must_use]
pub fn after_of(name: &JobName) -> String {
    format!("{AFTER}{name}/")
}

/// The answer that is kept under a client's key.
#[must_use]
pub fn idempotency(key: &IdempotencyKey) -> String {
    format!("{IDEMPOTENCY}{}", key.digest())
}

/// What a change leaves behind for the audit, under a name that no other has.
#[must_use]
pub fn audit(note_id: &str) -> String {
    format!("{AUDIT}{note_id}")
}

/// The job name in `/cron/fired/{slot}/{name}`.
#[must_use]
pub fn parse_fired(key: &crate::kv::Key) -> Option<JobName> {
    let (_slot, name) = key.strip_prefix(FIRED)?.split_once('/')?;
    JobName::parse(name).ok()
}

/// The slot in `/cron/fired/{slot}/{name}`.
#[must_use]
pub fn parse_fired_slot(key: &crate::kv::Key) -> Option<u16> {
    let (slot, _name) = key.strip_prefix(FIRED)?.split_once('/')?;
    u16::from_str_radix(slot, 16).ok().filter(|slot| *slot < SLOTS)
}

/// The session in `/cron/runs/{sid}/{seq}`.
#[must_use]
pub fn parse_runs(key: &crate::kv::Key) -> Option<Sid> {
    let (sid, _seq) = key.strip_prefix(RUNS)?.split_once('/')?;
    Sid::parse(sid)
}

/// The session and the claim number in `/cron/runs/{sid}/{seq}`.
#[must_use]
pub fn parse_run(key: &crate::kv::Key) -> Option<(Sid, u64)> {
    let (_sid, seq) = key.strip_prefix(RUNS)?.split_once('/')?;
    Some((parse_runs(key)?, u64::from_str_radix(seq, 16).ok()?))
}

/// The run in `/cron/requests/{runId}`.
#[must_use]
pub fn parse_request(key: &crate::kv::Key) -> Option<RunId> {
    key.strip_prefix(REQUESTS).filter(|id| !id.is_empty()).map(RunId::from_text)
}

/// The job in `/cron/lock/{name}`.
#[must_use]
pub fn parse_lock(key: &crate::kv::Key) -> Option<JobName> {
    JobName::parse(key.strip_prefix(LOCK)?).ok()
}

/// The job and the run in `/cron/shared/{name}/{run id}`.
#[must_use]
pub fn parse_shared(key: &crate::kv::Key) -> Option<(JobName, RunId)> {
    let (name, run_id) = key.strip_prefix(SHARED)?.split_once('/')?;
    Some((JobName::parse(name).ok()?, RunId::from_text(run_id)))
}

/// The job in `/cron/notify/{name}`.
#[must_use]
pub fn parse_notify(key: &crate::kv::Key) -> Option<JobName> {
    JobName::parse(key.strip_prefix(NOTIFY)?).ok()
}

/// The job that waits and the one that has succeeded, in `/cron/after/{name}/{predecessor}`.
#[must_use]
pub fn parse_after(key: &crate::kv::Key) -> Option<(JobName, JobName)> {
    let (name, predecessor) = key.strip_prefix(AFTER)?.split_once('/')?;
    Some((JobName::parse(name).ok()?, JobName::parse(predecessor).ok()?))
}

/// The session in `/cron/sessions/{sid}`.
#[must_use]
pub fn parse_session(key: &crate::kv::Key) -> Option<Sid> {
    Sid::parse(key.strip_prefix(SESSIONS)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Key;

    #[test]
    fn keys_are_read_back_as_they_were_built() {
        for name in ["a", "nightly backup", "任务 1", "a~b%2F", "x".repeat(255).as_str()] {
            let name = JobName::parse(name).unwrap();
            assert_eq!(parse_fired(&Key::from(fired(&name))), Some(name.clone()));
            assert_eq!(Key::from(job(&name)).strip_prefix(JOBS), Some(name.as_str()));
            let run_id = RunId::new(Sid(7), 1);
            assert_eq!(parse_shared(&Key::from(shared(&name, &run_id))), Some((name.clone(), run_id)));
            assert_eq!(parse_notify(&Key::from(notify(&name))), Some(name.clone()));
            let other = JobName::parse("other").unwrap();
            let both = Some((name.clone(), other.clone()));
            assert_eq!(parse_after(&Key::from(after(&name, &other))), both);
            assert_eq!(parse_lock(&Key::from(lock(&name))), Some(name));
        }
        for sid in [Sid(1), Sid(0x694d_7f00_1234_5678), Sid(i64::MAX)] {
            assert_eq!(parse_session(&Key::from(session(sid))), Some(sid));
            assert_eq!(parse_runs(&Key::from(runs(sid, 77))), Some(sid));
            assert_eq!(parse_run(&Key::from(runs(sid, 77))), Some((sid, 77)));
            let run_id = RunId::new(sid, 77).of_attempt(2);
            assert_eq!(parse_request(&Key::from(request(&run_id))), Some(run_id));
        }
    }

    #[test]
    fn a_clients_key_stays_in_its_place() {
        let key = |text: &str| idempotency(&IdempotencyKey::parse(text.as_bytes()).unwrap());
        // Kept answers are found by it: it may not change between versions.
        assert_eq!(
            key("a"),
            "/cron/idempotency/ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
        );
        for text in ["../jobs/a", "/", "a b", "x".repeat(255).as_str()] {
            let key = Key::from(key(text));
            let digest = key.strip_prefix(IDEMPOTENCY).unwrap();
            assert!(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()), "{digest}");
        }
    }

    #[test]
    fn a_slot_does_not_move_between_versions() {
        // Stored keys depend on it: these numbers may never change.
        let slots: Vec<u16> =
            ["a", "job1", "backup"].iter().map(|n| slot(&JobName::parse(n).unwrap())).collect();
        assert_eq!(slots, [3615, 1866, 1606]);
    }
}
