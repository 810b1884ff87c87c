//! What a model is: its sizes, layers, attention, experts and the names of its tensors, read from `config.json` and validated.

use std::path::Path;

use domain::{Expert, Layer, ModelShape};
use kernels::RopeSpec;

use crate::{
    ModelError, arch,
    config::{CONFIG_BYTES_MAX, Config},
};

/// How the layer's feed-forward part is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// One MLP for every token, computed by the attention half.
    Dense,
    /// Routed experts, and perhaps shared ones that the attention half computes.
    Moe,
}

/// Norms that some models apply to queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// One weight of head width, applied to every head by itself.
    PerHead,
    /// One weight and one mean over all heads together (OLMoE).
    FullWidth,
}

/// Attention with keys and values per head, possibly shared by groups of query heads.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether the q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// Clamp of queries, keys and values to `[-clip, clip]` before RoPE (OLMoE).
    pub clip: Option<f32>,
}

impl GroupedSpec {
    /// Widths of the norms' weights, of queries and of keys, if there are norms.
    pub(crate) fn norm_widths(&self) -> Option<[usize; 2]> {
        match self.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some([self.head_dim; 2]),
            QkNorm::FullWidth => {
                Some([self.heads, self.kv_heads].map(|heads| heads * self.head_dim))
            }
        }
    }
}

/// Multi-head latent attention: one compressed key-value row per token (DeepSeek-V2, section 2.1).
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSpec {
    /// Query heads.
    pub heads: usize,
    /// Rank of the compressed query; none projects queries directly.
    pub query_rank: Option<usize>,
    /// Rank of the compressed key-value row.
    pub kv_rank: usize,
    /// Width of the part of a head without positions.
    pub nope_dim: usize,
    /// Width of the part of a head that RoPE turns.
    pub rope_dim: usize,
    /// Width of a head's value.
    pub value_dim: usize,
    /// Whether the compressing projections and the output projection have a bias.
    pub bias: bool,
}

/// The kind of attention of all layers.
#[derive(Clone, Debug, PartialEq)]
pub enum AttentionSpec {
    /// Multi-head and grouped-query attention.
    Grouped(GroupedSpec),
    /// Multi-head latent attention.
    Latent(LatentSpec),
}

/// How the gate's logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid per expert; a learned bias takes part in the choice but not in the weight (DeepSeek-V3).
    SigmoidWithBias,
}

/// Choice among groups of experts first (DeepSeek-V3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimit {
    /// Groups the experts are divided into, in order.
    pub groups: usize,
    /// Groups that stay eligible.
    pub chosen: usize,
}

/// Experts that see every token, as one MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedSpec {
    /// Width of that MLP.
    pub width: usize,
    /// Whether a sigmoid gate scales its output per token (Qwen2).
    pub gated: bool,
}

/// The MoE layers, all alike.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// Logical experts per layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of one expert.
    pub width: usize,
    /// How scores are made.
    pub scoring: Scoring,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub normalise: bool,
    /// Factor on the weights, after that.
    pub scale: f32,
    /// Choice among groups first.
    pub groups: Option<GroupLimit>,
    /// Shared experts.
    pub shared: Option<SharedSpec>,
}

/// Names of a layer's tensors below `model.layers.N.`, where architectures differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorNames {
    /// The gate's weight.
    pub(crate) router: &'static str,
    /// The gate's correction bias, used with [`Scoring::SigmoidWithBias`].
    pub(crate) router_bias: &'static str,
    /// What the experts' number follows.
    pub(crate) experts: &'static str,
    /// An expert's gate, up and down matrices, below its number.
    pub(crate) expert_parts: [&'static str; 3],
    /// What the shared experts' `gate_proj` and so on follow.
    pub(crate) shared: &'static str,
    /// The weight of the shared experts' gate.
    pub(crate) shared_gate: &'static str,
}

