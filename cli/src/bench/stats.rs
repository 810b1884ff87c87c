//! What a load's timings say, in the terms and by the definitions of vLLM's `bench serve`.

use std::{str::FromStr, time::Duration};

/// What a request that was answered took.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Timing {
    pub(super) prompt_tokens: u64,
    pub(super) output_tokens: u64,
    /// From sending to the first token.
    pub(super) ttft: Duration,
    /// Between a chunk of the stream and the one before.
    pub(super) itl: Vec<Duration>,
    /// From sending to the last token.
    pub(super) e2el: Duration,
}

/// A time that a goal can be set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    Ttft,
    Tpot,
    E2el,
}

/// A time that a good request keeps to: `ttft:200`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Goal {
    metric: Metric,
    ms: f64,
}

/// Four numbers for many, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub(super) mean: f64,
    pub(super) median: f64,
    /// Of the numbers as a whole, not as a sample.
    pub(super) std: f64,
    pub(super) p99: f64,
}

/// Requests without an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unanswered {
    pub(super) failed: usize,
    /// Those that a full server sent away, by 429: they have not failed.
    pub(super) refused: usize,
}

/// A whole load.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub(super) completed: usize,
    pub(super) unanswered: Unanswered,
    /// Seconds from the first request to the last answer.
    pub(super) duration: f64,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    /// Requests that keep to all goals, if there are goals.
    pub(super) good: Option<usize>,
    pub(super) ttft: Spread,
    /// Per request, the time per token after the first.
    pub(super) tpot: Spread,
    pub(super) itl: Spread,
    pub(super) e2el: Spread,
}

// === impl Timing ===

impl Timing {
    /// Milliseconds per token after the first; none if there is but one.
    fn tpot(&self) -> Option<f64> {
        let rest = self.output_tokens.checked_sub(1).filter(|rest| *rest > 0)?;
        Some(ms(self.e2el.saturating_sub(self.ttft)) / rest as f64)
    }

    fn keeps_to(&self, goal: &Goal) -> bool {
        let found = match goal.metric {
            Metric::Ttft => ms(self.ttft),
            Metric::Tpot => self.tpot().unwrap_or_default(),
            Metric::E2el => ms(self.e2el),
        };
        found <= goal.ms
    }
}

// === impl Goal ===

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}`: expected ttft:MS, tpot:MS or e2el:MS");
        let (name, ms) = text.split_once(':').ok_or_else(wrong)?;
        let metric = match name {
            "ttft" => Metric::Ttft,
            "tpot" => Metric::Tpot,
            "e2el" => Metric::E2el,
            _ => return Err(wrong()),
        };
        let ms = ms.parse().ok().filter(|ms| *ms >= 0.0).ok_or_else(wrong)?;
        Ok(Self { metric, ms })
    }
}

// === impl Spread ===

impl Spread {
    /// The spread of `values`; all 0 if there are none.
    fn of(mut values: Vec<f64>) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        values.sort_by(f64::total_cmp);
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        Self {
            mean,
            median: quantile(&values, 0.5),
            std: variance.sqrt(),
            p99: quantile(&values, 0.99),
        }
    }
}

/// The value below which `share` of the sorted values are, interpolated between two of them.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

// === impl Summary ===

impl Summary {
    /// Sums up a load that took `duration` in all.
    pub(super) fn new(
        timings: &[Timing],
        unanswered: Unanswered,
        duration: Duration,
        goals: &[Goal],
    ) -> Self {
        let spread = |time: fn(&Timing) -> Duration| {
            Spread::of(timings.iter().map(|timing| ms(time(timing))).collect())
        };
        let good = |timing: &&Timing| goals.iter().all(|goal| timing.keeps_to(goal));
        Self {
            completed: timings.len(),
            unanswered,
            duration: duration.as_secs_f64(),
            input_tokens: timings.iter().map(|timing| timing.prompt_tokens).sum(),
            output_tokens: timings.iter().map(|timing| timing.output_tokens).sum(),
            good: (!goals.is_empty()).then(|| timings.iter().filter(good).count()),
            ttft: spread(|timing| timing.ttft),
            tpot: Spread::of(timings.iter().filter_map(Timing::tpot).collect()),
            itl: Spread::of(
                timings.iter().flat_map(|timing| &timing.itl).copied().map(ms).collect(),
            ),
            e2el: spread(|timing| timing.e2el),
        }
    }

    /// `count` per second.
    pub(super) fn rate(&self, count: f64) -> f64 {
        if self.duration > 0.0 { count / self.duration } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Goal, Spread, Summary, Timing, Unanswered};

    fn timing(output_tokens: u64, ttft: u64, itl: &[u64]) -> Timing {
        let itl: Vec<_> = itl.iter().copied().map(Duration::from_millis).collect();
        let ttft = Duration::from_millis(ttft);
        let e2el = ttft + itl.iter().sum::<Duration>();
        Timing { prompt_tokens: 10, output_tokens, ttft, itl, e2el }
    }

    fn goals(texts: &[&str]) -> Vec<Goal> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn spreads_are_those_of_numpy() {
        // numpy.mean, median, std and percentile(…, 99) of the same numbers.
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 10.0]);
        assert_eq!((spread.mean, spread.median), (4.25, 3.0));
        assert!((spread.std - 3.491_060_010_942_235).abs() < 1e-12, "{spread:?}");
        assert!((spread.p99 - 9.82).abs() < 1e-12, "{spread:?}");
        assert_eq!(Spread::of(vec![7.0]), Spread { mean: 7.0, median: 7.0, std: 0.0, p99: 7.0 });
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    #[test]
    fn a_summary_counts_tokens_and_times() {
        // Chunks may hold several tokens: 5 tokens in 3 chunks, then a single one.
        let timings = [timing(5, 100, &[20, 60]), timing(1, 300, &[])];
        let unanswered = Unanswered { failed: 1, refused: 2 };
        let summary = Summary::new(&timings, unanswered, Duration::from_secs(2), &[]);
        assert_eq!((summary.completed, summary.unanswered, summary.good), (2, unanswered, None));
        assert_eq!((summary.input_tokens, summary.output_tokens), (20, 6));
        assert_eq!(summary.rate(6.0), 3.0);
        assert_eq!((summary.ttft.mean, summary.e2el.mean), (200.0, 240.0));
        // 80 ms for the 4 tokens after the first; a single token has no such time.
        assert_eq!((summary.tpot.mean, summary.tpot.std), (20.0, 0.0));
        assert_eq!((summary.itl.mean, summary.itl.median), (40.0, 40.0));
    }

    #[test]
    fn good_requests_keep_to_every_goal() {
        let timings = [timing(5, 100, &[20, 60]), timing(1, 300, &[]), timing(2, 50, &[90])];
        let good = |texts: &[&str]| {
            let none = Unanswered::default();
            Summary::new(&timings, none, Duration::from_secs(1), &goals(texts)).good
        };
        assert_eq!(good(&["ttft:100"]), Some(2));
        assert_eq!(good(&["tpot:50"]), Some(2));
        assert_eq!(good(&["ttft:100", "tpot:50"]), Some(1));
        assert_eq!(good(&["e2el:1"]), Some(0));
    }

    #[test]
    fn goals_are_a_metric_and_milliseconds() {
        for text in ["itl:3", "ttft", "ttft:fast", "e2el:-1"] {
            let sentence = format!("`{text}`: expected ttft:MS, tpot:MS or e2el:MS");
            assert_eq!(text.parse::<Goal>(), Err(sentence));
        }
    }
}
