//! Loads the attention half: every tensor of the model but the routed experts'.

use std::sync::Arc;

use kernels::{Cpu, ExpertWeights, Groups, KvLayout, Linear, Rope, RouterSpec, cuda::Device};

use super::{
    AttentionHalf, Embedding, Layers,
    feed_forward::{FeedForward, RoutedExperts, Shared},
    gpu::Gpu,
    grouped::Grouped,
    host::{Attention, DecoderLayer, Host},
    latent::Latent,
};
use crate::{
    AttentionSpec, Checkpoint, GroupedSpec, LatentSpec, LayerKind, ModelError, ModelSpec, Scoring,
    experts::single_thread,
    weights::{Part, Weights},
};

const EMBEDDING: &str = "model.embed_tokens";
/// Tensors of a gated MLP below its name.
pub(super) const MLP: [&str; 3] = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"];

impl AttentionHalf {
    /// Reads and packs the attention half's own tensors, to compute on the processor; pages of experts are not touched. Before
    /// each layer `progress` hears how many are loaded, and of how many.
    ///
    /// # Errors
    /// One sentence on the first tensor that is missing or wrong.
    pub fn load(
        checkpoint: &Checkpoint,
        cpu: Arc<Cpu>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, ModelError> {
        let spec = Arc::new(checkpoint.spec().clone());
        let model = Weights::new(checkpoint, &cpu, String::new());
        // The largest first, while nothing else is resident.
        let head = model.linear(&[part(head(&spec), spec.vocab, false)], spec.hidden)?;
        let embedding = embedding(&model, &spec)?;
        let layers = spec
            .layers
            .iter()
            .enumerate()
            .map(|(layer, &kind)| {
                progress(layer, spec.layers.len());
                let prefix = format!("model.layers.{layer}.");
                decoder_layer(&Weights::new(checkpoint, &cpu, prefix), &spec, kind)
            })
            .collect::<Result<_, _>>()?;
        let norm = model.vector("model.norm.weight", spec.hidden)?;
        let workers = match spec.attention {
            AttentionSpec::Grouped(_) => 0,
            AttentionSpec::Latent(_) => cpu.threads(),
        };
        let workers = (0..workers).map(|_| single_thread(&cpu)).collect::<Result<_, _>>()?;
        let (cpu_there, rope) = (Arc::clone(&cpu), Rope::new(&spec.rope));
        let spec_there = Arc::clone(&spec);
        let host = Host { cpu: cpu_there, workers, spec: spec_there, layers, rope, norm, head };
        Ok(Self { cpu, spec, embedding, layers: Layers::Host(Box::new(host)) })
    }

    /// The same to compute on a GPU; `cpu` reads, embeds and absorbs.
    ///
    /// # Errors
    /// One sentence on the first tensor that is missing or wrong, or on what the GPU does not compute.
    pub fn on_gpu(
        checkpoint: &Checkpoint,
        cpu: Arc<Cpu>,
        gpu: Arc<Device>,
        progress: impl FnMut(usize, usize),
    ) -> Result<Self, ModelError> {
        let spec = Arc::new(checkpoint.spec().clone());
        let embedding = embedding(&Weights::new(checkpoint, &cpu, String::new()), &spec)?;
        let layers = Gpu::load(checkpoint, (&cpu, gpu), &spec, progress)?;
        Ok(Self { cpu, spec, embedding, layers: Layers::Gpu(Box::new(layers)) })
    }
}

/// Where the output head's weights are.
pub(super) fn head(spec: &ModelSpec) -> &'static str {
    if spec.tied { EMBEDDING } else { "lm_head" }
}

/// The shape of the cache that a model's attention needs.
pub(super) fn kv_layout(spec: &ModelSpec) -> KvLayout {
    let layers = spec.layers.len();
    match &spec.attention {
        AttentionSpec::Grouped(grouped) => KvLayout {
            layers,
            kv_heads: grouped.kv_heads,
            k_dim: grouped.head_dim,
            v_dim: grouped.head_dim,
        },
        AttentionSpec::Latent(latent) => KvLayout {
            layers,
            kv_heads: 1,
            k_dim: latent.kv_rank + latent.rope_dim,
            v_dim: latent.kv_rank,
        },
    }
}

fn embedding(model: &Weights<'_>, spec: &ModelSpec) -> Result<Embedding, ModelError> {
    let tensor = model.table(&format!("{EMBEDDING}.weight"), spec.vocab, spec.hidden)?;
    let embedding = Embedding { dtype: tensor.dtype, bytes: tensor.place.bytes().to_vec() };
    tensor.place.release();
    Ok(embedding)
}

