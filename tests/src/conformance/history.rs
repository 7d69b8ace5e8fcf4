//! The exam of every [`History`].

use std::sync::Arc;

use common::clock::Timestamp;
use common::domain::access::{Means, Principal, Role};
use common::domain::audit::{DEFINITION_BYTES_MAX, Entry, EntryId, JOB, Note, Origin, SETTINGS, Touched};
use common::history::{History, Query, Shelf};
use common::kv::Revision;
use common::run_log::RunLog;
use serde_json::{Value, json};

use super::run_log::new_job;

/// When the exam plays.
const AT: Timestamp = Timestamp::from_ms(1_795_219_200_000);

/// Asks `log` for all that the port promises. The names of the jobs are new each time, so that the store may be shared.
pub async fn exam(log: Arc<dyn RunLog>) {
    let log: &dyn History = &*log;
    preparing_twice_is_harmless(log).await;
    an_entry_is_read_back_as_it_was_written(log).await;
    what_is_there_stays_as_it_was(log).await;
    every_filter_narrows_the_list_and_the_newest_come_first(log).await;
    only_changes_of_definitions_are_versions(log).await;
    what_is_old_is_forgotten_some_at_a_time(log).await;
}

/// A caller of that name.
#[must_use]
pub fn caller(name: &str) -> Origin {
    let by = Principal {
        name: name.to_owned(),
        role: Role::Editor,
        prefix: String::new(),
        means: Means::Token("a1".to_owned()),
    };
    Origin { by: Some(by), from: Some("203.0.113.7 (curl/8)".to_owned()), request_id: Some("r-1".to_owned()) }
}

/// A job became another `ms` after the exam began, at that revision, which no other entry has.
#[must_use]
pub fn edited(job: &str, ms: i64, revision: Revision, before: &Value, after: &Value) -> Entry {
    let bytes = |value: &Value| (!value.is_null()).then(|| value.to_string().into_bytes());
    let mut note = Note::new(AT.plus_ms(ms), "save", caller("ci"));
    note.touched.push(Touched::new(JOB, job, bytes(before).as_deref(), bytes(after).as_deref()));
    note.into_entries(revision).next().unwrap()
}

fn command(text: &str) -> Value {
    json!({ "command": text })
}

async fn all(log: &dyn History, shelf: Shelf, job: &str) -> Vec<Entry> {
    log.kept(shelf, &Query { limit: 10_000, ..Query::of_job(job) }).await.unwrap()
}

async fn preparing_twice_is_harmless(log: &dyn History) {
    log.prepare_history().await.unwrap();
    log.prepare_history().await.unwrap();
    log.keep(&[]).await.unwrap();
    assert_eq!(log.kept(Shelf::Audit, &Query::default()).await.unwrap(), [], "none were asked for");
}

async fn an_entry_is_read_back_as_it_was_written(log: &dyn History) {
    let job = new_job("any");
    let odd = json!({"labels": {"a.b": "$c", "$d": ""}, "": null, "n": 18_446_744_073_709_551_615_u64, "t": "\0\u{1f600}"});
    let large = json!({"command": "\u{1}".repeat(DEFINITION_BYTES_MAX / 7)});
    let mut plain = edited(&job, 3, 103, &large, &Value::Null);
    plain.origin = Origin::default();
    let mut told = edited(&job, 2, 102, &odd, &large);
    told.details.insert("runIds".to_owned(), json!(["1", "2"]));
    let entries = [plain, told, edited(&job, 1, 101, &json!("no job"), &odd)];
    log.keep(&entries).await.unwrap();
    assert_eq!(all(log, Shelf::Audit, &job).await, entries);
    assert_eq!(all(log, Shelf::Versions, &job).await, entries);
}

async fn what_is_there_stays_as_it_was(log: &dyn History) {
    let job = new_job("twice");
    let first = edited(&job, 0, 207, &Value::Null, &command("first"));
    log.keep(std::slice::from_ref(&first)).await.unwrap();
    let same_id = edited(&job, 0, 207, &Value::Null, &command("other"));
    let next = edited(&job, 1, 208, &command("first"), &command("next"));
    for _replay in 0..2 {
        log.keep(&[same_id.clone(), next.clone()]).await.unwrap();
        for shelf in [Shelf::Audit, Shelf::Versions] {
            assert_eq!(all(log, shelf, &job).await, [next.clone(), first.clone()], "{shelf:?}");
        }
    }
}

