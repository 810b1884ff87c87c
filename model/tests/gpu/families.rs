//! Small random checkpoints of each family of models, with heads as wide as the GPU's kernels want them.

use std::{collections::BTreeMap, fs};

use half::bf16;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stored::{Stored, write};

pub(crate) const VOCAB: usize = 320;
const HIDDEN: usize = 128;
const LAYERS: usize = 2;
const EXPERTS: usize = 8;
const HEAD: usize = 64;
const KV_HEADS: usize = 2;
const WIDTH: usize = 64;
const SHARED: usize = 96;
const DENSE: usize = 160;
/// Of latent attention: ranks of compressed queries and of compressed keys, parts of a head, and its value.
const QUERY_RANK: usize = 72;
const KV_RANK: usize = 128;
const NOPE: usize = 32;
const ROPE: usize = 64;
const VALUE: usize = 48;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Family {
    /// A norm for each head.
    Qwen3,
    /// Nothing special.
    Mixtral,
    /// Norms over all heads, and a clamp.
    Olmoe,
    /// Biases, and a shared expert behind a gate.
    Qwen2,
    /// Heads that turn in part, a dense layer, sigmoids and a shared expert.
    Glm,
    /// Latent attention with compressed queries and YaRN, a dense layer, sigmoids limited to groups, shared experts.
    DeepSeek,
    /// Latent attention with biases whose queries are not compressed, and elements that turn half a head apart.
    DeepSeekDirect,
}

impl Family {
    pub(crate) const ALL: [Self; 7] = [
        Self::Qwen3,
        Self::Mixtral,
        Self::Olmoe,
        Self::Qwen2,
        Self::Glm,
        Self::DeepSeek,
        Self::DeepSeekDirect,
    ];

    fn is_latent(self) -> bool {
        matches!(self, Self::DeepSeek | Self::DeepSeekDirect)
    }

    /// Whether the first layer is dense, and the gate's sigmoids have a bias.
    fn is_like_deepseek(self) -> bool {
        self.is_latent() || self == Self::Glm
    }

    fn heads(self) -> usize {
        if self == Self::Olmoe { KV_HEADS } else { 2 * KV_HEADS }
    }

    fn config(self) -> Value {
        let (architecture, special) = match self {
            Self::Qwen3 => (
                "Qwen3MoeForCausalLM",
                json!({ "moe_intermediate_size": WIDTH, "num_experts": EXPERTS, "norm_topk_prob": true }),
            ),
            Self::Mixtral => (
                "MixtralForCausalLM",
                json!({ "intermediate_size": WIDTH, "num_local_experts": EXPERTS }),
            ),
            Self::Olmoe => (
                "OlmoeForCausalLM",
                json!({ "intermediate_size": WIDTH, "num_experts": EXPERTS, "clip_qkv": 1.0, "attention_bias": true }),
            ),
            Self::Qwen2 => (
                "Qwen2MoeForCausalLM",
                json!({ "moe_intermediate_size": WIDTH, "num_experts": EXPERTS, "shared_expert_intermediate_size": SHARED }),
            ),
            Self::Glm => (
                "Glm4MoeForCausalLM",
                json!({
                    "moe_intermediate_size": WIDTH, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
                    "intermediate_size": DENSE, "first_k_dense_replace": 1, "partial_rotary_factor": 0.5,
                    "attention_bias": true, "use_qk_norm": true, "routed_scaling_factor": 1.5,
                    "n_group": 4, "topk_group": 2,
                }),
            ),
            Self::DeepSeek | Self::DeepSeekDirect => ("DeepseekV3ForCausalLM", self.latent()),
        };
        let mut config = json!({
            "architectures": [architecture], "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
            "vocab_size": VOCAB, "max_position_embeddings": 512, "num_experts_per_tok": 2,
            "num_attention_heads": self.heads(), "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
            "tie_word_embeddings": self == Self::Qwen3,
        });
        let Value::Object(special) = special else { unreachable!("an object was written above") };
        config.as_object_mut().unwrap().extend(special);
        config
    }

    fn latent(self) -> Value {
        let direct = self == Self::DeepSeekDirect;
        let rope = if direct {
            json!({ "rope_type": "default", "rope_theta": 10000.0 })
        } else {
            json!({
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "beta_fast": 32, "beta_slow": 1,
                "mscale": 0.7, "mscale_all_dim": 1.3, "original_max_position_embeddings": 64,
            })
        };
        json!({
            "moe_intermediate_size": WIDTH, "n_routed_experts": EXPERTS, "n_shared_experts": 2,
            "intermediate_size": DENSE, "first_k_dense_replace": 1, "attention_bias": direct,
            "routed_scaling_factor": 2.5, "norm_topk_prob": true, "n_group": 4, "topk_group": 2,
            "q_lora_rank": (!direct).then_some(QUERY_RANK), "kv_lora_rank": KV_RANK,
            "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": VALUE,
            "rope_interleave": !direct, "rope_parameters": rope,
        })
    }

    /// A checkpoint with weights drawn from `seed`.
    pub(crate) fn checkpoint(self, seed: u64) -> TempDir {
        self.changed(seed, |_, _| ())
    }

    /// The same once `change` was done to its configuration and its tensors.
    pub(crate) fn changed(
        self,
        seed: u64,
        change: impl FnOnce(&mut Value, &mut BTreeMap<String, Stored>),
    ) -> TempDir {
        let dir = TempDir::new().unwrap();
        let mut config = self.config();
        let mut draw = Draw { state: seed, tensors: BTreeMap::new() };
        draw.matrix("model.embed_tokens.weight", VOCAB, HIDDEN, 1.0);
        draw.vector("model.norm.weight", HIDDEN, 1.0);
        if self != Self::Qwen3 {
            draw.weight("lm_head.weight", VOCAB, HIDDEN);
        }
        for layer in 0..LAYERS {
            self.layer(&mut draw, layer);
        }
        change(&mut config, &mut draw.tensors);
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        write(&dir.path().join("model.safetensors"), &draw.tensors);
        dir
    }

