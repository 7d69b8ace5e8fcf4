//! What is kept of changes in MongoDB: collections `audit` and `versions` of the seed's database. An entry is a document of what is filtered by,
//! and its whole as JSON text: names of fields in a job may have dots and dollars, and its numbers more digits than BSON has.

use async_trait::async_trait;
use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use mongodb::error::ErrorKind;
use mongodb::{Collection, Database};

use super::{History, Query, Shelf};
use crate::domain::audit::{Entry, EntryId};
use crate::run_log::Error;
use crate::run_log::mongo::{DUPLICATE_KEY, MongoRunLog, index};

/// Entries sent at once: what is sent must be acknowledged within a call's time, also on a thin line.
const CHUNK_BYTES_MAX: usize = 4 << 20;

const fn collection(shelf: Shelf) -> &'static str {
    match shelf {
        Shelf::Audit => "audit",
        Shelf::Versions => "versions",
    }
}

#[async_trait]
impl History for MongoRunLog {
    async fn prepare_history(&self) -> Result<(), Error> {
        self.call(|database| async move {
            let audit = database.collection::<Document>(collection(Shelf::Audit));
            audit.create_index(index("by_name", doc! { "thing": 1, "name": 1, "_id": -1 })).await?;
            audit.create_index(index("by_caller", doc! { "by": 1, "_id": -1 })).await?;
            audit.create_index(index("by_action", doc! { "action": 1, "_id": -1 })).await?;
            let versions = database.collection::<Document>(collection(Shelf::Versions));
            versions.create_index(index("by_name", doc! { "name": 1, "_id": -1 })).await?;
            Ok(())
        })
        .await
    }

    async fn keep(&self, entries: &[Entry]) -> Result<(), Error> {
        // The audit first: whoever finds a version finds who made it.
        // If this process dies between the two, the notes are still there, and whoever moves them next keeps the same again.
        for shelf in [Shelf::Audit, Shelf::Versions] {
            let mut chunk = Vec::new();
            let mut bytes = 0;
            for entry in entries.iter().filter(|entry| shelf == Shelf::Audit || entry.is_version()) {
                let body = body(entry);
                if bytes + body.len() > CHUNK_BYTES_MAX {
                    self.insert(shelf, std::mem::take(&mut chunk)).await?;
                    bytes = 0;
                }
                bytes += body.len();
                chunk.push(document(entry, body));
            }
            self.insert(shelf, chunk).await?;
        }
        Ok(())
    }

    async fn kept(&self, shelf: Shelf, query: &Query) -> Result<Vec<Entry>, Error> {
        if query.limit == 0 {
            return Ok(Vec::new()); // to MongoDB, 0 is no limit
        }
        let found: Vec<Document> = self
            .call(|database| {
                let (filter, skip, limit) = (filter(query), query.skip, query.limit);
                async move {
                    let collection = database.collection(collection(shelf));
                    let found = collection.find(filter).sort(doc! { "_id": -1 });
                    found.skip(skip.into()).limit(limit.into()).await?.try_collect().await
                }
            })
            .await?;
        Ok(found.iter().filter_map(entry).collect())
    }

    async fn kept_jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, Error> {
        self.call(|database| {
            let mut last = after.to_owned();
            async move {
                let versions = database.collection::<Document>(collection(Shelf::Versions));
                let mut jobs = Vec::new();
                // One look into the index for each: a group over all versions would read all of them.
                while jobs.len() < limit as usize {
                    let next = versions
                        .find_one(doc! { "name": { "$gt": &last } })
                        .sort(doc! { "name": 1 })
                        .projection(doc! { "_id": 0, "name": 1 });
                    let Some(job) =
                        next.await?.and_then(|found| found.get_str("name").ok().map(str::to_owned))
                    else {
                        break;
                    };
                    last.clone_from(&job);
                    jobs.push(job);
                }
                Ok(jobs)
            }
        })
        .await
    }

    async fn forget(
        &self,
        shelf: Shelf,
        name: Option<&str>,
        below: &EntryId,
        limit: u32,
    ) -> Result<u64, Error> {
        self.call(|database| {
            let query = Query {
                name: name.map(str::to_owned),
                below: Some(below.clone()),
                limit,
                ..Query::default()
            };
            async move {
                let collection = database.collection::<Document>(collection(shelf));
                let old = collection.find(filter(&query)).sort(doc! { "_id": 1 });
                let old = old.limit(query.limit.into()).projection(doc! { "_id": 1 });
                let old: Vec<Document> = old.await?.try_collect().await?;
                let ids: Vec<&str> = old.iter().filter_map(|document| document.get_str("_id").ok()).collect();
                if ids.is_empty() {
                    return Ok(0);
                }
                Ok(collection.delete_many(doc! { "_id": { "$in": ids } }).await?.deleted_count)
            }
        })
        .await
    }
}

impl MongoRunLog {
    /// Inserts documents whose id is free; those that are there already are left alone.
    async fn insert(&self, shelf: Shelf, documents: Vec<Document>) -> Result<(), Error> {
        if documents.is_empty() {
            return Ok(());
        }
        self.call(|database: Database| {
            let documents = documents.clone();
            async move { insert_new(&database.collection(collection(shelf)), documents).await }
        })
        .await
    }
}

async fn insert_new(
    collection: &Collection<Document>,
    documents: Vec<Document>,
) -> Result<(), mongodb::error::Error> {
    let error = match collection.insert_many(documents).ordered(false).await {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    match &*error.kind {
        ErrorKind::InsertMany(faults) if faults.write_concern_error.is_none() => {
            let replays = faults.write_errors.iter().flatten().all(|fault| fault.code == DUPLICATE_KEY);
            if replays { Ok(()) } else { Err(error) }
        }
        _ => Err(error),
    }
}

fn body(entry: &Entry) -> String {
    serde_json::to_string(entry).expect("plain data with string keys is always JSON")
}

fn document(entry: &Entry, body: String) -> Document {
    let mut document = doc! {
        "_id": entry.id.as_str(), "at": entry.at.ms(), "action": &entry.action, "thing": &entry.touched.thing,
        "name": &entry.touched.name,
    };
    if let Some(by) = &entry.origin.by {
        document.insert("by", &by.name);
    }
    document.insert("entry", body);
    document
}

/// A stored entry; one that cannot be read (a newer version's) is left out with a warning.
fn entry(document: &Document) -> Option<Entry> {
    let read = document.get_str("entry").map_err(|e| e.to_string());
    let read = read.and_then(|body| serde_json::from_str(body).map_err(|e| e.to_string()));
    let unread = |why: &String| {
        let id = document.get("_id");
        tracing::warn!(event = "entry_unreadable", ?id, why, "a stored entry is left out");
    };
    read.inspect_err(unread).ok()
}

fn filter(query: &Query) -> Document {
    let mut filter = Document::new();
    let equal =
        [("thing", &query.thing), ("name", &query.name), ("action", &query.action), ("by", &query.by)];
    for (field, value) in equal {
        if let Some(value) = value {
            filter.insert(field, value);
        }
    }
    let mut range = Document::new();
    for (operator, id) in [("$eq", &query.id), ("$gte", &query.from), ("$lt", &query.below)] {
        if let Some(id) = id {
            range.insert(operator, id.as_str());
        }
    }
    if !range.is_empty() {
        filter.insert("_id", range);
    }
    filter
}
