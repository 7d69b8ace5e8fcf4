//! Secrets that are wanted again and again: each is kept for a moment, and read once for all who ask meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Problem, READ_LIMIT, Reference, Source, Vault, pick};
use crate::clock::{Stopwatch, timeout};

/// A value that is older is read again: one that was rotated is in use by then.
const FRESH: Duration = Duration::from_secs(60);
/// Whoever asks so soon after a failure hears of it without another reading: a thousand jobs of one second do not each wait for a service that is
/// away.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// Nobody waits longer, neither for the reading of another.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// A vault, and what was lately read of it. Shows no value, whoever prints it.
pub struct Cached {
    vault: Arc<dyn Vault>,
    sources: Mutex<BTreeMap<Source, Arc<Held>>>,
}

/// Whoever reads holds it, so that others wait for what comes of it. Secrets do not wait for each other.
type Held = tokio::sync::Mutex<Option<Read>>;

struct Read {
    since: Stopwatch,
    text: Result<String, Problem>,
}

impl Read {
    fn is_good(&self) -> bool {
        self.since.elapsed() < if self.text.is_ok() { FRESH } else { FAILED_FOR }
    }
}

impl Cached {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(vault: Arc<dyn Vault>) -> Self {
        Self { vault, sources: Mutex::default() }
    }

    /// The value of a reference, within five seconds.
    ///
    /// # Errors
    /// Why there is none; the log has said so, too.
    pub async fn read(&self, reference: &Reference) -> Result<String, Problem> {
        let held = self.held(&reference.source);
        let reading = async {
            let mut held = held.lock().await;
            if let Some(read) = held.as_ref().filter(|read| read.is_good()) {
                return read.text.clone();
            }
            let since = Stopwatch::start();
            let read = timeout(READ_LIMIT, self.vault.read(slice::from_ref(&reference.source))).await;
            let text = match read {
                Ok(mut read) => read.pop().unwrap_or_else(|| Err(Problem::Failed("no answer".to_owned()))),
                Err(_elapsed) => Err(Problem::Slow(READ_LIMIT)),
            };
            if let Err(problem) = &text {
                tracing::error!(%reference, %problem, "a secret cannot be read");
            }
            *held = Some(Read { since, text: text.clone() });
            text
        };
        let text = timeout(WAIT_MAX, reading).await.unwrap_or(Err(Problem::Slow(WAIT_MAX)))?;
        pick(&text, reference.key.as_deref()).inspect_err(|problem| {
            tracing::error!(%reference, %problem, "a secret cannot be read");
        })
    }

    fn held(&self, source: &Source) -> Arc<Held> {
        // No step of a change to it can panic.
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(sources.entry(source.clone()).or_default())
    }
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures::future::join_all;

    use super::super::tests::Shelf;
    use super::*;
    use crate::clock;

    fn reference(text: &str) -> Reference {
        Reference::parse(text).unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_secret_is_read_once_for_all_who_ask_and_for_all_its_keys() {
        let shelf = Arc::new(Shelf::default());
        shelf.put("s", Ok(r#"{"a":"one","b":"two"}"#));
        let cached = Cached::new(Arc::clone(&shelf) as Arc<dyn Vault>);
        let (a, b) = (reference("secretsmanager:s#a"), reference("secretsmanager:s#b"));
        let read = join_all((0..20).map(|n| cached.read(if n % 2 == 0 { &a } else { &b }))).await;
        assert_eq!(read[..2], [Ok("one".to_owned()), Ok("two".to_owned())]);
        assert_eq!(shelf.reads(), 1);
        assert!(!format!("{cached:?}").contains("one"));
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_who_wait_and_tried_again_later() {
        let shelf = Arc::new(Shelf::default());
        shelf.put("s", Err(Problem::NoRegion));
        let cached = Cached::new(Arc::clone(&shelf) as Arc<dyn Vault>);
        let s = reference("secretsmanager:s");
        let read = join_all((0..20).map(|_| cached.read(&s))).await;
        assert!(read.iter().all(|read| *read == Err(Problem::NoRegion)));
        assert_eq!(shelf.reads(), 1);
        shelf.put("s", Ok("mended"));
        while cached.read(&s).await.is_err() {
            clock::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(shelf.reads(), 2);
    }

    /// Answers for one secret alone.
    struct Silent;

    #[async_trait]
    impl Vault for Silent {
        async fn read(&self, sources: &[Source]) -> Vec<Result<String, Problem>> {
            if sources[0].name == "silent" {
                std::future::pending::<()>().await;
            }
            vec![Ok("value".to_owned())]
        }
    }

    #[tokio::test]
    async fn who_waits_for_one_secret_holds_nobody_back_who_wants_another() {
        let cached = Arc::new(Cached::new(Arc::new(Silent)));
        let (silent, other) = (reference("ssm:silent"), reference("ssm:other"));
        let waiting = {
            let (cached, silent) = (Arc::clone(&cached), silent.clone());
            tokio::spawn(async move { cached.read(&silent).await })
        };
        tokio::task::yield_now().await;
        assert_eq!(cached.read(&other).await, Ok("value".to_owned()));
        assert!(!waiting.is_finished());
        assert_eq!(waiting.await.unwrap(), Err(Problem::Slow(READ_LIMIT)));
        // Told at once, and so is whoever came meanwhile.
        assert_eq!(cached.read(&silent).await, Err(Problem::Slow(READ_LIMIT)));
    }
}
