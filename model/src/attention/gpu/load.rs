//! Takes the attention half's tensors to a GPU, and says what of a model it does not compute.

use std::sync::Arc;

use half::bf16;
use kernels::{
    Cpu, Pairing, Rope,
    cuda::{Buffer, Device, Experts, HeadMatrices, Matrix, RouteSpec},
};

use super::{
    Attention, DecoderLayer, FeedForward, Gpu, RoutedExperts, Shape, Shared, grouped::Grouped,
    latent::Latent,
};
use crate::{
    AttentionSpec, Checkpoint, GroupedSpec, LatentSpec, LayerKind, ModelError, ModelSpec, Scoring,
    attention::load::{MLP, head},
    weights::Weights,
};

impl Gpu {
    pub(in crate::attention) fn load(
        checkpoint: &Checkpoint,
        (cpu, device): (&Arc<Cpu>, Arc<Device>),
        spec: &Arc<ModelSpec>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, ModelError> {
        supported(spec)?;
        let model =
            Upload { weights: Weights::new(checkpoint, cpu, String::new()), device: &device };
        let head = model.matrix(&[(head(spec), spec.vocab)], spec.hidden)?;
        let norm = model.norm("model.norm", spec.hidden)?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (layer, &kind) in spec.layers.iter().enumerate() {
            progress(layer, spec.layers.len());
            let prefix = format!("model.layers.{layer}.");
            let upload = Upload { weights: Weights::new(checkpoint, cpu, prefix), ..model };
            layers.push(upload.layer(spec, kind)?);
        }
        let (cpu, spec, rope) = (Arc::clone(cpu), Arc::clone(spec), Rope::new(&spec.rope));
        Ok(Self { device, cpu, spec, rope, layers, norm, head })
    }
}

/// Whether a GPU computes the model's attention and what follows it.
fn supported(spec: &ModelSpec) -> Result<(), ModelError> {
    let not = |reason: String| ModelError::NotOnGpu { architecture: spec.architecture, reason };
    let grouped = matches!(spec.attention, AttentionSpec::Grouped(_));
    if grouped && spec.rope.pairing != Pairing::Halves {
        return Err(not("its heads turn neighbouring elements".into()));
    }
    let checked = Shape::of(&spec.attention, 1).check().and_then(|()| {
        let bias = (spec.moe.scoring == Scoring::SigmoidWithBias).then_some(spec.moe.experts);
        route(spec).check(bias)
    });
    checked.map_err(|error| not(error.to_string()))
}

fn route(spec: &ModelSpec) -> RouteSpec {
    let moe = &spec.moe;
    RouteSpec {
        experts: moe.experts,
        top_k: moe.top_k,
        groups: moe.groups.map_or((1, 1), |limit| (limit.groups, limit.chosen)),
        sigmoid: moe.scoring == Scoring::SigmoidWithBias,
        normalize: moe.normalise,
        scale: moe.scale,
    }
}

/// Tensors whose names begin alike, on their way to a device.
struct Upload<'a> {
    weights: Weights<'a>,
    device: &'a Device,
}

