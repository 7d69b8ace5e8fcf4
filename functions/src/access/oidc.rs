//! Callers that an OpenID provider vouches for: its keys, held for a while, and what its claims mean here.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch};
use common::config::OidcSettings;
use common::domain::access::{Means, Principal, Role};
use common::domain::job::JobName;
use common::https;
use common::shortened::shortened;
use serde_json::Value;

use super::jwt::{Claims, Expected, Keys, Unverified};
use super::{Known, Stopped};
use crate::http::Refusal;

/// The provider's keys are asked for again after so long, in case it has withdrawn one.
const FRESH_FOR: Duration = Duration::from_secs(3600);
/// While the provider does not answer, the keys that it gave last are good for so long.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// The provider is asked at most so often while there are keys: anybody can send a token that names a key which is not there.
const ASKED_EVERY: Duration = Duration::from_secs(60);
/// And so often while there are none.
const TRIED_EVERY: Duration = Duration::from_secs(5);
/// Longest document of a provider, in bytes; key sets with certificates have some 20,000.
const BYTES_MAX: usize = 256 * 1024;
/// One document is there within this, and there are two: so that the handler has time left.
const FETCH_LIMIT: Duration = Duration::from_secs(2);
/// The default of `CRON_OIDC_ROLE_CLAIM`.
const ROLE_CLAIM: &str = "fleetcron_role";
/// The value of the prefix claim that stands for all jobs. An empty one does not: it is what a provider sends that knows nothing of the caller.
const ALL_JOBS: &str = "*";
/// Longest name that is shown, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// How a provider's documents are got.
#[async_trait]
pub(super) trait Fetch: Send + Sync {
    /// The document at an address; or why there is none, in words.
    async fn get(&self, url: &str) -> Result<Vec<u8>, String>;
}

struct OverTls;

#[async_trait]
impl Fetch for OverTls {
    async fn get(&self, url: &str) -> Result<Vec<u8>, String> {
        https::get(url, BYTES_MAX, FETCH_LIMIT).await
    }
}

/// A provider.
pub(super) struct Oidc {
    expected: Expected,
    jwks_url: Option<String>,
    role_claim: String,
    prefix_claim: Option<String>,
    clock: Arc<dyn Clock>,
    fetch: Arc<dyn Fetch>,
    held: tokio::sync::Mutex<Held>,
}

#[derive(Default)]
struct Held {
    keys: Option<(Arc<Keys>, Stopwatch)>,
    asked: Option<Stopwatch>,
}

impl Oidc {
    /// The provider that the settings name; `None` = none.
    pub(super) fn new(settings: &OidcSettings, clock: Arc<dyn Clock>) -> Option<Self> {
        Self::with(settings, clock, Arc::new(OverTls))
    }

    fn with(settings: &OidcSettings, clock: Arc<dyn Clock>, fetch: Arc<dyn Fetch>) -> Option<Self> {
        let OidcSettings { issuer, audience, jwks_url, role_claim, prefix_claim } = settings.clone();
        Some(Self {
            expected: Expected { issuer: issuer?, audience: audience? },
            jwks_url,
            role_claim: role_claim.unwrap_or_else(|| ROLE_CLAIM.to_owned()),
            prefix_claim,
            clock,
            fetch,
            held: tokio::sync::Mutex::default(),
        })
    }

    /// Whom the token is about, and what that may do.
    pub(super) async fn principal(&self, token: &str) -> Result<Known, Stopped> {
        let unverified = Unverified::parse(token).map_err(Stopped::Wrong)?;
        let keys = self.keys(&unverified.kid).await?;
        let claims = unverified.verify(&keys, &self.expected, self.clock.now()).map_err(Stopped::Wrong)?;
        let subject = claims.subject().map_err(Stopped::Wrong)?.to_owned();
        let role = self.role(&claims).ok_or_else(|| {
            let message = format!(
                "your provider's token names no role here: its claim {:?} must be, or have in it, one of {}",
                self.role_claim,
                Role::ALL.map(Role::word).join(", ")
            );
            Stopped::Refused(Refusal::new(Kind::NotAllowed, message))
        })?;
        let prefix = self.prefix(&claims)?;
        let name = claims.text("preferred_username").unwrap_or(&subject);
        let name = name.chars().filter(|c| !c.is_control()).collect();
        let name = shortened(name, NAME_BYTES_MAX);
        let principal = Principal { name, role, prefix, means: Means::Jwt(subject) };
        Ok(Known { principal, until: claims.expires_at() })
    }

