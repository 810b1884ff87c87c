//! What a batch needs of a GPU's memory, and of the host's beside it; all of it is taken when the engine starts.

use half::bf16;
use kernels::cuda::{
    Buffer, CudaError, Dense, Device, Exact, FfnKernel, GroupedFfn, PagedRows, Pinned, Rows, Terms,
    WeightForm,
};

use super::{Gpu, kinds::Room};
use crate::{AttentionSpec, LayerKind, ModelSpec, attention::BatchBounds, rows::for_each_row};

/// Kernels, and the batch between them.
#[derive(Debug)]
pub(in crate::attention) struct Memory {
    pub(super) rows: Rows,
    pub(super) dense: Dense,
    pub(super) exact: Exact,
    /// Of attention, by its kind.
    pub(super) room: Room,
    pub(super) ffn: GroupedFfn,
    pub(super) paged: PagedRows,
    /// `[positions, turned]`.
    pub(super) angles: Buffer<f32>,
    /// `[rows, hidden]`.
    pub(super) residual: Buffer<f32>,
    /// Rows after a norm, `[rows, hidden]`.
    pub(super) normed: Buffer<bf16>,
    /// What attention gives to the output projection, `[rows, heads * value width]`.
    pub(super) attended: Buffer<bf16>,
    /// What is added to the residual next, `[rows, hidden]`.
    pub(super) added: Buffer<bf16>,
    /// The gate's logits, `[rows, experts]`.
    pub(super) scores: Buffer<f32>,
    /// How much of the shared experts each row gets.
    pub(super) shares: Buffer<f32>,
    /// Experts of each row, `[rows, top_k]`, and their weights.
    pub(super) chosen: Buffer<u32>,
    pub(super) weights: Buffer<f32>,
    /// `[head_rows, vocab]`.
    pub(super) logits: Buffer<f32>,
    /// 0, 1, 2 and so on: each row is added to its own.
    own: Buffer<u32>,
    /// No places at all.
    nothing: Buffer<u32>,
    /// On the host: the batch on its way there and back, and what comes back with it.
    pub(super) residual_here: Pinned<f32>,
    pub(super) wire_here: Pinned<bf16>,
    pub(super) chosen_here: Pinned<u32>,
    pub(super) weights_here: Pinned<f32>,
    pub(super) logits_here: Pinned<f32>,
}

impl Memory {
    pub(super) fn new(gpu: &Gpu, bounds: BatchBounds, kv_blocks: usize) -> Result<Self, CudaError> {
        let (device, spec) = (&*gpu.device, &*gpu.spec);
        let BatchBounds { head_rows, positions, .. } = bounds;
        let rows = bounds.rows.max(head_rows);
        let kernel = FfnKernel::of(device, WeightForm::Bf16);
        let (hidden, top_k) = (spec.hidden, spec.moe.top_k);
        let own: Vec<u32> = (0..rows as u32).collect();
        Ok(Self {
            rows: Rows::new(device)?,
            dense: Dense::new(device, kernel)?,
            exact: Exact::new(device)?,
            room: Room::new(device, spec, kv_blocks, (rows, positions))?,
            ffn: GroupedFfn::new(device, kernel, (rows, 1, local_width(spec)))?,
            paged: PagedRows::new(device, rows, kv_blocks)?,
            angles: device.upload(&gpu.rope.table(positions))?,
            residual: device.alloc(rows * hidden)?,
            normed: device.alloc(rows * hidden)?,
            attended: device.alloc(rows * attended_width(spec))?,
            added: device.alloc(rows * hidden)?,
            scores: device.alloc(rows * spec.moe.experts)?,
            shares: device.alloc(rows)?,
            chosen: device.alloc(rows * top_k)?,
            weights: device.alloc(rows * top_k)?,
            logits: device.alloc(head_rows * spec.vocab)?,
            own: device.upload(&own)?,
            nothing: device.alloc(0)?,
            residual_here: Pinned::new(device, rows * hidden)?,
            wire_here: Pinned::new(device, rows * hidden)?,
            chosen_here: Pinned::new(device, rows * top_k)?,
            weights_here: Pinned::new(device, rows * top_k)?,
            logits_here: Pinned::new(device, head_rows * spec.vocab)?,
        })
    }

    /// Takes a batch, `[rows, hidden]`, to the device.
    pub(super) fn take(&mut self, gpu: &Gpu, residual: &[f32]) -> Result<(), CudaError> {
        let hidden = gpu.spec.hidden;
        self.fit(gpu, residual.len() / hidden)?;
        let here = &mut self.residual_here.values_mut()?[..residual.len()];
        for_each_row(&gpu.cpu, here, hidden, |row, values| {
            values.copy_from_slice(&residual[row * hidden..][..hidden]);
        });
        self.residual_here.send(&gpu.device, residual.len(), &mut self.residual)
    }

    /// Makes every buffer that of a batch of `rows` rows.
    fn fit(&mut self, gpu: &Gpu, rows: usize) -> Result<(), CudaError> {
        let spec = &*gpu.spec;
        self.room.fit(rows)?;
        self.residual.resize(rows * spec.hidden)?;
        self.normed.resize(rows * spec.hidden)?;
        self.attended.resize(rows * attended_width(spec))?;
        self.added.resize(rows * spec.hidden)?;
        self.scores.resize(rows * spec.moe.experts)?;
        self.shares.resize(rows)?;
        self.chosen.resize(rows * spec.moe.top_k)?;
        self.weights.resize(rows * spec.moe.top_k)?;
        self.own.resize(rows)
    }

    /// From `residual` to `normed`.
    pub(super) fn norm(&mut self, gpu: &Gpu, weight: &Buffer<bf16>) -> Result<(), CudaError> {
        let nothing = Terms { values: &self.added, place: &self.nothing, count: 0, bias: None };
        let norm = (weight, gpu.spec.norm_eps);
        self.rows.add_norm(&gpu.device, &mut self.residual, nothing, norm, &mut self.normed)
    }

    /// `residual += added + bias`, and on to `normed`.
    pub(super) fn add_and_norm(
        &mut self,
        gpu: &Gpu,
        bias: Option<&Buffer<f32>>,
        weight: &Buffer<bf16>,
    ) -> Result<(), CudaError> {
        let terms = Terms { values: &self.added, place: &self.own, count: 1, bias };
        let norm = (weight, gpu.spec.norm_eps);
        self.rows.add_norm(&gpu.device, &mut self.residual, terms, norm, &mut self.normed)
    }

    /// `residual += added`.
    pub(super) fn add(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let terms = Terms { values: &self.added, place: &self.own, count: 1, bias: None };
        self.rows.add(&gpu.device, &mut self.residual, terms, gpu.spec.hidden)
    }

    /// Has the batch copied to the host, behind what was launched.
    pub(super) fn bring_back(&mut self, device: &Device) -> Result<(), CudaError> {
        self.residual_here.fetch(device, self.residual.len(), &self.residual)
    }
}

/// Values that attention gives to the output projection for each row.
fn attended_width(spec: &ModelSpec) -> usize {
    match &spec.attention {
        AttentionSpec::Grouped(spec) => spec.heads * spec.head_dim,
        AttentionSpec::Latent(spec) => spec.heads * spec.value_dim,
    }
}

/// The widest MLP that every row goes through; 0 if there is none.
fn local_width(spec: &ModelSpec) -> usize {
    let dense = spec.layers.contains(&LayerKind::Dense).then_some(spec.dense_width);
    let shared = spec.moe.shared.map(|shared| shared.width);
    dense.max(shared).unwrap_or(0)
}
