//! The sizes of a served model that decisions and links depend on.

use crate::{Expert, Layer};

/// What the cluster needs to know about a model without knowing its weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Decoder layers, dense ones included.
    pub layers: u16,
    /// The layers that have routed experts, ascending.
    pub moe_layers: Vec<Layer>,
    /// Logical experts per MoE layer.
    pub experts: u16,
    /// Experts chosen per token.
    pub top_k: u8,
    /// Width of a hidden state, in elements.
    pub hidden: u32,
    /// Bytes of one expert's weights as they are resident on a node.
    pub expert_bytes: u64,
    /// Entries of the vocabulary.
    pub vocab: u32,
    /// Longest sequence (prompt and generated tokens) the model was made for.
    pub positions_max: u32,
}

impl ModelShape {
    /// Every (layer, expert) of the model, in ascending order.
    pub fn slots(&self) -> impl Iterator<Item = (Layer, Expert)> + '_ {
        self.moe_layers
            .iter()
            .flat_map(|&layer| (0..self.experts).map(move |expert| (layer, Expert(expert))))
    }
}
