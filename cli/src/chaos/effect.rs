//! What a fault did to clients: how throughput fell and came back, and how long they waited for tokens.

use std::{fmt, ops::Range, time::Duration};

use super::{fault::Kind, record::Arrival};
use crate::bench::stats::quantile;

/// Throughput is that of a second; it is looked at this often.
const STEP: Duration = Duration::from_millis(100);
const STEPS: usize = 10;
/// Throughput and waits before a fault are those of this time, or since the last fault was made good.
const BEFORE: Duration = Duration::from_secs(5);
/// This part of the throughput before a fault is full throughput, or that of the least second before it: what
/// a few clients get in a second varies.
const FULL: f64 = 0.8;
/// Less than this is never full, whatever was before.
const LEAST: f64 = 0.6;

/// What made a fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// This program.
    Made(Kind),
    /// Somebody who says this of it.
    Told(String),
}

/// A fault in time, counted from the begin of the record.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) cause: Cause,
    /// The names of the processes, for people.
    pub(super) whom: String,
    pub(super) struck: Duration,
    /// Its victims were started again, or went on, from here.
    pub(super) healed: Duration,
    /// Everybody was ready again.
    pub(super) whole: Duration,
}

/// The 99th percentile of clients' waits for their next token, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Waits {
    pub(super) before: f64,
    pub(super) during: f64,
    pub(super) after: f64,
}

/// What a fault did.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) mark: Mark,
    /// Tokens per second before it.
    pub(super) rate: f64,
    /// Least throughput of a second, as a part of that before.
    pub(super) dip: f64,
    /// From the fault until the throughput was full again and stayed so for two seconds; 0 if it always was.
    pub(super) recovery: Duration,
    /// Longest that any client waited for its next token.
    pub(super) longest: Duration,
    pub(super) p99_ms: Waits,
}

/// Tokens of every step.
#[derive(Clone, Debug)]
pub(super) struct Throughput {
    steps: Vec<usize>,
}

// === impl Cause ===

impl Cause {
    /// For people.
    pub(super) fn sentence(&self) -> &str {
        match self {
            Self::Made(kind) => kind.sentence(),
            Self::Told(what) => what,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Made(kind) => kind.fmt(f),
            Self::Told(what) => f.write_str(what),
        }
    }
}

fn step(at: Duration) -> usize {
    usize::try_from(at.as_millis() / STEP.as_millis()).unwrap_or(usize::MAX)
}

// === impl Throughput ===

impl Throughput {
    pub(super) fn new(arrivals: &[Arrival], end: Duration) -> Self {
        let mut steps = vec![0; step(end) + 1];
        for arrival in arrivals {
            if let Some(tokens) = steps.get_mut(step(arrival.at)) {
                *tokens += arrival.tokens;
            }
        }
        Self { steps }
    }

    /// Tokens per second from one time to another.
    pub(super) fn between(&self, from: Duration, to: Duration) -> f64 {
        let (from, to) = (step(from).min(self.steps.len()), step(to).min(self.steps.len()));
        self.rate(from, to)
    }

    fn rate(&self, from: usize, to: usize) -> f64 {
        let tokens: usize = self.steps[from.min(to)..to].iter().sum();
        tokens as f64 / (to.saturating_sub(from).max(1) as f64 * STEP.as_secs_f64())
    }

    /// Tokens per second of every whole second, with the time at its begin.
    pub(super) fn seconds(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let seconds = self.steps.chunks_exact(STEPS).enumerate();
        seconds.map(|(at, steps)| (at as f64, steps.iter().sum::<usize>() as f64))
    }

    /// The seconds within a time: how long after the first time, and their
    /// throughput as a part of `rate`.
    fn parts(&self, from: Duration, to: Duration, rate: f64) -> Vec<(Duration, f64)> {
        let first = step(from);
        let last = step(to).min(self.steps.len()).saturating_sub(STEPS);
        let part = |at: usize| {
            let after = STEP * u32::try_from(at - first).unwrap_or(u32::MAX);
            (after, self.rate(at, at + STEPS) / rate.max(f64::MIN_POSITIVE))
        };
        (first..=last).map(part).collect()
    }
}

// === impl Effect ===

impl Effect {
    /// The effects of all faults, each up to the next or the end.
    pub(super) fn all(marks: &[Mark], arrivals: &[Arrival], end: Duration) -> Vec<Self> {
        let throughput = Throughput::new(arrivals, end);
        let before = |at: usize| at.checked_sub(1).map_or(Duration::ZERO, |at| marks[at].whole);
        let after = |at: usize| marks.get(at + 1).map_or(end, |next| next.struck);
        let effect = |(at, mark): (usize, &Mark)| {
            Self::new(mark.clone(), (before(at), after(at)), arrivals, &throughput)
        };
        marks.iter().enumerate().map(effect).collect()
    }

