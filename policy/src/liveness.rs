//! Decides from silence alone whether a node is still there. Times are durations since any one origin.

use std::time::Duration;

/// How often a node beats and how long it may stay silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// A node beats this often.
    pub heartbeat: Duration,
    /// A node that was silent for this long is lost.
    pub lease: Duration,
}

/// What silence says about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It beat lately.
    Live,
    /// It missed more than one beat; it keeps its place until the lease is over.
    Silent,
    /// Its lease is over: others take its place.
    Lost,
}

/// Judges a node that was last heard of at `heard`.
#[must_use]
pub fn judge(now: Duration, heard: Duration, terms: &Terms) -> Verdict {
    let silence = now.saturating_sub(heard);
    if silence >= terms.lease {
        Verdict::Lost
    } else if silence > terms.heartbeat * 2 {
        Verdict::Silent
    } else {
        Verdict::Live
    }
}

/// How much of the time since the judge last looked must not count as anybody's silence.
///
/// A judge that was itself stopped (a paused machine, a starved thread) finds every node silent at
/// once. It looks at least once per heartbeat, so a gap of half a lease says that it was away, and
/// the whole gap is forgiven to everyone.
#[must_use]
pub fn forgiven(now: Duration, looked: Duration, terms: &Terms) -> Duration {
    let gap = now.saturating_sub(looked);
    if gap > terms.heartbeat && gap >= terms.lease / 2 { gap } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::{Terms, Verdict, forgiven, judge};
    use std::time::Duration;

    const TERMS: Terms =
        Terms { heartbeat: Duration::from_millis(100), lease: Duration::from_millis(500) };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn silence_turns_into_loss_at_the_lease() {
        let verdict = |now| judge(ms(now), ms(1000), &TERMS);
        assert_eq!(verdict(1200), Verdict::Live);
        assert_eq!(verdict(1201), Verdict::Silent);
        assert_eq!(verdict(1499), Verdict::Silent);
        assert_eq!(verdict(1500), Verdict::Lost);
    }

    #[test]
    fn a_beat_from_the_future_is_live() {
        assert_eq!(judge(ms(0), ms(1000), &TERMS), Verdict::Live);
    }

    #[test]
    fn a_judge_that_was_away_blames_nobody() {
        assert_eq!(forgiven(ms(1050), ms(1000), &TERMS), Duration::ZERO);
        assert_eq!(forgiven(ms(1249), ms(1000), &TERMS), Duration::ZERO);
        assert_eq!(forgiven(ms(9000), ms(1000), &TERMS), ms(8000));
    }
}
