//! Records in MongoDB: database `cron`, collection `log`, as in the seed.

use std::collections::HashMap;
use std::future::{Future, IntoFuture as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::RawDocument;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, RawDocumentBuf, Utf8Lossy, doc};
use mongodb::error::{ErrorKind, WriteFailure};
use mongodb::options::{
    Acknowledgment, ClientOptions, ConnectionString, IndexOptions, ReadPreference, SelectionCriteria,
    WriteConcern,
};
use mongodb::{Client, Collection, Database, IndexModel};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::batch::{Stored, fold, kept_aside};
use super::{Appended, Duplicate, Error, Place, RecordQuery, Removal, RunLog};
use crate::clock::{Stopwatch, Timestamp, timeout};
use crate::domain::output::Chunk;
use crate::domain::record::Record;
use crate::domain::run::RunId;

/// The seed's database.
const DATABASE: &str = "cron";
/// The seed's collection.
const COLLECTION: &str = "log";
/// Where records of a fire that ran twice are kept, by `{_id}@{claim}`.
const CONFLICTS: &str = "log_conflicts";
/// What runs that are going have printed, by `{run id}/{slot}`.
const OUTPUT: &str = "output";
/// Serves the query of `list`: equality, then its sort order; `status` and `worker` come last so that these filters are answered from the
/// index without reading the documents that do not match.
const NEWEST_FIRST: &str = "newest_first";
/// What served it before there was a filter by worker.
const NEWEST_FIRST_BEFORE: &str = "job_newest_first";
/// Finds one run's record.
const BY_CLAIM: &str = "by_claim";
/// Finds what is old enough to be removed. Not a TTL index: that takes dates, and the records' times are numbers, the seed's among them.
const BY_START: &str = "by_start";
/// Output is removed so long after it was stored, where the server does that by itself (a TTL index); elsewhere, see
/// [`Removal::OutputBefore`].
const OUTPUT_KEPT: Duration = Duration::from_secs(super::OUTPUT_KEPT_DAYS * 24 * 3600);

/// Connections of one process. Batches need one or two, and a fleet has hundreds of processes.
const CONNECTIONS_MAX: u32 = 4;
/// A client that was not used for so long is replaced before the next call: a frozen Lambda's connections may be dead
/// without a word, and a new handshake costs milliseconds where a silent connection costs the whole time limit.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Records sent at once. The server takes 100,000 or 48 MB, but what is sent must be acknowledged within the time limit,
/// also on a thin line, or a batch never gets on: at 4 MiB a line of 2 MB/s does.
const CHUNK_RECORDS_MAX: usize = 1_000;
/// See [`CHUNK_RECORDS_MAX`].
const CHUNK_BYTES_MAX: usize = 4 << 20;
/// A document may have 16 MiB; a record that comes near is cut, since it would be refused for ever.
const DOCUMENT_BYTES_MAX: usize = 15 << 20;
/// What is left of each long text of such a record.
const CUT_TEXT_BYTES: usize = 1 << 20;
/// How often a record is tried when its stored counterpart changes between reading and replacing it. Each time somebody
/// else stored a better one, which happens once or twice in a record's life.
const ROUNDS_MAX: usize = 8;
/// Storing may take so many times the limit of a call. Who stores has time, and records that were sent and not answered must be compared with
/// what is there when they are sent again: that costs a slow store more than the rest of its answer.
const APPEND_LIMITS: u32 = 5;

/// The seed's times, which drivers of other languages may have stored as another kind of number.
const TIMES: [&str; 4] = ["planTime", "scheduleTime", "startTime", "endTime"];
/// The seed's other fields.
const TEXTS: [&str; 4] = ["jobName", "command", "err", "output"];

/// Error code of a document whose `_id` is taken.
pub(crate) const DUPLICATE_KEY: i32 = 11_000;
/// Error codes of an index, or a collection, that is not there.
const INDEX_NOT_FOUND: i32 = 27;
const NAMESPACE_NOT_FOUND: i32 = 26;
/// Error code of what this server cannot do.
const NOT_IMPLEMENTED: i32 = 238;
/// Error codes by which the server refuses one document for what it is: sending it again changes nothing.
/// `BadValue`, `FailedToParse`, `DottedFieldName` and the like, `DocumentValidationFailure`, too large, key too long.
const DOCUMENT_FAULTS: [i32; 9] = [2, 9, 14, 52, 57, 121, 10_334, 17_280, 17_419];

/// The store of records in MongoDB. Cheap to make: connects on first use.
///
/// A record whose BSON form would exceed what MongoDB takes is stored with its texts cut and `outputTruncated` set. When
/// the server refuses a single record (a validator that somebody put on the collection), the others of the batch are
/// stored all the same and `append` says [`Error::Invalid`] with the record's id: sent singly, only that one fails again.
pub struct MongoRunLog {
    address: ConnectionString,
    call_limit: Duration,
    slot: Mutex<Slot>,
}

