//! Where the cluster's durable state lies: a small key-value store with revisions, leases and watches.
//!
//! The model is etcd's, because etcd is one of the stores: every committed change raises one counter,
//! the revision, and an entry remembers the revision of its last change. Writes are transactions
//! guarded by such revisions; a leader's writes name the revision of its own leader key, so that
//! whoever lost the leadership cannot write any more.

#[cfg(feature = "etcd")]
mod etcd;
mod file;
mod ledger;
mod local;
mod metered;

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::config::{EtcdTls, StoreConfig};

#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
pub use local::LocalStore;
pub(crate) use metered::Metered;

/// The number of a committed change. Only grows; 0 stands for "does not exist".
pub type Revision = u64;

/// A lease: entries written under it vanish when it is revoked or not kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub key: String,
    /// Its bytes.
    pub value: Vec<u8>,
    /// The change that made it.
    pub created: Revision,
    /// The change that last wrote it.
    pub modified: Revision,
}

/// Entries as they were together at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Ascending by key.
    pub entries: Vec<Entry>,
    /// The store's revision then; watch from the next one on to miss nothing.
    pub revision: Revision,
}

/// A condition of a [`Commit`]: the entry was last written by this change, 0 if it must not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The entry.
    pub key: String,
    /// Its revision.
    pub modified: Revision,
}

/// One write of a [`Commit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Writes an entry, under a lease or for good.
    Put {
        /// The entry.
        key: String,
        /// Its new bytes.
        value: Vec<u8>,
        /// The lease it lives under.
        lease: Option<LeaseId>,
    },
    /// Removes an entry; nothing happens if there is none.
    Delete {
        /// The entry.
        key: String,
    },
}

/// A transaction: all writes happen if all conditions hold, else none. No key is written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The conditions.
    pub when: Vec<Expect>,
    /// The writes.
    pub then: Vec<Write>,
}

/// How a [`Commit`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All writes happened, as this change.
    Done(Revision),
    /// A condition did not hold; nothing happened.
    Conflict,
}

/// What a watch reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An entry was written.
    Put(Entry),
    /// An entry is gone: deleted, or its lease ended.
    Deleted {
        /// The entry.
        key: String,
        /// The change that removed it.
        revision: Revision,
    },
}

/// Why the store did not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// It does not answer, or not in time, or its disk is full. Trying again later may help.
    #[error("the state store fails: {0}")]
    Unavailable(String),
    /// The lease has ended.
    #[error("the lease has ended")]
    LeaseGone,
    /// A watch asked for changes that are forgotten, or fell too far behind. Read again, then watch from there.
    #[error("the watch has missed changes")]
    Missed,
    /// Trying again will not help.
    #[error("the state store refuses: {0}")]
    Refused(String),
}

/// Changes since some revision, in order.
#[derive(Debug)]
pub struct Watch {
    changes: mpsc::Receiver<Result<Change, StoreError>>,
}

impl Watch {
    /// The next change. After an error the watch is over.
    ///
    /// # Errors
    /// The store went away, or the watch missed changes.
    pub async fn next(&mut self) -> Result<Change, StoreError> {
        self.changes.recv().await.unwrap_or(Err(StoreError::Missed))
    }
}

/// Changes a watch may hold back before it counts as too far behind.
const WATCH_BACKLOG_MAX: usize = 256;

/// A state store.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Where it is, for logs.
    fn place(&self) -> String;

    /// All entries whose key begins with `prefix`; a whole key is a prefix of itself.
    fn range<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, StoreError>>;

    /// Runs a transaction.
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Outcome, StoreError>>;

    /// Changes to keys that begin with `prefix`, the change numbered `from` and all later ones.
    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>>;

    /// Makes a lease that ends when it is not kept alive for `ttl`; stores may round up to seconds.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>>;

    /// Gives a lease its whole time again.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Ends a lease now. Ending one that has ended is no error.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Reads one entry.
///
/// # Errors
/// The store does not answer.
pub async fn get(store: &dyn Store, key: &str) -> Result<Option<Entry>, StoreError> {
    let snapshot = store.range(key).await?;
    Ok(snapshot.entries.into_iter().find(|entry| entry.key == key))
}

/// Opens the store that the configuration names.
pub(crate) async fn open(config: StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    match config {
        StoreConfig::Memory => Ok(Arc::new(LocalStore::in_memory())),
        StoreConfig::Embedded { path } => Ok(Arc::new(LocalStore::in_file(&path)?)),
        StoreConfig::Etcd { endpoints, prefix, timeout_ms, tls } => {
            open_etcd(endpoints, prefix, Duration::from_millis(timeout_ms), tls).await
        }
    }
}

#[cfg(feature = "etcd")]
async fn open_etcd(
    endpoints: Vec<String>,
    prefix: String,
    timeout: Duration,
    tls: Option<EtcdTls>,
) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(EtcdStore::new(endpoints, prefix, timeout, tls.as_ref()).await?))
}

#[cfg(not(feature = "etcd"))]
async fn open_etcd(
    _: Vec<String>,
    _: String,
    _: Duration,
    _: Option<EtcdTls>,
) -> Result<Arc<dyn Store>, StoreError> {
    let missing = "this build has no etcd in it: build the coordinator with `--features etcd`";
    Err(StoreError::Refused(missing.to_owned()))
}
