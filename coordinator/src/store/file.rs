//! Keeps a local store's entries in one file (redb), so that they outlive the process.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
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
    /// None after a write has failed, on a full disk say: a database that an error of the disk has struck
    /// takes no write any more, and nobody knows what the file holds. The next write opens it anew.
    database: Arc<Mutex<Option<Database>>>,
}

/// What one write brings into the file.
struct Job {
    /// Everything that was there before; none if the file is known to hold it.
    before: Option<Vec<Entry>>,
    changes: Vec<Change>,
    revision: Revision,
}

impl Journal {
    /// Opens or makes the file and reads what it holds.
    pub(super) fn open(path: &Path) -> Result<(Self, Ledger), StoreError> {
        let refused = |error: &dyn std::fmt::Display| {
            StoreError::Refused(format!("{}: {error}", path.display()))
        };
        let database = Database::create(path).map_err(|error| refused(&error))?;
        let (entries, revision) = read(&database).map_err(|error| refused(&error))?;
        let database = Arc::new(Mutex::new(Some(database)));
        let journal = Self { path: path.to_owned(), database };
        Ok((journal, Ledger::restore(entries, revision)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a change to what `ledger` holds; it is on disk when this returns. Entries under a lease are left out.
    pub(super) async fn write(
        &self,
        ledger: &Ledger,
        prepared: &Prepared,
    ) -> Result<(), StoreError> {
        let changes = prepared.changes.iter().filter(|(_, lease)| lease.is_none());
        let job = Job {
            before: self.is_closed().then(|| ledger.lasting()),
            changes: changes.map(|(change, _)| change.clone()).collect(),
            revision: prepared.revision,
        };
        let journal = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            let written = journal.write_now(&job);
            written
                .map_err(|error| format!("{} cannot be written: {error}", journal.path.display()))
        });
        match written.await {
            Ok(written) => written.map_err(StoreError::Unavailable),
            Err(stopped) => Err(StoreError::Unavailable(stopped.to_string())),
        }
    }

    fn is_closed(&self) -> bool {
        self.database.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn write_now(&self, job: &Job) -> Result<(), redb::Error> {
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match held.take() {
            Some(database) => database,
            None => Database::create(&self.path)?,
        };
        write(&database, job)?;
        *held = Some(database);
        Ok(())
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

fn write(database: &Database, job: &Job) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut entries = write.open_table(ENTRIES)?;
        if let Some(before) = &job.before {
            entries.retain(|_, _| false)?;
            for entry in before {
                entries.insert(entry.key.as_str(), row(entry))?;
            }
        }
        for change in &job.changes {
            match change {
                Change::Put(entry) => {
                    entries.insert(entry.key.as_str(), row(entry))?;
                }
                Change::Deleted { key, .. } => {
                    entries.remove(key.as_str())?;
                }
            }
        }
        write.open_table(NUMBERS)?.insert(REVISION, job.revision)?;
    }
    write.commit()?;
    Ok(())
}

fn row(entry: &Entry) -> (u64, u64, &[u8]) {
    (entry.created, entry.modified, entry.value.as_slice())
}
