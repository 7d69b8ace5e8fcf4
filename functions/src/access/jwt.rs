//! Tokens of an OpenID provider (JWT, RFC 7519; signed as RFC 7515 says): what is read of them, and by which keys they are verified. Pure.
//!
//! The algorithm is the key's, never the token's: a key of the provider's set is of one kind, and a token that names another algorithm than that key's is
//! refused. HMAC and `none` are no algorithms here. Keys come from the provider alone: what a token brings of its own (`jwk`, `jku`, `x5u`, `x5c`) is not
//! looked at.
//!
//! This is ours, and small, since of the crates for it that are kept, one wants `aws-lc-rs`, which `deny.toml` bans, or the crate `rsa`, which has an open
//! advisory; and none refuses a claim that stands twice. The signatures are ring's, by which rustls verifies certificates.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::clock::Timestamp;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

/// By how much the provider's clock and ours may differ, in seconds.
const SKEW_SECONDS: f64 = 60.0;
/// What the header's `typ` may say: that it is a token for calling an API, or nothing in particular.
const TYPES: [&str; 3] = ["jwt", "at+jwt", "application/at+jwt"];
/// Longest subject, in bytes: it stands in logs and records.
const SUBJECT_BYTES_MAX: usize = 255;

/// What the tokens of a provider must say.
pub(super) struct Expected {
    pub(super) issuer: String,
    pub(super) audience: String,
}

/// A token that looks like one, and whose signature nobody has verified yet.
pub(super) struct Unverified<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    /// Which key has signed it, as it says.
    pub(super) kid: String,
    algorithm: Algorithm,
    payload: &'a str,
}

/// The claims of a token whose signature, issuer, audience and times are good.
#[derive(Debug)]
pub(super) struct Claims(Map<String, Value>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Algorithm {
    Rs256,
    Es256,
    EdDsa,
}

impl Algorithm {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" | "Ed25519" => Some(Self::EdDsa),
            _ => None,
        }
    }
}

/// Whether it has the form of such a token: three parts.
pub(super) fn looks_like_one(text: &str) -> bool {
    text.split('.').count() == 3
}

impl<'a> Unverified<'a> {
    /// Reads the token's form and header.
    ///
    /// # Errors
    /// Why it is none, for the log.
    pub(super) fn parse(token: &'a str) -> Result<Self, &'static str> {
        let (signed, signature) = token.rsplit_once('.').ok_or("it has no signature")?;
        let (header, payload) = signed.split_once('.').ok_or("it has no claims")?;
        let signature =
            URL_SAFE_NO_PAD.decode(signature).map_err(|_unread| "its signature is not base64url")?;
        let header = object(header).map_err(|_unread| "its header is not readable")?;
        let text = |name: &str| header.get(name).and_then(Value::as_str);
        let algorithm =
            text("alg").and_then(Algorithm::parse).ok_or("it is signed by an algorithm that is not taken")?;
        // Extensions that must be understood: none is.
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err("its header asks for what is not done here");
        }
        if header.contains_key("typ")
            && !text("typ").is_some_and(|typ| TYPES.contains(&&*typ.to_ascii_lowercase()))
        {
            return Err("it is made out for something else than calling an API");
        }
        let kid = text("kid").ok_or("it does not say which key has signed it")?.to_owned();
        Ok(Self { signed, signature, kid, algorithm, payload })
    }

    /// The claims, if `keys` has the key that has signed them and they are as `expected`, at this time.
    ///
    /// # Errors
    /// Why not, for the log.
    pub(super) fn verify(
        &self,
        keys: &Keys,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Claims, &'static str> {
        let candidates =
            keys.0.iter().filter(|key| key.kid == self.kid && key.public.algorithm() == self.algorithm);
        let mut verified =
            candidates.filter(|key| key.public.has_signed(self.signed.as_bytes(), &self.signature));
        verified.next().ok_or("its signature is not that of the provider's key")?;
        // Nothing of the claims is read before the signature is known to be good.
        let claims = Claims(
            object(self.payload)
                .map_err(|_unread| "its claims are not readable, or one stands there twice")?,
        );
        claims.are(expected, now)?;
        Ok(claims)
    }
}

