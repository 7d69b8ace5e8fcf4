//! What a change leaves behind for whoever asks later: who did what to which thing, when and from where, what stood there before and what
//! after. A [`Note`] goes into etcd in the transaction of the change; an [`Entry`] is what becomes of it in the store of records.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::clock::Timestamp;
use crate::domain::access::Principal;
use crate::domain::idempotency::hex;
use crate::domain::stored;
use crate::ids::random_id;
use crate::kv::Revision;

/// Format version that is written.
const VERSION: u64 = 1;

/// A definition of more bytes is not kept whole. It goes into one request of 1.5 MiB with the definition that is stored, the one before, and the
/// answer that may be kept: 256 KiB twice leave room for all of these. A command of 64 KiB has half of that at the most, unless it is made of
/// control characters.
pub const DEFINITION_BYTES_MAX: usize = 256 * 1024;

/// What was touched: a job.
pub const JOB: &str = "job";
/// What was touched: the fleet's pause.
pub const PAUSE: &str = "pause";
/// What was touched: the fleet's settings.
pub const SETTINGS: &str = "settings";

/// Names an entry. In the order of the texts they are in the order of their times, and of one time in that of the store's revisions.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(String);

impl EntryId {
    /// Of the `number`th thing of a change that was made then, at this revision. Whoever moves the note finds the same; only a store that was put
    /// back may come to a revision twice, and not within a millisecond.
    #[must_use]
    pub fn new(at: Timestamp, revision: Revision, number: usize) -> Self {
        Self(format!("{}-{revision:012x}-{number:03x}", sortable(at)))
    }

    /// Before every entry of that time, behind all earlier ones.
    #[must_use]
    pub fn first_of(at: Timestamp) -> Self {
        Self(sortable(at))
    }

    /// Reads an id that somebody gives, or the beginning of one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let good = !text.is_empty() && text.len() <= 64;
        let known = |b: u8| b.is_ascii_hexdigit() && !b.is_ascii_uppercase() || b == b'-';
        (good && text.bytes().all(known)).then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The time as so many digits that the order of the texts is that of the times.
fn sortable(at: Timestamp) -> String {
    format!("{:012x}", at.ms().max(0))
}

/// A name that no other note has, in the order of time.
#[must_use]
pub fn note_id(at: Timestamp) -> String {
    format!("{}-{}", sortable(at), &random_id()[..12])
}

/// Who asked for a change, and from where.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// Who was let in; absent where nobody is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Principal>,
    /// The gateway's identity, the address and the program, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// By which the request is found in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// What stood somewhere.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Definition {
    /// A JSON object.
    Whole(Map<String, Value>),
    /// Something else: other hands put it.
    Text(String),
    /// More than is kept.
    #[serde(rename_all = "camelCase")]
    TooLarge {
        /// How long it was.
        bytes: usize,
        /// SHA-256 of it, by which it is known again.
        sha256: String,
    },
}

impl Definition {
    /// Of a stored value.
    #[must_use]
    pub fn of(value: &[u8]) -> Self {
        if value.len() > DEFINITION_BYTES_MAX {
            return Self::TooLarge { bytes: value.len(), sha256: hex(&Sha256::digest(value)) };
        }
        match serde_json::from_slice(value) {
            Ok(Value::Object(object)) => Self::Whole(object),
            _ => Self::Text(String::from_utf8_lossy(value).into_owned()),
        }
    }

    /// The object, where it is one that was kept.
    #[must_use]
    pub fn whole(&self) -> Option<&Map<String, Value>> {
        match self {
            Self::Whole(object) => Some(object),
            Self::Text(_) | Self::TooLarge { .. } => None,
        }
    }

    /// For people and programs, where it is no object.
    fn shown(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// One thing that a change touched.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Touched {
    /// Which kind of thing it is: [`JOB`], [`PAUSE`], …
    pub thing: String,
    /// Its name; empty where there is one of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What stood there before; absent = nothing, or the change was not one of what stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Definition>,
    /// What stands there afterwards; absent = nothing, or the change was not one of what stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Definition>,
}

impl Touched {
    /// A thing by its kind and name, with the stored values before and after.
    #[must_use]
    pub fn new(thing: &str, name: &str, before: Option<&[u8]>, after: Option<&[u8]>) -> Self {
        Self {
            thing: thing.to_owned(),
            name: name.to_owned(),
            before: before.map(Definition::of),
            after: after.map(Definition::of),
        }
    }
}

/// Value of `/cron/audit/{note id}`: a change, as the transaction that made it says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    v: u64,
    /// When it was made, by the clock of the function.
    pub at: Timestamp,
    /// What was done: the name of the function.
    pub action: String,
    /// Who asked for it.
    #[serde(flatten)]
    pub origin: Origin,
    /// What there is to say beside definitions: the ids of runs, a reason.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Value>,
    /// What it touched.
    pub touched: Vec<Touched>,
}

impl Note {
    /// A change that has touched nothing yet.
    #[must_use]
    pub fn new(at: Timestamp, action: &str, origin: Origin) -> Self {
        let (action, details) = (action.to_owned(), Map::new());
        Self { v: VERSION, at, action, origin, details, touched: Vec::new() }
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// See [`stored::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, stored::Error> {
        stored::decode(bytes, VERSION)
    }

    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        stored::encode(self)
    }

    /// What becomes of it: an entry for each thing, when the change was made at this revision.
    pub fn into_entries(self, revision: Revision) -> impl Iterator<Item = Entry> {
        let Self { at, action, origin, details, touched, .. } = self;
        touched.into_iter().enumerate().map(move |(number, touched)| Entry {
            id: EntryId::new(at, revision, number),
            at,
            action: action.clone(),
            origin: origin.clone(),
            details: details.clone(),
            touched,
        })
    }
}

