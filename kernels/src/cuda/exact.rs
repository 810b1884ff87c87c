//! Products with weights in f32, for the gates: what an expert's choice hangs on is not rounded on the way.

use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig};
use half::bf16;

use super::device::{Buffer, Device};
use super::error::{CudaError, require, size};

/// What is done to a sum at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Nothing.
    Sum,
    /// Its sigmoid is taken.
    Sigmoid,
}

/// The product, ready to launch.
#[derive(Debug)]
pub struct Exact {
    function: CudaFunction,
}

impl Exact {
    /// # Errors
    /// When the device does not know the kernel.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self { function: device.kernel("exact_product", 0)? })
    }

    /// `out[row] = weights * x[row]` for `x`, `[rows, inner]`, `weights`, `[features, inner]`, and
    /// `out`, `[rows, features]`; `inner` is a multiple of 4.
    ///
    /// A row's bits do not depend on the other rows.
    ///
    /// # Errors
    /// When the sizes do not fit one another, or the driver refuses the launch.
    pub fn launch(
        &self,
        device: &Device,
        (weights, inner): (&Buffer<f32>, usize),
        x: &Buffer<bf16>,
        finish: Finish,
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        require(inner > 0 && inner.is_multiple_of(4), || format!("rows of {inner} values"))?;
        let (rows, features) = (x.len() / inner, weights.len() / inner);
        let fits = x.len() == rows * inner
            && weights.len() == features * inner
            && out.len() >= rows * features;
        require(fits, || {
            let (x, weights, out) = (x.len(), weights.len(), out.len());
            format!("{x} values and {weights} weights in rows of {inner} into {out}")
        })?;
        if rows * features == 0 {
            return Ok(());
        }
        let params = Params {
            x: x.pointer(),
            weights: weights.pointer(),
            out: out.pointer(),
            rows: size(rows)?,
            features: size(features)?,
            inner: size(inner)?,
            sigmoid: u32::from(finish == Finish::Sigmoid),
        };
        let config = LaunchConfig {
            grid_dim: (size(features.div_ceil(16))?, size(rows.div_ceil(4))?, 1),
            block_dim: (128, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the sizes were compared above.
        unsafe { device.launch(&self.function, config, &params) }
    }
}

/// Mirrors `ExactParams` in `exact.cuh`.
#[repr(C)]
#[derive(Debug)]
struct Params {
    x: u64,
    weights: u64,
    out: u64,
    rows: u32,
    features: u32,
    inner: u32,
    sigmoid: u32,
}

// SAFETY: plain numbers in C layout without padding.
unsafe impl DeviceRepr for Params {}