/// The client in use.
struct Slot {
    link: Arc<Link>,
    idle: Stopwatch,
}

/// A client, made on first use. A fresh link replaces one that is not trusted any more.
#[derive(Default)]
struct Link(OnceCell<Client>);

impl MongoRunLog {
    /// For the server or cluster at `uri`; every call is answered within `call_limit`, storing within five times
    /// that. Where `uri` does not say otherwise, what is stored is acknowledged by a majority and when it is in the journal. Does no I/O.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `uri` is not a MongoDB address, or asks for writes that are not acknowledged.
    pub fn new(uri: &str, call_limit: Duration) -> Result<Self, Error> {
        // The driver uses the process-wide provider; somebody else may have installed the same one before.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let mut address = ConnectionString::parse(uri).map_err(|e| Error::Invalid(e.to_string()))?;
        // A record counts as stored when no election can take it back: a worker forgets it then.
        let concern = address.write_concern.get_or_insert_with(WriteConcern::majority);
        if *concern.w.get_or_insert(Acknowledgment::Majority) == Acknowledgment::Nodes(0) {
            return Err(Error::Invalid("the address says w=0, but records must be acknowledged".to_owned()));
        }
        // Nor a crash: a server that is alone answers up to 100 ms before it has written its journal, if it is not asked for that.
        concern.journal.get_or_insert(true);
        let slot = Slot { link: Arc::default(), idle: Stopwatch::start() };
        Ok(Self { address, call_limit, slot: Mutex::new(slot) })
    }

    /// The link for the next call.
    fn link(&self) -> Arc<Link> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.idle.elapsed() > IDLE_MAX {
            slot.link = Arc::default();
        }
        slot.idle = Stopwatch::start();
        Arc::clone(&slot.link)
    }

    /// Lets the next call make a new client, if `link` is still the one in use.
    fn distrust(&self, link: &Arc<Link>) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&slot.link, link) {
            slot.link = Arc::default();
        }
    }

    async fn connect(&self) -> Result<Client, Error> {
        // Looks the hosts up for mongodb+srv, and only then.
        let mut options = ClientOptions::parse(self.address.clone()).await.map_err(|e| failure(&e))?;
        options.app_name.get_or_insert_with(|| "fleetcron".to_owned());
        options.max_pool_size = Some(CONNECTIONS_MAX);
        // Ends before the call does, so that a server that is down is told from one that is stuck.
        options.server_selection_timeout = Some(self.call_limit.mul_f64(0.75));
        options.connect_timeout = Some(self.call_limit);
        Client::with_options(options).map_err(|e| failure(&e))
    }

    /// Runs `work` within the time limit. It must be harmless to run it again: an answer that was lost is asked for once
    /// more.
    pub(crate) async fn call<T, F>(&self, work: impl Fn(Database) -> F + Send + Sync) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, mongodb::error::Error>> + Send + 'static,
    {
        self.call_within(self.call_limit, work).await
    }

    /// [`Self::call`] with another time limit.
    async fn call_within<T, F>(
        &self,
        limit: Duration,
        work: impl Fn(Database) -> F + Send + Sync,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, mongodb::error::Error>> + Send + 'static,
    {
        let answer = timeout(limit, async {
            match self.attempt(&work).await? {
                // The connection broke, as those of a restarted server do: the driver has thrown it away.
                Err(e) if matches!(*e.kind, ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. }) => {
                    self.attempt(&work).await?
                }
                done => done,
            }
            .map_err(|e| failure(&e))
        });
        answer.await.unwrap_or_else(|elapsed| Err(Error::Unavailable(elapsed.to_string())))
    }

    async fn attempt<T, F>(
        &self,
        work: impl Fn(Database) -> F,
    ) -> Result<Result<T, mongodb::error::Error>, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, mongodb::error::Error>> + Send + 'static,
    {
        let link = self.link();
        let client = link.0.get_or_try_init(|| self.connect()).await?;
        let task = tokio::spawn(work(client.database(DATABASE)));
        let mut call = Call { log: self, link: &link, task };
        (&mut call.task).await.map_err(|e| Error::Internal(format!("the call ended early: {e}")))
    }
}

/// A call on its way. The driver's futures must not be dropped half-way while its client stays in use (RUST-937), so a
/// call that is given up takes the client with it.
struct Call<'a, T> {
    log: &'a MongoRunLog,
    link: &'a Arc<Link>,
    task: JoinHandle<T>,
}

