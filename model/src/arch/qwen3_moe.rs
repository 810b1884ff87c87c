//! Qwen3-MoE (arXiv 2505.09388): grouped attention with a norm per query and key head.

use super::{EXPERTS, Trunk, WIDTHS, dense_width, refuse_window, sparse_steps};
use crate::{
    ModelError,
    config::Config,
    rope::RopeConfig,
    spec::{GroupedSpec, ModelSpec, QkNorm},
};

pub(super) const NAME: &str = "Qwen3MoeForCausalLM";

pub(super) fn parse(config: &Config) -> Result<ModelSpec, ModelError> {
    let trunk = Trunk::read(config, 1e-6)?;
    let windowed = config.flag_or("use_sliding_window", false)?;
    refuse_window(config, trunk.positions_max, windowed)?;
    let rope = RopeConfig::find(config, 1e4, trunk.positions_max)?;
    let bias = config.flag_or("attention_bias", false)?;
    let attention = GroupedSpec {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: QkNorm::PerHead,
        ..trunk.grouped(config)?
    };
    let moe = trunk.softmax_moe(
        config.count(&["num_experts", "num_local_experts"], &EXPERTS)?,
        config.count(&["moe_intermediate_size"], &WIDTHS)?,
        config.flag_or("norm_topk_prob", false)?,
    );
    let mut spec = trunk.grouped_model(NAME, attention, &rope, moe)?;
    spec.layers = sparse_steps(config, trunk.layers)?;
    spec.dense_width = dense_width(config, &spec.layers)?;
    Ok(spec)
}
