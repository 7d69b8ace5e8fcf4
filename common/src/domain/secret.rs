//! Secrets that a job names: `secret:<name>` in the place of a value. What it stands for is known to the operator's workers alone; the name
//! is all that is ever stored.

use std::fmt;

/// What stands before the name.
const PREFIX: &str = "secret:";
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Most secrets of one job: what it prints is searched for all of them.
pub const SECRETS_MAX: usize = 32;
/// What a name may be, for people.
pub const SECRET_NAMES: &str =
    "a secret has a name of 1 to 64 letters, digits, \"-\", \"_\", \".\" and \"/\"";

/// A secret's name in the operator's file (`CRON_SECRETS_FILE`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SecretName(String);

impl SecretName {
    /// Reads a name.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it and how to mend it.
    pub fn parse(name: &str) -> Result<Self, String> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits) {
            Ok(Self(name.to_owned()))
        } else {
            Err(format!("{PREFIX} names no secret: write {PREFIX}<name>; {SECRET_NAMES}"))
        }
    }

    /// The secret that a whole value stands for; `None` = it stands for itself.
    ///
    /// # Errors
    /// As [`Self::parse`].
    #[must_use]
    pub fn in_value(value: &str) -> Option<Result<Self, String>> {
        value.strip_prefix(PREFIX).map(Self::parse)
    }

    /// The secret in a header's value, with what stands before it: nothing, or one word and a blank, like `Bearer `. `None` = there is none.
    ///
    /// # Errors
    /// As [`Self::parse`]; also where one is named in another place, in which it would be sent as it stands.
    #[must_use]
    pub fn in_header(value: &str) -> Option<(&str, Result<Self, String>)> {
        let (before, rest) = value.split_at(value.rfind(PREFIX)?);
        let word = before.strip_suffix(' ');
        if before.is_empty() || word.is_some_and(|word| !word.is_empty() && !word.contains(' ')) {
            return Some((before, Self::parse(rest.strip_prefix(PREFIX)?)));
        }
        let why = format!("{PREFIX} stands alone, or behind one word, like \"Bearer {PREFIX}name\"");
        before.ends_with([' ', '=', ',', ';', '"', '\'']).then_some((before, Err(why)))
    }

    /// The name alone.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// As jobs write it.
impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_a_reference_as_a_whole_or_not_at_all() {
        for name in ["a", "db-password", "team/db.v2_x", &"x".repeat(64)] {
            let read = SecretName::in_value(&format!("secret:{name}")).unwrap().unwrap();
            assert_eq!((read.as_str(), read.to_string()), (name, format!("secret:{name}")));
        }
        for value in ["", "secret", "Secret:a", " secret:a", "my secret:a", "ssm:/a"] {
            assert_eq!(SecretName::in_value(value), None, "{value}");
        }
        for value in ["secret:", "secret: a", "secret:a b", "secret:a:b", "secret:ä", &"secret:x".repeat(9)]
        {
            let why = SecretName::in_value(value).unwrap().unwrap_err();
            assert!(why.contains("letters, digits") && !why.contains("a b"), "{value}: {why}");
        }
    }

    #[test]
    fn in_a_header_one_word_may_stand_before_it() {
        for (value, before) in
            [("secret:a", ""), ("Bearer secret:a", "Bearer "), ("secret: secret:a", "secret: ")]
        {
            let (read, name) = SecretName::in_header(value).unwrap();
            assert_eq!((read, name.unwrap().as_str()), (before, "a"));
        }
        for value in ["", "Bearer abc", "topsecret:a", "secret"] {
            assert_eq!(SecretName::in_header(value), None, "{value}");
        }
        for value in ["token=secret:a", "a b secret:a", " secret:a", "a,secret:a"] {
            let why = SecretName::in_header(value).unwrap().1.unwrap_err();
            assert!(why.contains("stands alone"), "{value}: {why}");
        }
        assert!(SecretName::in_header("Bearer secret:a b").unwrap().1.is_err());
    }
}
