//! An expert node's configuration, section by section.

use model::CpuOptions;
use node::config::{ClusterConfig, Device, GpuConfig, LinksConfig, ModelConfig, Schedule};
use policy::batching::Tuning;
use serde::Deserialize;

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
    /// `[batching]`: which queue runs next.
    #[serde(default = "default_batching")]
    pub batching: Tuning,
    /// `[links]`.
    #[serde(default)]
    pub links: LinksConfig,
    /// `[loading]`.
    #[serde(default)]
    pub loading: LoadingConfig,
}

fn default_profile() -> bool {
    true
}

/// The paper's constants, with room for the pairs of a whole batch of prefill chunks: an expert
/// whose rows are spread over two runs is read from memory twice.
#[must_use]
pub fn default_batching() -> Tuning {
    Tuning { drain_max: 16_384, ..Tuning::default() }
}

/// Section `[node]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Unique in the cluster; a restarted node with the same name is the same node.
    pub name: String,
    /// Where attention nodes link up: `host:port` (port 0: any), or `memory:NAME` inside a process.
    pub listen: String,
    /// Where attention nodes reach this node; as `listen` if absent.
    pub advertise: Option<String>,
    /// When a layer may run.
    #[serde(default)]
    pub schedule: Schedule,
    /// What it computes on.
    #[serde(default)]
    pub device: Device,
    /// Whether it measures at its start what work costs on its processor, which takes a few seconds. The coordinator
    /// compares nodes that do not with each other. A paced device has its curve anyway.
    #[serde(default = "default_profile")]
    pub profile: bool,
    /// Experts this node has room for, over all layers; if absent all of the model's, or on a GPU seven eighths of what
    /// fits.
    pub expert_slots: Option<u32>,
}

/// Section `[loading]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadingConfig {
    /// Bytes of experts that are read per second while others are served, so that a new plan
    /// slows no token. Experts that nobody holds any more are read at once.
    pub bytes_per_second: u64,
}

impl Default for LoadingConfig {
    fn default() -> Self {
        Self { bytes_per_second: 256 << 20 }
    }
}

impl chassis::role::RoleConfig for Config {
    fn check(&self) -> Result<(), String> {
        self.batching.check().map_err(|error| format!("section `batching`: {error}"))?;
        self.cluster.check()?;
        self.gpu.check()?;
        if self.node.expert_slots == Some(0) {
            return Err("key `node.expert_slots` is 0, expected at least 1".to_owned());
        }
        if self.loading.bytes_per_second == 0 {
            return Err("key `loading.bytes_per_second` is 0, expected at least 1".to_owned());
        }
        Ok(())
    }
}
