//! The end of a process: the first signal asks everything to drain, the deadline or a second signal cuts it short.

use std::{
    fmt,
    future::Future,
    io,
    pin::pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Section `[shutdown]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long work in progress may take to finish once a stop was asked for.
    pub drain_ms: u64,
}

impl Default for ShutdownConfig {
    /// 45 s stays under Kubernetes's usual 60 s of grace with a pre-stop pause before it.
    fn default() -> Self {
        Self { drain_ms: 45_000 }
    }
}

/// A clonable token that every component watches.
#[derive(Clone, Debug)]
pub struct Shutdown {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    grace: Duration,
    requested: CancellationToken,
    forced: CancellationToken,
    deadline: OnceLock<Instant>,
}

/// Why the drain was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undrained {
    /// Work was still in progress when the grace had passed.
    Deadline(Duration),
    /// A second signal asked for an end now.
    Forced,
}

impl fmt::Display for Undrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline(grace) => {
                write!(f, "work was still in progress {} ms after the stop", grace.as_millis())
            }
            Self::Forced => f.write_str("stopped at once by a second signal, work was dropped"),
        }
    }
}

impl std::error::Error for Undrained {}

impl Shutdown {
    /// A token whose drain may take `grace`.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self {
            state: Arc::new(State {
                grace,
                requested: CancellationToken::new(),
                forced: CancellationToken::new(),
                deadline: OnceLock::new(),
            }),
        }
    }

    /// The token of a process: SIGTERM or SIGINT asks for the drain, a second one ends it.
    ///
    /// Must be called inside a tokio runtime.
    pub fn on_signals(config: &ShutdownConfig) -> io::Result<Self> {
        let shutdown = Self::new(Duration::from_millis(config.drain_ms));
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let listener = shutdown.clone();
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                tracing::info!(signal = name, "stop asked for");
                listener.signalled();
            }
        });
        Ok(shutdown)
    }

    fn signalled(&self) {
        if self.is_requested() {
            self.state.forced.cancel();
        } else {
            self.request();
        }
    }

    /// Starts the drain; asking again changes nothing.
    pub fn request(&self) {
        self.state.deadline.get_or_init(|| Instant::now() + self.state.grace);
        self.state.requested.cancel();
    }

    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.state.requested.is_cancelled()
    }

    /// Waits until the drain was asked for.
    pub async fn requested(&self) {
        self.state.requested.cancelled().await;
    }

    /// When the drain ends whatever is left; `None` before it was asked for.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.state.deadline.get().copied()
    }

    /// Runs `work` to its end, or until the drain is cut short.
    pub async fn guard<F: Future>(&self, work: F) -> Result<F::Output, Undrained> {
        let work = pin!(work);
        tokio::select! {
            output = work => Ok(output),
            undrained = self.cut_short() => Err(undrained),
        }
    }

    async fn cut_short(&self) -> Undrained {
        self.requested().await;
        tokio::select! {
            () = self.state.forced.cancelled() => Undrained::Forced,
            () = tokio::time::sleep(self.state.grace) => Undrained::Deadline(self.state.grace),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use super::{Shutdown, Undrained};

    /// Longer than any test here takes.
    const GRACE: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn work_that_ends_in_time_is_drained() {
        let shutdown = Shutdown::new(GRACE);
        assert_eq!((shutdown.is_requested(), shutdown.deadline()), (false, None));
        let work = async {
            shutdown.requested().await;
            "drained"
        };
        let (drained, ()) = tokio::join!(shutdown.guard(work), async { shutdown.signalled() });
        assert_eq!(drained, Ok("drained"));
        assert!(shutdown.is_requested());
        let first = shutdown.deadline();
        shutdown.request();
        assert_eq!(shutdown.deadline(), first, "asking again must not move the deadline");
    }

    #[tokio::test]
    async fn the_deadline_cuts_the_drain_short() {
        let grace = Duration::from_millis(5);
        let shutdown = Shutdown::new(grace);
        shutdown.request();
        assert_eq!(shutdown.guard(pending::<()>()).await, Err(Undrained::Deadline(grace)));
    }

    #[tokio::test]
    async fn a_second_signal_ends_at_once() {
        let shutdown = Shutdown::new(GRACE);
        shutdown.signalled();
        shutdown.signalled();
        assert_eq!(shutdown.guard(pending::<()>()).await, Err(Undrained::Forced));
    }
}
