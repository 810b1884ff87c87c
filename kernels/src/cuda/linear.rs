//! A product with one matrix, on the machinery of the grouped SwiGLU: projections and the output head.
//!
//! Blocks take 256 output features (128 on the portable path) at a time, so that a matrix of fewer
//! than that for each multiprocessor leaves some of them idle.

use cudarc::driver::{CudaFunction, PushKernelArg};
use half::bf16;

use super::device::{Buffer, Device, grid};
use super::error::{CudaError, require, size};
use super::experts::WeightForm;
use super::ffn::{FfnKernel, Params};
use super::tensor_map::TensorMap;

/// Weights of a layer, `[features, inner]`.
#[derive(Debug)]
pub struct Matrix {
    features: usize,
    inner: usize,
    weights: Buffer<bf16>,
    map: Option<TensorMap>,
}

impl Matrix {
    /// Takes over weights of `features` rows of `inner`.
    ///
    /// # Errors
    /// When the size is another, or a side is no multiple of 8.
    pub fn new(
        device: &Device,
        (features, inner): (usize, usize),
        weights: Buffer<bf16>,
    ) -> Result<Self, CudaError> {
        let aligned = features.is_multiple_of(8) && inner.is_multiple_of(8);
        let fits = features * inner > 0 && weights.len() == features * inner;
        require(aligned && fits, || {
            let have = weights.len();
            format!("{have} weights for {features} x {inner}: both must be multiples of 8")
        })?;
        let map = match FfnKernel::of(device, WeightForm::Bf16) {
            FfnKernel::Hopper => Some(TensorMap::of(&weights, features, inner)?),
            _ => None,
        };
        Ok(Self { features, inner, weights, map })
    }

    /// Bytes of its weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weights.len() * size_of::<bf16>()
    }

    /// Rows of `x`, for which `out` values have room.
    fn rows(&self, x: &Buffer<bf16>, out: usize) -> Result<usize, CudaError> {
        let (features, inner) = (self.features, self.inner);
        let rows = x.len() / inner;
        require(x.len() == rows * inner && out >= rows * features, || {
            format!("{} values for {features} x {inner} into {out}", x.len())
        })?;
        Ok(rows)
    }
}

/// The product, ready to launch.
#[derive(Debug)]
pub struct Dense {
    kernel: FfnKernel,
    function: CudaFunction,
    blocks: u32,
    /// Of the kernel that can leave sums as they are, and how many of its blocks are resident.
    exact: (CudaFunction, u32),
    ready: Buffer<u32>,
}

impl Dense {
    /// # Errors
    /// When the device does not know the kernel, or that is one for weights in fp8.
    pub fn new(device: &Device, kernel: FfnKernel) -> Result<Self, CudaError> {
        require(kernel.form() == WeightForm::Bf16, || format!("a plain product by {kernel:?}"))?;
        let (name, threads, shared) = kernel.launch();
        let function = device.kernel(name, shared)?;
        let blocks = device.resident(&function, threads, shared)?;
        let (name, threads, shared) = FfnKernel::Portable.launch();
        let exact = device.kernel(name, shared)?;
        let resident = device.resident(&exact, threads, shared)?;
        let ready = device.upload(&[0; 2])?;
        Ok(Self { kernel, function, blocks, exact: (exact, resident), ready })
    }

    /// `out[row] = matrix * x[row]` for `x`, `[rows, inner]`, and `out`, `[rows, features]`.
    ///
    /// A row's bits do not depend on the other rows.
    ///
    /// # Errors
    /// When the sizes do not fit one another, or the driver refuses the launch.
    pub fn launch(
        &mut self,
        device: &Device,
        matrix: &Matrix,
        x: &Buffer<bf16>,
        out: &mut Buffer<bf16>,
    ) -> Result<(), CudaError> {
        let rows = matrix.rows(x, out.len())?;
        if rows == 0 {
            return Ok(());
        }
        let params = Params { out: out.pointer(), ..self.params(matrix, x, size(rows)?)? };
        let (_, threads, shared) = self.kernel.launch();
        let mut launch = device.stream().launch_builder(&self.function);
        launch.arg(&params);
        if self.kernel == FfnKernel::Hopper {
            let Some(map) = &matrix.map else {
                return Err(CudaError::Shape("the Hopper kernel wants a Hopper device".into()));
            };
            launch.arg(map).arg(map).arg(map);
        }
        // SAFETY: the sizes were compared above; with `dense` and no gate the kernel touches `act`,
        // `down`, `out` and `ready` alone, whose counters are zero before and after each launch.
        let launched = unsafe { launch.launch(grid(self.blocks, threads, shared)) };
        launched.map(drop).map_err(CudaError::driver("launching a product"))
    }

    /// As [`Dense::launch`], with sums as they are, in f32; for few rows and many features.
    ///
    /// # Errors
    /// As [`Dense::launch`].
    pub fn launch_exact(
        &mut self,
        device: &Device,
        matrix: &Matrix,
        x: &Buffer<bf16>,
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let rows = matrix.rows(x, out.len())?;
        if rows == 0 {
            return Ok(());
        }
        let params = Params { exact: out.pointer(), ..self.params(matrix, x, size(rows)?)? };
        let ((function, blocks), (_, threads, shared)) =
            (&self.exact, FfnKernel::Portable.launch());
        // SAFETY: as for `launch`, with `exact` in the place of `out`.
        unsafe { device.launch(function, grid(*blocks, threads, shared), &params) }
    }

    /// Those of a product whose output is still to be named.
    fn params(&self, matrix: &Matrix, x: &Buffer<bf16>, rows: u32) -> Result<Params, CudaError> {
        Ok(Params {
            down: matrix.weights.pointer(),
            act: x.pointer(),
            ready: self.ready.pointer(),
            groups: 1,
            hidden: size(matrix.features)?,
            inter: size(matrix.inner)?,
            dense: rows,
            ..Params::default()
        })
    }
}
