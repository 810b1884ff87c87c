//! The attention half's layers on a GPU: launches that wait for nothing, and one meeting with the host for each layer.
//!
//! Rows come from the host and go back to it once for each layer. What is sent to experts is copied back first, so
//! that it goes out while the device still computes what every row sees.

mod grouped;
mod kinds;
mod latent;
mod load;
mod memory;

use std::sync::Arc;

use domain::Layer;
use half::bf16;
use kernels::{
    Cpu, Rope, Span,
    cuda::{Buffer, CudaError, Device, Experts, Finish, Matrix, RouteSpec},
    encode_bf16,
};

use self::kinds::{Attention, Batch, Shape};
pub(super) use self::{kinds::LayerCache, memory::Memory};
use super::{BatchBounds, Routed};
use crate::{ModelSpec, rows::for_each_row};

/// Weights of all layers in a GPU's memory.
#[derive(Debug)]
pub(super) struct Gpu {
    device: Arc<Device>,
    cpu: Arc<Cpu>,
    spec: Arc<ModelSpec>,
    rope: Rope,
    layers: Vec<DecoderLayer>,
    norm: Buffer<bf16>,
    head: Matrix,
}

#[derive(Debug)]
struct DecoderLayer {
    input_norm: Buffer<bf16>,
    attention: Attention,
    output: Matrix,
    output_bias: Option<Buffer<f32>>,
    post_norm: Buffer<bf16>,
    feed_forward: FeedForward,
}

#[derive(Debug)]
enum FeedForward {
    Dense(Box<Experts>),
    Routed(Box<RoutedExperts>),
}

/// What the attention half has of an MoE layer.
#[derive(Debug)]
struct RoutedExperts {
    /// `[experts, hidden]`.
    gate: Buffer<f32>,
    route: RouteSpec,
    bias: Option<Buffer<f32>>,
    shared: Option<Shared>,
}

/// Experts that see every token.
#[derive(Debug)]
struct Shared {
    expert: Experts,
    /// `[1, hidden]`: the sigmoid of its product scales the row.
    gate: Option<Buffer<f32>>,
}

impl Gpu {
    /// Bytes of the matrices.
    pub(super) fn bytes(&self) -> usize {
        self.layers.iter().map(DecoderLayer::bytes).sum::<usize>() + self.head.bytes()
    }

    /// A cache for each layer.
    pub(super) fn new_kv(&self, blocks: usize) -> Result<Vec<LayerCache>, CudaError> {
        let shape = Shape::of(&self.spec.attention, blocks);
        self.layers.iter().map(|_| shape.cache(&self.device)).collect()
    }

    /// Bytes of a block over all layers.
    pub(super) fn kv_bytes_per_block(&self) -> usize {
        self.layers.len() * Shape::of(&self.spec.attention, 1).block_bytes()
    }

    pub(super) fn new_memory(
        &self,
        bounds: BatchBounds,
        kv_blocks: usize,
    ) -> Result<Memory, CudaError> {
        Memory::new(self, bounds, kv_blocks)
    }

