//! An attention node's configuration, section by section.

use model::CpuOptions;
use node::config::{ClusterConfig, Device, GpuConfig, LinksConfig, ModelConfig, Schedule};
use policy::{batching::Tuning, routing};
use serde::Deserialize;

pub use crate::pulse::CanaryConfig;
use crate::span::{SPAN_ROWS_MAX, SPANS_MAX};

/// Everything but the sections that every process has: `[admin]`, `[telemetry]`, `[shutdown]`, `[tls]`, `[keys]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[node]`.
    pub node: NodeConfig,
    /// `[cluster]`.
    pub cluster: ClusterConfig,
    /// `[model]`.
    pub model: ModelConfig,
    /// `[device]`: the processor that computes.
    #[serde(default)]
    pub device: CpuOptions,
    /// `[gpu]`: for `node.device = "cuda:N"`.
    #[serde(default)]
    pub gpu: GpuConfig,
    /// `[batching]`: which layer runs next.
    #[serde(default)]
    pub batching: Tuning,
    /// `[routing]`.
    #[serde(default)]
    pub routing: RoutingConfig,
    /// `[bounds]`.
    #[serde(default)]
    pub bounds: BoundsConfig,
    /// `[prefix_caching]`.
    #[serde(default)]
    pub prefix_caching: PrefixCachingConfig,
    /// `[links]`.
    #[serde(default)]
    pub links: LinksConfig,
    /// `[canary]`.
    #[serde(default)]
    pub canary: CanaryConfig,
}

/// Section `[node]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Unique in the cluster; a restarted node with the same name is the same node.
    pub name: String,
    /// Where gateways send sequences: `host:port` (port 0: any), or `inproc:NAME` inside a process.
    pub listen: String,
    /// Where gateways reach this node; as `listen` if absent.
    pub advertise: Option<String>,
    /// When a layer may run.
    #[serde(default)]
    pub schedule: Schedule,
    /// What it computes on.
    #[serde(default)]
    pub device: Device,
}

/// Section `[routing]`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutingConfig {
    /// Lockstep mode: replicas are chosen anew for each batch of all attention nodes together, by
    /// this policy, and not by the coordinator's lease. Equal on all attention nodes.
    pub by_batch: Option<routing::Policy>,
}

/// Section `[bounds]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoundsConfig {
    /// Sequences that run at once.
    pub sequences_max: usize,
    /// Sequences that wait; more are refused.
    pub waiting_max: usize,
    /// Tokens of one prefill chunk.
    pub chunk_tokens_max: usize,
    /// Rows that are under way at once, prefill and decode together.
    pub rows_max: usize,
    /// Longest sequence; by default what the model was made for.
    pub positions_max: Option<usize>,
    /// Memory of the KV cache. It becomes resident as it is used, or is taken from a GPU at start.
    pub kv_bytes: u64,
}

impl Default for BoundsConfig {
    fn default() -> Self {
        Self {
            sequences_max: 256,
            waiting_max: 1024,
            chunk_tokens_max: 512,
            rows_max: 1024,
            positions_max: None,
            kv_bytes: 2 << 30,
        }
    }
}

/// Section `[prefix_caching]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixCachingConfig {
    /// Whether a sequence that begins like an earlier one takes over its keys and values.
    pub enabled: bool,
}

impl Default for PrefixCachingConfig {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl chassis::role::RoleConfig for Config {
    fn check(&self) -> Result<(), String> {
        self.batching.check().map_err(|error| format!("section `batching`: {error}"))?;
        self.cluster.check()?;
        self.gpu.check()?;
        if self.routing.by_batch.is_some() && self.node.schedule != Schedule::Lockstep {
            return Err(
                "key `routing.by_batch` is set, expected only with schedule \"lockstep\": \
                        otherwise there are no batches of all nodes"
                    .to_owned(),
            );
        }
        let BoundsConfig { sequences_max, chunk_tokens_max, rows_max, .. } = self.bounds;
        within("bounds.sequences_max", sequences_max, 1, SPANS_MAX)?;
        within("bounds.chunk_tokens_max", chunk_tokens_max, 1, SPAN_ROWS_MAX)?;
        within("bounds.rows_max", rows_max, chunk_tokens_max, usize::MAX)?;
        self.canary.check()
    }
}

fn within(key: &str, found: usize, least: usize, most: usize) -> Result<(), String> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(format!("key `{key}` is {found}, expected {least} to {most}"))
}
