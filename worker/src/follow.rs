//! Keeps up with a range of keys: lists it, then watches from that revision on, without gaps; resumes after a lost
//! connection, lists again after compaction.

use std::sync::Arc;
use std::time::Duration;

use common::clock;
use common::ids::backoff;
use common::kv::{self, Change, Kv, Pair, Range, Revision, Span};
use futures::StreamExt as _;

use crate::claims::PAGE;
use crate::retries::Retries;

/// A watch from which nothing comes for so long, not even progress, is opened anew: a dead one is silent.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Pauses between attempts double from here to [`RETRY_MAX_MS`], in ms.
const RETRY_MIN_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 5_000;

/// News of a range.
#[derive(Debug)]
pub(crate) enum News {
    /// A page of everything that is there now, all as of one revision; whatever was known and is on none of the pages is gone.
    Page {
        pairs: Vec<Pair>,
        /// With this one the list begins (anew).
        first: bool,
        /// And with this one it is complete.
        last: bool,
    },
    /// What changed since, in order.
    Changed(Vec<Change>),
}

/// Follows `span` until `tell` answers false (nobody listens any more).
pub(crate) async fn follow<F, T>(kv: Arc<dyn Kv>, span: Span, mut tell: F)
where
    F: FnMut(News) -> T + Send,
    T: Future<Output = bool> + Send,
{
    let retries = Retries::new(format!("{} not followed", span.from));
    let mut failures = 0_u32;
    let mut known: Option<Revision> = None;
    loop {
        let revision = match known {
            Some(revision) => revision,
            None => match list(kv.as_ref(), &span, &mut tell).await {
                Ok(None) => return,
                Ok(Some(revision)) => *known.insert(revision),
                Err(why) => {
                    failures += 1;
                    retries.failed(&why);
                    clock::sleep(backoff(failures - 1, RETRY_MIN_MS, RETRY_MAX_MS)).await;
                    continue;
                }
            },
        };
        match watch_from(&kv, &span, revision, &mut known, &retries, &mut tell).await {
            Ok(()) => return,
            Err(kv::Error::Compacted(oldest)) => {
                tracing::info!(from = %span.from, oldest, "history is gone; listing again");
                known = None;
            }
            Err(why) => {
                failures = if known == Some(revision) { failures + 1 } else { 1 };
                retries.failed(&why); // watching again from where it was
                clock::sleep(backoff(failures - 1, RETRY_MIN_MS, RETRY_MAX_MS)).await;
                look_whether_it_went_back(kv.as_ref(), &span).await;
            }
        }
    }
}

/// Tells everything in the span, page by page, and answers the revision that it was read at; `None` = nobody listens any more.
async fn list<F, T>(kv: &dyn Kv, span: &Span, tell: &mut F) -> Result<Option<Revision>, kv::Error>
where
    F: FnMut(News) -> T + Send,
    T: Future<Output = bool> + Send,
{
    let mut page = kv.range(Range::all(span.clone()).limit(PAGE)).await?;
    let revision = page.revision;
    let mut first = true;
    loop {
        let behind = page.pairs.last().filter(|_| page.more).map(|pair| span.clone().after(&pair.key));
        if !tell(News::Page { pairs: page.pairs, first, last: behind.is_none() }).await {
            return Ok(None);
        }
        let Some(behind) = behind else { return Ok(Some(revision)) };
        first = false;
        page = kv.range(Range::all(behind).limit(PAGE).at(revision)).await?;
    }
}

/// A store that was away may have come back with an older state, in which a watch from here on would be silent for ever. Any answer to
/// a linearizable read shows that to [`crate::witness::Witness`], which ends whatever follows the state before.
async fn look_whether_it_went_back(kv: &dyn Kv, span: &Span) {
    let _away_still = kv.range(Range::key(span.from.clone())).await;
}

/// Watches until the stream ends; `Ok` = nobody listens any more.
async fn watch_from<F, T>(
    kv: &Arc<dyn Kv>,
    span: &Span,
    revision: Revision,
    known: &mut Option<Revision>,
    retries: &Retries,
    tell: &mut F,
) -> Result<(), kv::Error>
where
    F: FnMut(News) -> T + Send,
    T: Future<Output = bool> + Send,
{
    let mut stream = kv.watch(span.clone(), revision + 1).await?;
    loop {
        let batch = match clock::timeout(SILENCE_MAX, stream.next()).await {
            Ok(Some(batch)) => batch?,
            Ok(None) => return Err(kv::Error::Unavailable("the watch ended".to_owned())),
            Err(silence) => return Err(kv::Error::Unavailable(silence.to_string())),
        };
        retries.worked(); // only now: a member without a leader opens watches and ends them at once
        if batch.revision < revision {
            // From a member that lags, or from a store that went back.
            look_whether_it_went_back(kv.as_ref(), span).await;
        }
        if !batch.changes.is_empty() && !tell(News::Changed(batch.changes)).await {
            return Ok(());
        }
        *known = Some(batch.revision.max(known.unwrap_or(0)));
    }
}
