//! A product with a matrix for each head: into the space of compressed keys, and out of it.

use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig};
use half::bf16;

use super::device::{Buffer, Device};
use super::error::{CudaError, require, size};
use super::ffn::FfnKernel;

/// Features and rows of a thread block.
const TILE: [usize; 2] = [128, 64];

/// Where the heads of rows lie in a buffer; all in values, and multiples of 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadsView {
    /// Where the first row's first head begins.
    pub first: usize,
    /// From a row to the next.
    pub row: usize,
    /// From a head to the next.
    pub head: usize,
}

impl HeadsView {
    /// Whether `width` values of each of `heads` heads of `rows` rows, at least one of either, lie inside `len`.
    pub(super) fn fits(&self, (rows, heads, width): (usize, usize, usize), len: usize) -> bool {
        let aligned = [self.first, self.row, self.head, width].iter().all(|n| n.is_multiple_of(8));
        aligned && self.first + (rows - 1) * self.row + (heads - 1) * self.head + width <= len
    }

    /// The address of the first row's first head.
    pub(super) fn of(&self, buffer: &Buffer<bf16>) -> u64 {
        buffer.pointer() + (self.first * size_of::<bf16>()) as u64
    }
}

/// Weights of all heads, `[heads, features, inner]`.
#[derive(Debug)]
pub struct HeadMatrices {
    heads: usize,
    features: usize,
    inner: usize,
    weights: Buffer<bf16>,
}

impl HeadMatrices {
    /// Takes over weights of `heads` matrices of `features` rows of `inner`.
    ///
    /// # Errors
    /// When the size is another, or a side is no multiple of 8.
    pub fn new(
        (heads, features, inner): (usize, usize, usize),
        weights: Buffer<bf16>,
    ) -> Result<Self, CudaError> {
        let aligned = features.is_multiple_of(8) && inner.is_multiple_of(8);
        let len = heads * features * inner;
        require(aligned && len > 0 && weights.len() == len, || {
            let have = weights.len();
            format!(
                "{have} weights for {heads} of {features} x {inner}: both must be multiples of 8"
            )
        })?;
        Ok(Self { heads, features, inner, weights })
    }

    /// Bytes of its weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weights.len() * size_of::<bf16>()
    }
}

/// The product, ready to launch.
#[derive(Debug)]
pub struct HeadProduct {
    function: CudaFunction,
}

impl HeadProduct {
    /// # Errors
    /// When the device does not know the kernel.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let (_, _, shared) = FfnKernel::Portable.launch();
        Ok(Self { function: device.kernel("head_product", shared)? })
    }

    /// `out[row][head] = matrices[head] * x[row][head]` for the first `rows` rows of `x` and `out`, whose heads
    /// lie where their views say; what lies between them stays.
    ///
    /// A row's bits do not depend on the other rows.
    ///
    /// # Errors
    /// When the sizes do not fit one another, or the driver refuses the launch.
    pub fn launch(
        &self,
        device: &Device,
        (matrices, rows): (&HeadMatrices, usize),
        (x, from): (&Buffer<bf16>, HeadsView),
        (out, to): (&mut Buffer<bf16>, HeadsView),
    ) -> Result<(), CudaError> {
        if rows == 0 {
            return Ok(());
        }
        let HeadMatrices { heads, features, inner, .. } = *matrices;
        let fits = from.fits((rows, heads, inner), x.len())
            && to.fits((rows, heads, features), out.len())
            && to.head >= features
            && to.row >= features;
        require(fits, || {
            let (x, out) = (x.len(), out.len());
            format!(
                "{rows} rows of {heads} heads, {features} x {inner}, {from:?} of {x}, {to:?} of {out}"
            )
        })?;
        let params = Params {
            x: from.of(x),
            weights: matrices.weights.pointer(),
            out: to.of(out),
            rows: size(rows)?,
            features: size(features)?,
            inner: size(inner)?,
            x_row: size(from.row)?,
            x_head: size(from.head)?,
            out_row: size(to.row)?,
            out_head: size(to.head)?,
            padding: 0,
        };
        let (_, threads, shared) = FfnKernel::Portable.launch();
        let config = LaunchConfig {
            grid_dim: (size(features.div_ceil(TILE[0]) * rows.div_ceil(TILE[1]))?, size(heads)?, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: shared,
        };
        // SAFETY: the sizes were compared above.
        unsafe { device.launch(&self.function, config, &params) }
    }
}

/// Mirrors `HeadsParams` in `heads.cuh`.
#[repr(C)]
#[derive(Debug)]
struct Params {
    x: u64,
    weights: u64,
    out: u64,
    rows: u32,
    features: u32,
    inner: u32,
    x_row: u32,
    x_head: u32,
    out_row: u32,
    out_head: u32,
    padding: u32,
}

// SAFETY: plain numbers in C layout, with the padding spelt out.
unsafe impl DeviceRepr for Params {}

#[cfg(test)]
mod tests {
    use super::HeadsView;

    #[test]
    fn the_last_head_of_the_last_row_ends_inside_the_buffer() {
        let view = HeadsView { first: 16, row: 640, head: 208 };
        let end = 16 + 4 * 640 + 2 * 208 + 200;
        assert!(view.fits((5, 3, 200), end));
        assert!(!view.fits((5, 3, 200), end - 1));
        assert!(view.fits((1, 1, 8), 24));
    }

    #[test]
    fn what_threads_copy_sixteen_bytes_of_is_aligned() {
        let view = HeadsView { first: 0, row: 64, head: 16 };
        assert!(view.fits((2, 2, 16), 1000));
        for other in [
            HeadsView { first: 4, ..view },
            HeadsView { row: 60, ..view },
            HeadsView { head: 12, ..view },
        ] {
            assert!(!other.fits((2, 2, 16), 1000), "{other:?}");
        }
        assert!(!view.fits((2, 2, 12), 1000));
    }
}
