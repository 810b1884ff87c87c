//! The sizes of the models that the papers serve, from the configurations their makers publish.

use serde::Deserialize;

/// A model by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// Mixtral 8x7B.
    #[serde(rename = "mixtral-8x7b")]
    Mixtral8x7b,
    /// Mixtral 8x7B with one key/value head, which AMoE measures.
    #[serde(rename = "mixtral-8x7b-mqa")]
    Mixtral8x7bMqa,
    /// Qwen3 30B-A3B.
    #[serde(rename = "qwen3-30b-a3b")]
    Qwen3With30B,
    /// Qwen3 235B-A22B.
    #[serde(rename = "qwen3-235b-a22b")]
    Qwen3With235B,
    /// DeepSeek-V3, with 8-bit weights as it is published.
    #[serde(rename = "deepseek-v3")]
    DeepSeekV3,
}

/// What the cost of a layer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Layers with experts.
    pub(super) layers: u16,
    /// Layers without.
    pub(super) dense_layers: u16,
    pub(super) hidden: u64,
    /// Width of one expert.
    pub(super) width: u64,
    pub(super) experts: u16,
    pub(super) top_k: u8,
    /// Weights of a layer's attention, shared experts included.
    pub(super) attention_weights: u64,
    /// Weights that a dense layer has beyond those.
    pub(super) dense_weights: u64,
    /// Elements of a layer's cache per token.
    pub(super) kv_elements: u64,
    /// Multiplications and additions of a layer's attention per token of context.
    pub(super) kv_flops: u64,
    pub(super) vocab: u64,
    /// Bytes of a weight.
    pub(super) weight_bytes: u64,
}

impl Model {
    /// Sizes from each model's `config.json`.
    pub(super) fn shape(self) -> Shape {
        match self {
            Self::Mixtral8x7b => mixtral(8),
            Self::Mixtral8x7bMqa => mixtral(1),
            // 48 layers, hidden 2048, 128 experts of width 768, 8 per token; 32 heads of 128, 4 for keys and values.
            Self::Qwen3With30B => Shape { width: 768, ..grouped(48, 2048, 32, 4, 128, 8, 151_936) },
            // 94 layers, hidden 4096, 128 experts of width 1536, 8 per token; 64 heads of 128, 4 for keys and values.
            Self::Qwen3With235B => {
                Shape { width: 1536, ..grouped(94, 4096, 64, 4, 128, 8, 151_936) }
            }
            Self::DeepSeekV3 => deepseek_v3(),
        }
    }
}

/// 32 layers, hidden 4096, 8 experts of width 14336, 2 per token; 32 heads of 128.
fn mixtral(kv_heads: u64) -> Shape {
    Shape { width: 14_336, ..grouped(32, 4096, 32, kv_heads, 8, 2, 32_000) }
}

/// A model with grouped-query attention, heads of 128 and 16-bit weights.
fn grouped(
    layers: u16,
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    experts: u16,
    top_k: u8,
    vocab: u64,
) -> Shape {
    const HEAD: u64 = 128;
    Shape {
        layers,
        dense_layers: 0,
        hidden,
        width: 0,
        experts,
        top_k,
        // Query and output projections, keys and values, gate.
        attention_weights: 2 * hidden * HEAD * (heads + kv_heads) + hidden * u64::from(experts),
        dense_weights: 0,
        kv_elements: 2 * kv_heads * HEAD,
        // A product with the key and one with the value for every head.
        kv_flops: 2 * 2 * heads * HEAD,
        vocab,
        weight_bytes: 2,
    }
}

/// 58 layers of 256 experts of width 2048, 8 per token, 1 shared; 3 dense layers of width 18432;
/// latent attention with ranks 1536 and 512, 128 heads of 128 + 64.
fn deepseek_v3() -> Shape {
    const HIDDEN: u64 = 7168;
    const HEADS: u64 = 128;
    let queries = HIDDEN * 1536 + 1536 * HEADS * (128 + 64);
    let keys = HIDDEN * (512 + 64) + 512 * HEADS * (128 + 128);
    let output = HEADS * 128 * HIDDEN;
    let shared = 3 * HIDDEN * 2048;
    Shape {
        layers: 58,
        dense_layers: 3,
        hidden: HIDDEN,
        width: 2048,
        experts: 256,
        top_k: 8,
        attention_weights: queries + keys + output + shared + HIDDEN * 256,
        dense_weights: 3 * HIDDEN * 18_432 - shared,
        kv_elements: 512 + 64,
        // In the latent space: 576 for the key, 512 for the value, for every head.
        kv_flops: 2 * HEADS * (576 + 512),
        vocab: 129_280,
        weight_bytes: 1,
    }
}

impl Shape {
    /// Weights of one expert: gate, up and down.
    pub(super) fn expert_weights(&self) -> u64 {
        3 * self.hidden * self.width
    }

    pub(super) fn expert_bytes(&self) -> u64 {
        self.expert_weights() * self.weight_bytes
    }

    /// Bytes of a layer's cache per token; the cache is 16 bits wide.
    pub(super) fn kv_bytes(&self) -> u64 {
        self.kv_elements * 2
    }

    /// Bytes of a hidden state; it travels in 16 bits.
    pub(super) fn row_bytes(&self) -> u32 {
        u32::try_from(self.hidden * 2).expect("hidden states are some kilobytes")
    }
}