impl<T> Drop for Call<'_, T> {
    fn drop(&mut self) {
        if !self.task.is_finished() {
            self.task.abort();
            self.log.distrust(self.link);
        }
    }
}

#[async_trait]
impl RunLog for MongoRunLog {
    async fn prepare(&self) -> Result<(), Error> {
        self.call(|database| async move {
            let log = database.collection::<Document>(COLLECTION);
            let newest_first =
                doc! { "jobName": 1, "startTime": -1, "planTime": -1, "_id": 1, "status": 1, "worker": 1 };
            log.create_index(index(NEWEST_FIRST, newest_first)).await?;
            // If this process dies here, both are there, and the next one to prepare takes the old one away.
            match log.drop_index(NEWEST_FIRST_BEFORE).await {
                Err(why) if !is_command_error(&why, &[INDEX_NOT_FOUND, NAMESPACE_NOT_FOUND]) => {
                    return Err(why);
                }
                _gone => {}
            }
            log.create_index(index(BY_CLAIM, doc! { "claim": 1 })).await?;
            log.create_index(index(BY_START, doc! { "startTime": 1 })).await?;
            let kept = IndexOptions::builder().name("by_age".to_owned()).expire_after(OUTPUT_KEPT).build();
            let by_age = IndexModel::builder().keys(doc! { "at": 1 }).options(kept).build();
            match database.collection::<Document>(OUTPUT).create_index(by_age).await {
                Err(why) if !is_command_error(&why, &[NOT_IMPLEMENTED]) => Err(why),
                _made_or_not_known_there => Ok(()),
            }
        })
        .await
    }

    async fn append(&self, records: &[Record]) -> Result<Appended, Error> {
        if records.is_empty() {
            return Ok(Appended::default());
        }
        let folded = fold(records);
        let passes: Vec<Vec<Record>> =
            folded.passes.iter().map(|pass| pass.iter().map(|&record| record.clone()).collect()).collect();
        let passes = Arc::new(passes);
        let outcome = self
            .call_within(self.call_limit * APPEND_LIMITS, |database| {
                let passes = Arc::clone(&passes);
                async move { append(&database, &passes).await }
            })
            .await?;
        if let Some(error) = outcome.refused {
            return Err(error);
        }
        Ok(Appended {
            stored: outcome.stored,
            replayed: outcome.replayed + folded.superseded,
            conflicts: outcome.conflicts,
        })
    }

    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, Error> {
        if query.limit == 0 {
            return Ok(Vec::new()); // to MongoDB, 0 is no limit
        }
        let limit_ms = self.call_limit;
        let found: Vec<RawDocumentBuf> = self
            .call(|database| {
                let mut filter = filter(query);
                if let Some(text) = &query.text {
                    let has = |field: &str| doc! { field: { "$regex": literally(text) } };
                    let any = ["output", "err", "command"].map(has).to_vec();
                    conditions(&mut filter).push(doc! { "$or": any }.into());
                }
                let (skip, limit) = (skipped(query), i64::from(query.limit));
                async move {
                    let cursor = database
                        .collection::<RawDocumentBuf>(COLLECTION)
                        .find(filter)
                        .sort(newest_first())
                        .skip(skip)
                        .limit(limit)
                        .max_time(limit_ms)
                        .await?;
                    cursor.try_collect().await
                }
            })
            .await?;
        Ok(found.iter().filter_map(|raw| listed(raw)).collect())
    }

    async fn place(&self, query: &RecordQuery) -> Result<Option<Place>, Error> {
        let limit_ms = self.call_limit;
        let found: Option<RawDocumentBuf> = self
            .call(|database| {
                let (filter, skip) = (filter(query), skipped(query));
                async move {
                    database
                        .collection::<RawDocumentBuf>(COLLECTION)
                        .find_one(filter)
                        .sort(newest_first())
                        .skip(skip)
                        // All of it is in the index.
                        .projection(doc! { "jobName": 1, "startTime": 1, "planTime": 1 })
                        .max_time(limit_ms)
                        .await
                }
            })
            .await?;
        Ok(found.and_then(|raw| listed(&raw)).as_ref().map(Place::of))
    }

    async fn get(&self, id: &str) -> Result<Option<Record>, Error> {
        let found: Option<RawDocumentBuf> = self
            .call(|database| {
                // One of the seed is shown by its object id in hex.
                let ids = [Some(id.into()), ObjectId::parse_str(id).ok().map(Bson::ObjectId)];
                let ids: Vec<Bson> = ids.into_iter().flatten().collect();
                let filter = doc! { "$or": [{ "_id": { "$in": ids } }, { "claim": id }] };
                async move { database.collection(COLLECTION).find_one(filter).await }
            })
            .await?;
        Ok(found.and_then(|raw| listed(&raw)))
    }

