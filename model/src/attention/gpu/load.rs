//! Takes the attention half's tensors to a GPU, and says what of a model it does not compute.

use std::sync::Arc;

use half::bf16;
use kernels::{
    Cpu, Pairing, Rope,
    cuda::{Buffer, CacheShape, Device, Experts, Matrix, RouteSpec},
};

use super::{DecoderLayer, FeedForward, Gpu, RoutedExperts, Shared};
use crate::{
    AttentionSpec, Checkpoint, GroupedSpec, LayerKind, ModelError, ModelSpec, Scoring,
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
        let grouped = supported(spec)?;
        let model =
            Upload { weights: Weights::new(checkpoint, cpu, String::new()), device: &device };
        let head = model.matrix(&[(head(spec), spec.vocab)], spec.hidden)?;
        let norm = model.norm("model.norm", spec.hidden)?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (layer, &kind) in spec.layers.iter().enumerate() {
            progress(layer, spec.layers.len());
            let prefix = format!("model.layers.{layer}.");
            let upload = Upload { weights: Weights::new(checkpoint, cpu, prefix), ..model };
            layers.push(upload.layer(spec, &grouped, kind)?);
        }
        let (cpu, spec, rope) = (Arc::clone(cpu), Arc::clone(spec), Rope::new(&spec.rope));
        Ok(Self { device, cpu, spec, grouped, rope, layers, norm, head })
    }
}

/// The model's attention, if a GPU computes it and what follows it.
fn supported(spec: &ModelSpec) -> Result<GroupedSpec, ModelError> {
    let not = |reason: String| ModelError::NotOnGpu { architecture: spec.architecture, reason };
    let AttentionSpec::Grouped(grouped) = &spec.attention else {
        return Err(not("latent attention has no kernels there yet".into()));
    };
    if spec.rope.pairing != Pairing::Halves {
        return Err(not("its heads turn neighbouring elements".into()));
    }
    let GroupedSpec { heads, kv_heads, head_dim: dim, .. } = *grouped;
    let checked = CacheShape { heads, kv_heads, dim, blocks: 1 }.check();
    let checked = checked.and_then(|()| {
        let bias = (spec.moe.scoring == Scoring::SigmoidWithBias).then_some(spec.moe.experts);
        route(spec).check(bias)
    });
    checked.map_err(|error| not(error.to_string()))?;
    Ok(grouped.clone())
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
        if !wanted {
            return Ok(None);
        }
        let mut all = Vec::new();
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

    fn layer(
        &self,
        spec: &ModelSpec,
        grouped: &GroupedSpec,
        kind: LayerKind,
    ) -> Result<DecoderLayer, ModelError> {
        let dim = grouped.head_dim;
        let (queries, keys) = (grouped.heads * dim, grouped.kv_heads * dim);
        let qkv =
            [("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)];
        let output = [("self_attn.o_proj", spec.hidden)];
        let head_norms = match grouped.norm_widths() {
            None => None,
            Some([query, key]) => {
                Some([self.norm("self_attn.q_norm", query)?, self.norm("self_attn.k_norm", key)?])
            }
        };
        Ok(DecoderLayer {
            input_norm: self.norm("input_layernorm", spec.hidden)?,
            qkv: self.matrix(&qkv, spec.hidden)?,
            qkv_bias: self.bias(grouped.qkv_bias, &qkv)?,
            head_norms,
            output: self.matrix(&output, queries)?,
            output_bias: self.bias(grouped.output_bias, &output)?,
            post_norm: self.norm("post_attention_layernorm", spec.hidden)?,
            feed_forward: self.feed_forward(spec, kind)?,
        })
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