impl Claims {
    fn are(&self, expected: &Expected, now: Timestamp) -> Result<(), &'static str> {
        if self.text("iss") != Some(&*expected.issuer) {
            return Err("it is of another issuer");
        }
        let is_ours = |audience: &Value| audience.as_str() == Some(&*expected.audience);
        let for_us = match self.0.get("aud") {
            Some(Value::Array(all)) => all.iter().any(is_ours),
            Some(one) => is_ours(one),
            None => false,
        };
        if !for_us {
            return Err("it is made out for another audience");
        }
        #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are exact for 285,000 years")]
        let now = now.ms() as f64 / 1000.0;
        let end = self.seconds("exp")?.ok_or("it does not say when it expires")?;
        if now >= end + SKEW_SECONDS {
            return Err("it has expired");
        }
        if self.seconds("nbf")?.is_some_and(|begin| begin > now + SKEW_SECONDS) {
            return Err("it is not good yet");
        }
        if self.seconds("iat")?.is_some_and(|made| made > now + SKEW_SECONDS) {
            return Err("it was made in the future");
        }
        self.subject().map(drop)
    }

    /// Whom the token is about.
    pub(super) fn subject(&self) -> Result<&str, &'static str> {
        let good = |subject: &&str| {
            !subject.is_empty()
                && subject.len() <= SUBJECT_BYTES_MAX
                && !subject.chars().any(char::is_control)
        };
        self.text("sub").filter(good).ok_or("it does not say whom it is about")
    }

    /// When the token expires.
    pub(super) fn expires_at(&self) -> Option<Timestamp> {
        let end = self.seconds("exp").ok()??;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a time that is too far away becomes the last one"
        )]
        Some(Timestamp::from_ms((end * 1000.0) as i64))
    }

    /// The claim of that name; where there is none, the dots of the name lead into objects.
    pub(super) fn find(&self, name: &str) -> Option<&Value> {
        self.0.get(name).or_else(|| {
            let (first, rest) = name.split_once('.')?;
            rest.split('.').try_fold(self.0.get(first)?, |value, part| value.get(part))
        })
    }

    /// A claim that is a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// A time in seconds since 1970, which may have a fraction; what is there and is none is no reason to go on.
    fn seconds(&self, name: &str) -> Result<Option<f64>, &'static str> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or("one of its times is not a number"),
        }
    }
}

/// The provider's keys that tokens may be signed by.
#[derive(Default)]
pub(super) struct Keys(Vec<Key>);

struct Key {
    kid: String,
    public: Public,
}

enum Public {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl Public {
    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa { .. } => Algorithm::Rs256,
            Self::P256(_) => Algorithm::Es256,
            Self::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    /// RSA keys of less than 2,048 bits have signed nothing.
    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            Self::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            Self::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok(),
        }
    }
}

impl Keys {
    /// Reads a JWK set (RFC 7517). Keys that no token may be signed by here are passed over: providers have those of other kinds, too.
    ///
    /// # Errors
    /// It is no such set, or has no key that is of use.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(text).map_err(|e| format!("the key set is not JSON: {e}"))?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or("the key set has no keys")?;
        let keys: Vec<Key> = keys.iter().filter_map(key).collect();
        if keys.is_empty() {
            return Err("the key set has no key with a kid for RS256, ES256 or EdDSA".to_owned());
        }
        Ok(Self(keys))
    }

    /// Whether there is a key of that name.
    pub(super) fn has(&self, kid: &str) -> bool {
        self.0.iter().any(|key| key.kid == kid)
    }
}

fn key(jwk: &Value) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
    if text("use").is_some_and(|to| to != "sig") {
        return None;
    }
    let public = match (text("kty")?, text("crv")) {
        ("RSA", _) => Public::Rsa { n: bytes("n")?, e: bytes("e")? },
        ("EC", Some("P-256")) => {
            let (x, y) = (bytes("x")?, bytes("y")?);
            // An uncompressed point.
            Public::P256([&[4], x.as_slice(), y.as_slice()].concat())
        }
        ("OKP", Some("Ed25519")) => Public::Ed25519(bytes("x")?),
        _ => return None,
    };
    if text("alg").is_some_and(|alg| Algorithm::parse(alg) != Some(public.algorithm())) {
        return None;
    }
    Some(Key { kid: text("kid")?.to_owned(), public })
}

/// A JSON object in base64url in which no name stands twice: of two, another reader might take the other.
fn object(encoded: &str) -> Result<Map<String, Value>, ()> {
    let text = URL_SAFE_NO_PAD.decode(encoded).map_err(drop)?;
    serde_json::from_slice::<Unique>(&text).map(|unique| unique.0).map_err(drop)
}

struct Unique(Map<String, Value>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Unique(Map::new()))
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Self, A::Error> {
        while let Some((name, value)) = entries.next_entry::<String, Value>()? {
            if self.0.insert(name, value).is_some() {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(self)
    }
}