    fn new(
        mark: Mark,
        (last, next): (Duration, Duration),
        arrivals: &[Arrival],
        throughput: &Throughput,
    ) -> Self {
        let begin = last.max(mark.struck.saturating_sub(BEFORE));
        let rate = throughput.between(begin, mark.struck);
        let calm = throughput.parts(begin, mark.struck, rate);
        let full = calm.iter().map(|(_, part)| *part).fold(FULL, f64::min).max(LEAST);
        let parts = throughput.parts(mark.struck, next, rate);
        let felt = mark.whole - mark.struck;
        let dips = parts.iter().position(|&(after, part)| after <= felt && part < full);
        let recovery = dips.map_or(Duration::ZERO, |dip| {
            let holds = |at: &usize| {
                let second = &parts[*at..parts.len().min(at + 1 + STEPS)];
                second.iter().all(|(_, part)| *part >= full)
            };
            let again = (dip..parts.len()).find(holds);
            again.map_or(next - mark.struck, |at| parts[at].0)
        });
        let dip = parts.iter().filter(|(after, _)| *after <= felt).map(|(_, part)| *part);
        let over = mark.whole.max(mark.struck + recovery).min(next);
        let waits = |ended: Range<Duration>, begun: Range<Duration>| -> Vec<Duration> {
            let ended = arrivals.iter().filter(|arrival| ended.contains(&arrival.at));
            let begun = ended.filter(|it| begun.contains(&it.at.saturating_sub(it.waited)));
            begun.map(|arrival| arrival.waited).collect()
        };
        // Who began to wait during the fault waits because of it, even when its victim is back.
        let during = waits(mark.struck..Duration::MAX, last..over);
        let p99_ms = Waits {
            before: p99_ms(&waits(begin..mark.struck, Duration::ZERO..mark.struck)),
            during: p99_ms(&during),
            after: p99_ms(&waits(over..next, over..next)),
        };
        Self {
            rate,
            dip: dip.fold(1.0, f64::min),
            recovery,
            longest: during.iter().max().copied().unwrap_or_default(),
            p99_ms,
            mark,
        }
    }
}

/// The 99th percentile in milliseconds; 0 of nothing.
pub(super) fn p99_ms(waits: &[Duration]) -> f64 {
    let mut ms: Vec<f64> = waits.iter().map(|wait| wait.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    if ms.is_empty() { 0.0 } else { quantile(&ms, 0.99) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Arrival, Cause, Effect, Kind, Mark};

    fn mark(struck: u64, whole: u64) -> Mark {
        let (struck, whole) = (Duration::from_millis(struck), Duration::from_millis(whole));
        let (cause, whom) = (Cause::Made(Kind::ExpertKilled), "expert-0".to_owned());
        Mark { cause, whom, struck, healed: whole, whole }
    }

    /// A token every 10 ms but for the times between `gaps`, in milliseconds.
    fn arrivals(end: u64, gaps: &[(u64, u64)]) -> Vec<Arrival> {
        let mut last = 0;
        let heard = |at: &u64| !gaps.iter().any(|(from, to)| (from..to).contains(&at));
        let times: Vec<u64> = (1..end / 10).map(|at| at * 10).filter(heard).collect();
        let arrival = |at: u64| {
            let waited = Duration::from_millis(at - std::mem::replace(&mut last, at));
            Arrival { at: Duration::from_millis(at), waited, tokens: 1 }
        };
        times.into_iter().map(arrival).collect()
    }

    #[test]
    fn a_silence_is_a_dip_and_its_end_the_recovery() {
        let end = Duration::from_secs(20);
        let arrivals = arrivals(20_000, &[(10_200, 11_700)]);
        let effects = Effect::all(&[mark(10_000, 12_000)], &arrivals, end);
        let effect = &effects[0];
        assert!((effect.rate - 100.0).abs() < 1.0, "{effect:?}");
        assert_eq!(effect.dip, 0.0);
        assert_eq!(effect.longest, Duration::from_millis(1510));
        // The first second with 80 tokens begins 1.5 s after the fault.
        assert_eq!(effect.recovery, Duration::from_millis(1500));
        assert_eq!((effect.p99_ms.before, effect.p99_ms.after), (10.0, 10.0));
        assert!(effect.p99_ms.during > 10.0, "{effect:?}");
    }

    #[test]
    fn a_fault_that_nobody_feels_has_no_recovery() {
        let arrivals = arrivals(30_000, &[(22_000, 24_000)]);
        let marks = [mark(10_000, 12_000), mark(21_500, 23_000)];
        let effects = Effect::all(&marks, &arrivals, Duration::from_secs(30));
        assert_eq!(effects[0].recovery, Duration::ZERO);
        assert!(effects[0].dip > 0.9, "{:?}", effects[0]);
        assert!(effects[1].recovery > Duration::from_secs(1), "{:?}", effects[1]);
    }

    #[test]
    fn what_does_not_recover_lasts_until_the_next_fault() {
        let arrivals = arrivals(20_000, &[(10_000, 19_000)]);
        let marks = [mark(10_000, 12_000), mark(18_000, 18_500)];
        let effects = Effect::all(&marks, &arrivals, Duration::from_secs(20));
        assert_eq!(effects[0].recovery, Duration::from_secs(8));
    }
}
