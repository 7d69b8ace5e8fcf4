//! Idempotency keys: what a client names a change by, so that it can send it again, and what is kept of the first answer.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::api::envelope::Envelope;
use crate::domain::access::Means;
use crate::domain::stored;
use crate::ids::random_id;

/// Format version that is written.
const VERSION: u64 = 1;

/// How long an answer is kept. Clients send again within seconds, and queues and pipelines that try a whole step again within minutes; an
/// hour leaves room for both. Longer would cost: every kept answer is in etcd's memory, with the definition of the job that was replaced.
pub const KEPT_SECONDS: u64 = 3600;

/// Most that a kept answer takes. It goes into one request with the job itself, and etcd takes 1.5 MiB at a time: the previous job has at most
/// 64 KiB of command, which JSON makes 384 KiB in the worst case, as it does with the new one.
pub const KEPT_BYTES_MAX: usize = 512 * 1024;

/// Longest key.
const KEY_BYTES_MAX: usize = 255;

/// What a client names a change by: the value of the header `Idempotency-Key`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Reads a header's value: the text itself, or, as the IETF's draft writes it, a string in double quotes (RFC 8941). Both name the same key.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(value: &[u8]) -> Result<Self, String> {
        let text =
            std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| matches!(b, b' '..=b'~')));
        let key = match text.map(str::trim) {
            None => return Err("has characters that are not printable ASCII".to_owned()),
            Some(text) if text.starts_with('"') => {
                unquoted(text).ok_or("begins with a quote and is not one string in double quotes")?
            }
            Some(text) => text.to_owned(),
        };
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(format!("has {} characters", key.len()));
        }
        Ok(Self(key))
    }

    /// A key that nobody has used.
    #[must_use]
    pub fn random() -> Self {
        Self(random_id())
    }

    /// The key as one of this caller's own: what another caller names so is something else, and each gets the answers to their own requests alone. Where
    /// nobody is asked who they are, all are one.
    #[must_use]
    pub fn of_caller(self, means: &Means) -> Self {
        match means {
            Means::Open => self,
            // No header has the line break in it.
            Means::Token(id) => Self(format!("{}\ntoken {id}", self.0)),
            Means::Jwt(subject) => Self(format!("{}\nsubject {subject}", self.0)),
            Means::Bootstrap => Self(format!("{}\nbootstrap", self.0)),
        }
    }

    /// SHA-256 of the key as hex digits: of one length whatever the client chose, and nobody can find a second key for it.
    #[must_use]
    pub fn digest(&self) -> String {
        hex(&Sha256::digest(&self.0))
    }
}

/// The text of an RFC 8941 string, when it is one.
fn unquoted(quoted: &str) -> Option<String> {
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    let (mut text, mut characters) = (String::with_capacity(inner.len()), inner.chars());
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => characters.next().filter(|escaped| matches!(escaped, '"' | '\\'))?,
            '"' => return None,
            other => other,
        });
    }
    Some(text)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from(DIGITS[usize::from(d)])).collect()
}

/// What a request asks for, so that a key that comes again with another request is noticed: a hash of the route and of the fields as they were
/// understood. Whether they came as a form or as JSON makes no difference.
#[must_use]
pub fn fingerprint(route: &str, asked: &serde_json::Value) -> String {
    hex(&Sha256::digest(format!("{route}\n{asked}")))
}

/// Value of `/cron/idempotency/{digest}`: the answer to the request that came with the key first.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Kept {
    v: u64,
    /// See [`fingerprint`].
    pub fingerprint: String,
    /// The answer's body; its status is 200, since nothing else is kept.
    pub reply: Envelope,
}

impl Kept {
    /// What to keep; an answer over [`KEPT_BYTES_MAX`] is kept without its data, and says so.
    #[must_use]
    pub fn new(fingerprint: String, reply: Envelope) -> Self {
        let kept = Self { v: VERSION, fingerprint, reply };
        if kept.encode().len() <= KEPT_BYTES_MAX {
            return kept;
        }
        let warning = "the first answer was too long to be kept: its data and warnings are left out here";
        let short = Envelope::success(serde_json::Value::Null);
        Self { reply: Envelope { warnings: vec![warning.to_owned()], ..short }, ..kept }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &[u8], expected: Result<&str, &str>) {
        match (IdempotencyKey::parse(value), expected) {
            (Ok(key), Ok(text)) => assert_eq!(key.0, text),
            (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
            (got, expected) => {
                panic!("{:?}: {got:?} instead of {expected:?}", String::from_utf8_lossy(value))
            }
        }
    }

    #[test]
    fn a_key_is_printable_ascii_plain_or_quoted() {
        check(b"8e03978e-40d5-43e8-bc93-6894a57f9324", Ok("8e03978e-40d5-43e8-bc93-6894a57f9324"));
        check(br#""8e03978e""#, Ok("8e03978e"));
        check(br#""a\"b\\c d""#, Ok(r#"a"b\c d"#));
        check(b"../jobs/a b,c~", Ok("../jobs/a b,c~"));
        check(b"x".repeat(255).as_slice(), Ok("x".repeat(255).as_str()));
        check(b"x".repeat(256).as_slice(), Err("256 characters"));
        check(b"", Err("0 characters"));
        check(b"  ", Err("0 characters"));
        check(br#""""#, Err("0 characters"));
        check(br#"""#, Err("double quotes"));
        check(br#""a", "b""#, Err("double quotes"));
        check(br#""a";b=1"#, Err("double quotes"));
        check(br#""a\b""#, Err("double quotes"));
        check("ключ".as_bytes(), Err("printable ASCII"));
        check(b"a\tb", Err("printable ASCII"));
    }

    #[test]
    fn an_answer_that_is_too_long_is_kept_without_its_data() {
        let long = Envelope::success("x".repeat(KEPT_BYTES_MAX).into());
        let kept = Kept::new("f".to_owned(), long);
        assert!(kept.encode().len() < 1000);
        assert!(kept.reply.data.is_null() && kept.reply.warnings[0].contains("too long to be kept"));
        let short = Envelope::success("x".into());
        assert_eq!(Kept::new("f".to_owned(), short.clone()).reply, short);
    }

    #[test]
    fn values_of_version_1_are_read() {
        let stored = br#"{"v":1,"fingerprint":"ab","reply":{"errno":0,"msg":"success","data":null}}"#;
        let kept = Kept::decode(stored).unwrap();
        assert_eq!(kept, Kept::new("ab".to_owned(), Envelope::success(serde_json::Value::Null)));
        assert_eq!(kept.encode(), stored);
        assert!(matches!(Kept::decode(br#"{"v":2}"#), Err(stored::Error::Newer { .. })));
    }
}
