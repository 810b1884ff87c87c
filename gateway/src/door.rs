//! The door: counts what waits and runs, and lets requests in by `policy::admission`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use policy::admission::{Bounds, Pace, Traffic, Verdict, admit};

use crate::{
    metrics::Metrics,
    refusal::{Kind, Refusal},
};

/// Weight of the newest sequence in the running mean of their durations.
const NEWEST: f64 = 0.1;

/// Bounded entry for sequences.
#[derive(Debug)]
pub(crate) struct Door {
    bounds: Bounds,
    inside: Mutex<Inside>,
    metrics: Arc<Metrics>,
}

/// What was let in and has not left.
#[derive(Debug)]
struct Inside {
    /// When those came that wait for their first token, in the order of their coming.
    waiting: BTreeMap<u64, Instant>,
    running: u32,
    /// Sequences so far: their numbers.
    entered: u64,
    pace: Pace,
    /// Until when `pace` knows what happened.
    paced_until: Instant,
    /// How long a sequence lately took from its first token to its end.
    sequence_s: Option<f64>,
}

/// One admitted sequence; dropping it makes room for the next.
#[derive(Debug)]
pub(crate) struct Admitted {
    door: Arc<Door>,
    number: u64,
    /// When it came or, once it runs, had its first token.
    since: Instant,
    running: bool,
}

// === impl Door ===

impl Door {
    pub(crate) fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Arc<Self> {
        let inside = Inside {
            waiting: BTreeMap::new(),
            running: 0,
            entered: 0,
            pace: Pace::default(),
            paced_until: Instant::now(),
            sequence_s: None,
        };
        Arc::new(Self { bounds, inside: Mutex::new(inside), metrics })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets all of a request's sequences in, or none. The client may want its first token sooner
    /// than the bound says, not later.
    pub(crate) fn enter(
        self: &Arc<Self>,
        sequences: u32,
        first_token: Option<Duration>,
    ) -> Result<Vec<Admitted>, Refusal> {
        let mut inside = self.inside();
        let now = Instant::now();
        match admit(self.bounds(first_token), inside.traffic(now), sequences) {
            Verdict::Admit => {}
            verdict @ Verdict::Later { retry_after_s, .. } => {
                return Err(Refusal::new(
                    Kind::QueueFull,
                    format!("the server is full: {verdict}"),
                )
                .retry_after(retry_after_s));
            }
            Verdict::TooLarge { max } => {
                return Err(Refusal::field(
                    "n",
                    format!("prompts × choices up to {max}, the sequences that may wait here"),
                    sequences.to_string(),
                ));
            }
        }
        inside.pass(now, 0);
        let mut admitted = Vec::new();
        for _ in 0..sequences {
            let number = inside.entered;
            inside.entered += 1;
            inside.waiting.insert(number, now);
            let door = Arc::clone(self);
            admitted.push(Admitted { door, number, since: now, running: false });
        }
        self.publish(&inside);
        Ok(admitted)
    }

    fn bounds(&self, first_token: Option<Duration>) -> Bounds {
        let wanted = first_token.and_then(|time| u64::try_from(time.as_millis()).ok());
        let all = self.bounds.first_token_ms;
        let first_token_ms = wanted.map_or(all, |wanted| wanted.min(all));
        Bounds { first_token_ms, ..self.bounds }
    }

    fn publish(&self, inside: &Inside) {
        self.metrics.waiting.set(i64::try_from(inside.waiting.len()).unwrap_or(i64::MAX));
        self.metrics.running.set(inside.running.into());
    }
}

// === impl Inside ===

impl Inside {
    fn traffic(&self, now: Instant) -> Traffic {
        let oldest = self.waiting.first_key_value();
        Traffic {
            waiting: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
            running: self.running,
            oldest_s: oldest.map_or(0.0, |(_, &since)| (now - since).as_secs_f64()),
            pace: self.pace,
            sequence_s: self.sequence_s,
        }
    }

    /// Time has passed, at whose end `starts` sequences have their first token.
    fn pass(&mut self, now: Instant, starts: u32) {
        if !self.waiting.is_empty() {
            self.pace.pass((now - self.paced_until).as_secs_f64(), starts);
        }
        self.paced_until = now;
    }
}

// === impl Admitted ===

impl Admitted {
    /// The first token is here.
    pub(crate) fn started(&mut self) {
        if !std::mem::replace(&mut self.running, true) {
            let mut inside = self.door.inside();
            self.since = Instant::now();
            inside.pass(self.since, 1);
            inside.waiting.remove(&self.number);
            inside.running += 1;
            self.door.publish(&inside);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut inside = self.door.inside();
        if self.running {
            inside.running -= 1;
            let took = self.since.elapsed().as_secs_f64();
            let mean = inside.sequence_s.unwrap_or(took);
            inside.sequence_s = Some(mean + NEWEST * (took - mean));
        } else {
            inside.pass(Instant::now(), 0);
            inside.waiting.remove(&self.number);
        }
        self.door.publish(&inside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(sequences_max: u32, waiting_max: u32) -> Arc<Door> {
        let bounds = Bounds { sequences_max, waiting_max, first_token_ms: 60_000 };
        let metrics = Metrics::register(&prometheus::Registry::new(), "m", 64).unwrap();
        Door::new(bounds, Arc::new(metrics))
    }

    #[test]
    fn what_left_makes_room_whether_it_ran_or_not() {
        let door = door(3, 2);
        let mut first = door.enter(2, None).unwrap();
        let full = door.enter(1, None).unwrap_err();
        assert_eq!(full.kind, Kind::QueueFull);
        assert_eq!(full.retry_after_s, Some(1));
        first[0].started();
        let second = door.enter(1, None).unwrap();
        assert!(door.enter(1, None).is_err(), "3 of 3 are in flight");
        drop(first);
        drop(second);
        assert_eq!(door.metrics.waiting.get() + door.metrics.running.get(), 0);
        assert_eq!(door.enter(2, None).unwrap().len(), 2);
    }

    #[test]
    fn a_request_that_never_fits_is_not_told_to_come_back() {
        let refusal = door(3, 2).enter(3, None).unwrap_err();
        assert_eq!((refusal.kind, refusal.retry_after_s), (Kind::Invalid, None));
    }
}
