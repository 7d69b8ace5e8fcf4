//! `retry`: how often, and after what pause, a run that did not succeed is tried again.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::run::RunId;

/// Most attempts of one fire, the first among them: whoever wants more wants a schedule.
pub const ATTEMPTS_MAX: u32 = 20;
/// Longest pause between two attempts, in seconds, and so the longest `backoff` too.
pub const PAUSE_SECONDS_MAX: u32 = 3600;
/// `backoff` of a job that gives none, in seconds.
const BACKOFF_SECONDS_DEFAULT: u32 = 10;

/// The option `retry`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// All attempts, the first among them: 1 = no retries.
    pub attempts: u32,
    /// Seconds from the end of the first attempt to the second; doubled for each later one.
    pub backoff: u32,
    /// A run whose worker was lost is tried again as well, although nobody knows how far it came. Absent = if it has a `fence`, by which it is
    /// over by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_lost: Option<bool>,
}

impl Retry {
    /// Whether there is another attempt after this one.
    #[must_use]
    pub fn goes_on_after(&self, attempt: u32) -> bool {
        attempt < self.attempts
    }

    /// What an open run says that is to be tried again should its worker be lost; `None` = it ends there.
    #[must_use]
    pub fn after_loss(self, attempt: u32, has_fence: bool) -> Option<Self> {
        // Older versions read no value without the word.
        let said = self.with_fence(has_fence);
        (said.on_lost == Some(true) && self.goes_on_after(attempt)).then_some(said)
    }

    /// The same, saying in so many words whether a lost attempt is followed by another: with a fence, unless the job says otherwise.
    #[must_use]
    pub fn with_fence(self, has_fence: bool) -> Self {
        Self { on_lost: Some(self.on_lost.unwrap_or(has_fence)), ..self }
    }

    /// The pause after an attempt, in ms: `backoff`, doubled for each attempt before it, and up to a quarter more, so that what failed
    /// together is not tried again together. At most an hour. The same for the same run, whoever computes it.
    #[must_use]
    pub fn pause_ms(&self, attempt: u32, run_id: &RunId) -> i64 {
        let most = u64::from(PAUSE_SECONDS_MAX) * 1000;
        let doubled = u64::from(self.backoff) * 1000 * (1 << attempt.saturating_sub(1).min(ATTEMPTS_MAX));
        let jitter = xxhash_rust::xxh3::xxh3_64(run_id.as_str().as_bytes()) % (doubled / 4 + 1);
        i64::try_from((doubled + jitter).min(most)).unwrap_or(i64::MAX)
    }

    /// Reads the option's value.
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        let Value::Object(fields) = value else {
            return Err("is not an object: write it like {\"attempts\":3,\"backoff\":10}".to_owned());
        };
        let known = ["attempts", "backoff", "onLost"];
        if let Some(unknown) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("has the unknown field {unknown:?}: it takes {}", known.join(", ")));
        }
        let number = |name: &str, least: u32, most: u32| match fields.get(name) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .filter(|number| (least..=most).contains(number))
                .map(Some)
                .ok_or_else(|| format!("{name} is not a whole number from {least} to {most}")),
        };
        let attempts = number("attempts", 1, ATTEMPTS_MAX)?
            .ok_or("says no attempts: give how often the job is tried in all, such as 3")?;
        let backoff = number("backoff", 0, PAUSE_SECONDS_MAX)?.unwrap_or(BACKOFF_SECONDS_DEFAULT);
        let on_lost = match fields.get("onLost") {
            None => None,
            Some(Value::Bool(on_lost)) => Some(*on_lost),
            Some(_) => {
                return Err("onLost is neither true nor false: write one of them, or leave it out for what `fence` is"
                    .to_owned());
            }
        };
        Ok(Self { attempts, backoff, on_lost })
    }

    /// The option's value.
    pub(super) fn to_value(self) -> Value {
        let mut value = json!({ "attempts": self.attempts, "backoff": self.backoff });
        if let Some(on_lost) = self.on_lost {
            value["onLost"] = on_lost.into();
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &Value, expected: Result<(u32, u32, Option<bool>), &str>) {
        match (Retry::parse(value), expected) {
            (Ok(retry), Ok(fields)) => {
                assert_eq!((retry.attempts, retry.backoff, retry.on_lost), fields);
                assert_eq!(Retry::parse(&retry.to_value()), Ok(retry));
            }
            (Err(why), Err(says)) => assert!(why.contains(says), "{why}"),
            (got, expected) => panic!("{value}: {got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn the_option_has_attempts_and_may_have_more() {
        check(&json!({"attempts": 3}), Ok((3, 10, None)));
        check(&json!({"attempts": 1, "backoff": 0, "onLost": true}), Ok((1, 0, Some(true))));
        check(&json!({"attempts": 20, "backoff": 3600, "onLost": false}), Ok((20, 3600, Some(false))));
        check(&json!({}), Err("says no attempts"));
        check(&json!(3), Err("is not an object"));
        check(&json!({"attempts": 0}), Err("attempts is not a whole number from 1 to 20"));
        check(&json!({"attempts": 21}), Err("attempts"));
        check(&json!({"attempts": "3"}), Err("attempts"));
        check(&json!({"attempts": 2, "backoff": -1}), Err("backoff is not a whole number from 0 to 3600"));
        check(&json!({"attempts": 2, "backoff": 1.5}), Err("backoff"));
        check(&json!({"attempts": 2, "onLost": 1}), Err("onLost"));
        check(&json!({"attempts": 2, "onlost": true}), Err("unknown field \"onlost\""));
    }

    #[test]
    fn a_lost_run_is_tried_again_where_that_is_asked_for_or_its_fence_has_ended_it() {
        let after_loss = |on_lost, attempt, has_fence| {
            Retry { attempts: 3, backoff: 1, on_lost }.after_loss(attempt, has_fence).is_some()
        };
        for (on_lost, has_fence, again) in [
            (None, false, false),
            (None, true, true),
            (Some(true), false, true),
            (Some(false), true, false), // who says so has a reason
        ] {
            assert_eq!(after_loss(on_lost, 2, has_fence), again, "{on_lost:?}, fence {has_fence}");
            assert!(!after_loss(on_lost, 3, has_fence), "that was the last attempt");
        }
        let said = Retry { attempts: 3, backoff: 1, on_lost: None }.after_loss(1, true);
        let value = serde_json::to_value(said.unwrap()).unwrap();
        assert_eq!(value, json!({"attempts": 3, "backoff": 1, "onLost": true}), "as older versions read it");
    }

    #[test]
    fn pauses_double_with_some_jitter_up_to_an_hour() {
        let pause = |backoff, attempt, run: &str| {
            Retry { attempts: 20, backoff, on_lost: None }.pause_ms(attempt, &RunId::from_text(run))
        };
        for run in ["1-1", "1-2", "1-3"] {
            assert!((10_000..=12_500).contains(&pause(10, 1, run)));
            assert!((20_000..=25_000).contains(&pause(10, 2, run)));
            assert!((80_000..=100_000).contains(&pause(10, 4, run)));
            assert_eq!(pause(10, 19, run), 3_600_000);
            assert_eq!(pause(3600, 1, run), 3_600_000);
            assert_eq!(pause(3600, u32::MAX, run), 3_600_000);
            assert_eq!(pause(0, 5, run), 0);
        }
        assert_ne!(pause(10, 1, "1-1"), pause(10, 1, "1-2"), "runs that failed together are tried apart");
        assert_eq!(pause(10, 1, "1-1"), pause(10, 1, "1-1"));
    }
}
