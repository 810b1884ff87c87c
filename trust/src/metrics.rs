//! What operators want to know about certificates and keys: when they end, and whether changes took hold.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Metrics of a process's certificates and keys.
#[derive(Clone, Debug)]
pub struct Metrics {
    expires_s: IntGaugeVec,
    reloads: IntCounterVec,
    keys: IntGauge,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            expires_s: IntGaugeVec::new(
                Opts::new(
                    "amoe_trust_certificate_expiry_seconds",
                    "When the first certificate of a section ends, in seconds since 1970.",
                ),
                &["section"],
            )?,
            reloads: IntCounterVec::new(
                Opts::new(
                    "amoe_trust_reloads_total",
                    "Changed certificates and keys, by whether they could be used.",
                ),
                &["section", "outcome"],
            )?,
            keys: IntGauge::new("amoe_trust_keys", "API keys that are known.")?,
        };
        registry.register(Box::new(metrics.expires_s.clone()))?;
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.keys.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn expires(&self, section: &str, at_s: i64) {
        self.expires_s.with_label_values(&[section]).set(at_s);
    }

    pub(crate) fn reloaded(&self, section: &str, good: bool) {
        let outcome = if good { "good" } else { "bad" };
        self.reloads.with_label_values(&[section, outcome]).inc();
    }

    pub(crate) fn keys(&self, known: usize) {
        self.keys.set(i64::try_from(known).unwrap_or(i64::MAX));
    }
}