    async fn put_output(&self, chunks: &[Chunk]) -> Result<(), Error> {
        if chunks.is_empty() {
            return Ok(()); // MongoDB takes no command without updates
        }
        let updates: Vec<Document> = chunks.iter().map(put_chunk).collect();
        let answer = self
            .call(|database| {
                // One request for all of them. Not by a majority: it is worth less than a record, and removed soon.
                let command = doc! {
                    "update": OUTPUT, "updates": &updates, "ordered": false, "writeConcern": { "w": 1 },
                };
                async move { database.run_command(command).await }
            })
            .await?;
        match answer.get_array("writeErrors") {
            Ok(errors) if !errors.is_empty() => {
                Err(Error::Unavailable(format!("output not stored: {errors:?}")))
            }
            _none => Ok(()),
        }
    }

    async fn output(&self, run_id: &RunId, after: u64) -> Result<Vec<Chunk>, Error> {
        let found: Vec<Document> = self
            .call(|database| {
                let mut filter = of_run(run_id);
                filter.insert("to", doc! { "$gt": integer(after) });
                async move {
                    let found = database.collection(OUTPUT).find(filter).sort(doc! { "from": 1 }).await?;
                    found.try_collect().await
                }
            })
            .await?;
        Ok(found.iter().filter_map(|document| chunk(run_id, document)).collect())
    }