fn decoder_layer(
    weights: &Weights<'_>,
    spec: &ModelSpec,
    kind: LayerKind,
) -> Result<DecoderLayer, ModelError> {
    let (attention, inputs, bias) = match &spec.attention {
        AttentionSpec::Grouped(shape) => (
            Attention::Grouped(grouped(weights, spec, shape)?),
            shape.heads * shape.head_dim,
            shape.output_bias,
        ),
        AttentionSpec::Latent(shape) => (
            Attention::Latent(latent(weights, spec, shape)?),
            shape.heads * shape.value_dim,
            shape.bias,
        ),
    };
    let output = [part("self_attn.o_proj", spec.hidden, bias)];
    Ok(DecoderLayer {
        input_norm: weights.vector("input_layernorm.weight", spec.hidden)?,
        attention,
        output: weights.linear(&output, inputs)?,
        post_norm: weights.vector("post_attention_layernorm.weight", spec.hidden)?,
        feed_forward: feed_forward(weights, spec, kind)?,
    })
}

fn grouped(
    weights: &Weights<'_>,
    spec: &ModelSpec,
    shape: &GroupedSpec,
) -> Result<Grouped, ModelError> {
    let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let parts = [
        part("self_attn.q_proj", queries, shape.qkv_bias),
        part("self_attn.k_proj", keys, shape.qkv_bias),
        part("self_attn.v_proj", keys, shape.qkv_bias),
    ];
    let norms = shape
        .norm_widths()
        .map(|[query, key]| {
            Ok::<_, ModelError>([
                weights.vector("self_attn.q_norm.weight", query)?,
                weights.vector("self_attn.k_norm.weight", key)?,
            ])
        })
        .transpose()?;
    Ok(Grouped { spec: shape.clone(), qkv: weights.linear(&parts, spec.hidden)?, norms })
}

fn latent(
    weights: &Weights<'_>,
    spec: &ModelSpec,
    shape: &LatentSpec,
) -> Result<Latent, ModelError> {
    let LatentSpec { heads, kv_rank, nope_dim, rope_dim, value_dim, .. } = *shape;
    let queries = heads * (nope_dim + rope_dim);
    let (first, query) = match shape.query_rank {
        Some(rank) => {
            let norm = weights.vector("self_attn.q_a_layernorm.weight", rank)?;
            let parts = [part("self_attn.q_b_proj", queries, false)];
            let up = weights.linear(&parts, rank)?;
            let first = part("self_attn.q_a_proj", rank, shape.bias);
            (first, Some((norm, up)))
        }
        None => (part("self_attn.q_proj", queries, false), None),
    };
    let second = part("self_attn.kv_a_proj_with_mqa", kv_rank + rope_dim, shape.bias);

    let per_head = nope_dim + value_dim;
    let stored = weights.matrix("self_attn.kv_b_proj.weight", heads * per_head, kv_rank)?;
    let matrix = stored.view()?;
    let mut absorb = Vec::with_capacity(heads);
    let mut expand = Vec::with_capacity(heads);
    for head in 0..heads {
        let keys = head * per_head..head * per_head + nope_dim;
        let values = keys.end..(head + 1) * per_head;
        let keys = matrix.row_range(keys).transposed();
        absorb.push(Linear::pack(weights.cpu(), &[keys], None)?);
        let values = matrix.row_range(values);
        expand.push(Linear::pack(weights.cpu(), &[values], None)?);
    }
    stored.release();
    Ok(Latent {
        spec: shape.clone(),
        down: weights.linear(&[first, second], spec.hidden)?,
        query,
        kv_norm: weights.vector("self_attn.kv_a_layernorm.weight", kv_rank)?,
        absorb,
        expand,
    })
}

fn feed_forward(
    weights: &Weights<'_>,
    spec: &ModelSpec,
    kind: LayerKind,
) -> Result<FeedForward, ModelError> {
    let (moe, names) = (&spec.moe, &spec.names);
    if kind == LayerKind::Dense {
        return Ok(FeedForward::Dense(Box::new(mlp(weights, spec, "mlp", spec.dense_width)?)));
    }
    let scoring = match moe.scoring {
        Scoring::Softmax => kernels::Scoring::Softmax,
        Scoring::SigmoidWithBias => {
            kernels::Scoring::Sigmoid { bias: weights.vector(names.router_bias, moe.experts)? }
        }
    };
    let shared = match moe.shared {
        None => None,
        Some(shared) => Some(Shared {
            weights: mlp(weights, spec, names.shared, shared.width)?,
            gate: shared
                .gated
                .then(|| weights.exact(names.shared_gate, 1, spec.hidden))
                .transpose()?,
        }),
    };
    Ok(FeedForward::Routed(Box::new(RoutedExperts {
        gate: weights.exact(names.router, moe.experts, spec.hidden)?,
        router: RouterSpec {
            experts: moe.experts,
            top_k: moe.top_k,
            scoring,
            normalize: moe.normalise,
            groups: moe.groups.map(|limit| Groups { count: limit.groups, kept: limit.chosen }),
            scale: moe.scale,
        },
        shared,
    })))
}

fn mlp(
    weights: &Weights<'_>,
    spec: &ModelSpec,
    name: &str,
    width: usize,
) -> Result<ExpertWeights, ModelError> {
    let names = MLP.map(|tensor| format!("{name}.{tensor}"));
    weights.mlp(names.each_ref().map(String::as_str), spec.hidden, width)
}

fn part(name: &str, outputs: usize, bias: bool) -> Part<'_> {
    Part { name, outputs, bias }
}
