//! Tokens of the API: what a client shows, and what is stored of it.
//!
//! A token is `fct_`, an id of 12 hex digits that is no secret, `_`, and 256 random bits as 43 characters of base64url. Only its SHA-256
//! is stored. A slow hash, as passwords need it, would buy nothing: nobody can try 2^256 secrets, however fast each try is.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::access::{Means, Principal, Role};
use super::stored;
use crate::clock::Timestamp;
use crate::ids::{random_id, random_secret};

/// Format version that is written.
const VERSION: u64 = 1;
/// What every token begins with, so that programs which look for secrets in sources know one.
const PREFIX: &str = "fct_";
/// Hex digits of an id.
const ID_DIGITS: usize = 12;
/// Characters of a secret.
const SECRET_CHARACTERS: usize = 43;
/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 100;

/// By which a token is known in lists and logs; no secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct TokenId(String);

impl TokenId {
    /// Reads an id; `None` when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == ID_DIGITS && text.bytes().all(digits)).then(|| Self(text.to_owned()))
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A token as a client shows it. Not shown by `Debug`, and nowhere else but to whoever has made it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    id: TokenId,
    text: String,
}

impl Secret {
    /// A token that nobody has.
    ///
    /// # Errors
    /// The operating system gives no random bits.
    pub fn random() -> Result<Self, String> {
        // The first digits of an id are all drawn.
        let id: String = random_id().chars().take(ID_DIGITS).collect();
        let text = format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(random_secret()?));
        Ok(Self { id: TokenId(id), text })
    }

    /// Reads what a client shows; `None` when it does not look like a token of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let whole = secret.len() == SECRET_CHARACTERS
            && secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        Some(Self { id: TokenId::parse(id).filter(|_| whole)?, text: text.to_owned() })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &TokenId {
        &self.id
    }

    /// All of it, for whoever has made it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// What is stored of it.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash(URL_SAFE_NO_PAD.encode(Sha256::digest(&self.text)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}_…", self.id)
    }
}

/// SHA-256 of a token, in base64url.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hash(String);

impl Hash {
    /// The hash of no token: what a token is compared with when none of its id is known, so that this takes as long.
    #[must_use]
    pub fn of_none() -> Self {
        Self("_".repeat(SECRET_CHARACTERS))
    }

    /// Whether they are the same, in a time that does not tell where they differ.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

/// Value of `/cron/tokens/{id}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    v: u64,
    /// For people.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// Only with jobs whose names begin so; empty = with all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// What the token is known by.
    pub hash: Hash,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who has made it, in words.
    pub created_by: String,
    /// From then on it is worth nothing; `None` = never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl Token {
    /// A token of this secret that is made now.
    #[must_use]
    pub fn new(secret: &Secret, grant: Grant, created_by: String, now: Timestamp) -> Self {
        let Grant { name, role, prefix, expires_at } = grant;
        Self { v: VERSION, name, role, prefix, hash: secret.hash(), created_at: now, created_by, expires_at }
    }

    /// Whether it is worth anything at this time.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }

    /// Whether its bearer may do everything, everywhere.
    #[must_use]
    pub fn is_whole_admin(&self) -> bool {
        self.role == Role::Admin && self.prefix.is_empty()
    }

    /// Who its bearer is.
    #[must_use]
    pub fn principal(&self, id: &TokenId) -> Principal {
        let means = Means::Token(id.as_str().to_owned());
        Principal { name: self.name.clone(), role: self.role, prefix: self.prefix.clone(), means }
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

/// What a token is to be worth.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// For people.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// Only with jobs whose names begin so; empty = with all.
    pub prefix: String,
    /// From then on it is worth nothing; `None` = never.
    pub expires_at: Option<Timestamp>,
}

/// Value of `/cron/tokens_used/{id}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Used {
    v: u64,
    /// When, to some minutes.
    pub at: Timestamp,
}

impl Used {
    /// Used then.
    #[must_use]
    pub fn new(at: Timestamp) -> Self {
        Self { v: VERSION, at }
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

    #[test]
    fn what_is_drawn_is_read_again_and_nothing_else_is() {
        let secret = Secret::random().unwrap();
        let text = secret.reveal().to_owned();
        assert_eq!(text.len(), 4 + 12 + 1 + 43);
        assert!(Secret::parse(&text).unwrap() == secret);
        assert_ne!(Secret::random().unwrap().reveal(), text);
        let upper = text.replacen("fct_", "FCT_", 1);
        let short = &text[..text.len() - 1];
        let long = format!("{text}a");
        let odd = format!("{short}/");
        let slash = format!("fct_/cron/jobs/x_{}", &text[17..]);
        for bad in ["", "fct_", "fct__", &upper, short, &long, &odd, &slash] {
            assert!(Secret::parse(bad).is_none(), "{bad}");
        }
        assert!(!format!("{secret:?}").contains(&text[17..]));
    }

    #[test]
    fn a_token_is_known_by_all_of_it() {
        let (a, b) = (Secret::random().unwrap(), Secret::random().unwrap());
        let swapped = Secret::parse(&format!("{}{}", &a.reveal()[..17], &b.reveal()[17..])).unwrap();
        assert!(a.hash().is(&a.hash()));
        for other in [b.hash(), swapped.hash(), Hash::of_none()] {
            assert!(!a.hash().is(&other));
        }
        assert_eq!(a.hash().0.len(), Hash::of_none().0.len());
    }

    #[test]
    fn what_is_stored_tells_no_secret_and_is_read_again() {
        let secret = Secret::random().unwrap();
        let now = Timestamp::from_ms(1_000);
        let grant = Grant {
            name: "ci".to_owned(),
            role: Role::Editor,
            prefix: "team-".to_owned(),
            expires_at: Some(now.plus_ms(5)),
        };
        let token = Token::new(&secret, grant, "somebody".to_owned(), now);
        let stored = token.encode();
        assert!(!String::from_utf8_lossy(&stored).contains(&secret.reveal()[17..]));
        assert_eq!(Token::decode(&stored).unwrap(), token);
        assert!(token.is_live(now.plus_ms(4)) && !token.is_live(now.plus_ms(5)));
        assert!(Token::decode(br#"{"v":2}"#).is_err());
    }
}
