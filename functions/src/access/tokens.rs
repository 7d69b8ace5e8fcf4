//! Tokens of ours as they are stored, and the one secret that makes the first of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::api::errno::Kind;
use common::clock::{Clock, Stopwatch, Timestamp};
use common::config::Settings;
use common::domain::access::{Means, Principal, Role};
use common::domain::token::{Hash, Secret, Token, TokenId, Used};
use common::keys;
use common::kv::{Compare, Kv, Op, Txn};
use common::secrets::{Aws, Vault, resolve};
use sha2::{Digest as _, Sha256};

use super::{Known, Stopped};
use crate::http::Refusal;
use crate::store;

/// A token that was good is taken without another look for so long: so a revoked one is refused everywhere within this time.
const REMEMBERED_FOR: Duration = Duration::from_secs(5);
/// Most tokens that are remembered.
const REMEMBERED_MAX: usize = 1_000;
/// That a token was used is written at most so often.
const USED_EVERY_MS: i64 = 10 * 60 * 1000;
/// The bootstrap token is read again where it is kept after so long.
const BOOTSTRAP_FOR: Duration = Duration::from_secs(60);

/// The tokens in the store, and those that were good a moment ago.
pub(super) struct Tokens {
    kv: Arc<dyn Kv>,
    clock: Arc<dyn Clock>,
    remembered: Mutex<BTreeMap<TokenId, Remembered>>,
}

fn known(token: &Token, id: &TokenId) -> Known {
    Known { principal: token.principal(id), until: token.expires_at }
}

struct Remembered {
    token: Token,
    since: Stopwatch,
}

impl Tokens {
    pub(super) fn new(kv: Arc<dyn Kv>, clock: Arc<dyn Clock>) -> Self {
        Self { kv, clock, remembered: Mutex::default() }
    }

    /// The bearer of a token that was good a moment ago.
    pub(super) fn remembered(&self, secret: &Secret) -> Option<Known> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = remembered.get(secret.id()).filter(|known| known.since.elapsed() < REMEMBERED_FOR)?;
        let good = fresh.token.hash.is(&secret.hash()) && fresh.token.is_live(self.clock.now());
        good.then(|| known(&fresh.token, secret.id()))
    }

    /// The bearer of a token that is good now. The same work is done whether a token of its id is known or not.
    pub(super) async fn look_up(&self, secret: &Secret) -> Result<Known, Stopped> {
        let (key, used) = (keys::token(secret.id()), keys::token_used(secret.id()));
        // Not the answer of any one member, which may not have heard yet that the token is revoked.
        let look = Txn { then: vec![Op::get(key), Op::get(used)], ..Txn::default() };
        let found = store::read(&*self.kv, look).await.map_err(Stopped::Refused)?;
        let token = match found.pair(0).map(|pair| Token::decode(&pair.value)) {
            Some(Ok(token)) => Some(token),
            Some(Err(why)) => {
                tracing::error!(token = %secret.id(), %why, "a stored token cannot be read, and is worth nothing");
                None
            }
            None => None,
        };
        let hash = token.as_ref().map_or_else(Hash::of_none, |token| token.hash.clone());
        let same = hash.is(&secret.hash());
        let now = self.clock.now();
        let token = match token {
            Some(token) if same && token.is_live(now) => token,
            Some(_) if same => return Err(Stopped::Wrong("it has expired")),
            Some(_) => return Err(Stopped::Wrong("its id is known, and the rest of it is wrong")),
            None => return Err(Stopped::Wrong("its id is not known")),
        };
        let known = known(&token, secret.id());
        let last = found.pair(1).and_then(|pair| Used::decode(&pair.value).ok());
        self.remember(secret.id(), token);
        self.note_use(secret.id(), last.map(|used| used.at), now);
        Ok(known)
    }

    fn remember(&self, id: &TokenId, token: Token) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, known| known.since.elapsed() < REMEMBERED_FOR);
        }
        if remembered.len() < REMEMBERED_MAX {
            remembered.insert(id.clone(), Remembered { token, since: Stopwatch::start() });
        }
    }

    /// Writes that the token is used, beside the request and not before its answer. Where the process is frozen meanwhile, or the store fails, a
    /// later use writes it: nothing depends on it.
    fn note_use(&self, id: &TokenId, last: Option<Timestamp>, now: Timestamp) {
        if last.is_some_and(|last| now.ms_since(last) < USED_EVERY_MS) {
            return;
        }
        let (kv, id) = (Arc::clone(&self.kv), id.clone());
        drop(tokio::spawn(async move {
            let put = Txn {
                // Else what was revoked meanwhile would leave something behind.
                when: vec![Compare::exists(keys::token(&id))],
                then: vec![Op::put(keys::token_used(&id), Used::new(now).encode())],
                ..Txn::default()
            };
            if let Err(error) = kv.txn(put).await {
                tracing::debug!(%error, token = %id, "that the token is used was not written");
            }
        }));
    }
}

/// The secret that makes the first admin token. It is good for that alone, and only as long as there is no such token: see `manage`.
pub(super) struct Bootstrap {
    settings: Settings,
    vault: Arc<dyn Vault>,
    /// What was read where it is kept, as a hash.
    read: tokio::sync::Mutex<Option<(Stopwatch, [u8; 32])>>,
}

impl Bootstrap {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { settings: settings.clone(), vault: Arc::new(Aws), read: tokio::sync::Mutex::default() }
    }

    /// Whoever makes the first token, if what is shown is the secret.
    pub(super) async fn principal(&self, shown: &str) -> Result<Known, Stopped> {
        let hash = self.hash().await?;
        // Hashes are compared, so that where they differ tells nothing of the secret.
        let shown: [u8; 32] = Sha256::digest(shown).into();
        if !bool::from(subtle::ConstantTimeEq::ct_eq(&shown[..], &hash[..])) {
            return Err(Stopped::Wrong("it is neither a token nor the bootstrap token"));
        }
        let principal = Principal {
            name: "bootstrap".to_owned(),
            role: Role::Admin,
            prefix: String::new(),
            means: Means::Bootstrap,
        };
        Ok(Known { principal, until: None })
    }

    async fn hash(&self) -> Result<[u8; 32], Stopped> {
        let mut read = self.read.lock().await;
        if let Some((since, hash)) = &*read
            && since.elapsed() < BOOTSTRAP_FOR
        {
            return Ok(*hash);
        }
        let unreadable = |why: String| {
            tracing::error!(why, "the bootstrap token cannot be read");
            let message = "the bootstrap token cannot be read where it is kept, nothing was changed: the function's log says why";
            Stopped::Refused(Refusal::new(Kind::Unavailable, message))
        };
        let values = resolve(&*self.vault, &self.settings.bootstrap_references()).await;
        let values = values.map_err(|e| unreadable(e.to_string()))?;
        let secret = self.settings.bootstrap_token(&values).map_err(|e| unreadable(e.to_string()))?;
        let secret = secret.ok_or(Stopped::Wrong("there is no bootstrap token"))?;
        let hash = Sha256::digest(secret).into();
        *read = Some((Stopwatch::start(), hash));
        Ok(hash)
    }
}
