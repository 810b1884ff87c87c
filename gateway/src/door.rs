//! The door: counts what waits and runs, and lets requests in by `policy::admission`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use policy::admission::{Bounds, Traffic, Verdict, admit};

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
    traffic: Mutex<Traffic>,
    metrics: Arc<Metrics>,
}

/// One admitted sequence; dropping it makes room for the next.
#[derive(Debug)]
pub(crate) struct Admitted {
    door: Arc<Door>,
    since: Instant,
    running: bool,
}

impl Door {
    pub(crate) fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { bounds, traffic: Mutex::default(), metrics })
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets all of a request's sequences in, or none.
    pub(crate) fn enter(self: &Arc<Self>, sequences: u32) -> Result<Vec<Admitted>, Refusal> {
        let mut traffic = self.traffic();
        match admit(self.bounds, *traffic, sequences) {
            Verdict::Admit => {
                traffic.waiting += sequences;
                self.publish(&traffic);
            }
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
        drop(traffic);
        let admitted =
            || Admitted { door: Arc::clone(self), since: Instant::now(), running: false };
        Ok((0..sequences).map(|_| admitted()).collect())
    }

    fn publish(&self, traffic: &Traffic) {
        self.metrics.waiting.set(traffic.waiting.into());
        self.metrics.running.set(traffic.running.into());
    }
}

impl Admitted {
    /// The first token is here.
    pub(crate) fn started(&mut self) {
        if !std::mem::replace(&mut self.running, true) {
            let mut traffic = self.door.traffic();
            traffic.waiting -= 1;
            traffic.running += 1;
            self.door.publish(&traffic);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut traffic = self.door.traffic();
        if self.running {
            traffic.running -= 1;
            let took = self.since.elapsed().as_secs_f64();
            let mean = traffic.sequence_s.unwrap_or(took);
            traffic.sequence_s = Some(mean + NEWEST * (took - mean));
        } else {
            traffic.waiting -= 1;
        }
        self.door.publish(&traffic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(sequences_max: u32, waiting_max: u32) -> Arc<Door> {
        let bounds = Bounds { sequences_max, waiting_max };
        let metrics = Metrics::register(&prometheus::Registry::new(), "m", 64).unwrap();
        Door::new(bounds, Arc::new(metrics))
    }

    #[test]
    fn what_left_makes_room_whether_it_ran_or_not() {
        let door = door(3, 2);
        let mut first = door.enter(2).unwrap();
        let full = door.enter(1).unwrap_err();
        assert_eq!(full.kind, Kind::QueueFull);
        assert_eq!(full.retry_after_s, Some(1));
        first[0].started();
        let second = door.enter(1).unwrap();
        assert!(door.enter(1).is_err(), "3 of 3 are in flight");
        drop(first);
        drop(second);
        assert_eq!(door.metrics.waiting.get() + door.metrics.running.get(), 0);
        assert_eq!(door.enter(2).unwrap().len(), 2);
    }

    #[test]
    fn a_request_that_never_fits_is_not_told_to_come_back() {
        let refusal = door(3, 2).enter(3).unwrap_err();
        assert_eq!((refusal.kind, refusal.retry_after_s), (Kind::Invalid, None));
    }
}