    fn layer(self, draw: &mut Draw, layer: usize) {
        let name = |tensor: &str| format!("model.layers.{layer}.{tensor}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            draw.vector(&name(&format!("{norm}.weight")), HIDDEN, 1.0);
        }
        if self.is_latent() {
            self.latent_attention(draw, name);
        } else {
            self.grouped_attention(draw, name);
        }
        self.feed_forward(draw, layer, name);
    }

    fn latent_attention(self, draw: &mut Draw, name: impl Fn(&str) -> String) {
        let queries = self.heads() * (NOPE + ROPE);
        let mut project = |tensor: &str, rows: usize, columns: usize, biased: bool| {
            draw.weight(&name(&format!("self_attn.{tensor}.weight")), rows, columns);
            if biased {
                draw.vector(&name(&format!("self_attn.{tensor}.bias")), rows, 0.0);
            }
        };
        let biased = self == Self::DeepSeekDirect;
        if biased {
            project("q_proj", queries, HIDDEN, false);
        } else {
            project("q_a_proj", QUERY_RANK, HIDDEN, false);
            project("q_b_proj", queries, QUERY_RANK, false);
        }
        project("kv_a_proj_with_mqa", KV_RANK + ROPE, HIDDEN, biased);
        project("kv_b_proj", self.heads() * (NOPE + VALUE), KV_RANK, false);
        project("o_proj", HIDDEN, self.heads() * VALUE, biased);
        draw.vector(&name("self_attn.q_a_layernorm.weight"), QUERY_RANK, 1.0);
        draw.vector(&name("self_attn.kv_a_layernorm.weight"), KV_RANK, 1.0);
    }

    fn grouped_attention(self, draw: &mut Draw, name: impl Fn(&str) -> String) {
        let (queries, keys) = (self.heads() * HEAD, KV_HEADS * HEAD);
        let biased = matches!(self, Self::Olmoe | Self::Qwen2 | Self::Glm);
        for (tensor, rows) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
            draw.weight(&name(&format!("self_attn.{tensor}.weight")), rows, HIDDEN);
            if biased {
                draw.vector(&name(&format!("self_attn.{tensor}.bias")), rows, 0.0);
            }
        }
        draw.weight(&name("self_attn.o_proj.weight"), HIDDEN, queries);
        if self == Self::Olmoe {
            draw.vector(&name("self_attn.o_proj.bias"), HIDDEN, 0.0);
        }
        let norms = match self {
            Self::Olmoe => Some((queries, keys)),
            Self::Qwen3 | Self::Glm => Some((HEAD, HEAD)),
            _ => None,
        };
        if let Some((query, key)) = norms {
            draw.vector(&name("self_attn.q_norm.weight"), query, 1.0);
            draw.vector(&name("self_attn.k_norm.weight"), key, 1.0);
        }
    }

    fn feed_forward(self, draw: &mut Draw, layer: usize, name: impl Fn(&str) -> String) {
        let usual = ["gate_proj", "up_proj", "down_proj"];
        if self.is_like_deepseek() && layer == 0 {
            draw.mlp(&name("mlp"), usual, DENSE);
            return;
        }
        let (block, parts) = match self {
            Self::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
            _ => ("mlp", usual),
        };
        draw.weight(&name(&format!("{block}.gate.weight")), EXPERTS, HIDDEN);
        for expert in 0..EXPERTS {
            draw.mlp(&name(&format!("{block}.experts.{expert}")), parts, WIDTH);
        }
        if self == Self::Qwen2 {
            draw.mlp(&name("mlp.shared_expert"), usual, SHARED);
            draw.weight(&name("mlp.shared_expert_gate.weight"), 1, HIDDEN);
        }
        if self.is_like_deepseek() {
            let shared = if self.is_latent() { 2 * WIDTH } else { WIDTH };
            draw.mlp(&name("mlp.shared_experts"), usual, shared);
            draw.vector(&name("mlp.gate.e_score_correction_bias"), EXPERTS, 0.0);
        }
    }
}

/// Tensors of random bf16 values.
struct Draw {
    state: u64,
    tensors: BTreeMap<String, Stored>,
}

impl Draw {
    /// Uniform in -1 .. 1.
    fn next(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    fn insert(&mut self, name: &str, shape: Vec<usize>, value: impl Fn(f32) -> f32) {
        let len: usize = shape.iter().product();
        let bytes =
            (0..len).flat_map(|_| bf16::from_f32(value(self.next())).to_le_bytes()).collect();
        self.tensors.insert(name.to_owned(), Stored { dtype: "BF16".to_owned(), shape, bytes });
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize, scale: f32) {
        self.insert(name, vec![rows, columns], |x| x * scale);
    }

    /// A matrix that leaves rows about as large as they were.
    fn weight(&mut self, name: &str, rows: usize, columns: usize) {
        self.matrix(name, rows, columns, (3.0 / columns as f32).sqrt());
    }

    fn vector(&mut self, name: &str, len: usize, middle: f32) {
        self.insert(name, vec![len], |x| middle + 0.3 * x);
    }

    fn mlp(&mut self, name: &str, parts: [&str; 3], width: usize) {
        let [gate, up, down] = parts.map(|part| format!("{name}.{part}.weight"));
        self.weight(&gate, width, HIDDEN);
        self.weight(&up, width, HIDDEN);
        self.weight(&down, HIDDEN, width);
    }
}
