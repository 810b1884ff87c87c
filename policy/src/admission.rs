//! Decides whether a request may enter: how many sequences a gateway lets wait and run at once, and
//! for how long a new one may be expected to wait.

use std::fmt;

/// What a gateway holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Sequences in flight, those that wait for their first token among them; >= 1.
    pub sequences_max: u32,
    /// Sequences without a first token; >= 1.
    pub waiting_max: u32,
    /// Time in which a sequence is to have its first token, in milliseconds; >= 1.
    pub first_token_ms: u64,
}

/// What a gateway holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Sequences without a first token.
    pub waiting: u32,
    /// Sequences with one.
    pub running: u32,
    /// How long the one that has waited longest has waited, in seconds; 0 if none waits.
    pub oldest_s: f64,
    /// How fast waiting sequences lately got their first token.
    pub pace: Pace,
    /// How long a sequence lately took from its first token to its end, in seconds; none before the first
    /// ended.
    pub sequence_s: Option<f64>,
}

/// How many first tokens the mean of a [`Pace`] remembers.
const PACE_STARTS: f64 = 64.0;

/// Time between two first tokens while somebody waits for one: the mean over the last few. Time
/// without anybody who waits says nothing about how fast the nodes are and is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    starts: f64,
    waited_s: f64,
}

impl Pace {
    /// Somebody waited all through `elapsed_s` seconds, at whose end `starts` sequences had their
    /// first token.
    pub fn pass(&mut self, elapsed_s: f64, starts: u32) {
        let kept = (1.0 - 1.0 / PACE_STARTS).powf(starts.into());
        self.starts = (self.starts + f64::from(starts)) * kept;
        self.waited_s = (self.waited_s + elapsed_s) * kept;
    }

    /// Seconds between two first tokens; none before the first.
    #[must_use]
    pub fn start_s(&self) -> Option<f64> {
        (self.starts > 0.0).then(|| self.waited_s / self.starts)
    }
}

/// Which bound a request would break, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// [`Bounds::sequences_max`] with so many in flight already.
    Sequences {
        /// In flight without the new ones.
        held: u32,
        /// The bound.
        max: u32,
    },
    /// [`Bounds::waiting_max`] with so many that wait already.
    Waiting {
        /// Waiting without the new ones.
        held: u32,
        /// The bound.
        max: u32,
    },
    /// [`Bounds::first_token_ms`] by the time that the new ones would wait.
    FirstToken {
        /// Expected time to the first token, in milliseconds.
        expected_ms: u64,
        /// The bound.
        max_ms: u64,
    },
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
        /// When to try again, in whole seconds.
        retry_after_s: u32,
    },
    /// Never: the request alone is larger than the bound.
    TooLarge {
        /// The bound's value.
        max: u32,
    },
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequences { held, max } => write!(f, "{held} of {max} sequences are in flight"),
            Self::Waiting { held, max } => write!(f, "{held} of {max} sequences are waiting"),
            Self::FirstToken { expected_ms, max_ms } => write!(
                f,
                "the first token would take about {expected_ms} ms where {max_ms} ms are wanted"
            ),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admit => f.write_str("admitted"),
            Self::Later { bound, retry_after_s } => {
                write!(f, "{bound}; try again in {retry_after_s} s")
            }
            Self::TooLarge { max } => write!(f, "at most {max} sequences fit"),
        }
    }
}

/// No client is sent away for longer than this, in seconds: the estimate is a rough one.
const RETRY_AFTER_MAX_S: f64 = 60.0;
/// An expected wait is off by some, most of all when the nodes have just become slower: so much of the time to the first
/// token is given away by it. Under a load that fills even this queue no capacity is lost by it.
const EXPECTED_SHARE: f64 = 0.5;
/// An expectation alone turns nobody away: the one that has waited longest must have waited for this
/// part of the time too. After a pause, or for a sudden crowd, the pace of before says little.
const PROVEN_SHARE: f64 = 0.5;

/// Admits `wanted` new sequences or says why not and when to come back.
#[must_use]
pub fn admit(bounds: Bounds, traffic: Traffic, wanted: u32) -> Verdict {
    let Bounds { sequences_max, waiting_max, first_token_ms } = bounds;
    let largest = sequences_max.min(waiting_max);
    if wanted > largest {
        return Verdict::TooLarge { max: largest };
    }
    let held = traffic.waiting.saturating_add(traffic.running);
    let waiting = traffic.waiting.saturating_add(wanted);
    let later = |bound, wait_s| Verdict::Later { bound, retry_after_s: retry_after_s(wait_s) };
    if waiting > waiting_max {
        let bound = Bound::Waiting { held: traffic.waiting, max: waiting_max };
        return later(bound, until_gone_s(traffic, waiting - waiting_max));
    }
    let all = held.saturating_add(wanted);
    if all > sequences_max {
        let bound = Bound::Sequences { held, max: sequences_max };
        return later(bound, until_gone_s(traffic, all - sequences_max));
    }
    let within_s = first_token_ms as f64 / 1e3;
    let expected_s = expected_s(traffic, waiting);
    if expected_s > EXPECTED_SHARE * within_s && traffic.oldest_s >= PROVEN_SHARE * within_s {
        // Rounded to whole milliseconds; what is too large becomes the largest.
        let expected_ms = (expected_s * 1e3) as u64;
        let bound = Bound::FirstToken { expected_ms, max_ms: first_token_ms };
        return later(bound, expected_s - EXPECTED_SHARE * within_s);
    }
    Verdict::Admit
}

