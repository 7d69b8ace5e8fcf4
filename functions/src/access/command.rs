//! Tokens from a command line, for whoever holds the store's own credentials: these are worth more than any token.

use common::clock::{Clock, Timestamp};
use common::domain::access::Principal;
use common::domain::audit::Origin;
use common::domain::token::TokenId;
use common::kv::Kv;
use serde_json::{Map, Value};

use super::manage;
use crate::endpoints::token_create;
use crate::http::{Fields, Refusal};

/// How the command is written.
pub const USAGE: &str = "token create NAME viewer|operator|editor|admin [PREFIX [DAYS|never]], token list, or token revoke ID [last]";

/// Does what the words behind `token` say; answers lines for people, of which the first one of `create` is the token.
///
/// # Errors
/// Why not, in words.
pub async fn command(kv: &dyn Kv, clock: &dyn Clock, words: &[&str]) -> Result<String, String> {
    let whose = Principal::anybody();
    let done = match words {
        ["create", name, role, rest @ ..] if rest.len() <= 2 => {
            let names = ["name", "role", "prefix", "days"];
            let given = [name, role].into_iter().chain(rest);
            let fields: Map<String, Value> = names
                .into_iter()
                .zip(given)
                .map(|(name, value)| (name.to_owned(), (*value).into()))
                .collect();
            create(kv, clock, &whose, fields).await
        }
        ["list"] => list(kv, &whose).await,
        ["revoke", id] => revoke(kv, clock, &whose, id, false).await,
        ["revoke", id, "last"] => revoke(kv, clock, &whose, id, true).await,
        _ => return Err(format!("say {USAGE}")),
    };
    done.map_err(|refusal| refusal.message)
}

/// Who holds the store's credentials is known by nothing else.
const COMMAND_LINE: &str = "the command line";

fn origin() -> Origin {
    Origin { from: Some(COMMAND_LINE.to_owned()), ..Origin::default() }
}

async fn create(
    kv: &dyn Kv,
    clock: &dyn Clock,
    whose: &Principal,
    fields: Map<String, Value>,
) -> Result<String, Refusal> {
    let grant = token_create::grant(&Fields::of_json(fields)?, clock)?;
    let made = manage::create(kv, clock, whose, &origin(), COMMAND_LINE, grant).await?;
    let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
    Ok(format!("{}\nid {}, {}: it is not shown again", text("token"), text("id"), until(&made)))
}

async fn list(kv: &dyn Kv, whose: &Principal) -> Result<String, Refusal> {
    let (tokens, mut lines) = manage::list(kv, whose).await?;
    for token in tokens.as_array().into_iter().flatten() {
        let text = |name: &str| token[name].as_str().unwrap_or_default();
        let (id, role, prefix, name) = (text("id"), text("role"), text("prefix"), text("name"));
        let jobs = if prefix.is_empty() { "all jobs".to_owned() } else { format!("jobs {prefix}…") };
        lines.push(format!("{id}  {role:<8}  {jobs}  {}  {name}", until(token)));
    }
    Ok(lines.join("\n"))
}

async fn revoke(
    kv: &dyn Kv,
    clock: &dyn Clock,
    whose: &Principal,
    id: &str,
    last: bool,
) -> Result<String, Refusal> {
    let parsed = TokenId::parse(id).ok_or_else(|| Refusal::bad(format!("{id:?} is no id of a token")))?;
    let revoked = manage::revoke(kv, clock, whose, &origin(), &parsed, last).await?;
    Ok(if revoked.is_null() { format!("there is no token {id}") } else { format!("revoked {id}") })
}

fn until(token: &Value) -> String {
    match token["expiresAt"].as_i64() {
        Some(ms) => format!("good until {}", Timestamp::from_ms(ms)),
        None => "good for ever".to_owned(),
    }
}
