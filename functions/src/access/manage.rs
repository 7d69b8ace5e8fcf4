//! Making, listing and revoking tokens, for the API's functions and for whoever holds the store's own credentials.
//!
//! Every change of who may do everything compares `/cron/tokens_changed` and puts it anew. So two of them come one after the other, and the
//! second sees what the first has done: *closes* two bootstraps that both find no admin, and two admins that revoke each other, each
//! because the other one is still there.

use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch};
use common::domain::access::{Means, Principal};
use common::domain::audit::Origin;
use common::domain::token::{Grant, Secret, Token, TokenId, Used};
use common::keys;
use common::kv::{Compare, Kv, Op, Pair, Range, Txn};
use serde_json::{Value, json};

use crate::audit::Change;
use crate::http::Refusal;
use crate::store;

/// Most tokens there are: a list of them is one answer.
const TOKENS_MAX: usize = 1_000;
/// How often a change that others get in the way of is tried.
const CONFLICTS_MAX: usize = 5;

/// What is stored of all tokens, read at one revision.
struct Stored {
    tokens: Vec<(TokenId, Token)>,
    used: Vec<(TokenId, Used)>,
    /// Keys of tokens that cannot be read.
    unreadable: Vec<String>,
    /// Of `/cron/tokens_changed`.
    changed: i64,
}

impl Stored {
    async fn read(kv: &dyn Kv) -> Result<Self, Refusal> {
        let reads = vec![
            Op::Range(Range::prefix(keys::TOKENS)),
            Op::Range(Range::prefix(keys::TOKENS_USED)),
            Op::get(keys::TOKENS_CHANGED),
        ];
        let found = store::read(kv, Txn { then: reads, ..Txn::default() }).await?;
        let mut stored = Self {
            tokens: Vec::new(),
            used: Vec::new(),
            unreadable: Vec::new(),
            changed: found.pair(2).map_or(0, |pair| pair.mod_revision),
        };
        let id = |pair: &Pair, dir: &str| pair.key.strip_prefix(dir).and_then(TokenId::parse);
        for pair in found.pairs(0) {
            match (id(pair, keys::TOKENS), Token::decode(&pair.value)) {
                (Some(id), Ok(token)) => stored.tokens.push((id, token)),
                _ => stored.unreadable.push(pair.key.to_string()),
            }
        }
        for pair in found.pairs(1) {
            let used = Used::decode(&pair.value);
            stored.used.extend(id(pair, keys::TOKENS_USED).zip(used.ok()));
        }
        Ok(stored)
    }

    /// The tokens whose bearers may do everything now.
    fn admins(&self, clock: &dyn Clock) -> impl Iterator<Item = &TokenId> {
        let now = clock.now();
        let whole = self.tokens.iter().filter(move |(_, token)| token.is_whole_admin() && token.is_live(now));
        whole.map(|(id, _)| id)
    }

    fn shown(&self, id: &TokenId, token: &Token) -> Value {
        let used = self.used.iter().find(|(of, _)| of == id).map(|(_, used)| used.at);
        json!({
            "id": id,
            "name": token.name,
            "role": token.role,
            "prefix": token.prefix,
            "createdAt": token.created_at,
            "createdBy": token.created_by,
            "expiresAt": token.expires_at,
            "usedAt": used,
        })
    }

    fn unchanged(&self) -> Compare {
        Compare::unchanged(keys::TOKENS_CHANGED, self.changed)
    }
}

/// What a token is called in the audit. What is stored of it is not kept there: its hash is nobody's business.
pub(super) const TOKEN: &str = "token";

/// Makes a token for `whose` wish; the answer is all that is ever shown of its secret.
///
/// # Errors
/// It would be worth more than the caller's own; the bootstrap token is used a second time; there are too many tokens; the store does not answer.
pub(crate) async fn create(
    kv: &dyn Kv,
    clock: &dyn Clock,
    whose: &Principal,
    origin: &Origin,
    by: &str,
    grant: Grant,
) -> Result<Value, Refusal> {
    let since = Stopwatch::start();
    if !whose.may(grant.role) || !grant.prefix.starts_with(&whose.prefix) {
        let message = format!(
            "nobody makes a token that is worth more than their own: yours is {} with the prefix {:?}",
            whose.role.word(),
            whose.prefix
        );
        return Err(Refusal::new(Kind::NotAllowed, message));
    }
    for _ in 0..CONFLICTS_MAX {
        let stored = Stored::read(kv).await?;
        if whose.means == Means::Bootstrap {
            first(&stored, &grant, clock)?;
        }
        if stored.tokens.len() + stored.unreadable.len() >= TOKENS_MAX {
            let message = format!(
                "there are {TOKENS_MAX} tokens already: revoke those that nobody uses (GET /token/list)"
            );
            return Err(Refusal::new(Kind::Conflict, message));
        }
        let secret = Secret::random().map_err(|why| Refusal::new(Kind::Unavailable, why))?;
        let token = Token::new(&secret, grant.clone(), by.to_owned(), clock.now());
        let key = keys::token(secret.id());
        let mut txn = Txn {
            when: vec![Compare::absent(key.as_str())],
            then: vec![Op::put(key.as_str(), token.encode())],
            otherwise: vec![Op::get(key.as_str())],
        };
        if token.is_whole_admin() {
            txn.when.push(stored.unchanged());
            txn.then.push(Op::put(keys::TOKENS_CHANGED, secret.id().as_str()));
        }
        // If this process dies here, a token is stored that nobody has; it stands in the list, and can be revoked.
        let mut shown = stored.shown(secret.id(), &token);
        let change = Change::of(origin, "token_create", clock.now())
            .touching(TOKEN, None, None)
            .with("token", shown.clone());
        let written = store::write(kv, &txn, &since, "making the token", false, Some(&change)).await?;
        // Refused although it is ours: a try whose answer was lost has put it.
        let ours = || written.reply.pair(0).is_some_and(|pair| pair.value == token.encode());
        if written.reply.succeeded || ours() {
            shown["token"] = secret.reveal().into();
            return Ok(shown);
        }
    }
    Err(contended())
}

