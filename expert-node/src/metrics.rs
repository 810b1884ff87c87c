//! What an expert node counts.

use std::time::Duration;

use chassis::metrics::registered;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry};

use crate::shard::Shard;

/// Metrics of one expert node.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    queued_pairs: IntGauge,
    resident_bytes: IntGauge,
    pairs: IntCounter,
    pub(crate) pairs_cancelled: IntCounter,
    pub(crate) pairs_rejected: IntCounter,
    run_pairs: Histogram,
    run_experts: Histogram,
    run_pairs_per_expert: Histogram,
    oldest_pair_seconds: Gauge,
    plan_epoch: IntGauge,
    run_seconds: Histogram,
}

impl Metrics {
    /// Registers the metrics; `node` tells the copies within one process apart.
    pub(crate) fn register(registry: &Registry, node: &str) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("node", node);
        let counter = |name, help| registered(registry, IntCounter::with_opts(opts(name, help)));
        let gauge = |name, help| registered(registry, IntGauge::with_opts(opts(name, help)));
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            let opts = HistogramOpts::new(name, help).const_label("node", node).buckets(buckets);
            registered(registry, Histogram::with_opts(opts))
        };
        let sizes = prometheus::exponential_buckets(1.0, 2.0, 12)?;
        let times = prometheus::exponential_buckets(50e-6, 2.0, 14)?;
        Ok(Self {
            queued_pairs: gauge("amoe_expert_queued_pairs", "Pairs in the μ-queues.")?,
            resident_bytes: gauge("amoe_expert_resident_bytes", "Bytes of resident experts.")?,
            pairs: counter("amoe_expert_pairs_total", "Pairs computed.")?,
            pairs_cancelled: counter(
                "amoe_expert_pairs_cancelled_total",
                "Queued pairs dropped because nobody waits for them any more.",
            )?,
            pairs_rejected: counter(
                "amoe_expert_pairs_rejected_total",
                "Pairs sent here whose expert is not held here.",
            )?,
            run_pairs: histogram("amoe_expert_run_pairs", "Pairs per run.", sizes.clone())?,
            run_experts: histogram("amoe_expert_run_experts", "Experts per run.", sizes.clone())?,
            run_pairs_per_expert: histogram(
                "amoe_expert_run_pairs_per_expert",
                "Pairs per expert of a run, on average.",
                sizes,
            )?,
            oldest_pair_seconds: registered(
                registry,
                Gauge::with_opts(opts(
                    "amoe_expert_oldest_pair_seconds",
                    "Time the oldest queued pair has waited.",
                )),
            )?,
            plan_epoch: gauge("amoe_expert_plan_epoch", "Newest plan whose experts are all here.")?,
            run_seconds: histogram("amoe_expert_run_seconds", "Time of a run.", times)?,
        })
    }

    pub(crate) fn ran(&self, pairs: usize, experts: usize, time: Duration) {
        self.pairs.inc_by(pairs as u64);
        self.run_pairs.observe(pairs as f64);
        self.run_experts.observe(experts as f64);
        self.run_pairs_per_expert.observe(pairs as f64 / experts.max(1) as f64);
        self.run_seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn stands(&self, queued_pairs: u32, oldest: Duration, shard: &Shard) {
        let half = shard.half();
        self.queued_pairs.set(i64::from(queued_pairs));
        self.oldest_pair_seconds.set(oldest.as_secs_f64());
        self.plan_epoch.set(i64::try_from(shard.ready().0).unwrap_or(i64::MAX));
        self.resident_bytes.set(i64::try_from(half.bytes()).unwrap_or(i64::MAX));
    }
}
