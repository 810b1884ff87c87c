//! What is done to whole rows between the products: the residual stream's sums and norms, and the gate.

use cudarc::driver::{CudaFunction, DeviceRepr};
use half::bf16;

use super::device::{Buffer, Device, grid};
use super::error::{CudaError, require, size};

/// What [`Rows::add_norm`] adds to each row of the residual stream.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// `[any, width]`.
    pub values: &'a Buffer<bf16>,
    /// `[rows, count]`: the rows of `values` to add, in this order. Each must exist.
    pub place: &'a Buffer<u32>,
    /// Terms of each row.
    pub count: usize,
    /// `[width]`, added behind them.
    pub bias: Option<&'a Buffer<f32>>,
}

/// How a layer chooses experts; as the CPU's `RouterSpec`.
#[derive(Debug, Clone, Copy)]
pub struct RouteSpec {
    /// Experts of the layer, at most 512.
    pub experts: usize,
    /// Experts for each row, at most 32.
    pub top_k: usize,
    /// Groups of experts, at most 32, and how many of them are eligible; (1, 1) for no groups.
    pub groups: (usize, usize),
    /// Sigmoids instead of a softmax.
    pub sigmoid: bool,
    /// Weights are divided by their sum.
    pub normalize: bool,
    /// Multiplies the weights at the end.
    pub scale: f32,
}

/// The kernels for rows.
#[derive(Debug)]
pub struct Rows {
    add_norm: CudaFunction,
    route: CudaFunction,
}

impl Rows {
    /// # Errors
    /// When the device does not know the kernels.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self { add_norm: device.kernel("add_norm", 64)?, route: device.kernel("route", 0)? })
    }

    /// `residual[row] += terms` in their order, then `out[row] = residual[row] / rms * weight`, over
    /// `[rows, weight.len()]`.
    ///
    /// # Errors
    /// When the sizes do not fit, or the driver refuses the launch.
    pub fn add_norm(
        &self,
        device: &Device,
        residual: &mut Buffer<f32>,
        terms: Terms<'_>,
        (weight, epsilon): (&Buffer<bf16>, f32),
        out: &mut Buffer<bf16>,
    ) -> Result<(), CudaError> {
        require(out.len() >= residual.len(), || {
            format!("{} values into {}", residual.len(), out.len())
        })?;
        let norm = (weight.pointer(), out.pointer(), epsilon);
        self.sum(device, residual, terms, weight.len(), norm)
    }

    /// `residual[row] += terms` alone, over `[rows, width]`.
    ///
    /// # Errors
    /// When the sizes do not fit, or the driver refuses the launch.
    pub fn add(
        &self,
        device: &Device,
        residual: &mut Buffer<f32>,
        terms: Terms<'_>,
        width: usize,
    ) -> Result<(), CudaError> {
        self.sum(device, residual, terms, width, (0, 0, 0.0))
    }

    /// `norm`: addresses of weight and output, or 0, and the epsilon.
    fn sum(
        &self,
        device: &Device,
        residual: &mut Buffer<f32>,
        terms: Terms<'_>,
        width: usize,
        (weight, out, epsilon): (u64, u64, f32),
    ) -> Result<(), CudaError> {
        require(width > 0 && width.is_multiple_of(8), || format!("rows of {width} values"))?;
        let rows = residual.len() / width;
        let fits = residual.len() == rows * width
            && terms.place.len() == rows * terms.count
            && terms.bias.is_none_or(|bias| bias.len() == width);
        require(fits, || {
            let (residual, terms) = (residual.len(), terms.place.len());
            format!("{residual} values in rows of {width} with {terms} terms")
        })?;
        if rows == 0 {
            return Ok(());
        }
        let params = AddNormParams {
            residual: residual.pointer(),
            terms: terms.values.pointer(),
            place: terms.place.pointer(),
            bias: terms.bias.map_or(0, Buffer::pointer),
            weight,
            out,
            count: size(terms.count)?,
            width: size(width)?,
            epsilon,
            padding: 0,
        };
        // SAFETY: the sizes were compared here and by the callers; that places exist is the caller's
        // word, as documented.
        unsafe { device.launch(&self.add_norm, grid(size(rows)?, 256, 64), &params) }
    }

    /// Each row's experts, ascending, and their weights, from `logits`, `[rows, experts]`. Equal
    /// scores go to the lower expert; NaN loses to every number.
    ///
    /// `bias`, `[experts]`, counts in the choice of sigmoids and not in the weight.
    ///
    /// # Errors
    /// When spec and sizes do not fit, or the driver refuses the launch.
    pub fn route(
        &self,
        device: &Device,
        spec: &RouteSpec,
        (logits, bias): (&Buffer<f32>, Option<&Buffer<f32>>),
        chosen: &mut Buffer<u32>,
        weight: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        spec.check(bias.map(Buffer::len))?;
        let rows = logits.len() / spec.experts;
        let fits = logits.len() == rows * spec.experts
            && chosen.len() >= rows * spec.top_k
            && weight.len() >= rows * spec.top_k;
        require(fits, || format!("{} logits for {rows} rows of {}", logits.len(), spec.experts))?;
        if rows == 0 {
            return Ok(());
        }
        let params = RouteParams {
            logits: logits.pointer(),
            bias: bias.map_or(0, Buffer::pointer),
            chosen: chosen.pointer(),
            weight: weight.pointer(),
            rows: size(rows)?,
            experts: size(spec.experts)?,
            top_k: size(spec.top_k)?,
            groups: size(spec.groups.0)?,
            kept: size(spec.groups.1)?,
            sigmoid: u32::from(spec.sigmoid),
            normalize: u32::from(spec.normalize),
            scale: spec.scale,
        };
        // SAFETY: the sizes were compared above.
        unsafe { device.launch(&self.route, grid(size(rows.div_ceil(4))?, 128, 0), &params) }
    }
}

