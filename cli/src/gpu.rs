//! What is computed on: the processor or a GPU, as flags.

use std::path::PathBuf;

use clap::Args;
use node::config::{Device, GpuConfig};

/// Flags of commands that compute.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeviceFlags {
    /// What is computed on: `cpu`, `cuda:N`, or `paced:FILE`, the processor at the pace of a curve file.
    #[arg(long, default_value = "cpu", env = "AMOE_DEVICE", value_parser = parse)]
    pub(crate) device: Device,
    /// The part of a GPU's memory that may be taken, more than 0 and at most 1.
    #[arg(long, default_value_t = GpuConfig::default().memory_utilization, value_name = "PART", value_parser = part, env = "AMOE_GPU_MEMORY_UTILIZATION")]
    pub(crate) gpu_memory_utilization: f64,
    /// The kernels' machine code (fatbin, cubin or PTX) in place of what the program was built with.
    #[arg(long, value_name = "FILE", env = "AMOE_GPU_KERNELS")]
    pub(crate) gpu_kernels: Option<PathBuf>,
}

impl DeviceFlags {
    /// The flags as a node's section `[gpu]`.
    pub(crate) fn gpu(&self) -> GpuConfig {
        GpuConfig {
            kernels: self.gpu_kernels.clone(),
            memory_utilization: self.gpu_memory_utilization,
        }
    }
}

fn part(text: &str) -> Result<f64, String> {
    let memory_utilization = text.parse().map_err(|_| format!("{text} is no number"))?;
    GpuConfig { memory_utilization, ..GpuConfig::default() }.check()?;
    Ok(memory_utilization)
}

fn parse(name: &str) -> Result<Device, String> {
    Device::try_from(name.to_owned())
}
