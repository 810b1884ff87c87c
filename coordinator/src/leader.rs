//! Leader election: the candidate whose key is oldest leads, as long as its lease lives.
//!
//! This is etcd's own election recipe, built from a lease and a transaction so that it works on every
//! store: each candidate puts its address under a key of its own, and waits until no older one is left.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::store::{
    Change, Commit, Expect, LeaseId, Outcome, Revision, Store, StoreError, Watch, Write,
};

/// Candidates' keys lie under this prefix.
const CANDIDATES: &str = "leader/";

/// A candidacy, won or not. Dropping it stops keeping its lease alive.
#[derive(Debug)]
pub(crate) struct Candidate {
    store: Arc<dyn Store>,
    lease: LeaseId,
    key: String,
    revision: Revision,
    lost: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Candidate {
    /// Enters the election with the address that clients should go to.
    pub(crate) async fn enter(
        store: Arc<dyn Store>,
        address: &str,
        ttl: Duration,
    ) -> Result<Self, StoreError> {
        let lease = store.grant(ttl).await?;
        let key = format!("{CANDIDATES}{:016x}", lease.0);
        let put =
            Write::Put { key: key.clone(), value: address.as_bytes().to_vec(), lease: Some(lease) };
        let absent = Expect { key: key.clone(), modified: 0 };
        let commit = Commit { when: vec![absent], then: vec![put] };
        let Outcome::Done(revision) = store.commit(commit).await? else {
            // The number of a living lease is in nobody else's hands.
            return Err(StoreError::Refused(format!("{key} exists already")));
        };
        let lost = CancellationToken::new();
        let keeper = tokio::spawn(keep(store.clone(), lease, ttl / 3, lost.clone()));
        Ok(Self { store, lease, key, revision, lost, keeper })
    }

    /// Returns when this candidate leads. `follow` is told the leader's address meanwhile.
    pub(crate) async fn win(&self, follow: impl Fn(String)) -> Result<(), StoreError> {
        loop {
            let snapshot = self.store.range(CANDIDATES).await?;
            let Some(oldest) = snapshot.entries.iter().min_by_key(|entry| entry.created) else {
                return Err(StoreError::LeaseGone);
            };
            if oldest.key == self.key {
                return Ok(());
            }
            if !snapshot.entries.iter().any(|entry| entry.key == self.key) {
                return Err(StoreError::LeaseGone);
            }
            follow(String::from_utf8_lossy(&oldest.value).into_owned());
            let watch = self.store.watch(CANDIDATES, snapshot.revision + 1).await?;
            tokio::select! {
                left = somebody_left(watch) => match left {
                    // Having missed something is cured by looking again.
                    Ok(()) | Err(StoreError::Missed) => {}
                    Err(error) => return Err(error),
                },
                () = self.lost.cancelled() => return Err(StoreError::LeaseGone),
            }
        }
    }

    /// A commit that happens only while this candidate's key is there, that is, while it leads.
    pub(crate) fn fenced(&self, then: Vec<Write>) -> Commit {
        let mine = Expect { key: self.key.clone(), modified: self.revision };
        Commit { when: vec![mine], then }
    }

    /// Waits until the lease is known to have ended. A store that is away is no such knowledge.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Leaves the election, so that the next candidate need not wait for the lease to run out.
    pub(crate) async fn resign(self) {
        self.keeper.abort();
        if let Err(error) = self.store.revoke(self.lease).await {
            tracing::info!(%error, "the leader's lease could not be given back and will run out");
        }
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn somebody_left(mut watch: Watch) -> Result<(), StoreError> {
    while !matches!(watch.next().await?, Change::Deleted { .. }) {}
    Ok(())
}

/// Keeps the lease alive until it has ended. While the store is away it goes on trying: whether the
/// lease outlives the outage is for the store to say.
async fn keep(store: Arc<dyn Store>, lease: LeaseId, pause: Duration, lost: CancellationToken) {
    loop {
        tokio::time::sleep(pause).await;
        match store.keep_alive(lease).await {
            Err(StoreError::LeaseGone) => break lost.cancel(),
            Err(error) => tracing::debug!(%error, "the leader's lease was not prolonged"),
            Ok(()) => {}
        }
    }
}
