//! The store inside the coordinator's own process, in memory alone or kept in a file.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use tokio::{
    sync::{Mutex, Notify, mpsc},
    time::Instant,
};

use super::{
    Change, Commit, LeaseId, Outcome, Revision, Snapshot, Store, StoreError, WATCH_BACKLOG_MAX,
    Watch,
    file::Journal,
    ledger::{Ledger, Prepared},
};

/// A store for one coordinator. With a file, entries outlive the process; leases and what is written
/// under them do not, because they belong to the process.
pub struct LocalStore {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    journal: Option<Journal>,
    started: Instant,
    /// Told when a lease was granted, so that its end is not slept through.
    granted: Arc<Notify>,
}

struct State {
    ledger: Ledger,
    watchers: Vec<Watcher>,
}

struct Watcher {
    prefix: String,
    changes: mpsc::Sender<Result<Change, StoreError>>,
}

impl LocalStore {
    /// An empty store that dies with the process. Call it inside a tokio runtime.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::start(Ledger::default(), None)
    }

    /// The store kept in the file at `path`, which is made if it is not there; its folder must be.
    /// Call it inside a tokio runtime.
    ///
    /// # Errors
    /// The file cannot be opened, is no such store, or another process has it open.
    pub fn in_file(path: &Path) -> Result<Self, StoreError> {
        let (journal, ledger) = Journal::open(path)?;
        Ok(Self::start(ledger, Some(journal)))
    }

    fn start(ledger: Ledger, journal: Option<Journal>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { ledger, watchers: Vec::new() }),
            journal,
            started: Instant::now(),
            granted: Arc::new(Notify::new()),
        });
        tokio::spawn(end_leases(Arc::downgrade(&shared)));
        Self { shared }
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        // Wakes the task that ends leases, which then finds nobody left and stops.
        self.shared.granted.notify_one();
    }
}

impl Shared {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Makes a change durable, then visible, then known to those who watch.
    async fn carry_out(&self, state: &mut State, prepared: Prepared) -> Result<(), StoreError> {
        if prepared.changes.is_empty() {
            return Ok(());
        }
        if let Some(journal) = &self.journal {
            journal.write(&state.ledger, &prepared).await?;
        }
        let changes: Vec<Change> =
            prepared.changes.iter().map(|(change, _)| change.clone()).collect();
        state.ledger.apply(prepared);
        state.watchers.retain(|watcher| {
            let mut wanted = changes.iter().filter(|change| change.is_under(&watcher.prefix));
            wanted.all(|change| watcher.changes.try_send(Ok(change.clone())).is_ok())
                && !watcher.changes.is_closed()
        });
        Ok(())
    }

    async fn end(&self, state: &mut State, lease: LeaseId) -> Result<(), StoreError> {
        let prepared = state.ledger.prepare_end(lease);
        self.carry_out(state, prepared).await?;
        state.ledger.forget_lease(lease);
        Ok(())
    }
}

/// Ends leases when their time is over, as long as the store lives.
async fn end_leases(store: Weak<Shared>) {
    while let Some(shared) = store.upgrade() {
        let deadline = {
            let mut state = shared.state.lock().await;
            while let Some(lease) = state.ledger.overdue(shared.now()) {
                if let Err(error) = shared.end(&mut state, lease).await {
                    tracing::warn!(%error, "a lease has ended and its entries cannot be removed");
                    break;
                }
            }
            state.ledger.next_deadline()
        };
        let wake = shared.started + deadline.unwrap_or(Duration::from_secs(3600));
        // A removal that failed is tried again after a moment, not in a tight loop.
        let wake = wake.max(Instant::now() + Duration::from_millis(10));
        let granted = shared.granted.clone();
        // Whoever drops the store while this sleeps finds it let go of.
        drop(shared);
        let _ = tokio::time::timeout_at(wake, granted.notified()).await;
    }
}

/// Runs to its end even if the caller goes away: a change must not be on disk and not in memory.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::spawn(change).await {
        Ok(result) => result,
        Err(stopped) => Err(StoreError::Unavailable(stopped.to_string())),
    }
}

impl Store for LocalStore {
    fn place(&self) -> String {
        match &self.shared.journal {
            Some(journal) => format!("the file {}", journal.path().display()),
            None => "memory".to_owned(),
        }
    }

    fn range<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        async { Ok(self.shared.state.lock().await.ledger.range(prefix)) }.boxed()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        let shared = self.shared.clone();
        to_the_end(async move {
            let mut state = shared.state.lock().await;
            let Some(prepared) = state.ledger.prepare(commit)? else {
                return Ok(Outcome::Conflict);
            };
            let revision = prepared.revision;
            shared.carry_out(&mut state, prepared).await?;
            Ok(Outcome::Done(revision))
        })
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>> {
        async move {
            let mut state = self.shared.state.lock().await;
            let past = state.ledger.since(prefix, from)?;
            let (sender, changes) = mpsc::channel(past.len() + WATCH_BACKLOG_MAX);
            for change in past {
                sender.try_send(Ok(change)).map_err(|_| StoreError::Missed)?;
            }
            state.watchers.push(Watcher { prefix: prefix.to_owned(), changes: sender });
            Ok(Watch { changes })
        }
        .boxed()
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        async move {
            let mut state = self.shared.state.lock().await;
            let lease = state.ledger.grant(self.shared.now(), ttl);
            self.shared.granted.notify_one();
            Ok(lease)
        }
        .boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let mut state = self.shared.state.lock().await;
            state.ledger.keep_alive(self.shared.now(), lease)
        }
        .boxed()
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        let shared = self.shared.clone();
        to_the_end(async move {
            let mut state = shared.state.lock().await;
            shared.end(&mut state, lease).await
        })
        .boxed()
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalStore").field(&self.place()).finish()
    }
}
