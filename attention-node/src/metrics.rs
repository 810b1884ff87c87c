//! What an attention node counts.

use std::time::Duration;

use chassis::metrics::registered;
use domain::{Epoch, Load};
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry};

/// Metrics of one attention node.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    running: IntGauge,
    waiting: IntGauge,
    kv_blocks: IntGauge,
    kv_blocks_free: IntGauge,
    kv_blocks_idle: IntGauge,
    ready_rows: IntGauge,
    run_spans: Histogram,
    run_rows: Histogram,
    layer_seconds: Histogram,
    head_seconds: Histogram,
    plan_epoch: IntGauge,
    pub(crate) last_token: Gauge,
    pub(crate) tokens: IntCounter,
    pub(crate) prompt_tokens: IntCounter,
    pub(crate) cached_tokens: IntCounter,
    pub(crate) preemptions: IntCounter,
    pub(crate) cancelled: IntCounter,
    pub(crate) refused: IntCounter,
    pub(crate) rejected: IntCounter,
}

impl Metrics {
    /// Registers the metrics; `node` tells the copies within one process apart.
    pub(crate) fn register(registry: &Registry, node: &str) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("node", node);
        let counter = |name, help| registered(registry, IntCounter::with_opts(opts(name, help)));
        let gauge = |name, help| registered(registry, IntGauge::with_opts(opts(name, help)));
        let sizes = prometheus::exponential_buckets(1.0, 2.0, 12)?;
        let histogram = |name: &str, help: &str| {
            let opts = HistogramOpts::new(name, help).const_label("node", node);
            registered(registry, Histogram::with_opts(opts.buckets(sizes.clone())))
        };
        let times = prometheus::exponential_buckets(50e-6, 2.0, 14)?;
        let time = |name: &str, help: &str| {
            let opts = HistogramOpts::new(name, help).const_label("node", node);
            registered(registry, Histogram::with_opts(opts.buckets(times.clone())))
        };
        Ok(Self {
            running: gauge("amoe_attention_sequences_running", "Sequences that run.")?,
            waiting: gauge("amoe_attention_sequences_waiting", "Sequences that wait.")?,
            kv_blocks: gauge("amoe_attention_kv_blocks", "KV blocks in all.")?,
            kv_blocks_free: gauge("amoe_attention_kv_blocks_free", "KV blocks nobody holds.")?,
            kv_blocks_idle: gauge(
                "amoe_attention_kv_blocks_idle",
                "Of those nobody holds, the ones that are kept for sequences that begin like earlier ones.",
            )?,
            ready_rows: gauge("amoe_attention_ready_rows", "Rows ready for their next layer.")?,
            run_spans: histogram("amoe_attention_run_spans", "Spans per layer run.")?,
            run_rows: histogram("amoe_attention_run_rows", "Rows per layer run.")?,
            layer_seconds: time("amoe_attention_layer_seconds", "Time of a layer run.")?,
            head_seconds: time("amoe_attention_head_seconds", "Time of an LM head run.")?,
            plan_epoch: gauge(
                "amoe_attention_plan_epoch",
                "Newest plan all of whose expert nodes are linked.",
            )?,
            last_token: registered(
                registry,
                Gauge::with_opts(
                    Opts::new(
                        "amoe_attention_last_token_seconds",
                        "When a token, a canary's too, was last through all layers, in seconds since 1970.",
                    )
                    .const_label("node", node),
                ),
            )?,
            tokens: counter("amoe_attention_tokens_total", "Tokens drawn.")?,
            prompt_tokens: counter(
                "amoe_attention_prompt_tokens_total",
                "Tokens that sequences came with.",
            )?,
            cached_tokens: counter(
                "amoe_attention_cached_tokens_total",
                "Those of them whose keys and values an earlier sequence had left in the cache.",
            )?,
            preemptions: counter(
                "amoe_attention_preemptions_total",
                "Sequences that gave way for want of KV blocks and were computed anew.",
            )?,
            cancelled: counter(
                "amoe_attention_cancelled_total",
                "Sequences whose client went away.",
            )?,
            refused: counter("amoe_attention_refused_total", "Sequences that were not taken.")?,
            rejected: counter(
                "amoe_attention_rejected_total",
                "Rows that an expert node sent back because it does not hold their expert.",
            )?,
        })
    }

    pub(crate) fn ran_layer(&self, spans: usize, rows: usize, time: Duration) {
        self.run_spans.observe(spans as f64);
        self.run_rows.observe(rows as f64);
        self.layer_seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn ran_head(&self, time: Duration) {
        self.head_seconds.observe(time.as_secs_f64());
    }

    /// `idle`: KV blocks kept for sequences to come.
    pub(crate) fn stands(&self, load: &Load, idle: usize, ready_rows: u32, plan: Epoch) {
        self.kv_blocks_idle.set(i64::try_from(idle).unwrap_or(i64::MAX));
        self.plan_epoch.set(i64::try_from(plan.0).unwrap_or(i64::MAX));
        self.running.set(i64::from(load.running));
        self.waiting.set(i64::from(load.waiting));
        self.kv_blocks.set(i64::from(load.kv_blocks));
        self.kv_blocks_free.set(i64::from(load.kv_blocks_free));
        self.ready_rows.set(i64::from(ready_rows));
    }
}
