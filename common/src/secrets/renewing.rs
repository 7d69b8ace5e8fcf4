//! A client of a store whose settings refer to secrets: made on first use, made anew when the store refuses the credentials and the
//! secrets have changed.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Error, Referring, Values, Vault, resolve};
use crate::clock::Stopwatch;

/// After a failed reading the next calls hear of it without another one for so long: a broken role is not hammered.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// Refused credentials are read again at most so often: a user who lacks a right in the store is refused with every call.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// A client that was made of values.
pub type Made<C> = Result<Arc<C>, Error>;

type Make<C> = Box<dyn Fn(&Values) -> Made<C> + Send + Sync>;

/// Holds a client of type `C`.
pub struct Renewing<C: ?Sized> {
    references: Vec<Referring>,
    vault: Arc<dyn Vault>,
    make: Make<C>,
    held: Mutex<Option<Arc<Held<C>>>>,
    /// Whoever reads secrets holds this, so that all others wait for what comes of it.
    turn: tokio::sync::Mutex<Turn>,
}

/// What a port says when a call failed, as far as its secrets are concerned.
pub(crate) trait Refusal {
    /// The secrets cannot be read, and so the store was not asked.
    fn unconfigured(why: String) -> Self;
    /// The store refuses the credentials: nothing was applied.
    fn is_denied(&self) -> bool;
}

/// The client in use.
pub(crate) struct Held<C: ?Sized> {
    pub(crate) client: Arc<C>,
    values: Values,
}

#[derive(Default)]
struct Turn {
    failed: Option<(Stopwatch, Error)>,
    renewed: Option<Stopwatch>,
}

impl<C: ?Sized> Renewing<C> {
    /// Holds nothing yet; does no I/O.
    pub fn new(
        references: Vec<Referring>,
        vault: Arc<dyn Vault>,
        make: impl Fn(&Values) -> Made<C> + Send + Sync + 'static,
    ) -> Self {
        let (held, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { references, vault, make: Box::new(make), held, turn }
    }

    /// Starts from values that were read already.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn begin(&self, values: &Values) -> Result<(), Error> {
        self.hold(values.of(&self.references)).map(drop)
    }

    /// Does a call; once more with a client of newer secrets when the store refuses the credentials, which means that it was not
    /// applied.
    pub(crate) async fn call<T, E, F>(&self, call: impl Fn(Arc<C>) -> F + Send + Sync) -> Result<T, E>
    where
        C: Send + Sync,
        T: Send,
        E: Refusal + Send,
        F: Future<Output = Result<T, E>> + Send,
    {
        let held = self.client().await.map_err(|error| E::unconfigured(error.to_string()))?;
        let denied = match call(Arc::clone(&held.client)).await {
            Err(error) if error.is_denied() => error,
            answered => return answered,
        };
        match self.renewed(&held).await {
            Some(renewed) => call(Arc::clone(&renewed.client)).await,
            None => Err(denied),
        }
    }

    /// Does a call whose refusal says nothing about the credentials: what only some users may do.
    pub(crate) async fn once<T, E, F>(&self, call: impl FnOnce(Arc<C>) -> F + Send) -> Result<T, E>
    where
        C: Send + Sync,
        E: Refusal,
        F: Future<Output = Result<T, E>> + Send,
    {
        let held = self.client().await.map_err(|error| E::unconfigured(error.to_string()))?;
        call(Arc::clone(&held.client)).await
    }

    /// The client in use; the first call reads the secrets.
    async fn client(&self) -> Result<Arc<Held<C>>, Error> {
        if let Some(held) = self.held() {
            return Ok(held);
        }
        let mut turn = self.turn.lock().await;
        if let Some(held) = self.held() {
            return Ok(held);
        }
        if let Some((since, error)) = &turn.failed
            && since.elapsed() < FAILED_FOR
        {
            return Err(error.clone());
        }
        let made = match resolve(&*self.vault, &self.references).await {
            Ok(values) => self.hold(values),
            Err(error) => Err(error),
        };
        match made {
            Ok(held) => {
                turn.failed = None;
                let variables: Vec<&str> = self.references.iter().map(|r| r.variable).collect();
                tracing::info!(?variables, "secrets read");
                Ok(held)
            }
            Err(error) => {
                tracing::error!(%error, "the configuration cannot be read");
                turn.failed = Some((Stopwatch::start(), error.clone()));
                Err(error)
            }
        }
    }