/// What the bootstrap token is good for.
fn first(stored: &Stored, grant: &Grant, clock: &dyn Clock) -> Result<(), Refusal> {
    // What cannot be read may be an admin's.
    if stored.admins(clock).next().is_some() || !stored.unreadable.is_empty() {
        let message = "there is an admin token already, and the bootstrap token makes the first one only: ask an admin, or make one where the \
                       store's credentials are: local-dev token create";
        return Err(Refusal::new(Kind::NotAllowed, message));
    }
    if grant.role != common::domain::access::Role::Admin || !grant.prefix.is_empty() {
        let message =
            "the bootstrap token makes the first admin token and no other: ask for role=admin and no prefix";
        return Err(Refusal::new(Kind::NotAllowed, message));
    }
    Ok(())
}

/// All tokens that are worth no more than the caller's own; and what is not readable, in words.
///
/// # Errors
/// The store does not answer.
pub(crate) async fn list(kv: &dyn Kv, whose: &Principal) -> Result<(Value, Vec<String>), Refusal> {
    let stored = Stored::read(kv).await?;
    let within = stored.tokens.iter().filter(|(_, token)| token.prefix.starts_with(&whose.prefix));
    let tokens = within.map(|(id, token)| stored.shown(id, token)).collect();
    let warnings = if whose.is_whole() {
        stored.unreadable.iter().map(|key| format!("{key} is left out, it cannot be read")).collect()
    } else {
        Vec::new()
    };
    Ok((Value::Array(tokens), warnings))
}

/// Revokes a token; the answer is what it was, null when the caller sees none of this id. The last one of an admin goes only when that is said
/// (`last`): nobody could make another one then through the API.
///
/// # Errors
/// It is the last one and that was not said; the store does not answer.
pub(crate) async fn revoke(
    kv: &dyn Kv,
    clock: &dyn Clock,
    whose: &Principal,
    origin: &Origin,
    id: &TokenId,
    last: bool,
) -> Result<Value, Refusal> {
    let since = Stopwatch::start();
    let mut doubted = Value::Null;
    for _ in 0..CONFLICTS_MAX {
        let stored = Stored::read(kv).await?;
        let found = stored.tokens.iter().find(|(of, _)| of == id);
        let Some((_, token)) = found.filter(|(_, token)| token.prefix.starts_with(&whose.prefix)) else {
            // Not there: it never was, or a try of ours whose answer was lost has done it.
            return Ok(doubted);
        };
        let admins: Vec<&TokenId> = stored.admins(clock).collect();
        if admins == [id] && !last {
            let message = "this is the last token of an admin with all jobs, and without it nobody makes another one through the API: make another one \
                           first, or send last=true";
            return Err(Refusal::new(Kind::Conflict, message));
        }
        let key = keys::token(id);
        let mut txn = Txn {
            when: vec![Compare::exists(key.as_str())],
            then: vec![Op::delete(key.as_str()), Op::delete(keys::token_used(id))],
            ..Txn::default()
        };
        if token.is_whole_admin() {
            txn.when.push(stored.unchanged());
            txn.then.push(Op::put(keys::TOKENS_CHANGED, id.as_str()));
        }
        let shown = stored.shown(id, token);
        let change = Change::of(origin, "token_revoke", clock.now())
            .touching(TOKEN, None, None)
            .with("token", shown.clone())
            .ending_something();
        let written = store::write(kv, &txn, &since, "revoking the token", false, Some(&change)).await?;
        if written.reply.succeeded {
            return Ok(shown);
        }
        if written.doubted {
            doubted = shown;
        }
    }
    Err(contended())
}

fn contended() -> Refusal {
    let message = "tokens are being changed by others again and again, nothing was changed: send it again";
    Refusal::new(Kind::Conflict, message)
}