    async fn jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, Error> {
        self.call(|database| {
            let mut last = after.to_owned();
            async move {
                let log = database.collection::<Document>(COLLECTION);
                let mut jobs = Vec::new();
                // One look into the index for each: a group over all records would read all of them.
                while jobs.len() < limit as usize {
                    let next = log
                        .find_one(doc! { "jobName": { "$gt": &last } })
                        .sort(doc! { "jobName": 1 })
                        .projection(doc! { "_id": 0, "jobName": 1 });
                    let next = next.await?;
                    let Some(job) = next.and_then(|found| found.get_str("jobName").ok().map(str::to_owned))
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

    async fn remove(&self, what: &Removal, limit: u32) -> Result<u64, Error> {
        let (filter, order) = match what {
            Removal::OutputOf(runs) if runs.is_empty() => return Ok(0),
            Removal::OutputOf(runs) => {
                let of: Vec<Document> = runs.iter().map(of_run).collect();
                return self.remove_output(doc! { "$or": of }).await;
            }
            Removal::OutputBefore(time) => {
                return self.remove_output(doc! { "at": { "$lt": DateTime::from_millis(time.ms()) } }).await;
            }
            Removal::RecordsBefore(time) => (
                doc! { "startTime": { "$lt": time.ms() }, "endTime": { "$lt": time.ms() } },
                doc! { "startTime": 1 },
            ),
            Removal::RecordsBehind(job, place, time) => {
                let (job_name, after, to) = (job.clone(), Some(place.clone()), Some(*time));
                let mut filter = filter(&RecordQuery { job_name, after, to, ..RecordQuery::default() });
                filter.insert("endTime", doc! { "$lt": time.ms() });
                (filter, newest_first())
            }
        };
        self.call(|database| {
            let (filter, order) = (filter.clone(), order.clone());
            async move {
                let log = database.collection::<Document>(COLLECTION);
                let old = log.find(filter).sort(order).limit(limit.into()).projection(doc! { "_id": 1 });
                let old: Vec<Document> = old.await?.try_collect().await?;
                let ids: Vec<&Bson> = old.iter().filter_map(|document| document.get("_id")).collect();
                if ids.is_empty() {
                    return Ok(0);
                }
                Ok(log.delete_many(doc! { "_id": { "$in": ids } }).await?.deleted_count)
            }
        })
        .await
    }
}

impl MongoRunLog {
    async fn remove_output(&self, filter: Document) -> Result<u64, Error> {
        self.call(|database| {
            let filter = filter.clone();
            async move {
                let output = database.collection::<Document>(OUTPUT);
                Ok(output.delete_many(filter).await?.deleted_count)
            }
        })
        .await
    }
}

/// An index of that name.
pub(crate) fn index(name: &str, keys: Document) -> IndexModel {
    IndexModel::builder().keys(keys).options(IndexOptions::builder().name(name.to_owned()).build()).build()
}

fn is_command_error(error: &mongodb::error::Error, codes: &[i32]) -> bool {
    matches!(&*error.kind, ErrorKind::Command(command) if codes.contains(&command.code))
}

/// The order of `list`.
fn newest_first() -> Document {
    doc! { "startTime": -1, "planTime": -1, "_id": 1 }
}

/// More than the server can count is more than it holds.
fn skipped(query: &RecordQuery) -> u64 {
    query.skip.min(u32::MAX.into())
}

/// All of the query that the index can tell.
fn filter(query: &RecordQuery) -> Document {
    let mut filter = doc! { "jobName": &query.job_name };
    if let Some(status) = query.status {
        filter.insert("status", status.as_str());
    }
    if let Some(worker) = &query.worker {
        filter.insert("worker", worker);
    }
    if let Some(run_id) = &query.run_id {
        filter.insert("claim", run_id.as_str());
    }
    if let Some(from) = query.from {
        conditions(&mut filter).push(doc! { "startTime": { "$gte": from.ms() } }.into());
    }
    if let Some(to) = query.to {
        conditions(&mut filter).push(doc! { "startTime": { "$lt": to.ms() } }.into());
    }
    // The first condition of each is what the index is entered by; the other decides among equal times.
    if let Some(place) = &query.after {
        let (start, plan) = (place.start_time.ms(), place.plan_time.ms());
        // Object ids, the seed's, come behind all texts.
        let equal = match stored_id(place) {
            Bson::String(id) => vec![doc! { "_id": { "$gt": id } }, doc! { "_id": { "$type": "objectId" } }],
            id => vec![doc! { "_id": { "$gt": id } }],
        };
        let conditions = conditions(&mut filter);
        conditions.push(doc! { "startTime": { "$lte": start } }.into());
        let (before, earlier) =
            (doc! { "startTime": { "$lt": start } }, doc! { "planTime": { "$lt": plan } });
        let equal = doc! { "planTime": plan, "$or": equal };
        conditions.push(doc! { "$or": [before, earlier, equal] }.into());
    }
    if let Some(place) = &query.until {
        let (start, plan) = (place.start_time.ms(), place.plan_time.ms());
        let equal = match stored_id(place) {
            Bson::String(id) => vec![doc! { "_id": { "$lte": id } }],
            id => vec![doc! { "_id": { "$lte": id } }, doc! { "_id": { "$type": "string" } }],
        };
        let conditions = conditions(&mut filter);
        conditions.push(doc! { "startTime": { "$gte": start } }.into());
        let (after, later) = (doc! { "startTime": { "$gt": start } }, doc! { "planTime": { "$gt": plan } });
        let equal = doc! { "planTime": plan, "$or": equal };
        conditions.push(doc! { "$or": [after, later, equal] }.into());
    }
    filter
}

/// The list of conditions that a filter has beside its equalities.
fn conditions(filter: &mut Document) -> &mut Vec<Bson> {
    let all = filter.entry("$and".to_owned()).or_insert_with(|| Bson::Array(Vec::new()));
    all.as_array_mut().expect("nothing else is put there")
}

/// The `_id` at a place: ours are never 24 hex digits.
fn stored_id(place: &Place) -> Bson {
    let id = place.id.as_str();
    ObjectId::parse_str(id).map_or_else(|_text| Bson::String(id.to_owned()), Bson::ObjectId)
}

/// A pattern that matches just this text.
fn literally(text: &str) -> String {
    let escaped = text.chars().flat_map(|character| {
        character.is_ascii_punctuation().then_some('\\').into_iter().chain([character])
    });
    escaped.collect()
}

/// All chunks of a run: their ids begin with the run's, and `0` comes behind `/`.
fn of_run(run_id: &RunId) -> Document {
    doc! { "_id": { "$gte": format!("{run_id}/"), "$lt": format!("{run_id}0") } }
}

fn put_chunk(chunk: &Chunk) -> Document {
    let id = format!("{}/{:05}", chunk.run_id, chunk.slot);
    let bytes = Binary { subtype: BinarySubtype::Generic, bytes: chunk.bytes.clone() };
    let document = doc! {
        "_id": &id, "slot": i64::from(chunk.slot), "from": integer(chunk.from), "to": integer(chunk.to()), "bytes": bytes,
        "at": DateTime::from_millis(chunk.at.ms()),
    };
    doc! { "q": { "_id": id }, "u": document, "upsert": true }
}

/// A stored chunk, `None` if other hands changed it.
fn chunk(run_id: &RunId, document: &Document) -> Option<Chunk> {
    let number = |field| document.get_i64(field).ok().and_then(|number| u64::try_from(number).ok());
    Some(Chunk {
        run_id: run_id.clone(),
        slot: u32::try_from(number("slot")?).ok()?,
        from: number("from")?,
        bytes: document.get_binary_generic("bytes").ok()?.clone(),
        at: Timestamp::from_ms(document.get_datetime("at").ok()?.timestamp_millis()),
    })
}

fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What became of a batch, or of a part of it.
#[derive(Default)]
struct Outcome {
    stored: usize,
    replayed: usize,
    conflicts: Vec<Record>,
    /// Why records were refused for what they are; the first of them.
    refused: Option<Error>,
}

async fn append(database: &Database, passes: &[Vec<Record>]) -> Result<Outcome, mongodb::error::Error> {
    let mut outcome = Outcome::default();
    for pass in passes {
        store(&database.collection(COLLECTION), pass, &mut outcome).await?;
    }
    if !outcome.conflicts.is_empty() {
        // If this process dies here, nothing of the batch was acknowledged: it is sent again, finds the same conflicts,
        // and keeping a record aside twice is a replay.
        let aside: Vec<Record> = outcome.conflicts.iter().map(kept_aside).collect();
        let mut kept = Outcome::default();
        store(&database.collection(CONFLICTS), &aside, &mut kept).await?;
        outcome.refused = outcome.refused.or(kept.refused);
    }
    Ok(outcome)
}

/// A record and its document.
struct Entry<'a> {
    record: &'a Record,
    document: RawDocumentBuf,
}

/// Stores records of different ids, a chunk at a time: each chunk that is acknowledged is done, whatever comes after.
async fn store(
    collection: &Collection<RawDocumentBuf>,
    records: &[Record],
    outcome: &mut Outcome,
) -> Result<(), mongodb::error::Error> {
    let mut chunk: Vec<Entry<'_>> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let document = document(record)?;
        let size = document.as_bytes().len();
        if !chunk.is_empty() && (chunk.len() == CHUNK_RECORDS_MAX || bytes + size > CHUNK_BYTES_MAX) {
            settle(collection, std::mem::take(&mut chunk), outcome).await?;
            bytes = 0;
        }
        bytes += size;
        chunk.push(Entry { record, document });
    }
    settle(collection, chunk, outcome).await
}

/// Inserts the entries, and compares those whose id is taken with what is there.
async fn settle(
    collection: &Collection<RawDocumentBuf>,
    mut entries: Vec<Entry<'_>>,
    outcome: &mut Outcome,
) -> Result<(), mongodb::error::Error> {
    for _round in 0..ROUNDS_MAX {
        let taken = insert(collection, entries, outcome).await?;
        if taken.is_empty() {
            return Ok(());
        }
        let stored = stored_counterparts(collection, &taken).await?;
        entries = Vec::new();
        for entry in taken {
            match stored.get(entry.record.id.as_str()) {
                None => entries.push(entry), // removed meanwhile: insert it again
                Some(stored) => match stored.compare(entry.record) {
                    Duplicate::Replay => outcome.replayed += 1,
                    Duplicate::Conflict => outcome.conflicts.push(entry.record.clone()),
                    Duplicate::Replace if replace(collection, stored, &entry).await? => outcome.stored += 1,
                    Duplicate::Replace => entries.push(entry), // changed meanwhile: compare it again
                },
            }
        }
    }
    let busy = std::io::Error::other("the stored records keep changing");
    Err(ErrorKind::Io(Arc::new(busy)).into())
}

/// Inserts the entries whose id is free; the others are returned.
async fn insert<'a>(
    collection: &Collection<RawDocumentBuf>,
    entries: Vec<Entry<'a>>,
    outcome: &mut Outcome,
) -> Result<Vec<Entry<'a>>, mongodb::error::Error> {
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let documents = entries.iter().map(|entry| &entry.document);
    let error = match collection.insert_many(documents).ordered(false).await {
        Ok(_) => {
            outcome.stored += entries.len();
            return Ok(Vec::new());
        }
        Err(error) => error,
    };
    let ErrorKind::InsertMany(faults) = &*error.kind else { return Err(error) };
    // Stored, but maybe not for good: to be sent again.
    if faults.write_concern_error.is_some() {
        return Err(error);
    }
    let codes: HashMap<usize, i32> =
        faults.write_errors.iter().flatten().map(|fault| (fault.index, fault.code)).collect();
    let mut taken = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        match codes.get(&index) {
            None => outcome.stored += 1,
            Some(&DUPLICATE_KEY) => taken.push(entry),
            Some(code) if DOCUMENT_FAULTS.contains(code) => {
                let id = &entry.record.id;
                tracing::error!(event = "record_refused", record = %id, code, "the store refuses this record");
                let refused = || {
                    Error::Invalid(format!("record {id} is refused with code {code}; the others are stored"))
                };
                outcome.refused.get_or_insert_with(refused);
            }
            Some(_) => return Err(error),
        }
    }
    Ok(taken)
}

