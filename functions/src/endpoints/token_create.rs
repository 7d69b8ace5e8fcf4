//! `POST /token/create`: makes a token, and shows it this once.

use common::api::errno::Kind;
use common::clock::Clock;
use common::domain::access::Role;
use common::domain::job::JobName;
use common::domain::token::{Grant, NAME_BYTES_MAX};
use common::kv::Kv;
use lambda_http::Request;

use crate::access::manage;
use crate::http::{Call, Fields, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Days for which a token is good when nobody says for how many.
const DAYS_DEFAULT: i64 = 90;
/// Most days.
const DAYS_MAX: i64 = 3_650;
const DAY_MS: i64 = 86_400_000;

/// Serves `POST /token/create`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| create(kv, clock, &call).await).await
}

async fn create(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    // What answers a key is kept in the store, and this answer has a secret in it.
    if call.headers().contains_key(idempotency::HEADER) {
        let message = "the answer has a secret in it and is not kept, so an Idempotency-Key does nothing here: leave it out, and revoke a token \
                       whose answer did not arrive";
        return Err(Refusal::bad(message));
    }
    let fields = call.fields(&["name", "role", "prefix", "days"])?;
    let grant = grant(&fields, clock)?;
    let by = call.caller().unwrap_or("an unknown address");
    let data = manage::create(kv, clock, call.principal(), by, grant).await?;
    let mut warnings = call.query_warnings();
    warnings.push("this is the only time that the token is shown: keep it where secrets are kept".to_owned());
    Ok(Reply::new(data, warnings))
}

/// What the token is to be worth.
///
/// # Errors
/// [`Kind::BadRequest`] with what is wrong.
pub(crate) fn grant(fields: &Fields, clock: &dyn Clock) -> Result<Grant, Refusal> {
    let name = fields.filled("name").map(str::trim).unwrap_or_default();
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let message = format!(
            "name: say in 1 to {NAME_BYTES_MAX} bytes for whom or what the token is, without control characters"
        );
        return Err(Refusal::new(Kind::BadRequest, message));
    }
    let role = fields.filled("role").and_then(Role::parse).ok_or_else(|| {
        let words = Role::ALL.map(Role::word).join(", ");
        Refusal::bad(format!("role: give one of {words}"))
    })?;
    let prefix = fields.filled("prefix").unwrap_or_default();
    if !prefix.is_empty() {
        JobName::parse(prefix).map_err(|why| Refusal::bad(format!("prefix: {why}")))?;
    }
    let days = match fields.filled("days") {
        None => Some(DAYS_DEFAULT),
        Some("never") => None,
        Some(text) => {
            let days = text.parse().ok().filter(|days| (1..=DAYS_MAX).contains(days));
            let wrong = || {
                Refusal::bad(format!(
                    "days: give a whole number from 1 to {DAYS_MAX}, or never for a token that does not expire"
                ))
            };
            Some(days.ok_or_else(wrong)?)
        }
    };
    let expires_at = days.map(|days| clock.now().plus_ms(days * DAY_MS));
    Ok(Grant { name: name.to_owned(), role, prefix: prefix.to_owned(), expires_at })
}
