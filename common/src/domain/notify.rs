//! `notify`: of what a job's people are told and on which channels; and what the store keeps of what they were told.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::stored;
use crate::clock::Timestamp;

/// Most channels of one job.
pub const CHANNELS_MAX: usize = 8;
/// Longest name of a channel, in bytes.
const CHANNEL_BYTES_MAX: usize = 64;
/// Least and most of `notSucceededForSeconds`: successes are noted once a minute, and a year is longer than any schedule that is watched.
pub const SILENCE_SECONDS_MIN: u32 = 60;
/// See [`SILENCE_SECONDS_MIN`].
pub const SILENCE_SECONDS_MAX: u32 = 366 * 24 * 3600;
/// Format version of what is kept.
const VERSION: u64 = 1;

/// What somebody may want to be told of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Occasion {
    /// The last attempt of a run failed.
    Failure,
    /// It took longer than the job's `timeoutSeconds`.
    Timeout,
    /// Its worker was lost.
    Lost,
    /// Fires were missed.
    Misfire,
    /// The job succeeds again, after one of the others was told.
    Recovery,
}

impl Occasion {
    /// Every occasion.
    pub const ALL: [Self; 5] = [Self::Failure, Self::Timeout, Self::Lost, Self::Misfire, Self::Recovery];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
            Self::Misfire => "misfire",
            Self::Recovery => "recovery",
        }
    }

    fn parse(value: &Value) -> Option<Self> {
        let word = value.as_str()?;
        Self::ALL.into_iter().find(|occasion| occasion.as_str() == word)
    }
}

/// The option `notify`, and what the workers' file says for all jobs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notify {
    /// As given; `None` = every occasion.
    on: Option<Vec<Occasion>>,
    /// The channels' names.
    pub to: Vec<String>,
    /// A job that has not succeeded for so long is told of, in seconds.
    pub not_succeeded_for_seconds: Option<u32>,
}

impl Notify {
    /// Of what it tells.
    #[must_use]
    pub fn on(&self) -> BTreeSet<Occasion> {
        self.on.as_deref().unwrap_or(&Occasion::ALL).iter().copied().collect()
    }

    /// Reads the option's value.
    ///
    /// # Errors
    /// What is wrong with it and how to mend it.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let Value::Object(fields) = value else {
            return Err(
                "is not an object: write it like {\"on\":[\"failure\",\"recovery\"],\"to\":[\"ops\"]}"
                    .to_owned(),
            );
        };
        let known = ["on", "notSucceededForSeconds", "to"];
        if let Some(unknown) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("has the unknown field {unknown:?}: it takes {}", known.join(", ")));
        }
        let on = fields.get("on").map(occasions).transpose()?;
        let to = channels(fields.get("to"))?;
        let seconds = |value: &Value| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.filter(|number| (SILENCE_SECONDS_MIN..=SILENCE_SECONDS_MAX).contains(number)).ok_or_else(|| {
                format!("notSucceededForSeconds is not a whole number from {SILENCE_SECONDS_MIN} to {SILENCE_SECONDS_MAX}")
            })
        };
        let not_succeeded_for_seconds = fields.get("notSucceededForSeconds").map(seconds).transpose()?;
        if not_succeeded_for_seconds.is_none() && on.as_ref().is_some_and(Vec::is_empty) {
            return Err("tells of nothing: name an occasion in on, or give notSucceededForSeconds".to_owned());
        }
        Ok(Self { on, to, not_succeeded_for_seconds })
    }

    /// The option's value.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut value = json!({});
        if let Some(on) = &self.on {
            value["on"] = json!(on);
        }
        if let Some(seconds) = self.not_succeeded_for_seconds {
            value["notSucceededForSeconds"] = json!(seconds);
        }
        value["to"] = json!(self.to);
        value
    }
}

