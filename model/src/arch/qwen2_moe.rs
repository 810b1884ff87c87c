//! Qwen2-MoE (arXiv 2407.10671, section 2.2.2): biased q, k, v, and a shared expert behind a sigmoid gate.

use super::{EXPERTS, Trunk, WIDTHS, dense_width, refuse_window, sparse_steps};
use crate::{
    ModelError,
    config::Config,
    rope::RopeConfig,
    spec::{GroupedSpec, ModelSpec, MoeSpec, SharedSpec, TensorNames},
};

pub(super) const NAME: &str = "Qwen2MoeForCausalLM";

pub(super) fn parse(config: &Config) -> Result<ModelSpec, ModelError> {
    let trunk = Trunk::read(config, 1e-6)?;
    let windowed = config.flag_or("use_sliding_window", false)?;
    refuse_window(config, trunk.positions_max, windowed)?;
    let rope = RopeConfig::find(config, 1e4, trunk.positions_max)?;
    let attention =
        GroupedSpec { qkv_bias: config.flag_or("qkv_bias", true)?, ..trunk.grouped(config)? };
    let moe = MoeSpec {
        shared: Some(SharedSpec {
            width: config.count(&["shared_expert_intermediate_size"], &WIDTHS)?,
            gated: true,
        }),
        ..trunk.softmax_moe(
            config.count(&["num_experts", "num_local_experts"], &EXPERTS)?,
            config.count(&["moe_intermediate_size"], &WIDTHS)?,
            config.flag_or("norm_topk_prob", false)?,
        )
    };
    let mut spec = trunk.grouped_model(NAME, attention, &rope, moe)?;
    spec.layers = sparse_steps(config, trunk.layers)?;
    spec.dense_width = dense_width(config, &spec.layers)?;
    spec.names = TensorNames { shared: "mlp.shared_expert", ..TensorNames::USUAL };
    Ok(spec)
}
