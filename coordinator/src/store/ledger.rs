//! The state of a local store: entries, revisions, leases and recent history, without I/O or clock.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{Change, Commit, Entry, LeaseId, Revision, Snapshot, StoreError, Write};

/// Changes that are remembered for watches that start in the past.
const HISTORY_MAX: usize = 1024;

/// Entries with their revisions. A change is first [`Ledger::prepare`]d, then made durable by whoever
/// owns the ledger, then [`Ledger::apply`]ed.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: BTreeMap<String, Row>,
    leases: BTreeMap<LeaseId, Lease>,
    leases_granted: i64,
    revision: Revision,
    history: VecDeque<Change>,
    /// Changes up to this one are not in the history.
    forgotten: Revision,
}

#[derive(Debug)]
struct Row {
    entry: Entry,
    lease: Option<LeaseId>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Duration,
}

/// A change that may be applied: each entry with its lease.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) revision: Revision,
    pub(super) changes: Vec<(Change, Option<LeaseId>)>,
}

impl Ledger {
    /// A ledger that goes on where a durable one ended.
    pub(super) fn restore(entries: Vec<Entry>, revision: Revision) -> Self {
        let row = |entry: Entry| (entry.key.clone(), Row { entry, lease: None });
        Self {
            entries: entries.into_iter().map(row).collect(),
            revision,
            forgotten: revision,
            ..Self::default()
        }
    }

    pub(super) fn range(&self, prefix: &str) -> Snapshot {
        let entries = self
            .entries
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, row)| row.entry.clone());
        Snapshot { entries: entries.collect(), revision: self.revision }
    }

    /// Entries that no lease can end.
    pub(super) fn lasting(&self) -> Vec<Entry> {
        let rows = self.entries.values().filter(|row| row.lease.is_none());
        rows.map(|row| row.entry.clone()).collect()
    }

    /// The changes a commit makes, or none if a condition does not hold.
    pub(super) fn prepare(&self, commit: Commit) -> Result<Option<Prepared>, StoreError> {
        let modified = |key: &str| self.entries.get(key).map_or(0, |row| row.entry.modified);
        if commit.when.iter().any(|expect| modified(&expect.key) != expect.modified) {
            return Ok(None);
        }
        let revision = self.revision + 1;
        let mut changes = Vec::with_capacity(commit.then.len());
        for write in commit.then {
            match write {
                Write::Put { key, value, lease } => {
                    if lease.is_some_and(|lease| !self.leases.contains_key(&lease)) {
                        return Err(StoreError::LeaseGone);
                    }
                    let created = self.entries.get(&key).map_or(revision, |row| row.entry.created);
                    let entry = Entry { key, value, created, modified: revision };
                    changes.push((Change::Put(entry), lease));
                }
                Write::Delete { key } if self.entries.contains_key(&key) => {
                    changes.push((Change::Deleted { key, revision }, None));
                }
                Write::Delete { .. } => {}
            }
        }
        Ok(Some(self.numbered(changes)))
    }

    /// The changes that the end of a lease makes.
    pub(super) fn prepare_end(&self, lease: LeaseId) -> Prepared {
        let revision = self.revision + 1;
        let keys = self.entries.iter().filter(|(_, row)| row.lease == Some(lease));
        let changes = keys.map(|(key, _)| {
            let key = key.clone();
            (Change::Deleted { key, revision }, None)
        });
        self.numbered(changes.collect())
    }

    fn numbered(&self, changes: Vec<(Change, Option<LeaseId>)>) -> Prepared {
        // A transaction that changes nothing gets no number of its own.
        let revision = self.revision + u64::from(!changes.is_empty());
        Prepared { revision, changes }
    }

    pub(super) fn apply(&mut self, prepared: Prepared) {
        self.revision = prepared.revision;
        for (change, lease) in prepared.changes {
            match &change {
                Change::Put(entry) => {
                    let entry = entry.clone();
                    self.entries.insert(entry.key.clone(), Row { entry, lease });
                }
                Change::Deleted { key, .. } => {
                    self.entries.remove(key);
                }
            }
            self.history.push_back(change);
        }
        while self.history.len() > HISTORY_MAX {
            let oldest = self.history.pop_front();
            self.forgotten = oldest.map_or(self.forgotten, |change| change.revision());
        }
    }

    /// Past changes to keys that begin with `prefix`, from the change numbered `from` on.
    pub(super) fn since(&self, prefix: &str, from: Revision) -> Result<Vec<Change>, StoreError> {
        if from <= self.forgotten {
            return Err(StoreError::Missed);
        }
        let changes = self.history.iter();
        let wanted = changes.filter(|change| change.revision() >= from && change.is_under(prefix));
        Ok(wanted.cloned().collect())
    }

    pub(super) fn grant(&mut self, now: Duration, ttl: Duration) -> LeaseId {
        self.leases_granted += 1;
        let lease = LeaseId(self.leases_granted);
        let deadline = now + ttl;
        self.leases.insert(lease, Lease { ttl, deadline });
        lease
    }

    pub(super) fn keep_alive(&mut self, now: Duration, lease: LeaseId) -> Result<(), StoreError> {
        let lease = self.leases.get_mut(&lease).ok_or(StoreError::LeaseGone)?;
        lease.deadline = now + lease.ttl;
        Ok(())
    }

    pub(super) fn forget_lease(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
    }

    /// A lease whose time is over.
    pub(super) fn overdue(&self, now: Duration) -> Option<LeaseId> {
        let mut leases = self.leases.iter();
        leases.find(|(_, lease)| lease.deadline <= now).map(|(&id, _)| id)
    }

    /// When the next lease ends unless it is kept alive.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.leases.values().map(|lease| lease.deadline).min()
    }
}

impl Change {
    /// The number of the change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.modified,
            Self::Deleted { revision, .. } => *revision,
        }
    }

    pub(super) fn is_under(&self, prefix: &str) -> bool {
        let (Self::Put(Entry { key, .. }) | Self::Deleted { key, .. }) = self;
        key.starts_with(prefix)
    }
}