fn occasions(value: &Value) -> Result<Vec<Occasion>, String> {
    let words = Occasion::ALL.map(Occasion::as_str).join(", ");
    let Value::Array(given) = value else {
        return Err(format!("on is not a list of occasions ({words}): leave it out for all of them"));
    };
    let mut on = Vec::new();
    for value in given {
        let occasion = Occasion::parse(value).ok_or_else(|| format!("on has {value}: it takes {words}"))?;
        if on.contains(&occasion) {
            return Err(format!("on has {value} twice: write it once"));
        }
        on.push(occasion);
    }
    Ok(on)
}

fn channels(value: Option<&Value>) -> Result<Vec<String>, String> {
    let Some(Value::Array(given)) = value else {
        return Err(
            "to is not a list of channels: name those of the workers' CRON_NOTIFY_FILE, like [\"ops\"]"
                .to_owned(),
        );
    };
    if given.is_empty() || given.len() > CHANNELS_MAX {
        return Err(format!("to has {} channels: name 1 to {CHANNELS_MAX}", given.len()));
    }
    let mut to = Vec::new();
    for value in given {
        match value.as_str().filter(|name| is_channel(name)) {
            None => return Err(format!("to has {value}: {CHANNEL_NAMES}")),
            Some(name) if to.iter().any(|known| known == name) => {
                return Err(format!("to has {value} twice: write it once"));
            }
            Some(name) => to.push(name.to_owned()),
        }
    }
    Ok(to)
}

/// What the name of a channel may be, for messages.
pub const CHANNEL_NAMES: &str = "a channel has a name of 1 to 64 letters, digits, \"-\" and \"_\"";

/// Whether a channel may be called so: it is part of the names of files.
#[must_use]
pub fn is_channel(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=CHANNEL_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits)
}

/// Value of `/cron/notify/{name}`: what was told of a job. Changed by compare-and-swap alone, so that of many workers one tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notified {
    v: u64,
    /// Since when it does not succeed; absent = it does, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<Outage>,
    /// When it last succeeded: noted at the end of an outage, and of a job with `notSucceededForSeconds` about once a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<Timestamp>,
    /// A job that never succeeded is waited for from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watched_since: Option<Timestamp>,
    /// Told that it has not succeeded for so many seconds; 0 = not told since it last did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub silence_told_seconds: u32,
    /// What was decided last: whoever decided it and died may ask again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decided: Vec<Decided>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A time in which a job does not succeed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outage {
    /// When the first run of it ended.
    pub since: Timestamp,
    /// When the latest run of it ended.
    pub last_at: Timestamp,
    /// The latest run's record.
    pub last_record: String,
    /// Runs that did not succeed, to about a minute ago.
    pub failures: u64,
    /// When they were last added up.
    pub counted_at: Timestamp,
    /// When it was last told.
    pub told_at: Timestamp,
    /// What was told.
    pub kinds: BTreeSet<Occasion>,
}

/// What one worker decided about what it saw together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Decided {
    /// Names what it saw.
    pub by: String,
    /// What is told.
    pub told: Vec<Told>,
}

/// One thing that is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// What.
    pub kind: Kind,
    /// By which of what was seen together.
    pub index: usize,
    /// When the outage began; of a silence, when the job last succeeded or was first seen.
    pub since: Timestamp,
    /// Runs that did not succeed in it, this one among them.
    pub failures: u64,
    /// It was told before and goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reminder: bool,
    /// What had been told in the outage that is over.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub after: BTreeSet<Occasion>,
    /// That it had not succeeded for long was told, and is over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub after_silence: bool,
}

impl Told {
    /// A beginning.
    #[must_use]
    pub fn new(kind: Kind, index: usize, since: Timestamp, failures: u64) -> Self {
        Self { kind, index, since, failures, reminder: false, after: BTreeSet::new(), after_silence: false }
    }
}

