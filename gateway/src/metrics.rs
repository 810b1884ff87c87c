//! What the gateway measures, under vLLM's names where vLLM has one.

use std::time::Duration;

use domain::FinishReason;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::refusal::Kind;

/// Time to first token, in seconds: vLLM's bounds and 2.
const FIRST_TOKEN_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Time between tokens, in seconds: vLLM's bounds and 0.001, 0.002, 0.005.
const BETWEEN_TOKENS_S: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Time of whole requests, in seconds: vLLM's bounds.
const REQUEST_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// Choices per request: vLLM's bounds.
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
/// Time to tokenize a prompt, in seconds.
const TOKENIZE_S: &[f64] = &[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0];

/// The gateway's metrics. Their number is fixed by the code and the key file: no label takes a client's words.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) running: IntGauge,
    pub(crate) waiting: IntGauge,
    pub(crate) kv_cache_used: Gauge,
    pub(crate) nodes_ready: IntGauge,
    pub(crate) prompt_tokens: IntCounter,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    generation_tokens: IntCounter,
    /// By reason.
    finished: IntCounterVec,
    times: Times,
    pub(crate) sizes: Sizes,
    pub(crate) tokenize: Histogram,
    pub(crate) resumed: IntCounter,
    refused: IntCounterVec,
    pub(crate) responses: IntCounterVec,
    pub(crate) keyed: IntCounterVec,
}

/// How long things took, in seconds.
#[derive(Debug)]
struct Times {
    first_token: Histogram,
    between_tokens: Histogram,
    per_output_token: Histogram,
    request: Histogram,
    decode: Histogram,
}

/// How much was asked for and how much came, in tokens and choices.
#[derive(Debug)]
pub(crate) struct Sizes {
    pub(crate) prompt: Histogram,
    generation: Histogram,
    longest: Histogram,
    pub(crate) choices: Histogram,
    pub(crate) tokens_max: Histogram,
}

/// How a sequence ended, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Finished(FinishReason),
    /// The client went away.
    Abort,
    Error,
}

impl Outcome {
    const ALL: [Self; 4] = [
        Self::Finished(FinishReason::Stop),
        Self::Finished(FinishReason::Length),
        Self::Abort,
        Self::Error,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Finished(FinishReason::Stop | FinishReason::Complete) => "stop",
            Self::Finished(FinishReason::Length) => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

struct Names<'a> {
    registry: &'a Registry,
    model: &'a str,
}

impl Names<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_label("model_name", self.model)
    }

    fn keep<T: prometheus::core::Collector + Clone + 'static>(
        &self,
        metric: prometheus::Result<T>,
    ) -> prometheus::Result<T> {
        let metric = metric?;
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.keep(IntGauge::with_opts(self.opts(name, help)))
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.keep(IntCounter::with_opts(self.opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, by: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.keep(IntCounterVec::new(self.opts(name, help), by))
    }

    fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> prometheus::Result<Histogram> {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(bounds.to_vec());
        self.keep(Histogram::with_opts(opts))
    }
}

/// 1, 2, 5, 10, 20 … up to the longest sequence.
fn token_counts(positions_max: u32) -> Vec<f64> {
    let decades = (0..).map(|exponent| 10_f64.powi(exponent));
    decades
        .flat_map(|decade| [decade, 2.0 * decade, 5.0 * decade])
        .take_while(|&bound| bound <= f64::from(positions_max))
        .collect()
}

impl Times {
    fn register(names: &Names<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            first_token: names.histogram(
                "vllm:time_to_first_token_seconds",
                "From the request's arrival to a sequence's first token",
                FIRST_TOKEN_S,
            )?,
            between_tokens: names.histogram(
                "vllm:inter_token_latency_seconds",
                "From one token of a sequence to the next",
                BETWEEN_TOKENS_S,
            )?,
            per_output_token: names.histogram(
                "vllm:request_time_per_output_token_seconds",
                "Mean time between the tokens of a sequence",
                BETWEEN_TOKENS_S,
            )?,
            request: names.histogram(
                "vllm:e2e_request_latency_seconds",
                "From the request's arrival to a sequence's end",
                REQUEST_S,
            )?,
            decode: names.histogram(
                "vllm:request_decode_time_seconds",
                "From a sequence's first token to its last",
                REQUEST_S,
            )?,
        })
    }
}

impl Sizes {
    fn register(names: &Names<'_>, positions_max: u32) -> prometheus::Result<Self> {
        let lengths = token_counts(positions_max);
        Ok(Self {
            prompt: names.histogram(
                "vllm:request_prompt_tokens",
                "Tokens of a prompt",
                &lengths,
            )?,
            generation: names.histogram(
                "vllm:request_generation_tokens",
                "Tokens that a sequence generated",
                &lengths,
            )?,
            longest: names.histogram(
                "vllm:request_max_num_generation_tokens",
                "Tokens of a request's longest choice",
                &lengths,
            )?,
            choices: names.histogram("vllm:request_params_n", "Choices asked for", CHOICES)?,
            tokens_max: names.histogram(
                "vllm:request_params_max_tokens",
                "Most tokens asked for",
                &lengths,
            )?,
        })
    }
}