    /// A client of newer secrets than those of `refused`, which the store did not take; `None` = there are none.
    async fn renewed(&self, refused: &Arc<Held<C>>) -> Option<Arc<Held<C>>> {
        let mut turn = self.turn.lock().await;
        // Whoever was refused by one client must not replace its successor.
        if let Some(held) = self.held().filter(|held| !Arc::ptr_eq(held, refused)) {
            return Some(held);
        }
        if turn.renewed.is_some_and(|since| since.elapsed() < RENEW_EVERY) {
            return None;
        }
        let read = resolve(&*self.vault, &self.references).await;
        turn.renewed = Some(Stopwatch::start());
        let made = match read {
            Ok(values) if values == refused.values => {
                tracing::warn!("the store refuses the credentials, and the secrets have not changed");
                return None;
            }
            Ok(values) => self.hold(values),
            Err(error) => Err(error),
        };
        match made {
            Ok(held) => {
                tracing::info!(
                    "the store refused the credentials; the secrets have changed and are used now"
                );
                Some(held)
            }
            Err(error) => {
                tracing::error!(%error, "the store refuses the credentials, and the configuration cannot be read again");
                None
            }
        }
    }

    fn hold(&self, values: Values) -> Result<Arc<Held<C>>, Error> {
        let held = Arc::new(Held { client: (self.make)(&values)?, values });
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&held));
        Ok(held)
    }

    pub(crate) fn held(&self) -> Option<Arc<Held<C>>> {
        // No step of a change to it can panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<C: ?Sized> fmt::Debug for Renewing<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing").field("references", &self.references).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Problem;
    use super::super::tests::{Shelf, referring};
    use super::*;
    use crate::clock;

    /// A client is its secret's value.
    fn renewing(shelf: &Arc<Shelf>) -> Renewing<str> {
        let reference = referring("CRON_ETCD_PASSWORD", "secretsmanager:s");
        let wanted = reference.clone();
        Renewing::new(vec![reference], Arc::clone(shelf) as Arc<dyn Vault>, move |values| {
            Ok(values.get(&wanted.reference).unwrap_or_default().into())
        })
    }

    #[tokio::test]
    async fn nothing_is_read_before_the_first_call_and_then_once_for_all() {
        let shelf = Arc::new(Shelf::default());
        shelf.put("s", Ok("old"));
        let renewing = renewing(&shelf);
        assert_eq!(shelf.reads(), 0);
        let first = futures::future::join_all((0..20).map(|_| renewing.client())).await;
        assert!(first.iter().all(|held| &*held.as_ref().unwrap().client == "old"));
        renewing.client().await.unwrap();
        assert_eq!(shelf.reads(), 1);
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_who_wait_and_tried_again_later() {
        let shelf = Arc::new(Shelf::default());
        shelf.put("s", Err(Problem::NoRegion));
        let renewing = renewing(&shelf);
        let first = futures::future::join_all((0..20).map(|_| renewing.client())).await;
        for held in first {
            let said = held.err().unwrap().to_string();
            assert!(said.starts_with("CRON_ETCD_PASSWORD=secretsmanager:s: no AWS region"), "{said}");
        }
        assert_eq!(shelf.reads(), 1);
        shelf.put("s", Ok("mended"));
        while renewing.client().await.is_err() {
            clock::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(shelf.reads(), 2);
    }

    #[tokio::test]
    async fn refused_credentials_are_read_again_once_and_replaced_when_they_changed() {
        let shelf = Arc::new(Shelf::default());
        shelf.put("s", Ok("old"));
        let renewing = renewing(&shelf);
        let old = renewing.client().await.unwrap();
        shelf.put("s", Ok("new"));
        let renewed = futures::future::join_all((0..20).map(|_| renewing.renewed(&old))).await;
        assert!(renewed.iter().all(|held| &*held.as_ref().unwrap().client == "new"));
        assert_eq!(&*renewing.client().await.unwrap().client, "new");
        assert_eq!(shelf.reads(), 2);
        // Refused again at once: the next reading waits.
        let new = renewing.client().await.unwrap();
        assert!(renewing.renewed(&new).await.is_none());
        assert_eq!(shelf.reads(), 2);
    }

    #[tokio::test]
    async fn what_has_not_changed_or_cannot_be_read_replaces_nothing() {
        for then in [Ok("old"), Err(Problem::NoRegion)] {
            let shelf = Arc::new(Shelf::default());
            shelf.put("s", Ok("old"));
            let renewing = renewing(&shelf);
            let old = renewing.client().await.unwrap();
            shelf.put("s", then);
            assert!(renewing.renewed(&old).await.is_none());
            assert!(renewing.renewed(&old).await.is_none());
            assert_eq!(&*renewing.client().await.unwrap().client, "old");
            assert_eq!(shelf.reads(), 2);
        }
    }
}
