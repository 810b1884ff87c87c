//! Sections of configuration that attention nodes and expert nodes both have.

use std::{fmt, path::PathBuf};

use serde::Deserialize;

/// When a layer may run. Equal on all nodes of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Whenever it is worth running; every token goes on alone.
    #[default]
    Async,
    /// All sequences of all attention nodes go through the layers side by side: ordinary expert
    /// parallelism, and the baseline.
    Lockstep,
}

/// What a node computes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    /// The processor, as section `[device]` has it: `cpu`.
    #[default]
    Cpu,
    /// The processor at the pace of a curve file's node: `paced:FILE`.
    Paced(PathBuf),
    /// An NVIDIA GPU by its number: `cuda:0`.
    Cuda(usize),
}

/// Section `[cluster]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Addresses of the coordinators, tried in turn.
    pub coordinators: Vec<String>,
}

/// Section `[model]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Folder of the checkpoint, in Hugging Face's layout. A node reads only its own tensors.
    pub path: PathBuf,
}

/// Section `[gpu]`: for nodes whose device is one.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuConfig {
    /// The kernels' machine code (fatbin, cubin or PTX) in place of what the program was built with.
    pub kernels: Option<PathBuf>,
    /// The part of the GPU's memory that may be taken, by others before and by this node.
    pub memory_utilization: f64,
}

/// Section `[links]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinksConfig {
    /// Bytes of rows that each peer may have in flight towards this node.
    pub credit_bytes: u64,
    /// Largest frame; the same on all nodes.
    pub frame_bytes_max: usize,
    /// Whether rows go by NCCL between this node's GPU and others'.
    pub nccl: NcclUse,
}

/// When rows go by NCCL. A pair of nodes needs both to be willing; gRPC carries all else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NcclUse {
    /// Where there is a GPU and the library, and `[tls]` does not say that rows have to be encrypted.
    Auto,
    /// Also beside `[tls]`; a node that cannot does not start.
    On,
    /// Never: while rows pass through the processors' memory anyway, nobody has seen it to be faster.
    #[default]
    Off,
}

// === impl Device ===

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let device = match name.split_once(':') {
            None if name == "cpu" => Some(Self::Cpu),
            Some(("paced", file)) if !file.is_empty() => Some(Self::Paced(file.into())),
            Some(("cuda", ordinal)) => ordinal.parse().ok().map(Self::Cuda),
            _ => None,
        };
        device.ok_or_else(|| {
            format!("unknown device \"{name}\", expected \"cpu\", \"cuda:N\" or \"paced:FILE\"")
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Paced(file) => write!(f, "paced:{}", file.display()),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

// === impl GpuConfig ===

impl GpuConfig {
    /// Checks what the type alone does not say.
    ///
    /// # Errors
    /// One sentence that names the key and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let part = self.memory_utilization;
        if part > 0.0 && part <= 1.0 {
            return Ok(());
        }
        Err(format!("key `gpu.memory_utilization` is {part}, expected more than 0 and at most 1"))
    }

    /// The bytes a node may take of a GPU with `free` of `total` bytes.
    #[must_use]
    pub fn share(&self, free: usize, total: usize) -> usize {
        let left = (total as f64 * (1.0 - self.memory_utilization)) as usize;
        free.saturating_sub(left)
    }
}

impl Default for GpuConfig {
    fn default() -> Self {
        Self { kernels: None, memory_utilization: 0.9 }
    }
}

// === impl ClusterConfig ===

impl ClusterConfig {
    /// Checks what the type alone does not say.
    ///
    /// # Errors
    /// One sentence that names the key and what was expected.
    pub fn check(&self) -> Result<(), String> {
        if self.coordinators.is_empty() {
            return Err("key `cluster.coordinators` is empty, expected an address".to_owned());
        }
        Ok(())
    }
}

// === impl LinksConfig ===

impl Default for LinksConfig {
    fn default() -> Self {
        Self { credit_bytes: 64 << 20, frame_bytes_max: 64 << 20, nccl: NcclUse::Auto }
    }
}
