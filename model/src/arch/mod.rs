//! The architectures amoe knows: each file maps one architecture's configuration and tensor names to a [`ModelSpec`].

mod deepseek_v3;
mod glm4_moe;
mod mixtral;
mod olmoe;
mod qwen2_moe;
mod qwen3_moe;

use std::ops::RangeInclusive;

use kernels::{Pairing, RopeSpec};

use crate::{
    ModelError,
    config::Config,
    quantization,
    rope::RopeConfig,
    spec::{
        AttentionSpec, GroupLimit, GroupedSpec, LayerKind, ModelSpec, MoeSpec, QkNorm, Scoring,
        SharedSpec, TensorNames,
    },
};

/// Far above any real width, and small enough that products of three fit a machine word.
const WIDTHS: RangeInclusive<usize> = 1..=1 << 20;
const HEADS: RangeInclusive<usize> = 1..=1 << 12;
const LAYERS: RangeInclusive<usize> = 1..=1 << 10;
/// As many as the router's kernel holds.
const EXPERTS: RangeInclusive<usize> = 1..=1024;
const TOP_K: RangeInclusive<usize> = 1..=64;
const VOCAB: RangeInclusive<usize> = 1..=1 << 24;
pub(crate) const POSITIONS_MAX: usize = 1 << 24;

type Parse = fn(&Config) -> Result<ModelSpec, ModelError>;

/// Every architecture with the function that reads it.
const KNOWN: [(&str, Parse); 6] = [
    (deepseek_v3::NAME, deepseek_v3::parse),
    (glm4_moe::NAME, glm4_moe::parse),
    (mixtral::NAME, mixtral::parse),
    (olmoe::NAME, olmoe::parse),
    (qwen2_moe::NAME, qwen2_moe::parse),
    (qwen3_moe::NAME, qwen3_moe::parse),
];

/// Reads a configuration of any known architecture.
pub(crate) fn parse(config: &Config) -> Result<ModelSpec, ModelError> {
    let names = config.texts("architectures")?;
    let known = || {
        let names: Vec<_> = KNOWN.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    };
    let [name] = names.as_slice() else {
        return Err(config.expected("architectures", format!("a list of one of {}", known())));
    };
    let Some((_, parse)) = KNOWN.iter().find(|(candidate, _)| candidate == name) else {
        return Err(config.unsupported(
            "architectures",
            format!("{name} is not supported; known are {}", known()),
        ));
    };
    quantization::check(config)?;
    let activation = config.optional_text("hidden_act")?.unwrap_or("silu");
    if activation != "silu" {
        return Err(
            config.unsupported("hidden_act", format!("\"{activation}\" is not supported; silu is"))
        );
    }
    let spec = parse(config)?;
    check(config, &spec)?;
    Ok(spec)
}

/// What every architecture's configuration has under the same keys.
struct Trunk {
    hidden: usize,
    layers: usize,
    vocab: usize,
    positions_max: usize,
    norm_eps: f32,
    tied: bool,
    top_k: usize,
    heads: usize,
}

impl Trunk {
    /// `norm_eps` is what the architecture's own library takes if the file says nothing.
    fn read(config: &Config, norm_eps: f64) -> Result<Self, ModelError> {
        Ok(Self {
            hidden: config.count(&["hidden_size"], &WIDTHS)?,
            layers: config.count(&["num_hidden_layers"], &LAYERS)?,
            vocab: config.count(&["vocab_size"], &VOCAB)?,
            positions_max: config.count(&["max_position_embeddings"], &(1..=POSITIONS_MAX))?,
            norm_eps: config.positive_or("rms_norm_eps", norm_eps)? as f32,
            tied: config.flag_or("tie_word_embeddings", false)?,
            top_k: config.count(&["num_experts_per_tok"], &TOP_K)?,
            heads: config.count(&["num_attention_heads"], &HEADS)?,
        })
    }

    /// The width of a head, which most configurations leave to be computed.
    fn head_dim(&self, config: &Config) -> Result<usize, ModelError> {
        if let Some(dim) = config.optional_count("head_dim", &WIDTHS)? {
            return Ok(dim);
        }
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(config.expected(
                "num_attention_heads",
                format!("a divisor of hidden_size {} as there is no head_dim", self.hidden),
            ));
        }
        Ok(self.hidden / self.heads)
    }

    /// Grouped attention without norms and biases; the caller adds what its architecture has.
    fn grouped(&self, config: &Config) -> Result<GroupedSpec, ModelError> {
        let kv_heads = config.optional_count("num_key_value_heads", &HEADS)?.unwrap_or(self.heads);
        if !self.heads.is_multiple_of(kv_heads) {
            return Err(config.expected(
                "num_key_value_heads",
                format!("a divisor of num_attention_heads {}", self.heads),
            ));
        }
        Ok(GroupedSpec {
            heads: self.heads,
            kv_heads,
            head_dim: self.head_dim(config)?,
            qkv_bias: false,
            output_bias: false,
            qk_norm: QkNorm::None,
            clip: None,
        })
    }

    /// A softmax gate over `experts` experts without anything special.
    fn softmax_moe(&self, experts: usize, width: usize, normalise: bool) -> MoeSpec {
        MoeSpec {
            experts,
            top_k: self.top_k,
            width,
            scoring: Scoring::Softmax,
            normalise,
            scale: 1.0,
            groups: None,
            shared: None,
        }
    }

    /// A model all of whose layers have experts, with the usual tensor names.
    ///
    /// `head_dim` is the width over which queries and keys are multiplied.
    fn model(
        &self,
        architecture: &'static str,
        head_dim: usize,
        attention: AttentionSpec,
        rope: RopeSpec,
        moe: MoeSpec,
    ) -> ModelSpec {
        ModelSpec {
            architecture,
            hidden: self.hidden,
            vocab: self.vocab,
            positions_max: self.positions_max,
            norm_eps: self.norm_eps,
            tied: self.tied,
            eos: Vec::new(),
            layers: vec![LayerKind::Moe; self.layers],
            dense_width: moe.width,
            softmax_scale: (head_dim as f64).powf(-0.5) as f32,
            rope,
            attention,
            moe,
            names: TensorNames::USUAL,
        }
    }

    /// A model with grouped attention whose heads turn as a whole.
    fn grouped_model(
        &self,
        architecture: &'static str,
        attention: GroupedSpec,
        rope: &RopeConfig,
        moe: MoeSpec,
    ) -> Result<ModelSpec, ModelError> {
        let head_dim = attention.head_dim;
        let rope = rope.spec(head_dim, Pairing::Halves)?;
        let attention = AttentionSpec::Grouped(attention);
        Ok(self.model(architecture, head_dim, attention, rope, moe))
    }
}

