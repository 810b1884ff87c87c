//! OLMoE (arXiv 2409.02060): norms over the full width of queries and keys, and an optional clamp.

use super::{EXPERTS, Trunk, WIDTHS};
use crate::{
    ModelError,
    config::Config,
    rope::RopeConfig,
    spec::{GroupedSpec, ModelSpec, QkNorm},
};

pub(super) const NAME: &str = "OlmoeForCausalLM";

pub(super) fn parse(config: &Config) -> Result<ModelSpec, ModelError> {
    let trunk = Trunk::read(config, 1e-5)?;
    let rope = RopeConfig::find(config, 1e4, trunk.positions_max)?;
    let bias = config.flag_or("attention_bias", false)?;
    let attention = GroupedSpec {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: QkNorm::FullWidth,
        clip: config.optional_positive("clip_qkv")?.map(|clip| clip as f32),
        ..trunk.grouped(config)?
    };
    let moe = trunk.softmax_moe(
        config.count(&["num_experts", "num_local_experts"], &EXPERTS)?,
        config.count(&["intermediate_size"], &WIDTHS)?,
        config.flag_or("norm_topk_prob", false)?,
    );
    trunk.grouped_model(NAME, attention, &rope, moe)
}