impl RouteSpec {
    /// Whether the kernel can choose so, with a bias of that many experts.
    ///
    /// # Errors
    /// One sentence on what it cannot.
    pub fn check(&self, bias: Option<usize>) -> Result<(), CudaError> {
        let Self { experts, top_k, groups: (count, kept), .. } = *self;
        require((1..=512).contains(&experts) && (1..=32).contains(&top_k), || {
            format!("{top_k} of {experts} experts: at most 32 of 512 fit")
        })?;
        let even = (1..=32).contains(&count) && experts.is_multiple_of(count);
        require(even && (1..=count).contains(&kept), || {
            format!("{kept} of {count} groups of {experts} experts")
        })?;
        require(count == 1 || experts / count >= 2, || format!("{count} groups of one expert"))?;
        let eligible = experts / count * kept;
        require(top_k <= eligible, || format!("{top_k} of {eligible} eligible experts"))?;
        require(bias.is_none_or(|len| len == experts && self.sigmoid), || {
            format!("a bias of {bias:?} for {experts} experts")
        })
    }
}

/// Mirrors `AddNormParams` in `norm.cuh`.
#[repr(C)]
#[derive(Debug)]
struct AddNormParams {
    residual: u64,
    terms: u64,
    place: u64,
    bias: u64,
    weight: u64,
    out: u64,
    count: u32,
    width: u32,
    epsilon: f32,
    padding: u32,
}

// SAFETY: plain numbers in C layout, with the padding spelt out.
unsafe impl DeviceRepr for AddNormParams {}

/// Mirrors `RouteParams` in `router.cuh`.
#[repr(C)]
#[derive(Debug)]
struct RouteParams {
    logits: u64,
    bias: u64,
    chosen: u64,
    weight: u64,
    rows: u32,
    experts: u32,
    top_k: u32,
    groups: u32,
    kept: u32,
    sigmoid: u32,
    normalize: u32,
    scale: f32,
}

// SAFETY: plain numbers in C layout without padding.
unsafe impl DeviceRepr for RouteParams {}