async fn every_filter_narrows_the_list_and_the_newest_come_first(log: &dyn History) {
    let job = new_job("filtered");
    let mut entries: Vec<Entry> = (0..6)
        .map(|n| edited(&job, n / 2, 300 + n, &command(&n.to_string()), &command(&(n + 1).to_string())))
        .collect();
    entries[1].action = "delete".to_owned();
    entries[2].origin = caller("ada");
    entries[3].touched.thing = SETTINGS.to_owned();
    log.keep(&entries).await.unwrap();
    let of_job = || Query { limit: 100, ..Query::of_job(&job) };
    let text = |text: &str| Some(text.to_owned());
    let id = |n: usize| Some(entries[n].id.clone());
    let rows = [
        (of_job(), vec![5, 4, 3, 2, 1, 0]),
        (Query { limit: 2, ..of_job() }, vec![5, 4]),
        (Query { skip: 4, ..of_job() }, vec![1, 0]),
        (Query { id: id(3), ..of_job() }, vec![3]),
        (Query { thing: text(JOB), ..of_job() }, vec![5, 4, 2, 1, 0]),
        (Query { action: text("delete"), ..of_job() }, vec![1]),
        (Query { by: text("ada"), ..of_job() }, vec![2]),
        (Query { by: text("ad"), ..of_job() }, vec![]),
        (Query { from: id(2), ..of_job() }, vec![5, 4, 3, 2]),
        (Query { below: id(2), ..of_job() }, vec![1, 0]),
        (Query { from: Some(EntryId::first_of(AT.plus_ms(1))), below: id(4), ..of_job() }, vec![3, 2]),
        (Query { name: text(&format!("{job}x")), ..of_job() }, vec![]),
    ];
    for (query, expected) in rows {
        let expected: Vec<Entry> = expected.into_iter().map(|n: usize| entries[n].clone()).collect();
        assert_eq!(log.kept(Shelf::Audit, &query).await.unwrap(), expected, "{query:?}");
    }
}

async fn only_changes_of_definitions_are_versions(log: &dyn History) {
    let job = new_job("versions");
    let same = edited(&job, 2, 402, &command("a"), &command("a"));
    let run = edited(&job, 3, 403, &Value::Null, &Value::Null);
    let made = edited(&job, 1, 401, &Value::Null, &command("a"));
    let gone = edited(&job, 4, 404, &command("a"), &Value::Null);
    log.keep(&[made.clone(), same, run, gone.clone()]).await.unwrap();
    assert_eq!(all(log, Shelf::Audit, &job).await.len(), 4);
    assert_eq!(all(log, Shelf::Versions, &job).await, [gone, made]);
    let before = &job[..job.len() - 1];
    assert_eq!(log.kept_jobs(before, 1).await.unwrap(), std::slice::from_ref(&job));
    assert!(!log.kept_jobs(&job, 1000).await.unwrap().contains(&job));
}

async fn what_is_old_is_forgotten_some_at_a_time(log: &dyn History) {
    let jobs = [new_job("old"), new_job("other")];
    for (job, base) in jobs.iter().zip([500, 600]) {
        let entries: Vec<Entry> =
            (0..10).map(|n| edited(job, n, base + n, &command(&n.to_string()), &command("x"))).collect();
        log.keep(&entries).await.unwrap();
    }
    let below = EntryId::first_of(AT.plus_ms(7));
    let forget = async |limit| log.forget(Shelf::Versions, Some(&jobs[0]), &below, limit).await.unwrap();
    assert_eq!((forget(4).await, forget(4).await, forget(4).await), (4, 3, 0));
    let left = all(log, Shelf::Versions, &jobs[0]).await;
    assert_eq!(left.iter().map(|entry| entry.at.ms_since(AT)).collect::<Vec<_>>(), [9, 8, 7]);
    assert_eq!(all(log, Shelf::Versions, &jobs[1]).await.len(), 10, "another job's");
    assert_eq!(all(log, Shelf::Audit, &jobs[0]).await.len(), 10, "another shelf");
    // Of all names: the others of this exam have no earlier ones by then.
    log.forget(Shelf::Audit, None, &EntryId::first_of(AT.plus_ms(9)), 10_000).await.unwrap();
    for job in &jobs {
        assert_eq!(all(log, Shelf::Audit, job).await.len(), 1);
    }
}
