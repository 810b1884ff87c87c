//! Keeps a local store's entries in one file (redb), so that they outlive the process.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{
    Change, Entry, Revision, StoreError,
    ledger::{Ledger, Prepared},
};

/// key → (created, modified, value)
const ENTRIES: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("entries");
/// Single numbers: the store's revision.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";

#[derive(Clone)]
pub(super) struct Journal {
    path: PathBuf,
    database: Arc<Database>,
}

impl Journal {
    /// Opens or makes the file and reads what it holds.
    pub(super) fn open(path: &Path) -> Result<(Self, Ledger), StoreError> {
        let refused = |error: &dyn std::fmt::Display| {
            StoreError::Refused(format!("{}: {error}", path.display()))
        };
        let database = Database::create(path).map_err(|error| refused(&error))?;
        let (entries, revision) = read(&database).map_err(|error| refused(&error))?;
        let journal = Self { path: path.to_owned(), database: Arc::new(database) };
        Ok((journal, Ledger::restore(entries, revision)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a change; it is on disk when this returns. Entries under a lease are left out.
    pub(super) async fn write(&self, prepared: &Prepared) -> Result<(), StoreError> {
        let changes: Vec<Change> = prepared
            .changes
            .iter()
            .filter(|(_, lease)| lease.is_none())
            .map(|(change, _)| change.clone())
            .collect();
        let (journal, revision) = (self.clone(), prepared.revision);
        let written = tokio::task::spawn_blocking(move || {
            let written = write(&journal.database, &changes, revision);
            written.map_err(|error| format!("{}: {error}", journal.path.display()))
        });
        match written.await {
            Ok(written) => written.map_err(StoreError::Unavailable),
            Err(stopped) => Err(StoreError::Unavailable(stopped.to_string())),
        }
    }
}

fn read(database: &Database) -> Result<(Vec<Entry>, Revision), redb::Error> {
    // Makes both tables, so that reading a new file finds them.
    let write = database.begin_write()?;
    write.open_table(ENTRIES)?;
    write.open_table(NUMBERS)?;
    write.commit()?;
    let read = database.begin_read()?;
    let mut entries = Vec::new();
    for row in read.open_table(ENTRIES)?.iter()? {
        let (key, value) = row?;
        let (created, modified, bytes) = value.value();
        entries.push(Entry {
            key: key.value().to_owned(),
            value: bytes.to_vec(),
            created,
            modified,
        });
    }
    let revision = read.open_table(NUMBERS)?.get(REVISION)?;
    Ok((entries, revision.map_or(0, |revision| revision.value())))
}

fn write(database: &Database, changes: &[Change], revision: Revision) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut entries = write.open_table(ENTRIES)?;
        for change in changes {
            match change {
                Change::Put(entry) => {
                    let row = (entry.created, entry.modified, entry.value.as_slice());
                    entries.insert(entry.key.as_str(), row)?;
                }
                Change::Deleted { key, .. } => {
                    entries.remove(key.as_str())?;
                }
            }
        }
        write.open_table(NUMBERS)?.insert(REVISION, revision)?;
    }
    write.commit()?;
    Ok(())
}
