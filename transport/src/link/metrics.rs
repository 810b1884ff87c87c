//! What an engine's links count.

use prometheus::{IntCounter, IntGauge, Opts, Registry};

use super::Refused;

/// Metrics of all links of one engine.
#[derive(Clone, Debug)]
pub struct LinkMetrics {
    pub(super) links_up: IntGauge,
    pub(super) frames_sent: IntCounter,
    pub(super) frames_received: IntCounter,
    pub(super) row_bytes_sent: IntCounter,
    pub(super) row_bytes_received: IntCounter,
    pub(super) credit_refusals: IntCounter,
    pub(super) dials_failed: IntCounter,
    pub(super) frames_malformed: IntCounter,
    pub(super) nccl_pairs: IntGauge,
    pub(super) nccl_pairs_failed: IntCounter,
    pub(super) nccl_row_bytes_sent: IntCounter,
    pub(super) nccl_row_bytes_received: IntCounter,
}

impl LinkMetrics {
    /// Registers the metrics; `node` tells the copies within one process apart.
    ///
    /// # Errors
    /// When the registry holds them already.
    pub fn register(registry: &Registry, node: &str) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("node", node);
        let counter = |name, help| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::with_opts(opts(name, help))?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name, help| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::with_opts(opts(name, help))?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        Ok(Self {
            links_up: gauge("amoe_links_up", "Data links that are up.")?,
            frames_sent: counter("amoe_link_frames_sent_total", "Frames given to links.")?,
            frames_received: counter(
                "amoe_link_frames_received_total",
                "Frames delivered by links.",
            )?,
            row_bytes_sent: counter(
                "amoe_link_row_bytes_sent_total",
                "Bytes of rows in the frames given to links.",
            )?,
            row_bytes_received: counter(
                "amoe_link_row_bytes_received_total",
                "Bytes of rows in the frames delivered by links.",
            )?,
            credit_refusals: counter(
                "amoe_link_credit_refusals_total",
                "Frames that had to wait because the receiver had granted no more.",
            )?,
            dials_failed: counter(
                "amoe_link_dials_failed_total",
                "Attempts to reach a peer that came to nothing.",
            )?,
            frames_malformed: counter(
                "amoe_link_frames_malformed_total",
                "Links closed because the peer sent what no peer should.",
            )?,
            nccl_pairs: gauge("amoe_link_nccl_pairs", "Links whose rows go by NCCL.")?,
            nccl_pairs_failed: counter(
                "amoe_link_nccl_pairs_failed_total",
                "Pairs of NCCL communicators that could not be made, or broke.",
            )?,
            nccl_row_bytes_sent: counter(
                "amoe_link_nccl_row_bytes_sent_total",
                "Bytes of rows sent by NCCL.",
            )?,
            nccl_row_bytes_received: counter(
                "amoe_link_nccl_row_bytes_received_total",
                "Bytes of rows received by NCCL.",
            )?,
        })
    }

    pub(super) fn sent(&self, payload_bytes: usize, outcome: &Result<(), Refused>) {
        match outcome {
            Ok(()) => {
                self.frames_sent.inc();
                self.row_bytes_sent.inc_by(payload_bytes as u64);
            }
            Err(Refused::NoCredit(_)) => self.credit_refusals.inc(),
            Err(Refused::Closed(_) | Refused::TooLarge { .. }) => {}
        }
    }

    pub(super) fn received(&self, payload_bytes: usize) {
        self.frames_received.inc();
        self.row_bytes_received.inc_by(payload_bytes as u64);
    }
}