impl Upload<'_> {
    /// One matrix of `inputs` columns from several tensors and their rows, one after another.
    fn matrix(&self, parts: &[(&str, usize)], inputs: usize) -> Result<Matrix, ModelError> {
        let mut all = Vec::new();
        for &(name, outputs) in parts {
            all.extend(self.weights.halves(&format!("{name}.weight"), outputs, inputs)?);
        }
        let outputs = all.len() / inputs;
        Ok(Matrix::new(self.device, (outputs, inputs), self.device.upload(&all)?)?)
    }

    /// The biases of several tensors, one after another.
    fn bias(
        &self,
        wanted: bool,
        parts: &[(&str, usize)],
    ) -> Result<Option<Buffer<f32>>, ModelError> {
        self.bias_behind(wanted, 0, parts)
    }

    /// The same behind zeros for what has none.
    fn bias_behind(
        &self,
        wanted: bool,
        zeros: usize,
        parts: &[(&str, usize)],
    ) -> Result<Option<Buffer<f32>>, ModelError> {
        if !wanted {
            return Ok(None);
        }
        let mut all = vec![0.0; zeros];
        for &(name, outputs) in parts {
            all.extend(self.weights.vector(&format!("{name}.bias"), outputs)?);
        }
        Ok(Some(self.device.upload(&all)?))
    }

    fn norm(&self, name: &str, width: usize) -> Result<Buffer<bf16>, ModelError> {
        let weight = self.weights.vector(&format!("{name}.weight"), width)?;
        let weight: Vec<bf16> = weight.into_iter().map(bf16::from_f32).collect();
        Ok(self.device.upload(&weight)?)
    }

    /// Weights whose products are not rounded, as those of gates.
    fn exact(&self, name: &str, rows: usize, columns: usize) -> Result<Buffer<f32>, ModelError> {
        Ok(self.device.upload(&self.weights.floats(name, rows, columns)?)?)
    }

    fn layer(&self, spec: &ModelSpec, kind: LayerKind) -> Result<DecoderLayer, ModelError> {
        let (attention, inputs, biased) = match &spec.attention {
            AttentionSpec::Grouped(shape) => (
                Attention::Grouped(Box::new(self.grouped(spec, shape)?)),
                shape.heads * shape.head_dim,
                shape.output_bias,
            ),
            AttentionSpec::Latent(shape) => (
                Attention::Latent(Box::new(self.latent(spec, shape)?)),
                shape.heads * shape.value_dim,
                shape.bias,
            ),
        };
        let output = [("self_attn.o_proj", spec.hidden)];
        Ok(DecoderLayer {
            input_norm: self.norm("input_layernorm", spec.hidden)?,
            attention,
            output: self.matrix(&output, inputs)?,
            output_bias: self.bias(biased, &output)?,
            post_norm: self.norm("post_attention_layernorm", spec.hidden)?,
            feed_forward: self.feed_forward(spec, kind)?,
        })
    }

    fn grouped(&self, spec: &ModelSpec, shape: &GroupedSpec) -> Result<Grouped, ModelError> {
        let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let qkv =
            [("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)];
        let norms = match shape.norm_widths() {
            None => None,
            Some([query, key]) => {
                Some([self.norm("self_attn.q_norm", query)?, self.norm("self_attn.k_norm", key)?])
            }
        };
        Ok(Grouped {
            qkv: self.matrix(&qkv, spec.hidden)?,
            bias: self.bias(shape.qkv_bias, &qkv)?,
            norms,
            clip: shape.clip,
        })
    }

    fn latent(&self, spec: &ModelSpec, shape: &LatentSpec) -> Result<Latent, ModelError> {
        let LatentSpec { heads, kv_rank, nope_dim, rope_dim, .. } = *shape;
        let queries = heads * (nope_dim + rope_dim);
        let second = ("self_attn.kv_a_proj_with_mqa", kv_rank + rope_dim);
        let (first, query) = match shape.query_rank {
            Some(rank) => {
                let up = self.matrix(&[("self_attn.q_b_proj", queries)], rank)?;
                let norm = self.norm("self_attn.q_a_layernorm", rank)?;
                (("self_attn.q_a_proj", rank), Some((norm, up)))
            }
            None => (("self_attn.q_proj", queries), None),
        };
        // Queries that are not compressed have none.
        let bias = if query.is_some() {
            self.bias(shape.bias, &[first, second])?
        } else {
            self.bias_behind(shape.bias, queries, &[second])?
        };
        let (absorb, expand) = self.per_head(shape)?;
        Ok(Latent {
            down: self.matrix(&[first, second], spec.hidden)?,
            bias,
            query,
            kv_norm: self.norm("self_attn.kv_a_layernorm", kv_rank)?,
            absorb,
            expand,
        })
    }

    /// What takes each head's queries to the compressed keys, and the compressed values to each head.
    fn per_head(&self, shape: &LatentSpec) -> Result<(HeadMatrices, HeadMatrices), ModelError> {
        let LatentSpec { heads, kv_rank, nope_dim, value_dim, .. } = *shape;
        let rows = heads * (nope_dim + value_dim);
        let stored = self.weights.halves("self_attn.kv_b_proj.weight", rows, kv_rank)?;
        let mut absorb = Vec::with_capacity(heads * nope_dim * kv_rank);
        let mut expand = Vec::with_capacity(heads * value_dim * kv_rank);
        for head in stored.chunks_exact((nope_dim + value_dim) * kv_rank) {
            let (keys, values) = head.split_at(nope_dim * kv_rank);
            for element in 0..kv_rank {
                absorb.extend(keys.iter().skip(element).step_by(kv_rank));
            }
            expand.extend_from_slice(values);
        }
        let matrices = |sides: (usize, usize, usize), weights: &[bf16]| {
            HeadMatrices::new(sides, self.device.upload(weights)?)
        };
        let absorb = matrices((heads, kv_rank, nope_dim), &absorb)?;
        Ok((absorb, matrices((heads, value_dim, kv_rank), &expand)?))
    }

    fn feed_forward(&self, spec: &ModelSpec, kind: LayerKind) -> Result<FeedForward, ModelError> {
        let (moe, names) = (&spec.moe, &spec.names);
        if kind == LayerKind::Dense {
            return Ok(FeedForward::Dense(Box::new(self.mlp(spec, "mlp", spec.dense_width)?)));
        }
        let bias = match moe.scoring {
            Scoring::Softmax => None,
            Scoring::SigmoidWithBias => {
                let bias = self.weights.vector(names.router_bias, moe.experts)?;
                Some(self.device.upload(&bias)?)
            }
        };
        let shared = match moe.shared {
            None => None,
            Some(shared) => Some(Shared {
                expert: self.mlp(spec, names.shared, shared.width)?,
                gate: shared
                    .gated
                    .then(|| self.exact(names.shared_gate, 1, spec.hidden))
                    .transpose()?,
            }),
        };
        let gate = self.exact(names.router, moe.experts, spec.hidden)?;
        let routed = RoutedExperts { gate, route: route(spec), bias, shared };
        Ok(FeedForward::Routed(Box::new(routed)))
    }

    fn mlp(&self, spec: &ModelSpec, name: &str, width: usize) -> Result<Experts, ModelError> {
        let names = MLP.map(|tensor| format!("{name}.{tensor}"));
        let names = names.each_ref().map(String::as_str);
        let [gate, up, down] = self.weights.mlp_halves(names, spec.hidden, width)?;
        let device = self.device;
        let weights = [device.upload(&gate)?, device.upload(&up)?, device.upload(&down)?];
        Ok(Experts::new(self.device, (1, spec.hidden, width), weights)?)
    }
}