/// What a message is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// See [`Occasion::Failure`].
    Failure,
    /// See [`Occasion::Timeout`].
    Timeout,
    /// See [`Occasion::Lost`].
    Lost,
    /// See [`Occasion::Misfire`].
    Misfire,
    /// See [`Occasion::Recovery`].
    Recovery,
    /// It has not succeeded for as long as `notSucceededForSeconds`.
    NotSucceeded,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.occasion().map_or("notSucceeded", Occasion::as_str)
    }

    /// The occasion that one has to name in `on`; `None` = none of them.
    #[must_use]
    pub fn occasion(self) -> Option<Occasion> {
        match self {
            Self::Failure => Some(Occasion::Failure),
            Self::Timeout => Some(Occasion::Timeout),
            Self::Lost => Some(Occasion::Lost),
            Self::Misfire => Some(Occasion::Misfire),
            Self::Recovery => Some(Occasion::Recovery),
            Self::NotSucceeded => None,
        }
    }
}

impl From<Occasion> for Kind {
    fn from(occasion: Occasion) -> Self {
        match occasion {
            Occasion::Failure => Self::Failure,
            Occasion::Timeout => Self::Timeout,
            Occasion::Lost => Self::Lost,
            Occasion::Misfire => Self::Misfire,
            Occasion::Recovery => Self::Recovery,
        }
    }
}

impl Default for Notified {
    fn default() -> Self {
        Self {
            v: VERSION,
            outage: None,
            succeeded: None,
            watched_since: None,
            silence_told_seconds: 0,
            decided: Vec::new(),
        }
    }
}

impl Notified {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_read_and_written_again_as_it_was_given() {
        for given in [
            json!({"to": ["ops"]}),
            json!({"on": ["recovery", "failure"], "to": ["ops", "team_2"]}),
            json!({"on": [], "notSucceededForSeconds": 60, "to": ["a-b"]}),
        ] {
            assert_eq!(Notify::parse(&given).unwrap().to_value(), given);
        }
        let all = Notify::parse(&json!({"to": ["ops"]})).unwrap();
        assert_eq!(all.on(), BTreeSet::from(Occasion::ALL));
    }

    #[test]
    fn what_it_cannot_be_is_said() {
        for (value, says) in [
            (json!("ops"), "is not an object"),
            (json!({"to": []}), "name 1 to 8"),
            (json!({"on": ["failure"]}), "CRON_NOTIFY_FILE"),
            (json!({"to": "ops"}), "not a list of channels"),
            (json!({"to": ["a/b"]}), "letters, digits"),
            (json!({"to": ["ops", "ops"]}), "twice"),
            (json!({"to": ["ops"], "on": ["failed"]}), "it takes failure, timeout"),
            (json!({"to": ["ops"], "on": "failure"}), "not a list of occasions"),
            (json!({"to": ["ops"], "on": ["lost", "lost"]}), "twice"),
            (json!({"to": ["ops"], "on": []}), "tells of nothing"),
            (json!({"to": ["ops"], "notSucceededForSeconds": 59}), "from 60 to 31622400"),
            (json!({"to": ["ops"], "url": "http://a"}), "unknown field \"url\""),
        ] {
            let why = Notify::parse(&value).expect_err(&value.to_string());
            assert!(why.contains(says), "{value}: {why}");
        }
    }

    #[test]
    fn what_is_kept_is_read_back_and_a_newer_format_is_not() {
        let outage = Outage {
            since: Timestamp::from_ms(1),
            last_at: Timestamp::from_ms(2),
            last_record: "a/1/1".to_owned(),
            failures: 3,
            counted_at: Timestamp::from_ms(4),
            told_at: Timestamp::from_ms(5),
            kinds: BTreeSet::from([Occasion::Lost]),
        };
        let kept = Notified { outage: Some(outage), ..Notified::default() };
        assert_eq!(Notified::decode(&kept.encode()), Ok(kept));
        assert!(Notified::decode(br#"{"v":2}"#).is_err());
        assert_eq!(Notified::decode(br#"{"v":1}"#), Ok(Notified::default()));
    }
}
