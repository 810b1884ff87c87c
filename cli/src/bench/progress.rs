//! A line on stderr that says how far a load is.

use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;

use super::stats::Timing;

/// On a terminal, where a line replaces the one before.
const TERMINAL_PAUSE: Duration = Duration::from_millis(500);
/// In a log.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Counts of what has ended.
#[derive(Debug)]
pub(super) struct Progress {
    begun: Instant,
    requests: usize,
    completed: AtomicU64,
    failed: AtomicU64,
    output_tokens: AtomicU64,
}

// === impl Progress ===

impl Progress {
    /// The progress of a load of `requests` that begins now.
    pub(super) fn new(requests: usize) -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            requests,
            completed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            output_tokens: AtomicU64::new(0),
        })
    }

    /// Counts a request that has ended.
    pub(super) fn count(&self, outcome: &Result<Timing>) {
        match outcome {
            Ok(timing) => {
                self.completed.fetch_add(1, Ordering::Relaxed);
                self.output_tokens.fetch_add(timing.output_tokens, Ordering::Relaxed);
            }
            Err(_) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Shows the counts until it is dropped.
    pub(super) async fn show(self: Arc<Self>) {
        let terminal = std::io::stderr().is_terminal();
        let pause = if terminal { TERMINAL_PAUSE } else { LOG_PAUSE };
        loop {
            tokio::time::sleep(pause).await;
            self.write(if terminal { "" } else { "\n" });
        }
    }

    /// Shows the counts for the last time.
    pub(super) fn finish(&self) {
        self.write("\n");
    }

    fn write(&self, end: &str) {
        let mut stderr = std::io::stderr();
        let begin = if stderr.is_terminal() { "\r\x1b[K" } else { "" };
        // A closed stderr is no reason to stop.
        drop(write!(stderr, "{begin}{}{end}", self.line()));
    }

    fn line(&self) -> String {
        let [completed, failed, tokens] = [&self.completed, &self.failed, &self.output_tokens]
            .map(|count| count.load(Ordering::Relaxed));
        let seconds = self.begun.elapsed().as_secs_f64();
        let rate = tokens as f64 / seconds;
        let ended = completed + failed;
        let total = self.requests;
        format!("{ended} of {total} requests, {failed} failed, {rate:.0} tokens/s, {seconds:.0} s")
    }
}
