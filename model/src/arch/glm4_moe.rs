//! GLM-4.5 (arXiv 2508.06471): grouped attention that turns part of each head, with DeepSeek's gate and shared experts.

use kernels::Pairing;

use super::{Trunk, dense_first, dense_width, sigmoid_moe};
use crate::{
    ModelError,
    config::Config,
    rope::RopeConfig,
    spec::{AttentionSpec, GroupedSpec, ModelSpec, QkNorm},
};

pub(super) const NAME: &str = "Glm4MoeForCausalLM";

pub(super) fn parse(config: &Config) -> Result<ModelSpec, ModelError> {
    let trunk = Trunk::read(config, 1e-5)?;
    let rope = RopeConfig::find(config, 1e4, trunk.positions_max)?;
    let partial = rope.partial(config, 0.5)?;
    let attention = GroupedSpec {
        qkv_bias: config.flag_or("attention_bias", false)?,
        qk_norm: if config.flag_or("use_qk_norm", false)? { QkNorm::PerHead } else { QkNorm::None },
        ..trunk.grouped(config)?
    };
    let head_dim = attention.head_dim;
    let turned = (head_dim as f64 * partial) as usize;
    let layers = dense_first(config, trunk.layers)?;
    Ok(ModelSpec {
        dense_width: dense_width(config, &layers)?,
        layers,
        ..trunk.model(
            NAME,
            head_dim,
            AttentionSpec::Grouped(attention),
            rope.spec(turned, Pairing::Halves)?,
            sigmoid_moe(config, &trunk)?,
        )
    })
}
