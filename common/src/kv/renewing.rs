//! The store behind settings that refer to secrets: reads them on first use, and again when the store refuses the credentials.

use std::time::Duration;

use async_trait::async_trait;

use super::{Error, Key, Kv, LeaseId, Range, RangeReply, Revision, Room, Span, Txn, TxnReply, WatchStream};
use crate::secrets::{Refusal, Renewing};

impl Refusal for Error {
    fn unconfigured(why: String) -> Self {
        Self::Unconfigured(why)
    }

    fn is_denied(&self) -> bool {
        // A client certificate is a credential as well.
        matches!(self, Self::Denied(_) | Self::Insecure(_))
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
        self.once(|kv| async move { kv.compact(revision).await }).await
    }

    async fn room(&self) -> Result<Room, Error> {
        self.once(|kv| async move { kv.room().await }).await
    }

    fn cluster_id(&self) -> u64 {
        self.held().map_or(0, |held| held.client.cluster_id())
    }
}