/// A change of one thing, as it is kept.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
    /// See [`Note::at`].
    pub at: Timestamp,
    /// See [`Note::action`].
    pub action: String,
    /// See [`Note::origin`].
    #[serde(flatten)]
    pub origin: Origin,
    /// See [`Note::details`].
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Value>,
    /// What it touched.
    #[serde(flatten)]
    pub touched: Touched,
}

impl Entry {
    /// Whether the job's definition is another afterwards.
    #[must_use]
    pub fn is_version(&self) -> bool {
        self.touched.thing == JOB && self.touched.before != self.touched.after
    }

    /// What is different afterwards: by field, `before` and `after`, each absent where the field was not there. What is no object stands
    /// under `definition`.
    #[must_use]
    pub fn changes(&self) -> Map<String, Value> {
        let Touched { before, after, .. } = &self.touched;
        let mut changes = Map::new();
        let (old, new) = (fields(before.as_ref()), fields(after.as_ref()));
        let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
        for name in names.filter(|name| old.get(*name) != new.get(*name)) {
            let sides = [("before", old.get(name)), ("after", new.get(name))];
            let sides = sides.into_iter().filter_map(|(side, value)| Some((side.to_owned(), value?.clone())));
            changes.insert(name.clone(), Value::Object(sides.collect()));
        }
        changes
    }
}

/// The fields of a definition.
fn fields(definition: Option<&Definition>) -> Map<String, Value> {
    match definition {
        None => Map::new(),
        Some(Definition::Whole(object)) => object.clone(),
        Some(other) => Map::from_iter([("definition".to_owned(), other.shown())]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const AT: Timestamp = Timestamp::from_ms(1_795_219_200_000);

    fn touched(before: &Value, after: &Value) -> Touched {
        let bytes = |value: &Value| (!value.is_null()).then(|| value.to_string().into_bytes());
        Touched::new(JOB, "a", bytes(before).as_deref(), bytes(after).as_deref())
    }

    fn entry(before: &Value, after: &Value) -> Entry {
        let mut note = Note::new(AT, "save", Origin::default());
        note.touched.push(touched(before, after));
        note.into_entries(7).next().unwrap()
    }

    #[test]
    fn the_order_of_ids_is_that_of_times_then_of_revisions() {
        let ids = [
            EntryId::first_of(Timestamp::from_ms(-5)),
            EntryId::new(Timestamp::from_ms(1), i64::from(u32::MAX), 0),
            EntryId::first_of(AT),
            EntryId::new(AT, 9, 0),
            EntryId::new(AT, 9, 10),
            EntryId::new(AT, 10, 0),
            EntryId::new(AT, 1 << 40, 0),
            EntryId::first_of(AT.plus_ms(1)),
        ];
        assert!(ids.is_sorted(), "{ids:?}");
        for id in ids {
            assert_eq!(EntryId::parse(id.as_str()), Some(id));
        }
        for bad in ["", "A", "{", "a b", "../x", "1'", "1".repeat(65).as_str()] {
            assert_eq!(EntryId::parse(bad), None, "{bad}");
        }
        assert!(note_id(AT) < note_id(AT.plus_ms(1)) && note_id(AT) != note_id(AT));
    }

    #[test]
    fn changes_are_told_by_field_and_what_is_absent_is_left_out() {
        #[track_caller]
        fn check(before: &Value, after: &Value, expected: &Value) {
            let entry = entry(before, after);
            assert_eq!(Value::Object(entry.changes()), *expected);
            assert_eq!(entry.is_version(), before != after);
        }
        let job = json!({"name": "a", "command": "x", "cronExpr": "@daily"});
        let other = json!({"name": "a", "command": "y", "cronExpr": "@daily", "labels": {"a.b": "$c"}});
        let edit = json!({"command": {"before": "x", "after": "y"}, "labels": {"after": {"a.b": "$c"}}});
        check(&job, &other, &edit);
        check(&job, &job, &json!({}));
        let made =
            json!({"name": {"after": "a"}, "command": {"after": "x"}, "cronExpr": {"after": "@daily"}});
        check(&Value::Null, &job, &made);
        check(&json!("no job"), &Value::Null, &json!({"definition": {"before": {"text": "\"no job\""}}}));
        let long = json!({"name": "a", "command": "x".repeat(DEFINITION_BYTES_MAX)});
        let Some(Definition::TooLarge { bytes, sha256 }) = entry(&Value::Null, &long).touched.after else {
            panic!("kept whole")
        };
        assert_eq!((bytes, sha256.len()), (long.to_string().len(), 64));
    }

    #[test]
    fn values_of_version_1_are_read() {
        let stored = r#"{"v":1,"at":1795219200000,"action":"save","by":{"name":"ci","role":"editor","prefix":"","means":{"token":"abc"}},"from":"203.0.113.7","requestId":"r","details":{"runId":"1"},"touched":[{"thing":"job","name":"a","before":{"tooLarge":{"bytes":9,"sha256":"ab"}},"after":{"whole":{"name":"a"}}}]}"#;
        let note = Note::decode(stored.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(note.encode()).unwrap(), stored);
        let entry = note.into_entries(3).next().unwrap();
        let body = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&body).unwrap(), entry);
        assert!(matches!(Note::decode(br#"{"v":2}"#), Err(stored::Error::Newer { .. })));
    }
}
