//! What the store must let this worker do. When it refuses anything, what is missing is looked for, said, and looked for again until nothing is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::clock::{self, Stopwatch};
use common::keys;
use common::kv::{self, Compare, Is, Kv, Op, Range, Txn};
use tokio::sync::Notify;

use crate::status::Status;

/// While a right is missing it is looked for this often: whoever gives it sees soon that it was the right one.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// And this often it is said.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// A refusal that no missing right explains is not looked into again before this: looking is some thirty requests.
const PAUSE: Duration = Duration::from_secs(10);

/// What a worker does with one key, or with all keys that begin with it (those that end in `/`): it reads all of them, and writes some.
struct Right {
    keys: &'static str,
    writes: bool,
    /// Without it no fire is claimed.
    to_fire: bool,
}

const fn right(keys: &'static str, writes: bool, to_fire: bool) -> Right {
    Right { keys, writes, to_fire }
}

/// What `infra/etcd-roles.sh` gives to workers.
const NEEDED: [Right; 17] = [
    right(keys::JOBS, false, true),
    right(keys::CALENDARS, false, true),
    right(keys::SETTINGS, false, true),
    right(keys::PAUSED, false, true),
    right(keys::BASE, true, true),
    right(keys::KILLER, true, false),
    right(keys::REQUESTS, true, true),
    right(keys::RUNS, true, true),
    right(keys::WORKERS, true, true),
    right(keys::LOCK, true, true),
    right(keys::SHARED, true, true),
    right(keys::FIRED, true, true),
    right(keys::NOTIFY, true, false),
    right(keys::AFTER, true, false),
    right(keys::SESSIONS, true, true),
    right(keys::AUDIT, true, false),
    right(keys::AUDIT_FULL, true, false),
];

/// What the store refuses this worker.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Missing {
    lacks: Vec<Lack>,
    /// The store's words, and what to do.
    why: String,
}

/// The keys of one [`Right`], and what may not be done with them.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Lack {
    keys: &'static str,
    read: bool,
    write: bool,
    to_fire: bool,
}

impl Missing {
    /// How many keys, or ranges of keys, that are.
    pub(crate) fn ranges(&self) -> usize {
        self.lacks.len()
    }

    /// Without these no fire is claimed.
    pub(crate) fn stops_fires(&self) -> bool {
        self.lacks.iter().any(|lack| lack.to_fire)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lacks.len() == NEEDED.len() {
            return f.write_str("anything");
        }
        for (number, Lack { keys, read, write, .. }) in self.lacks.iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            let what = match (read, write) {
                (true, true) => "read and write",
                (true, false) => "read",
                _ => "write",
            };
            write!(f, "{comma}{what} {keys}")?;
        }
        Ok(())
    }
}

/// Looks whenever the store has `denied` something, for as long as the worker lives. `kv` is not the one that tells of it: what is refused here
/// is no news.
pub(crate) async fn keep_looking(kv: Arc<dyn Kv>, status: Arc<Status>, denied: Arc<Notify>) {
    loop {
        denied.notified().await;
        let (mut before, mut said) = (Missing::default(), Stopwatch::start());
        loop {
            match missing(kv.as_ref()).await {
                Ok(found) => {
                    let is_new = found.lacks != before.lacks;
                    if found.lacks.is_empty() {
                        if is_new {
                            tracing::info!("the store lets this worker do all it must again");
                        }
                        status.note_missing_rights(found);
                        break;
                    }
                    if is_new || said.elapsed() >= SAY_EVERY {
                        say(&found);
                        said = Stopwatch::start();
                    }
                    status.note_missing_rights(found.clone());
                    before = found;
                }
                // It is away: what was known stands, and others say so.
                Err(why) => tracing::debug!(%why, "rights not looked for"),
            }
            if before.lacks.is_empty() {
                break;
            }
            clock::sleep(LOOK_EVERY).await;
        }
        clock::sleep(PAUSE).await;
    }
}

fn say(missing: &Missing) {
    let why = &missing.why;
    if missing.stops_fires() {
        tracing::error!(%missing, why, "the store refuses rights that this worker needs: it claims nothing until its user has them");
    } else {
        tracing::error!(%missing, why, "the store refuses rights that this worker needs: fires are claimed, and the rest is not done");
    }
}

/// Asks for each right whether it is there: the store, when it refuses, does not say what it is about.
async fn missing(kv: &dyn Kv) -> Result<Missing, kv::Error> {
    let mut missing = Missing::default();
    for Right { keys, writes, to_fire } in &NEEDED {
        let range = if keys.ends_with('/') { Range::prefix(*keys) } else { Range::key(*keys) };
        let mut refused = |answer: Result<(), kv::Error>| match answer {
            Ok(()) => Ok(false),
            Err(kv::Error::Denied(why)) => {
                missing.why = why;
                Ok(true)
            }
            Err(why) => Err(why),
        };
        let read = refused(kv.range(range.limit(1)).await.map(drop))?;
        let write = *writes && refused(kv.txn(never_put(keys)).await.map(drop))?;
        if read || write {
            missing.lacks.push(Lack { keys, read, write, to_fire: *to_fire });
        }
    }
    Ok(missing)
}

/// A put that is refused to whoever may not do it, and that is never done: no key has a revision below zero.
fn never_put(key: &'static str) -> Txn {
    let never = Compare::ModRevision(key.into(), Is::Less, 0);
    Txn { when: vec![never], then: vec![Op::put(key, "")], otherwise: Vec::new() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use common::kv::embedded::EmbeddedKv;

    use super::*;

    #[test]
    fn what_is_looked_for_is_what_the_script_gives_to_workers() {
        let script = include_str!("../../infra/etcd-roles.sh");
        let given: BTreeMap<&str, bool> = script
            .lines()
            .filter(|line| line.starts_with("/cron/"))
            .filter_map(|row| {
                let mut columns = row.split_whitespace();
                let (key, worker) = (columns.next()?, columns.next()?);
                (worker != "-").then_some((key, worker == "w"))
            })
            .collect();
        let needed: BTreeMap<&str, bool> = NEEDED.iter().map(|right| (right.keys, right.writes)).collect();
        assert_eq!(needed, given);
    }

    #[tokio::test]
    async fn looking_for_rights_changes_nothing() {
        let kv = EmbeddedKv::in_memory().unwrap();
        let put = Txn { then: vec![Op::put(keys::BASE, "1")], ..Txn::default() };
        let before = kv.txn(put).await.unwrap().revision;
        assert_eq!(missing(&kv).await, Ok(Missing::default()));
        let after = kv.range(Range::prefix("/cron/")).await.unwrap();
        assert_eq!((after.revision, after.pairs.len()), (before, 1));
    }

    #[test]
    fn what_is_missing_is_said_in_one_line() {
        let lack = |keys, read, write| Lack { keys, read, write, to_fire: keys == keys::FIRED };
        let mut missing = Missing { lacks: vec![lack(keys::NOTIFY, true, true)], why: String::new() };
        assert_eq!(
            (missing.to_string().as_str(), missing.stops_fires()),
            ("read and write /cron/notify/", false)
        );
        missing.lacks.push(lack(keys::FIRED, false, true));
        assert_eq!(missing.to_string(), "read and write /cron/notify/, write /cron/fired/");
        assert!(missing.stops_fires());
        let all = NEEDED.iter().map(|right| lack(right.keys, true, right.writes)).collect();
        assert_eq!(Missing { lacks: all, why: String::new() }.to_string(), "anything");
    }
}
