//! The whole model in one process: the loop over both halves that a cluster must reproduce bit for bit.

use std::sync::Arc;

use domain::{Expert, Layer};
use kernels::{BLOCK_TOKENS, Cpu, FfnRow, Span};

use crate::{
    AttentionHalf, BatchBounds, Checkpoint, ExpertHalf, ExpertWork, KvCache, LayerKind, ModelError,
    ModelSpec, Routed, Scratch,
};

/// Both halves of a model with every expert, and a KV cache.
#[derive(Debug)]
pub struct Reference {
    pub(crate) attention: AttentionHalf,
    pub(crate) experts: ExpertHalf,
    pub(crate) kv: KvCache,
    pub(crate) scratch: Scratch,
    pub(crate) routed: Routed,
    residual: Vec<f32>,
    outputs: Vec<u8>,
}

impl Reference {
    /// Loads the whole model, with a KV cache of `blocks` blocks.
    ///
    /// # Errors
    /// One sentence on the first tensor that is missing or wrong.
    pub fn load(
        checkpoint: &Arc<Checkpoint>,
        cpu: &Arc<Cpu>,
        blocks: usize,
    ) -> Result<Self, ModelError> {
        let mut reference = Self::without_experts(checkpoint, cpu, blocks)?;
        for (layer, expert) in checkpoint.spec().shape().slots() {
            reference.experts.load_expert(layer, expert)?;
        }
        Ok(reference)
    }

    /// The same with no expert loaded yet.
    pub(crate) fn without_experts(
        checkpoint: &Arc<Checkpoint>,
        cpu: &Arc<Cpu>,
        blocks: usize,
    ) -> Result<Self, ModelError> {
        let attention = AttentionHalf::load(checkpoint, Arc::clone(cpu), |_, _| ())?;
        let experts = ExpertHalf::new(Arc::clone(checkpoint), Arc::clone(cpu));
        Self::of(attention, experts, (blocks, blocks * BLOCK_TOKENS))
    }

    /// From both halves, wherever they compute, with all experts resident. The KV cache has `blocks` blocks; `rows` is
    /// the most that one [`step`](Self::step) takes on a GPU.
    ///
    /// # Errors
    /// If there is no room for the cache or the batch.
    pub fn of(
        attention: AttentionHalf,
        experts: ExpertHalf,
        (blocks, rows): (usize, usize),
    ) -> Result<Self, ModelError> {
        let positions = (blocks * BLOCK_TOKENS).min(attention.spec().positions_max);
        let bounds = BatchBounds { rows, head_rows: rows, positions };
        let kv = attention.new_kv(blocks)?;
        Ok(Self {
            scratch: attention.new_scratch(bounds, &kv)?,
            kv,
            attention,
            experts,
            routed: Routed::default(),
            residual: Vec::new(),
            outputs: Vec::new(),
        })
    }

    /// The model.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        self.attention.spec()
    }

    /// Runs `tokens`, one per row of `spans`, through all layers and replaces `logits` by `[rows, vocab]`.
    ///
    /// # Errors
    /// If a GPU fails; else never for a reference whose experts are all resident, as they are after loading.
    ///
    /// # Panics
    /// If spans, blocks and tokens do not fit each other.
    pub fn step(
        &mut self,
        spans: &[Span<'_>],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        let hidden = self.spec().hidden;
        let mut residual = std::mem::take(&mut self.residual);
        residual.resize(tokens.len() * hidden, 0.0);
        self.attention.embed(tokens, &mut residual);
        for layer in (0..self.spec().layers.len()).map(|layer| Layer(layer as u16)) {
            let (half, scratch) = (&self.attention, &mut self.scratch);
            half.attend(layer, spans, &mut self.kv, &mut residual, scratch)?;
            if half.layer_kind(layer) == LayerKind::Moe {
                half.route(layer, &residual, &mut self.routed, scratch)?;
            }
            half.local_mlp(layer, &mut residual, scratch)?;
            if half.layer_kind(layer) == LayerKind::Moe {
                self.run_experts(layer, &mut residual)?;
            }
        }
        logits.clear();
        logits.extend_from_slice(self.attention.logits(&residual, &mut self.scratch)?);
        self.residual = residual;
        Ok(())
    }

    /// The logits of every position of one sequence, `[tokens, vocab]`, fed in chunks of `chunk` tokens.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    ///
    /// # Panics
    /// If the cache has fewer blocks than the sequence takes.
    pub fn logits(&mut self, tokens: &[u32], chunk: usize) -> Result<Vec<f32>, ModelError> {
        let blocks = blocks_for(tokens.len());
        let (mut all, mut part) = (Vec::new(), Vec::new());
        for (index, chunk_tokens) in tokens.chunks(chunk).enumerate() {
            let span = Span {
                rows: 0..chunk_tokens.len(),
                first_position: index * chunk,
                blocks: &blocks,
            };
            self.step(&[span], chunk_tokens, &mut part)?;
            all.extend_from_slice(&part);
        }
        Ok(all)
    }

    /// The `count` likeliest next tokens after `prompt`, one after another; ties go to the lower id.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    ///
    /// # Panics
    /// If the cache has fewer blocks than the sequence takes, or the prompt is empty.
    pub fn greedy(&mut self, prompt: &[u32], count: usize) -> Result<Vec<u32>, ModelError> {
        let blocks = blocks_for(prompt.len() + count);
        let vocab = self.spec().vocab;
        let (mut logits, mut generated) = (Vec::new(), Vec::new());
        let mut feed = prompt.to_vec();
        let mut position = 0;
        while generated.len() < count {
            let span = Span { rows: 0..feed.len(), first_position: position, blocks: &blocks };
            self.step(&[span], &feed, &mut logits)?;
            position += feed.len();
            let token = likeliest(&logits[logits.len() - vocab..]);
            generated.push(token);
            feed = vec![token];
        }
        Ok(generated)
    }

    /// Sends every row to its experts and absorbs what they answer.
    pub(crate) fn run_experts(
        &mut self,
        layer: Layer,
        residual: &mut [f32],
    ) -> Result<(), ModelError> {
        let routed = &self.routed;
        let (row_bytes, top_k) = (routed.row_bytes(), routed.top_k());
        let mut rows: Vec<Vec<FfnRow<'_>>> = vec![Vec::new(); self.experts.spec().moe.experts];
        for row in 0..routed.rows() {
            for (choice, (expert, weight)) in routed.choices(row).enumerate() {
                rows[expert.index()].push(FfnRow {
                    input: routed.row(row),
                    weight,
                    output: row * top_k + choice,
                });
            }
        }
        let work: Vec<_> = (0u16..)
            .map(Expert)
            .zip(&rows)
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(expert, rows)| ExpertWork { expert, rows })
            .collect();
        self.experts.run(layer, &work, &mut self.outputs)?;
        let outputs = &self.outputs;
        self.attention.for_each_row(residual, |row, residual| {
            let outputs = &outputs[row * top_k * row_bytes..][..top_k * row_bytes];
            self.attention.absorb(outputs.chunks_exact(row_bytes), residual);
        });
        Ok(())
    }
}

/// The first blocks of a cache, as many as `positions` take.
fn blocks_for(positions: usize) -> Vec<u32> {
    (0..positions.div_ceil(BLOCK_TOKENS) as u32).collect()
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    best.0
}
