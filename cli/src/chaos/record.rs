//! What clients saw, as it happened: every token with its time and its wait, and how requests ended.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Reasons that are kept of requests that failed or changed; the rest is counted.
const REASONS_MAX: usize = 20;

/// Tokens that a client got at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Arrival {
    /// Since the begin of the record.
    pub(super) at: Duration,
    /// Since the tokens before, or since the request was sent.
    pub(super) waited: Duration,
    pub(super) tokens: usize,
}

/// How requests ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) changed: u64,
    /// Requests that were sent again, under their id, because their gateway was gone.
    pub(super) retries: u64,
    /// Why requests failed, and how answers changed.
    pub(super) reasons: Vec<String>,
}

/// What all clients saw.
#[derive(Debug)]
pub(super) struct Record {
    begun: Instant,
    seen: Mutex<(Vec<Arrival>, Counts)>,
}

impl Record {
    /// Begins now.
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), seen: Mutex::default() }
    }

    /// Time since the begin.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Tokens have come.
    pub(super) fn arrived(&self, waited: Duration, tokens: usize) {
        let at = self.now();
        self.seen().0.push(Arrival { at, waited, tokens });
    }

    /// A request was answered; `changed` says how, if not as expected.
    pub(super) fn answered(&self, changed: Option<String>) {
        let counts = &mut self.seen().1;
        counts.requests += 1;
        counts.changed += u64::from(changed.is_some());
        counts.reasons.extend(changed);
        counts.reasons.truncate(REASONS_MAX);
    }

    /// A request was not answered.
    pub(super) fn failed(&self, why: String) {
        let counts = &mut self.seen().1;
        counts.requests += 1;
        counts.failed += 1;
        counts.reasons.push(why);
        counts.reasons.truncate(REASONS_MAX);
    }

    /// A request is sent again.
    pub(super) fn retried(&self) {
        self.seen().1.retries += 1;
    }

    /// All arrivals in the order of their times, and how requests ended.
    pub(super) fn take(&self) -> (Vec<Arrival>, Counts) {
        std::mem::take(&mut *self.seen())
    }

    /// Every change is one call, so a panic elsewhere leaves it whole.
    fn seen(&self) -> MutexGuard<'_, (Vec<Arrival>, Counts)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