    /// The highest of the roles that are named; other words in a list are other programs' business.
    fn role(&self, claims: &Claims) -> Option<Role> {
        let parsed = |value: &Value| value.as_str().and_then(Role::parse);
        match claims.find(&self.role_claim)? {
            Value::Array(all) => all.iter().filter_map(parsed).max(),
            one => parsed(one),
        }
    }

    fn prefix(&self, claims: &Claims) -> Result<String, Stopped> {
        let Some(claim) = &self.prefix_claim else { return Ok(String::new()) };
        match claims.find(claim).and_then(Value::as_str) {
            Some(ALL_JOBS) => Ok(String::new()),
            Some(prefix) if JobName::parse(prefix).is_ok() => Ok(prefix.to_owned()),
            _ => {
                let message = format!(
                    "your provider's token does not say which jobs are yours: its claim {claim:?} must be what their names begin with, or {ALL_JOBS:?} for all"
                );
                Err(Stopped::Refused(Refusal::new(Kind::NotAllowed, message)))
            }
        }
    }

    /// The provider's keys, asked for anew where they are old, or lack the one that is wanted; what it gave last where it does not answer.
    async fn keys(&self, kid: &str) -> Result<Arc<Keys>, Stopped> {
        let mut held = self.held.lock().await;
        if held.keys.as_ref().is_some_and(|(_, since)| since.elapsed() >= KEPT_FOR) {
            held.keys = None;
        }
        let is_good =
            held.keys.as_ref().is_some_and(|(keys, since)| since.elapsed() < FRESH_FOR && keys.has(kid));
        let pause = if held.keys.is_some() { ASKED_EVERY } else { TRIED_EVERY };
        if !is_good && held.asked.is_none_or(|asked| asked.elapsed() >= pause) {
            held.asked = Some(Stopwatch::start());
            match self.ask().await {
                Ok(keys) => held.keys = Some((Arc::new(keys), Stopwatch::start())),
                Err(why) => tracing::error!(
                    why,
                    issuer = self.expected.issuer,
                    "the OpenID provider's keys cannot be had"
                ),
            }
        }
        held.keys.as_ref().map(|(keys, _)| Arc::clone(keys)).ok_or_else(|| {
            let message = "the OpenID provider's keys cannot be had, so nobody knows whether your token is good: try again in a moment; the \
                           function's log says more";
            Stopped::Refused(Refusal::new(Kind::Unavailable, message))
        })
    }

    async fn ask(&self) -> Result<Keys, String> {
        let url = match &self.jwks_url {
            Some(url) => url.clone(),
            None => self.discover().await?,
        };
        Keys::parse(&self.fetch.get(&url).await?)
    }

    /// Where the provider says that its keys are.
    async fn discover(&self) -> Result<String, String> {
        let issuer = &self.expected.issuer;
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let document: Value = serde_json::from_slice(&self.fetch.get(&url).await?)
            .map_err(|e| format!("{url} is not JSON: {e}"))?;
        if document["issuer"].as_str() != Some(issuer) {
            return Err(format!("{url} is of the issuer {}: write CRON_OIDC_ISSUER so", document["issuer"]));
        }
        let keys = document["jwks_uri"].as_str().filter(|url| url.starts_with("https://"));
        keys.map(str::to_owned).ok_or_else(|| format!("{url} names no jwks_uri over https"))
    }
}

#[cfg(test)]
#[path = "oidc_tests.rs"]
mod tests;
