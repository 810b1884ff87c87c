//! Opens the GPU that a node computes on.

use std::{fs, sync::Arc};

use anyhow::{Context, Result, ensure};
use model::{Compute, Gpu};

use crate::config::{Device, GpuConfig};

/// The GPU, if `device` is one.
///
/// # Errors
/// One sentence on what is missing: driver, device, kernels, or a precision that GPUs compute in.
pub fn open_gpu(device: &Device, config: &GpuConfig, compute: Compute) -> Result<Option<Arc<Gpu>>> {
    let Device::Cuda(ordinal) = *device else { return Ok(None) };
    ensure!(compute == Compute::Bf16, "{device} computes in bf16, and {compute} is asked for");
    let opened = match &config.kernels {
        None => Gpu::open(ordinal),
        Some(path) => {
            let image = fs::read(path);
            let image = image.with_context(|| format!("GPU kernels: {}", path.display()))?;
            Gpu::open_with(ordinal, &image)
        }
    };
    let gpu = opened.with_context(|| format!("device {device}"))?;
    let (major, minor) = gpu.capability();
    tracing::info!(name = gpu.name(), capability = format!("{major}.{minor}"), "opened a GPU");
    Ok(Some(Arc::new(gpu)))
}