/// Time until `waiting` sequences have their first token: as one after the other lately had it, or as those that run make
/// room, whichever is slower. While nodes fill up first tokens come fast, which is over when they are full.
fn expected_s(traffic: Traffic, waiting: u32) -> f64 {
    let Some(start_s) = traffic.pace.start_s() else { return 0.0 };
    let room_s = traffic.sequence_s.map_or(0.0, |_| until_gone_s(traffic, waiting));
    (f64::from(waiting) * start_s).max(room_s)
}

/// Time until `excess` sequences have left, by Little's law: the sequences that run leave at a
/// rate of their number divided by how long one takes.
fn until_gone_s(traffic: Traffic, excess: u32) -> f64 {
    let running = f64::from(traffic.running.max(1));
    f64::from(excess) * traffic.sequence_s.unwrap_or(1.0) / running
}

/// In 1..=60.
fn retry_after_s(wait_s: f64) -> u32 {
    wait_s.ceil().clamp(1.0, RETRY_AFTER_MAX_S) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { sequences_max: 8, waiting_max: 4, first_token_ms: 2000 };

    fn traffic(waiting: u32, running: u32) -> Traffic {
        Traffic { waiting, running, sequence_s: Some(10.0), ..Traffic::default() }
    }

    #[test]
    fn admits_up_to_each_bound_and_not_beyond() {
        assert_eq!(admit(BOUNDS, traffic(3, 0), 1), Verdict::Admit);
        assert!(matches!(
            admit(BOUNDS, traffic(4, 0), 1),
            Verdict::Later { bound: Bound::Waiting { held: 4, max: 4 }, .. }
        ));
        assert_eq!(admit(BOUNDS, traffic(2, 5), 1), Verdict::Admit);
        assert!(matches!(
            admit(BOUNDS, traffic(2, 6), 1),
            Verdict::Later { bound: Bound::Sequences { held: 8, max: 8 }, .. }
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
        let fresh = Traffic { waiting: 4, ..Traffic::default() };
        assert_eq!(wait(fresh, 2), 2);
        let slow = Traffic { sequence_s: Some(1e6), ..traffic(4, 1) };
        assert_eq!(wait(slow, 1), 60);
    }

    /// `waiting` sequences, of which one waits for `oldest_s`, and a first token every 100 ms.
    fn queue(waiting: u32, oldest_s: f64) -> Traffic {
        let mut pace = Pace::default();
        (0..100).for_each(|_| pace.pass(0.1, 1));
        Traffic { waiting, oldest_s, pace, ..Traffic::default() }
    }

    #[test]
    fn those_who_would_wait_too_long_do_not_come_in() {
        let bounds = Bounds { sequences_max: 1000, waiting_max: 1000, first_token_ms: 2000 };
        // The tenth in line is expected after half of 2 s.
        assert_eq!(admit(bounds, queue(9, 1.4), 1), Verdict::Admit);
        let refused = admit(bounds, queue(10, 1.4), 1);
        let Verdict::Later { bound: Bound::FirstToken { expected_ms, max_ms }, retry_after_s } =
            refused
        else {
            panic!("{refused}")
        };
        assert!((1090..=1110).contains(&expected_ms), "{expected_ms}");
        assert_eq!((max_ms, retry_after_s), (2000, 1));
        assert!(matches!(
            admit(bounds, queue(100, 1.4), 1),
            Verdict::Later { retry_after_s: 10, .. }
        ));
        let patient = Bounds { first_token_ms: 20_000, ..bounds };
        assert_eq!(admit(patient, queue(99, 1.4), 1), Verdict::Admit);
    }

    #[test]
    fn an_expectation_alone_turns_nobody_away() {
        let bounds = Bounds { sequences_max: 1000, waiting_max: 1000, first_token_ms: 2000 };
        assert_eq!(admit(bounds, queue(500, 0.9), 1), Verdict::Admit, "a crowd has just come");
        assert!(matches!(admit(bounds, queue(500, 1.0), 1), Verdict::Later { .. }));
        let unknown = Traffic { pace: Pace::default(), ..queue(500, 9.0) };
        assert_eq!(admit(bounds, unknown, 1), Verdict::Admit, "nothing has started yet");
    }

    /// 200 run for 10 s each: one leaves every 50 ms, however fast first tokens came while there was room.
    #[test]
    fn a_full_node_takes_sequences_in_as_others_leave() {
        let bounds = Bounds { sequences_max: 1000, waiting_max: 1000, first_token_ms: 2000 };
        let mut pace = Pace::default();
        (0..100).for_each(|_| pace.pass(0.01, 1));
        let full = |waiting, running| {
            let sequence_s = Some(10.0);
            Traffic { waiting, running, oldest_s: 1.0, pace, sequence_s }
        };
        assert_eq!(admit(bounds, full(19, 200), 1), Verdict::Admit);
        assert!(matches!(admit(bounds, full(20, 200), 1), Verdict::Later { .. }));
        let fresh = Traffic { sequence_s: None, ..full(20, 200) };
        assert_eq!(admit(bounds, fresh, 1), Verdict::Admit, "nobody has left yet");
    }

    #[test]
    fn the_pace_is_that_of_late_and_a_pause_does_not_make_it_up() {
        let mut pace = Pace::default();
        assert_eq!(pace.start_s(), None);
        let near = |pace: Pace, expected: f64| {
            let found = pace.start_s().unwrap();
            assert!((found / expected - 1.0).abs() < 0.05, "{found} is not about {expected}");
        };
        (0..300).for_each(|_| pace.pass(0.1, 1));
        near(pace, 0.1);
        (0..300).for_each(|_| pace.pass(0.4, 2));
        near(pace, 0.2);
        // Nodes were away for 6 s: a tenth of a second more for each of the last 64.
        pace.pass(6.4, 0);
        near(pace, 0.3);
    }
}
