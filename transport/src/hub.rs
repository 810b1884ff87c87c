//! How a process reaches others: the names of its own parts, and its certificate. A value handed around, not a global.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{io::DuplexStream, sync::mpsc};
use trust::{Certificates, Trust};

use crate::{
    address::{Address, AddressError},
    link::Listening,
};

/// A directory of names. Clones share it; `memory:` and `inproc:` names live side by side.
#[derive(Clone, Default)]
pub struct Hub {
    names: Arc<Mutex<Names>>,
    certificates: Option<Certificates>,
}

#[derive(Default)]
struct Names {
    engines: HashMap<String, Arc<Listening>>,
    servers: HashMap<String, mpsc::Sender<DuplexStream>>,
}

impl Hub {
    /// A hub without names, for connections without TLS.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A hub without names, whose connections beyond the process are as `trust` wants them.
    #[must_use]
    pub fn trusting(trust: &Trust) -> Self {
        Self { certificates: trust.certificates.clone(), ..Self::default() }
    }

    /// What connections beyond the process are made with; none: they are plain.
    pub(crate) fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    pub(crate) fn listen_memory(
        &self,
        name: &str,
        engine: Arc<Listening>,
    ) -> Result<(), AddressError> {
        let mut names = self.names();
        if names.engines.contains_key(name) {
            return Err(AddressError::Taken(Address::Memory(name.to_owned())));
        }
        names.engines.insert(name.to_owned(), engine);
        Ok(())
    }

    pub(crate) fn unlisten_memory(&self, name: &str) {
        self.names().engines.remove(name);
    }

    pub(crate) fn memory(&self, name: &str) -> Option<Arc<Listening>> {
        self.names().engines.get(name).cloned()
    }

    pub(crate) fn listen_inproc(
        &self,
        name: &str,
        connections: mpsc::Sender<DuplexStream>,
    ) -> Result<(), AddressError> {
        let mut names = self.names();
        if names.servers.get(name).is_some_and(|old| !old.is_closed()) {
            return Err(AddressError::Taken(Address::Inproc(name.to_owned())));
        }
        names.servers.insert(name.to_owned(), connections);
        Ok(())
    }

    pub(crate) fn inproc(&self, name: &str) -> Option<mpsc::Sender<DuplexStream>> {
        self.names().servers.get(name).cloned()
    }

    /// Every change of the directory is one call, so a panic elsewhere cannot leave it half done.
    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names();
        f.debug_struct("Hub")
            .field("engines", &names.engines.keys())
            .field("servers", &names.servers.keys())
            .finish()
    }
}