/// Reads what is stored under the entries' ids: all that [`duplicate`] looks at, and not the output. One id at a time: FerretDB answers `$in`
/// by reading the whole collection, so that a batch sent twice would take longer than a call may, and be sent again for ever.
async fn stored_counterparts(
    collection: &Collection<RawDocumentBuf>,
    entries: &[Entry<'_>],
) -> Result<HashMap<String, Stored>, mongodb::error::Error> {
    let ids: Vec<String> = entries.iter().map(|entry| entry.record.id.as_str().to_owned()).collect();
    let finds = ids.into_iter().map(|id| {
        let find = collection
            .find_one(doc! { "_id": id })
            .projection(doc! { "jobName": 1, "claim": 1, "status": 1, "skipped": 1 })
            // A secondary may not have it yet.
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        find.into_future()
    });
    let found: Vec<Option<RawDocumentBuf>> =
        futures::stream::iter(finds).buffer_unordered(CONNECTIONS_MAX as usize).try_collect().await?;
    let found: Vec<RawDocumentBuf> = found.into_iter().flatten().collect();
    let stored = found.iter().filter_map(|raw| {
        let document = lossy(raw).ok()?;
        let id = document.get_str("_id").ok()?.to_owned();
        let claim = document.get_str("claim").ok().map(str::to_owned);
        let known = mongodb::bson::deserialize_from_document(normal(document));
        Some((id, known.map_or(Stored::Foreign(claim), |record| Stored::Known(Box::new(record)))))
    });
    Ok(stored.collect())
}

/// Replaces the stored record if it is still the one that was compared, so that a better one that came meanwhile is
/// never overwritten; says whether it did.
async fn replace(
    collection: &Collection<RawDocumentBuf>,
    stored: &Stored,
    entry: &Entry<'_>,
) -> Result<bool, mongodb::error::Error> {
    let Stored::Known(stored) = stored else { return Ok(false) };
    // `null` matches a field that is absent.
    let count = stored.skipped.as_ref().and_then(|s| i64::try_from(s.count).ok());
    let filter = doc! {
        "_id": stored.id.as_str(),
        "claim": stored.claim.as_ref().map(|claim| claim.as_str()),
        "status": stored.status.map(|status| status.as_str()),
        "skipped.count": count,
    };
    let result = collection.replace_one(filter, &entry.document).await?;
    Ok(result.matched_count > 0)
}

/// The record's document, cut if MongoDB would not take it.
fn document(record: &Record) -> Result<RawDocumentBuf, mongodb::error::Error> {
    let document = mongodb::bson::serialize_to_raw_document_buf(record)?;
    if document.as_bytes().len() <= DOCUMENT_BYTES_MAX {
        return Ok(document);
    }
    let cut = |text: &str| text[..text.floor_char_boundary(CUT_TEXT_BYTES)].to_owned();
    let record = Record {
        command: cut(&record.command),
        err: cut(&record.err),
        output: cut(&record.output),
        output_truncated: true,
        ..record.clone()
    };
    Ok(mongodb::bson::serialize_to_raw_document_buf(&record)?)
}

/// A stored document as a record. One of the seed is read as it is; of one that we do not understand (a newer version's)
/// the seed's fields are shown; one without those is left out with a warning.
fn listed(raw: &RawDocument) -> Option<Record> {
    let read = || -> Result<Record, String> {
        let document = normal(lossy(raw).map_err(|e| e.to_string())?);
        let seed_fields = document.clone().into_iter().filter(|(field, _)| {
            field == "_id" || TEXTS.contains(&field.as_str()) || TIMES.contains(&field.as_str())
        });
        let seed_fields: Document = seed_fields.collect();
        mongodb::bson::deserialize_from_document(document)
            .or_else(|_newer| mongodb::bson::deserialize_from_document(seed_fields))
            .map_err(|e| e.to_string())
    };
    read()
        .inspect_err(|error| {
            let id = raw.get("_id").ok().flatten();
            tracing::warn!(event = "record_unreadable", id = ?id, error, "a stored record is left out");
        })
        .ok()
}

/// The document with U+FFFD for what is not UTF-8: the seed's workers stored a command's output byte for byte.
fn lossy(raw: &RawDocument) -> Result<Document, mongodb::bson::error::Error> {
    Utf8Lossy::<Document>::try_from(raw).map(|lossy| lossy.0)
}

/// Brings what other drivers write into our form: ids as text, times as 64-bit integers, nothing for null.
fn normal(document: Document) -> Document {
    let fields = document.into_iter().filter(|(_, value)| *value != Bson::Null);
    fields
        .map(|(field, value)| {
            let value = match value {
                Bson::ObjectId(id) if field == "_id" => Bson::String(id.to_hex()),
                Bson::String(id) if field == "_id" => Bson::String(id),
                other if field == "_id" => Bson::String(other.to_string()),
                Bson::Int32(ms) if TIMES.contains(&field.as_str()) => Bson::Int64(ms.into()),
                Bson::DateTime(time) if TIMES.contains(&field.as_str()) => {
                    Bson::Int64(time.timestamp_millis())
                }
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a float is cut to what an integer holds"
                )]
                Bson::Double(ms) if TIMES.contains(&field.as_str()) => Bson::Int64(ms as i64),
                other => other,
            };
            (field, value)
        })
        .collect()
}

