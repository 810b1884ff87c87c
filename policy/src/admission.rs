//! Decides whether a request may enter: how many sequences a gateway lets wait and run at once.

use std::fmt;

/// What a gateway holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Sequences in flight, those that wait for their first token among them; >= 1.
    pub sequences_max: u32,
    /// Sequences without a first token; >= 1.
    pub waiting_max: u32,
}

/// What a gateway holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Sequences without a first token.
    pub waiting: u32,
    /// Sequences with one.
    pub running: u32,
    /// How long a sequence lately took from start to end, in seconds; none before the first ended.
    pub sequence_s: Option<f64>,
}

/// Which bound a request would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// [`Bounds::sequences_max`].
    Sequences,
    /// [`Bounds::waiting_max`].
    Waiting,
}

/// The answer to a request that wants to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Come in.
    Admit,
    /// Not now.
    Later {
        /// The bound that is reached.
        bound: Bound,
        /// Sequences counted against it, without the new ones.
        held: u32,
        /// Its value.
        max: u32,
        /// When to try again, in whole seconds.
        retry_after_s: u32,
    },
    /// Never: the request alone is larger than the bound.
    TooLarge {
        /// The bound's value.
        max: u32,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admit => f.write_str("admitted"),
            Self::Later { bound, held, max, retry_after_s } => {
                let what = match bound {
                    Bound::Sequences => "in flight",
                    Bound::Waiting => "waiting",
                };
                write!(f, "{held} of {max} sequences are {what}; try again in {retry_after_s} s")
            }
            Self::TooLarge { max } => write!(f, "at most {max} sequences fit"),
        }
    }
}

/// No client is sent away for longer than this, in seconds: the estimate is a rough one.
const RETRY_AFTER_MAX_S: f64 = 60.0;

/// Admits `wanted` new sequences or says why not and when to come back.
#[must_use]
pub fn admit(bounds: Bounds, traffic: Traffic, wanted: u32) -> Verdict {
    let largest = bounds.sequences_max.min(bounds.waiting_max);
    if wanted > largest {
        return Verdict::TooLarge { max: largest };
    }
    let held = traffic.waiting.saturating_add(traffic.running);
    let later = |bound, held: u32, max: u32| Verdict::Later {
        bound,
        held,
        max,
        retry_after_s: retry_after_s(traffic, held.saturating_add(wanted).saturating_sub(max)),
    };
    if traffic.waiting.saturating_add(wanted) > bounds.waiting_max {
        later(Bound::Waiting, traffic.waiting, bounds.waiting_max)
    } else if held.saturating_add(wanted) > bounds.sequences_max {
        later(Bound::Sequences, held, bounds.sequences_max)
    } else {
        Verdict::Admit
    }
}

/// Time until `excess` sequences have left, by Little's law: the sequences that run leave at a
/// rate of their number divided by how long one takes.
fn retry_after_s(traffic: Traffic, excess: u32) -> u32 {
    let running = f64::from(traffic.running.max(1));
    let wait = f64::from(excess) * traffic.sequence_s.unwrap_or(1.0) / running;
    let wait = wait.ceil().clamp(1.0, RETRY_AFTER_MAX_S);
    // In 1..=60 by the clamp above.
    wait as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { sequences_max: 8, waiting_max: 4 };

    fn traffic(waiting: u32, running: u32) -> Traffic {
        Traffic { waiting, running, sequence_s: Some(10.0) }
    }

    #[test]
    fn admits_up_to_each_bound_and_not_beyond() {
        assert_eq!(admit(BOUNDS, traffic(3, 0), 1), Verdict::Admit);
        assert!(matches!(
            admit(BOUNDS, traffic(4, 0), 1),
            Verdict::Later { bound: Bound::Waiting, held: 4, max: 4, .. }
        ));
        assert_eq!(admit(BOUNDS, traffic(2, 5), 1), Verdict::Admit);
        assert!(matches!(
            admit(BOUNDS, traffic(2, 6), 1),
            Verdict::Later { bound: Bound::Sequences, held: 8, max: 8, .. }
        ));
    }

    #[test]
    fn a_request_larger_than_the_bound_is_never_told_to_wait() {
        assert_eq!(admit(BOUNDS, traffic(0, 0), 5), Verdict::TooLarge { max: 4 });
        assert_eq!(admit(BOUNDS, traffic(0, 0), 4), Verdict::Admit);
    }

    #[test]
    fn all_choices_of_a_request_enter_or_none() {
        assert_eq!(admit(BOUNDS, traffic(1, 0), 3), Verdict::Admit);
        assert!(matches!(admit(BOUNDS, traffic(2, 0), 3), Verdict::Later { .. }));
    }

    #[test]
    fn the_wait_follows_the_rate_at_which_sequences_leave() {
        let wait = |traffic, wanted| match admit(BOUNDS, traffic, wanted) {
            Verdict::Later { retry_after_s, .. } => retry_after_s,
            other => panic!("{other}"),
        };
        // One too many, four running of 10 s each: one leaves every 2.5 s.
        assert_eq!(wait(traffic(4, 4), 1), 3);
        // Nothing has ended yet: a second per sequence.
        let fresh = Traffic { waiting: 4, running: 0, sequence_s: None };
        assert_eq!(wait(fresh, 2), 2);
        let slow = Traffic { waiting: 4, running: 1, sequence_s: Some(1e6) };
        assert_eq!(wait(slow, 1), 60);
    }
}
