//! A stored job switched on or off, with everything else in it left as it stands.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// The option's name in the JSON.
const ENABLED: &str = "enabled";

/// The value of a job that has fires (`on`) or has none, made from a stored one: every other field keeps its place and its bytes, also those
/// that this version does not know. `None` when it is so already.
///
/// # Errors
/// When the value is not a JSON object.
pub fn switched(value: &[u8], on: bool) -> Result<Option<Vec<u8>>, serde_json::Error> {
    let Members(mut members) = serde_json::from_slice(value)?;
    let stands: Vec<&str> =
        members.iter().filter(|(name, _)| name == ENABLED).map(|(_, value)| value.get()).collect();
    let already = match stands[..] {
        [] => on,
        [only] => only == if on { "true" } else { "false" },
        // Which of several counts is each reader's own choice.
        _ => false,
    };
    if already {
        return Ok(None);
    }
    if on {
        members.retain(|(name, _)| name != ENABLED);
    } else {
        let off = RawValue::from_string("false".to_owned())?;
        let place = members.iter().position(|(name, _)| name == ENABLED).unwrap_or(members.len());
        members.retain(|(name, _)| name != ENABLED);
        members.insert(place, (ENABLED.to_owned(), off));
    }
    serde_json::to_vec(&Members(members)).map(Some)
}

/// The members of an object as they stand there: a number keeps its digits, a text its escapes.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(value: &str, on: bool) -> String {
        switched(value.as_bytes(), on)
            .unwrap()
            .map_or("as it is".to_owned(), |v| String::from_utf8(v).unwrap())
    }

    #[test]
    fn a_job_is_switched_and_nothing_else_in_it_changes() {
        let odd = r#""zone":{"b":1.0,"a":[ 1e2,12345678901234567890123 ]},"name":"\u0061","zone":2"#;
        let (on, off) = (format!("{{{odd}}}"), format!(r#"{{{odd},"enabled":false}}"#));
        assert_eq!(after(&on, false), off);
        assert_eq!(after(&off, true), on);
        assert_eq!((after(&on, true), after(&off, false)), ("as it is".to_owned(), "as it is".to_owned()));
    }

    #[test]
    fn whatever_stood_there_is_replaced_in_its_place() {
        for (value, on, off) in [
            (r#"{"enabled":true,"b":1}"#, "as it is", r#"{"enabled":false,"b":1}"#),
            (r#"{"enabled":"no","b":1}"#, r#"{"b":1}"#, r#"{"enabled":false,"b":1}"#),
            (
                r#"{"a":1,"enabled":true,"b":1,"enabled":false}"#,
                r#"{"a":1,"b":1}"#,
                r#"{"a":1,"enabled":false,"b":1}"#,
            ),
            ("{}", "as it is", r#"{"enabled":false}"#),
        ] {
            assert_eq!((after(value, true).as_str(), after(value, false).as_str()), (on, off), "{value}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for value in ["", "[]", "null", "{", r#"{"a":1}x"#] {
            assert!(switched(value.as_bytes(), false).is_err(), "{value}");
        }
    }
}