impl TensorNames {
    /// The names most architectures use.
    pub(crate) const USUAL: Self = Self {
        router: "mlp.gate.weight",
        router_bias: "mlp.gate.e_score_correction_bias",
        experts: "mlp.experts",
        expert_parts: ["gate_proj.weight", "up_proj.weight", "down_proj.weight"],
        shared: "mlp.shared_experts",
        shared_gate: "mlp.shared_expert_gate.weight",
    };
}

/// A validated model description. Every size is at least 1 and small enough that products of sizes do not overflow.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// The name in `architectures`, such as `Qwen3MoeForCausalLM`.
    pub architecture: &'static str,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Longest sequence the model was made for.
    pub positions_max: usize,
    /// Epsilon of the RMS norms.
    pub norm_eps: f32,
    /// Whether the LM head is the embedding.
    pub tied: bool,
    /// Tokens that end a sequence, ascending.
    pub eos: Vec<u32>,
    /// One entry per decoder layer.
    pub layers: Vec<LayerKind>,
    /// Width of the MLP of dense layers.
    pub dense_width: usize,
    /// Attention.
    pub attention: AttentionSpec,
    /// Factor on query-key products.
    pub softmax_scale: f32,
    /// Rotary positions.
    pub rope: RopeSpec,
    /// Experts.
    pub moe: MoeSpec,
    pub(crate) names: TensorNames,
}

impl ModelSpec {
    /// Reads `config.json` in `dir`, and the end tokens from `generation_config.json` if that is there.
    ///
    /// # Errors
    /// One sentence on the first key that is missing, wrong or unsupported.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let config = Config::read(&dir.join("config.json"), CONFIG_BYTES_MAX)?;
        let generation = dir.join("generation_config.json");
        let generation =
            generation.exists().then(|| Config::read(&generation, CONFIG_BYTES_MAX)).transpose()?;
        Self::parse(&config, generation.as_ref())
    }

    pub(crate) fn parse(config: &Config, generation: Option<&Config>) -> Result<Self, ModelError> {
        let mut spec = arch::parse(config)?;
        let ids = 0..=spec.vocab - 1;
        spec.eos = Vec::new();
        for source in [Some(config), generation].into_iter().flatten() {
            for id in source.counts("eos_token_id", &ids)? {
                spec.eos.push(id as u32);
            }
        }
        spec.eos.sort_unstable();
        spec.eos.dedup();
        Ok(spec)
    }

    /// The kind of one decoder layer, counted from 0.
    ///
    /// # Panics
    /// If the model has no such layer.
    #[must_use]
    pub fn layer_kind(&self, layer: Layer) -> LayerKind {
        self.layers[layer.index()]
    }

    /// The sizes that decisions and links depend on.
    ///
    /// `expert_bytes` is that of bf16 weights, the most that serving takes; GPUs that keep fp8 take half.
    #[must_use]
    pub fn shape(&self) -> ModelShape {
        let moe_layers = (0u16..)
            .zip(&self.layers)
            .filter(|(_, kind)| **kind == LayerKind::Moe)
            .map(|(layer, _)| Layer(layer))
            .collect();
        ModelShape {
            layers: self.layers.len() as u16,
            moe_layers,
            experts: self.moe.experts as u16,
            top_k: self.moe.top_k as u8,
            hidden: self.hidden as u32,
            expert_bytes: (3 * self.hidden * self.moe.width * 2) as u64,
            vocab: self.vocab as u32,
            positions_max: self.positions_max as u32,
        }
    }

    /// What the names of an expert's tensors begin with.
    pub(crate) fn expert_prefix(&self, layer: Layer, expert: Expert) -> String {
        format!("model.layers.{}.{}.{}.", layer.0, self.names.experts, expert.0)
    }

    /// Whether `token` ends a sequence.
    #[must_use]
    pub fn is_eos(&self, token: u32) -> bool {
        self.eos.binary_search(&token).is_ok()
    }
}