    /// Takes the batch to the device and launches attention; nothing is waited for.
    pub(super) fn attend(
        &self,
        layer: Layer,
        spans: &[Span<'_>],
        kv: &mut [LayerCache],
        residual: &[f32],
        memory: &mut Memory,
    ) -> Result<(), CudaError> {
        let (device, weights, cache) =
            (&*self.device, &self.layers[layer.index()], &mut kv[layer.index()]);
        memory.take(self, residual)?;
        memory.paged.set(device, memory.room.paging(), spans)?;
        assert_eq!(
            memory.paged.rows() * self.spec.hidden,
            residual.len(),
            "one span after another"
        );
        memory.norm(self, &weights.input_norm)?;
        let m = memory;
        let batch = Batch {
            device,
            spec: &self.spec,
            dense: &mut m.dense,
            paged: &m.paged,
            angles: &m.angles,
            normed: &m.normed,
            attended: &mut m.attended,
        };
        weights.attention.attend(batch, &mut m.room, cache)?;
        m.dense.launch(device, &weights.output, &m.attended, &mut m.added)?;
        m.add_and_norm(self, weights.output_bias.as_ref(), &weights.post_norm)
    }

    /// Launches all that is left of an MoE layer, and waits for the part that goes to experts.
    pub(super) fn route(
        &self,
        layer: Layer,
        routed: &mut Routed,
        memory: &mut Memory,
    ) -> Result<(), CudaError> {
        let device = &*self.device;
        let FeedForward::Routed(weights) = &self.layers[layer.index()].feed_forward else {
            panic!("a dense layer routes nothing")
        };
        let m = &mut *memory;
        let gate = (&weights.gate, self.spec.hidden);
        m.exact.launch(device, gate, &m.normed, Finish::Sum, &mut m.scores)?;
        let scores = (&m.scores, weights.bias.as_ref());
        m.rows.route(device, &weights.route, scores, &mut m.chosen, &mut m.weights)?;
        m.chosen_here.fetch(device, m.chosen.len(), &m.chosen)?;
        m.weights_here.fetch(device, m.weights.len(), &m.weights)?;
        m.wire_here.fetch(device, m.normed.len(), &m.normed)?;
        if let Some(shared) = &weights.shared {
            self.add_shared(shared, memory)?;
        }
        memory.bring_back(device)?;
        self.fill(routed, memory)
    }

    /// Copies what was routed to where the engine finds it.
    fn fill(&self, routed: &mut Routed, memory: &Memory) -> Result<(), CudaError> {
        let (top_k, hidden) = (self.spec.moe.top_k, self.spec.hidden);
        let chosen = &memory.chosen_here.values()?[..memory.chosen.len()];
        let weights = &memory.weights_here.values()?[..memory.weights.len()];
        routed.routing.assign(top_k, chosen, weights);
        let wire = memory.wire_here.values()?;
        routed.row_bytes = hidden * size_of::<bf16>();
        routed.wire.resize(routed.routing.rows() * routed.row_bytes, 0);
        for_each_row(&self.cpu, &mut routed.wire, routed.row_bytes, |row, bytes| {
            encode_bf16(&wire[row * hidden..][..hidden], bytes);
        });
        Ok(())
    }

    fn add_shared(&self, shared: &Shared, m: &mut Memory) -> Result<(), CudaError> {
        let device = &*self.device;
        if let Some(gate) = &shared.gate {
            let gate = (gate, self.spec.hidden);
            m.exact.launch(device, gate, &m.normed, Finish::Sigmoid, &mut m.shares)?;
        }
        let share = shared.gate.is_some().then_some(&m.shares);
        m.ffn.launch_all(device, &shared.expert, (&m.normed, share), &mut m.added)?;
        m.add(self)
    }

    /// Waits for the batch, with what every row sees in it, and gives it back.
    pub(super) fn local_mlp(
        &self,
        layer: Layer,
        residual: &mut [f32],
        memory: &mut Memory,
    ) -> Result<(), CudaError> {
        let device = &*self.device;
        // A routed layer's is on its way already.
        if let FeedForward::Dense(mlp) = &self.layers[layer.index()].feed_forward {
            let m = &mut *memory;
            m.ffn.launch_all(device, mlp, (&m.normed, None), &mut m.added)?;
            m.add(self)?;
            m.bring_back(device)?;
        }
        let (here, hidden) = (memory.residual_here.values()?, self.spec.hidden);
        for_each_row(&self.cpu, residual, hidden, |row, values| {
            values.copy_from_slice(&here[row * hidden..][..hidden]);
        });
        Ok(())
    }

    /// Logits, `[rows, vocab]`, in memory that the next call takes again.
    pub(super) fn logits<'a>(
        &self,
        residual: &[f32],
        memory: &'a mut Memory,
    ) -> Result<&'a mut [f32], CudaError> {
        let (device, vocab) = (&*self.device, self.spec.vocab);
        memory.take(self, residual)?;
        memory.norm(self, &self.norm)?;
        let m = memory;
        let len = residual.len() / self.spec.hidden * vocab;
        m.dense.launch_exact(device, &self.head, &m.normed, &mut m.logits)?;
        m.logits_here.fetch(device, len, &m.logits)?;
        Ok(&mut m.logits_here.values_mut()?[..len])
    }
}

impl DecoderLayer {
    fn bytes(&self) -> usize {
        let feed_forward = match &self.feed_forward {
            FeedForward::Dense(mlp) => mlp.bytes_each(),
            FeedForward::Routed(routed) => {
                let shared = routed.shared.as_ref().map_or(0, |shared| shared.expert.bytes_each());
                routed.gate.len() * size_of::<f32>() + shared
            }
        };
        self.attention.bytes() + self.output.bytes() + feed_forward
    }
}
