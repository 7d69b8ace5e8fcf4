//! The store behind settings that refer to secrets: reads them on first use, and again when the store refuses the credentials.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Error, Key, Kv, LeaseId, Range, RangeReply, Revision, Span, Txn, TxnReply, WatchStream};
use crate::secrets::{self, Renewing};

impl Renewing<dyn Kv> {
    /// Does a call; once more with new credentials when the old ones are refused, which means that it was not applied.
    async fn call<T, F>(&self, call: impl Fn(Arc<dyn Kv>) -> F + Send + Sync) -> Result<T, Error>
    where
        T: Send,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let unconfigured = |error: secrets::Error| Error::Unconfigured(error.to_string());
        let held = self.client().await.map_err(unconfigured)?;
        let denied = match call(Arc::clone(&held.client)).await {
            Err(Error::Denied(why)) => why,
            answered => return answered,
        };
        match self.renewed(&held).await {
            Some(renewed) => call(renewed.client).await,
            None => Err(Error::Denied(denied)),
        }
    }
}

#[async_trait]
impl Kv for Renewing<dyn Kv> {
    async fn range(&self, range: Range) -> Result<RangeReply, Error> {
        self.call(|kv| {
            let range = range.clone();
            async move { kv.range(range).await }
        })
        .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, Error> {
        self.call(|kv| {
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        })
        .await
    }

    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, Error> {
        self.call(|kv| {
            let span = span.clone();
            async move { kv.watch(span, start).await }
        })
        .await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.call(|kv| async move { kv.grant(ttl).await }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error> {
        self.call(|kv| async move { kv.keep_alive(lease).await }).await
    }

    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, Error> {
        self.call(|kv| async move { kv.lease_keys(lease).await }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.call(|kv| async move { kv.revoke(lease).await }).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.call(|kv| async move { kv.compact(revision).await }).await
    }
}
