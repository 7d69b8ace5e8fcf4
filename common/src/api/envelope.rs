//! The body of every answer: the seed's `Response`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `{"errno":0,"msg":"success","data":…}`, and what stands beside `data` where it is useful.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// 0, or a negative code.
    pub errno: i32,
    /// "success", or what is wrong and what to do.
    pub msg: String,
    /// The answer; null on failure.
    pub data: Value,
    /// Where the next page begins, or when a job fires next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// A job's schedule in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What the caller should know although it worked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What comes next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Next {
    /// Where the next page begins.
    Page(String),
    /// The next fires, in RFC 3339 with the offset of the schedule's zone.
    Fires(Vec<String>),
}

impl Envelope {
    /// Success.
    #[must_use]
    pub fn success(data: Value) -> Self {
        Self {
            errno: 0,
            msg: "success".to_owned(),
            data,
            next: None,
            description: None,
            warnings: Vec::new(),
        }
    }

    /// Failure.
    #[must_use]
    pub fn failure(errno: i32, msg: impl Into<String>) -> Self {
        Self { errno, msg: msg.into(), ..Self::success(Value::Null) }
    }
}
