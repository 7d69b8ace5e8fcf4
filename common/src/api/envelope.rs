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
    /// Where the next page begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// What the caller should know although it worked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Envelope {
    /// Success.
    #[must_use]
    pub fn success(data: Value) -> Self {
        Self { errno: 0, msg: "success".to_owned(), data, next: None, warnings: Vec::new() }
    }

    /// Failure.
    #[must_use]
    pub fn failure(errno: i32, msg: impl Into<String>) -> Self {
        Self { errno, msg: msg.into(), data: Value::Null, next: None, warnings: Vec::new() }
    }
}
