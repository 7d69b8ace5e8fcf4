//! Records in MongoDB: database `cron`, collection `log`, as in the seed.

use std::collections::HashMap;
use std::future::{Future, IntoFuture as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use mongodb::bson::raw::RawDocument;
use mongodb::bson::{Bson, Document, RawDocumentBuf, Utf8Lossy, doc};
use mongodb::error::{ErrorKind, WriteFailure};
use mongodb::options::{ClientOptions, ConnectionString, ReadPreference, SelectionCriteria, WriteConcern};
use mongodb::{Client, Collection, Database, IndexModel};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::batch::{Stored, fold, kept_aside};
use super::{Appended, Duplicate, Error, RecordQuery, RunLog};
use crate::clock::{Stopwatch, timeout};
use crate::domain::record::Record;

/// The seed's database.
const DATABASE: &str = "cron";
/// The seed's collection.
const COLLECTION: &str = "log";
/// Where records of a fire that ran twice are kept, by `{_id}@{claim}`.
const CONFLICTS: &str = "log_conflicts";
/// Serves the query of `list`: equality, then its sort order; `status` comes last so that the filter is answered from the
/// index without reading the documents that do not match.
const INDEX: &str = "job_newest_first";

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

/// The seed's times, which drivers of other languages may have stored as another kind of number.
const TIMES: [&str; 4] = ["planTime", "scheduleTime", "startTime", "endTime"];
/// The seed's other fields.
const TEXTS: [&str; 4] = ["jobName", "command", "err", "output"];

/// Error code of a document whose `_id` is taken.
const DUPLICATE_KEY: i32 = 11_000;
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
    /// For the server or cluster at `uri`; every call is answered within `call_limit`. Does no I/O.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `uri` is not a MongoDB address, or asks for writes that are not acknowledged.
    pub fn new(uri: &str, call_limit: Duration) -> Result<Self, Error> {
        // The driver uses the process-wide provider; somebody else may have installed the same one before.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let mut address = ConnectionString::parse(uri).map_err(|e| Error::Invalid(e.to_string()))?;
        // A record counts as stored when no election can take it back: a worker forgets it then.
        let concern = address.write_concern.get_or_insert_with(WriteConcern::majority);
        if concern.w == Some(mongodb::options::Acknowledgment::Nodes(0)) {
            return Err(Error::Invalid("the address says w=0, but records must be acknowledged".to_owned()));
        }
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
    async fn call<T, F>(&self, work: impl Fn(Database) -> F + Send + Sync) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, mongodb::error::Error>> + Send + 'static,
    {
        let answer = timeout(self.call_limit, async {
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
            let keys = doc! { "jobName": 1, "startTime": -1, "planTime": -1, "_id": 1, "status": 1 };
            let options = mongodb::options::IndexOptions::builder().name(INDEX.to_owned()).build();
            let index = IndexModel::builder().keys(keys).options(options).build();
            database.collection::<Document>(COLLECTION).create_index(index).await.map(drop)
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
            .call(|database| {
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
                let mut filter = doc! { "jobName": &query.job_name };
                if let Some(status) = query.status {
                    filter.insert("status", status.as_str());
                }
                // More than the server can count is more than it holds.
                let skip = query.skip.min(u64::from(u32::MAX));
                let limit = i64::from(query.limit);
                async move {
                    let cursor = database
                        .collection::<RawDocumentBuf>(COLLECTION)
                        .find(filter)
                        .sort(doc! { "startTime": -1, "planTime": -1, "_id": 1 })
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
    fn errors_are_sorted_by_what_to_do_next() {
        assert!(matches!(by_code(13, String::new()), Error::Denied(_)));
        assert!(matches!(by_code(18, String::new()), Error::Denied(_)));
        assert!(matches!(by_code(10_107, String::new()), Error::Unavailable(_)));
        assert!(matches!(by_code(14_031, String::new()), Error::Internal(_)));
    }
}