/// Refuses a window that would hide positions which full attention sees.
fn refuse_window(config: &Config, positions_max: usize, enabled: bool) -> Result<(), ModelError> {
    let kinds = config.texts("layer_types")?;
    let sliding = kinds.is_empty() || kinds.contains(&"sliding_attention");
    if let Some(other) =
        kinds.iter().find(|kind| !["full_attention", "sliding_attention"].contains(kind))
    {
        return Err(config
            .unsupported("layer_types", format!("{other} is not supported; full_attention is")));
    }
    if !enabled || !sliding {
        return Ok(());
    }
    match config.optional_count("sliding_window", &(0..=usize::MAX))? {
        Some(window) if window > 0 && window < positions_max => Err(config.unsupported(
            "sliding_window",
            format!(
                "a window of {window} would change results within the {positions_max} positions \
                 of the model; only full attention is supported"
            ),
        )),
        _ => Ok(()),
    }
}

/// Qwen's rule: every `decoder_sparse_step`-th layer has experts, unless `mlp_only_layers` names it.
fn sparse_steps(config: &Config, layers: usize) -> Result<Vec<LayerKind>, ModelError> {
    let step = config.optional_count("decoder_sparse_step", &LAYERS)?.unwrap_or(1);
    let dense = config.counts("mlp_only_layers", &(0..=usize::MAX))?;
    Ok((0..layers)
        .map(|layer| {
            if (layer + 1).is_multiple_of(step) && !dense.contains(&layer) {
                LayerKind::Moe
            } else {
                LayerKind::Dense
            }
        })
        .collect())
}

/// The width of dense layers, which need not be there if no layer is dense.
fn dense_width(config: &Config, layers: &[LayerKind]) -> Result<usize, ModelError> {
    if layers.contains(&LayerKind::Dense) {
        config.count(&["intermediate_size"], &WIDTHS)
    } else {
        Ok(1)
    }
}

/// DeepSeek's gate, which GLM shares: sigmoid scores, a correction bias, groups, and a factor.
fn sigmoid_moe(config: &Config, trunk: &Trunk) -> Result<MoeSpec, ModelError> {
    let width = config.count(&["moe_intermediate_size"], &WIDTHS)?;
    let groups = config.optional_count("n_group", &EXPERTS)?.unwrap_or(1);
    let chosen = config.optional_count("topk_group", &EXPERTS)?.unwrap_or(1);
    let shared = config.optional_count("n_shared_experts", &(0..=1 << 8))?;
    let experts = ["n_routed_experts", "num_local_experts", "num_experts"];
    Ok(MoeSpec {
        scoring: Scoring::SigmoidWithBias,
        scale: config.positive_or("routed_scaling_factor", 1.0)? as f32,
        groups: (groups > 1).then_some(GroupLimit { groups, chosen }),
        shared: shared
            .filter(|&count| count > 0)
            .map(|count| SharedSpec { width: count * width, gated: false }),
        ..trunk.softmax_moe(
            config.count(&experts, &EXPERTS)?,
            width,
            config.flag_or("norm_topk_prob", true)?,
        )
    })
}

/// DeepSeek's rule: the first layers are dense, then every `moe_layer_freq`-th layer has experts.
fn dense_first(config: &Config, layers: usize) -> Result<Vec<LayerKind>, ModelError> {
    let first = config.optional_count("first_k_dense_replace", &(0..=usize::MAX))?.unwrap_or(0);
    let step = config.optional_count("moe_layer_freq", &LAYERS)?.unwrap_or(1);
    Ok((0..layers)
        .map(|layer| {
            if layer >= first && layer.is_multiple_of(step) {
                LayerKind::Moe
            } else {
                LayerKind::Dense
            }
        })
        .collect())
}

/// What has to hold across keys, for every architecture.
fn check(config: &Config, spec: &ModelSpec) -> Result<(), ModelError> {
    let moe = &spec.moe;
    if moe.top_k > moe.experts {
        return Err(config.expected(
            "num_experts_per_tok",
            format!("at most the model's {} experts", moe.experts),
        ));
    }
    if let Some(limit) = moe.groups {
        if !moe.experts.is_multiple_of(limit.groups) || moe.experts / limit.groups < 2 {
            return Err(config.expected(
                "n_group",
                format!("groups of at least two that divide the {} experts", moe.experts),
            ));
        }
        if limit.chosen > limit.groups || limit.chosen * (moe.experts / limit.groups) < moe.top_k {
            return Err(config.expected(
                "topk_group",
                format!("at most {} groups that hold {} experts", limit.groups, moe.top_k),
            ));
        }
    }
    if !spec.layers.contains(&LayerKind::Moe) {
        return Err(config.unsupported(
            "num_hidden_layers",
            "no layer has experts; amoe serves mixture-of-experts models",
        ));
    }
    Ok(())
}