/// Sorts the driver's errors by what the caller does next. None of its texts holds the password.
fn failure(error: &mongodb::error::Error) -> Error {
    let text = error.to_string();
    match &*error.kind {
        ErrorKind::Authentication { .. } => Error::Denied(text),
        ErrorKind::Command(command) => by_code(command.code, text),
        ErrorKind::Write(WriteFailure::WriteError(fault)) => by_code(fault.code, text),
        ErrorKind::InsertMany(faults) => {
            let fault = faults.write_errors.iter().flatten().find(|fault| fault.code != DUPLICATE_KEY);
            fault.map_or_else(|| Error::Unavailable(text.clone()), |fault| by_code(fault.code, text.clone()))
        }
        ErrorKind::InvalidArgument { .. }
        | ErrorKind::InvalidTlsConfig { .. }
        | ErrorKind::Bson(_)
        | ErrorKind::IncompatibleServer { .. } => Error::Invalid(text),
        ErrorKind::Internal { .. } | ErrorKind::InvalidResponse { .. } => Error::Internal(text),
        _ => Error::Unavailable(text),
    }
}

/// See [`failure`].
fn by_code(code: i32, text: String) -> Error {
    match code {
        // Unauthorized, AuthenticationFailed.
        13 | 18 => Error::Denied(text),
        // The server moves, stops or is slow: what drivers call retryable, and time limits.
        6 | 7 | 50 | 89 | 91 | 134 | 189 | 262 | 9_001 | 10_058 | 10_107 | 11_600 | 11_602 | 13_435
        | 13_436 => Error::Unavailable(text),
        _ => Error::Internal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::record::RecordId;

    fn record(text: &str) -> Record {
        let document = doc! { "_id": "job/1000/1", "jobName": "job", "output": text };
        mongodb::bson::deserialize_from_document(document).unwrap()
    }

    #[test]
    fn bytes_that_are_no_utf8_are_listed_with_marks() {
        let raw = mongodb::bson::serialize_to_raw_document_buf(&record("grün?")).unwrap();
        let bytes = raw.as_bytes().iter().map(|&byte| if byte == b'?' { 0xff } else { byte }).collect();
        let raw = RawDocumentBuf::from_bytes(bytes).unwrap();
        assert_eq!(listed(&raw), Some(record("grün\u{fffd}")));
    }

    #[test]
    fn other_ids_are_listed_as_text() {
        let raw = mongodb::bson::rawdoc! { "_id": 7, "jobName": "job" };
        assert_eq!(listed(&raw).unwrap().id, RecordId::from_text("7"));
    }

    #[test]
    fn a_record_that_is_too_large_is_cut_between_characters() {
        let raw = document(&record(&"複".repeat(6 << 20))).unwrap();
        let cut: Record = mongodb::bson::deserialize_from_slice(raw.as_bytes()).unwrap();
        assert_eq!(cut.output, "複".repeat((1 << 20) / 3));
        assert!(cut.output_truncated);

        let whole = document(&record(&"複".repeat(4 << 20))).unwrap();
        let whole: Record = mongodb::bson::deserialize_from_slice(whole.as_bytes()).unwrap();
        assert_eq!(whole.output.len(), 12 << 20);
        assert!(!whole.output_truncated);
    }

    #[test]
    fn what_is_acknowledged_is_on_the_disks_of_a_majority_where_the_address_does_not_say_otherwise() {
        use Acknowledgment::{Majority, Nodes};
        let concern = |options: &str| {
            let log = MongoRunLog::new(&format!("mongodb://127.0.0.1/?{options}"), Duration::from_secs(1));
            let concern = log.unwrap().address.write_concern.unwrap();
            (concern.w, concern.journal)
        };
        assert_eq!(concern(""), (Some(Majority), Some(true)));
        assert_eq!(concern("w=1"), (Some(Nodes(1)), Some(true)));
        assert_eq!(concern("journal=false"), (Some(Majority), Some(false)));
    }

    #[test]
    fn errors_are_sorted_by_what_to_do_next() {
        assert!(matches!(by_code(13, String::new()), Error::Denied(_)));
        assert!(matches!(by_code(18, String::new()), Error::Denied(_)));
        assert!(matches!(by_code(10_107, String::new()), Error::Unavailable(_)));
        assert!(matches!(by_code(14_031, String::new()), Error::Internal(_)));
    }
}