impl Metrics {
    /// Registers everything, under the model's served name.
    pub(crate) fn register(
        registry: &Registry,
        model: &str,
        positions_max: u32,
    ) -> prometheus::Result<Self> {
        let names = Names { registry, model };
        let metrics = Self {
            running: names.gauge(
                "vllm:num_requests_running",
                "Sequences with a first token that have not ended",
            )?,
            waiting: names
                .gauge("vllm:num_requests_waiting", "Sequences that have no first token yet")?,
            kv_cache_used: names.keep(Gauge::with_opts(names.opts(
                "vllm:kv_cache_usage_perc",
                "Share of the ready attention nodes' KV blocks that are in use, 0 to 1",
            )))?,
            nodes_ready: names
                .gauge("amoe_gateway_attention_nodes_ready", "Attention nodes that take work")?,
            prompt_tokens: names.counter("vllm:prompt_tokens_total", "Prompt tokens taken in")?,
            prefix_queries: names.counter(
                "vllm:prefix_cache_queries_total",
                "Prompt tokens of sequences that have a first token",
            )?,
            prefix_hits: names.counter(
                "vllm:prefix_cache_hits_total",
                "Those of them that needed no computing, because an earlier prompt began alike",
            )?,
            generation_tokens: names.counter("vllm:generation_tokens_total", "Tokens generated")?,
            finished: names.counters(
                "vllm:request_success_total",
                "Sequences that ended, by reason",
                &["finished_reason"],
            )?,
            times: Times::register(&names)?,
            sizes: Sizes::register(&names, positions_max)?,
            tokenize: names.histogram(
                "amoe_gateway_tokenize_seconds",
                "Time to render and tokenize the prompts of a request",
                TOKENIZE_S,
            )?,
            resumed: names.counter(
                "amoe_gateway_sequences_resumed_total",
                "Sequences that went on at another place after their attention node was lost",
            )?,
            refused: names.counters(
                "amoe_gateway_refused_total",
                "Requests that were refused or failed, by kind",
                &["kind"],
            )?,
            responses: names.counters(
                "amoe_gateway_responses_total",
                "Responses by route and status; a gRPC call that was answered counts as 200",
                &["route", "status"],
            )?,
            keyed: names.counters(
                "amoe_gateway_keyed_responses_total",
                "Responses to requests with a known key, by its name",
                &["key"],
            )?,
        };
        metrics.begin();
        Ok(metrics)
    }

    /// Makes the series of known labels, so that a rate is there from the first event on.
    fn begin(&self) {
        for outcome in Outcome::ALL {
            self.finished.with_label_values(&[outcome.label()]);
        }
        for kind in Kind::ALL {
            self.refused.with_label_values(&[kind.label()]);
        }
    }

    pub(crate) fn refused(&self, kind: Kind) {
        self.refused.with_label_values(&[kind.label()]).inc();
    }

    /// A sequence's first token came; so many of its prompt's tokens were in the cache of its node.
    pub(crate) fn began(&self, prompt: u32, cached: u32) {
        self.prefix_queries.inc_by(prompt.into());
        self.prefix_hits.inc_by(cached.into());
    }

    /// Tokens that came in one message: `gap` is the time since the one before, none at first.
    pub(crate) fn tokens(&self, count: usize, since_arrival: Duration, gap: Option<Duration>) {
        self.generation_tokens.inc_by(count as u64);
        match gap {
            None => self.times.first_token.observe(since_arrival.as_secs_f64()),
            Some(gap) => self.times.between_tokens.observe(gap.as_secs_f64()),
        }
    }

    /// A sequence's end. `decode` is the time from its first token to its last.
    pub(crate) fn ended(&self, outcome: Outcome, tokens: usize, whole: Duration, decode: Duration) {
        self.finished.with_label_values(&[outcome.label()]).inc();
        if !matches!(outcome, Outcome::Finished(_)) {
            return;
        }
        self.times.request.observe(whole.as_secs_f64());
        self.times.decode.observe(decode.as_secs_f64());
        self.sizes.generation.observe(tokens as f64);
        if tokens > 1 {
            let gaps = (tokens - 1) as f64;
            self.times.per_output_token.observe(decode.as_secs_f64() / gaps);
        }
    }

    /// The length of a request's longest choice, when all have ended.
    pub(crate) fn longest(&self, tokens: usize) {
        self.sizes.longest.observe(tokens as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_go_up_to_the_model_s_own() {
        assert_eq!(token_counts(20), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(token_counts(40_960).last(), Some(&20_000.0));
    }

    #[test]
    fn every_bound_of_vllm_is_there() {
        for (ours, vllm) in [
            (FIRST_TOKEN_S, &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 2560.0][..]),
            (BETWEEN_TOKENS_S, &[0.01, 0.025, 0.05, 0.075, 0.1, 80.0][..]),
        ] {
            assert!(vllm.iter().all(|bound| ours.contains(bound)));
            assert!(ours.is_sorted());
        }
    }
}
