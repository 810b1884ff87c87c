//! Conventions of metrics: one registry per process, made in `main` and handed down.
//!
//! A component keeps its metrics in one struct in its `metrics.rs` with a `register(&Registry, …)`.
//! Names start with `amoe_` (the gateway also speaks vLLM's `vllm:` names), counters end in
//! `_total`, units stand in the name (`_seconds`, `_bytes`), and label values come from bounded sets. A
//! component that can live twice in one process tells its copies apart by a constant label `node`.

use prometheus::{
    IntCounter, IntGauge, Opts, Registry, TextEncoder, core::Collector,
    process_collector::ProcessCollector,
};

use crate::VERSION;

/// A registry with what every process shows: its release, memory, CPU time and open files.
pub fn registry(role: &str) -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    let help = "Always 1; the labels say what runs here.";
    let build = Opts::new("amoe_build_info", help)
        .const_label("role", role)
        .const_label("version", VERSION);
    registered(&registry, IntGauge::with_opts(build))?.set(1);
    registry.register(Box::new(ProcessCollector::for_self()))?;
    Ok(registry)
}

/// Registers a metric and gives it back, so that a `register` function reads as a list of metrics.
pub fn registered<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: Result<M, prometheus::Error>,
) -> Result<M, prometheus::Error> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// What became of spans.
#[derive(Clone, Debug)]
pub(crate) struct TraceMetrics {
    pub(crate) sent: IntCounter,
    pub(crate) dropped: IntCounter,
}

impl TraceMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name, help| registered(registry, IntCounter::new(name, help));
        Ok(Self {
            sent: counter("amoe_trace_spans_sent_total", "Spans that the collector took.")?,
            dropped: counter(
                "amoe_trace_spans_dropped_total",
                "Spans that the collector did not take, or not fast enough.",
            )?,
        })
    }
}

/// Everything in `registry` as Prometheus text, format 0.0.4.
pub fn encode(registry: &Registry) -> Result<String, prometheus::Error> {
    TextEncoder::new().encode_to_string(&registry.gather())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_holds_what_was_registered() {
        let registry = registry("expert-node").unwrap();
        let frames = IntCounter::with_opts(
            Opts::new("amoe_frames_total", "Frames received.").const_label("node", "e0"),
        );
        registered(&registry, frames).unwrap().inc_by(3);
        let text = encode(&registry).unwrap();
        for expected in [
            "# TYPE amoe_frames_total counter",
            r#"amoe_frames_total{node="e0"} 3"#,
            r#"amoe_build_info{role="expert-node",version=""#,
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(expected), "no {expected:?} in\n{text}");
        }
    }

    #[test]
    fn copies_in_one_process_differ_by_label_and_equal_names_are_refused() {
        let registry = registry("amoe").unwrap();
        let counter = |node: &str| {
            let opts = Opts::new("amoe_steps_total", "Steps.").const_label("node", node);
            registered(&registry, IntCounter::with_opts(opts))
        };
        counter("a0").unwrap();
        counter("a1").unwrap();
        assert!(counter("a0").is_err());
    }
}
