//! Mixtral (arXiv 2401.04088): grouped attention, and in every layer experts named `w1`, `w3`, `w2`.

use super::{EXPERTS, Trunk, WIDTHS, refuse_window};
use crate::{
    ModelError,
    config::Config,
    rope::RopeConfig,
    spec::{ModelSpec, TensorNames},
};

pub(super) const NAME: &str = "MixtralForCausalLM";

pub(super) fn parse(config: &Config) -> Result<ModelSpec, ModelError> {
    let trunk = Trunk::read(config, 1e-5)?;
    refuse_window(config, trunk.positions_max, true)?;
    let rope = RopeConfig::find(config, 1e6, trunk.positions_max)?;
    let experts = config.count(&["num_local_experts", "num_experts"], &EXPERTS)?;
    let width = config.count(&["intermediate_size"], &WIDTHS)?;
    let moe = trunk.softmax_moe(experts, width, true);
    let mut spec = trunk.grouped_model(NAME, trunk.grouped(config)?, &rope, moe)?;
    spec.names = TensorNames {
        router: "block_sparse_moe.gate.weight",
        experts: "block_sparse_moe.experts",
        expert_parts: ["w1.weight", "w3.weight", "w2.weight"],
        ..TensorNames::USUAL
    };
    Ok(spec)
}
