//! DeepSeek-V3 (arXiv 2412.19437): latent attention, sigmoid routing limited to groups, shared experts, dense first layers.

use kernels::Pairing;

use super::{Trunk, WIDTHS, dense_first, dense_width, sigmoid_moe};
use crate::{
    ModelError,
    config::Config,
    rope::RopeConfig,
    spec::{AttentionSpec, LatentSpec, ModelSpec},
};

pub(super) const NAME: &str = "DeepseekV3ForCausalLM";

pub(super) fn parse(config: &Config) -> Result<ModelSpec, ModelError> {
    let trunk = Trunk::read(config, 1e-6)?;
    refuse_other_gates(config)?;
    let rope = RopeConfig::find(config, 1e4, trunk.positions_max)?;
    let latent = LatentSpec {
        heads: trunk.heads,
        query_rank: config.optional_count("q_lora_rank", &WIDTHS)?,
        kv_rank: config.count(&["kv_lora_rank"], &WIDTHS)?,
        nope_dim: config.count(&["qk_nope_head_dim"], &WIDTHS)?,
        rope_dim: config.count(&["qk_rope_head_dim"], &WIDTHS)?,
        value_dim: config.count(&["v_head_dim"], &WIDTHS)?,
        bias: config.flag_or("attention_bias", false)?,
    };
    let layers = dense_first(config, trunk.layers)?;
    let pairing = if config.flag_or("rope_interleave", true)? {
        Pairing::Neighbours
    } else {
        Pairing::Halves
    };
    let head_dim = latent.nope_dim + latent.rope_dim;
    let turned = rope.spec(latent.rope_dim, pairing)?;
    let model = trunk.model(
        NAME,
        head_dim,
        AttentionSpec::Latent(latent),
        turned,
        sigmoid_moe(config, &trunk)?,
    );
    Ok(ModelSpec {
        softmax_scale: model.softmax_scale * rope.softmax_factor()? as f32,
        dense_width: dense_width(config, &layers)?,
        layers,
        ..model
    })
}

/// The remote code of earlier DeepSeek models knows other gates under the same keys.
fn refuse_other_gates(config: &Config) -> Result<(), ModelError> {
    for (key, known) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        match config.optional_text(key)? {
            Some(other) if other != known => {
                return Err(
                    config.unsupported(key, format!("\"{other}\" is not supported; {known} is"))
                );
            }
            _ => {}
        }
    }
    Ok(())
}
