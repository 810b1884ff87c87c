//! A value read from files, read again when they change; a broken change leaves the value as it was.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, Weak},
    time::{Duration, SystemTime},
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{Metrics, TrustError};

/// Between two looks at the files. They are looked at, not subscribed to: secrets that Kubernetes
/// mounts change by a link that is turned elsewhere, on any file system.
const EVERY: Duration = Duration::from_secs(1);

type Read<T> = Box<dyn Fn() -> Result<T, TrustError> + Send + Sync>;

/// The newest good value.
pub(crate) struct Watched<T> {
    /// As logs and metrics call it.
    what: &'static str,
    paths: Vec<PathBuf>,
    read: Read<T>,
    current: RwLock<Arc<T>>,
}

/// What tells one content of a file from the next: when it was written, how long it is, which file it is.
type Stamp = Option<(SystemTime, u64, u64)>;

// === impl Watched ===

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the value, and again for as long as it is in use. Must be called within a tokio runtime.
    pub(crate) fn open(
        what: &'static str,
        paths: Vec<PathBuf>,
        metrics: Option<&Metrics>,
        read: impl Fn() -> Result<T, TrustError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, TrustError> {
        // Before the reading: what is written meanwhile is then seen as a change.
        let seen = stamps(&paths);
        let current = RwLock::new(Arc::new(read()?));
        let watched = Arc::new(Self { what, paths, read: Box::new(read), current });
        tokio::spawn(follow(Arc::downgrade(&watched), seen, metrics.cloned()));
        Ok(watched)
    }

    /// The newest good value. Looked up once for a connection or a call, never for a token.
    pub(crate) fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn reload(&self, metrics: Option<&Metrics>) {
        let read = (self.read)();
        if let Some(metrics) = metrics {
            metrics.reloaded(self.what, read.is_ok());
        }
        match read {
            Ok(value) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                tracing::info!("{} read again", self.what);
            }
            Err(error) => {
                tracing::error!(%error, "{} changed and cannot be used, the old stay", self.what);
            }
        }
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("what", &self.what).field("paths", &self.paths).finish()
    }
}

async fn follow<T: Send + Sync + 'static>(
    watched: Weak<Watched<T>>,
    mut seen: Vec<Stamp>,
    metrics: Option<Metrics>,
) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(watched) = watched.upgrade() else { return };
        let metrics = metrics.clone();
        let look = move || {
            let found = stamps(&watched.paths);
            if found != seen {
                watched.reload(metrics.as_ref());
            }
            found
        };
        // Files may lie where reading takes long.
        match tokio::task::spawn_blocking(look).await {
            Ok(found) => seen = found,
            Err(_) => return,
        }
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    paths.iter().map(stamp).collect()
}
