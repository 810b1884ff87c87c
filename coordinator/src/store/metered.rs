//! Times every call to a store, and says once when it goes away and once when it is back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, FutureExt};

use super::{Commit, LeaseId, Outcome, Revision, Snapshot, Store, StoreError, Watch};
use crate::metrics::Metrics;

/// The call that writes.
const COMMIT: &str = "commit";

/// A store whose calls are counted.
#[derive(Debug)]
pub(crate) struct Metered {
    store: Arc<dyn Store>,
    metrics: Metrics,
    up: AtomicBool,
    /// The last commit failed: a disk that is full can be read.
    unwritable: AtomicBool,
}

impl Metered {
    pub(crate) fn new(store: Arc<dyn Store>, metrics: Metrics) -> Self {
        Self { store, metrics, up: AtomicBool::new(true), unwritable: AtomicBool::new(false) }
    }

    async fn timed<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let start = Instant::now();
        let result = call.await;
        self.metrics.store_call(name, start.elapsed().as_secs_f64(), result.is_err());
        let away = match &result {
            Err(StoreError::Unavailable(why)) => Some(why),
            _ => None,
        };
        if name == COMMIT {
            self.unwritable.store(away.is_some(), Ordering::Relaxed);
        }
        let up = away.is_none() && !self.unwritable.load(Ordering::Relaxed);
        self.metrics.store_up(up);
        let was_up = self.up.swap(up, Ordering::Relaxed);
        match (was_up, away) {
            (true, Some(why)) => tracing::warn!(
                store = self.store.place(),
                why,
                "the state store fails; the last stored plan goes on serving"
            ),
            (false, None) if up => {
                tracing::info!(store = self.store.place(), "the state store is back");
            }
            _ => {}
        }
        result
    }
}

impl Store for Metered {
    fn place(&self) -> String {
        self.store.place()
    }

    fn range<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.timed("range", self.store.range(prefix)).boxed()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        self.timed(COMMIT, self.store.commit(commit)).boxed()
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>> {
        self.timed("watch", self.store.watch(prefix, from)).boxed()
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.timed("grant", self.store.grant(ttl)).boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.timed("keep_alive", self.store.keep_alive(lease)).boxed()
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.timed("revoke", self.store.revoke(lease)).boxed()
    }
}
