//! Configurations as published models have them, trimmed to what says something about the model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use model::{
    AttentionSpec, GroupLimit, LayerKind, ModelError, ModelSpec, QkNorm, Scoring, SharedSpec,
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn read(config: &Value) -> Result<ModelSpec, ModelError> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    ModelSpec::read(dir.path())
}

#[test]
fn mixtral_8x7b() {
    let spec = read(&json!({
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "num_local_experts": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": null,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32000
    }))
    .unwrap();
    let AttentionSpec::Grouped(attention) = &spec.attention else { panic!("not grouped") };
    assert_eq!((attention.heads, attention.kv_heads, attention.head_dim), (32, 8, 128));
    assert_eq!((attention.qkv_bias, attention.qk_norm), (false, QkNorm::None));
    assert!(spec.moe.normalise);
    assert_eq!(spec.eos, [2]);
    let shape = spec.shape();
    assert_eq!((shape.layers, shape.experts, shape.top_k), (32, 8, 2));
    assert_eq!(shape.moe_layers.len(), 32);
    assert_eq!(shape.expert_bytes, 3 * 4096 * 14336 * 2);
}

#[test]
fn qwen3_30b_a3b() {
    let spec = read(&json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "decoder_sparse_step": 1,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
        "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
        "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1e6, "sliding_window": null,
        "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936
    }))
    .unwrap();
    let AttentionSpec::Grouped(attention) = &spec.attention else { panic!("not grouped") };
    // The heads together are wider than the hidden state.
    assert_eq!(attention.heads * attention.head_dim, 4096);
    assert_eq!(attention.qk_norm, QkNorm::PerHead);
    assert_eq!(spec.shape().expert_bytes, 9_437_184);
    assert_eq!(spec.rope.theta, 1e6);
}

#[test]
fn qwen15_moe_has_a_window_that_is_off_and_biases_it_does_not_mention() {
    let spec = read(&json!({
        "architectures": ["Qwen2MoeForCausalLM"], "decoder_sparse_step": 1, "eos_token_id": 151643,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632,
        "max_position_embeddings": 8192, "max_window_layers": 21, "model_type": "qwen2_moe",
        "moe_intermediate_size": 1408, "norm_topk_prob": false, "num_attention_heads": 16,
        "num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24,
        "num_key_value_heads": 16, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "shared_expert_intermediate_size": 5632, "sliding_window": 4096,
        "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936
    }))
    .unwrap();
    let AttentionSpec::Grouped(attention) = &spec.attention else { panic!("not grouped") };
    assert!(attention.qkv_bias && !attention.output_bias);
    assert_eq!(spec.moe.shared, Some(SharedSpec { width: 5632, gated: true }));
    assert!(!spec.moe.normalise);
}

fn deepseek_v3() -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "eos_token_id": 1,
        "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
        "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163_840,
        "model_type": "deepseek_v3", "moe_intermediate_size": 2048, "moe_layer_freq": 1,
        "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
        "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
        "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "quantization_config": {"fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn"
        },
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
        "v_head_dim": 128, "vocab_size": 129_280
    })
}

#[test]
fn deepseek_v3_in_fp8() {
    let mut config = deepseek_v3();
    let spec = read(&config).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config");
    assert_eq!(read(&config).unwrap(), spec);
    let AttentionSpec::Latent(latent) = &spec.attention else { panic!("not latent") };
    assert_eq!((latent.query_rank, latent.kv_rank), (Some(1536), 512));
    // 192^-0.5 times the square of 0.1 ln 40 + 1.
    assert!((f64::from(spec.softmax_scale) - 0.135_233_7).abs() < 1e-6, "{}", spec.softmax_scale);
    assert_eq!(spec.layers.iter().take_while(|kind| **kind == LayerKind::Dense).count(), 3);
    assert_eq!(spec.shape().moe_layers.len(), 58);
    assert_eq!(spec.moe.scoring, Scoring::SigmoidWithBias);
    assert_eq!(spec.moe.groups, Some(GroupLimit { groups: 8, chosen: 4 }));
    assert_eq!(spec.moe.shared, Some(SharedSpec { width: 2048, gated: false }));
}

#[test]
fn glm_45_air() {
    let spec = read(&json!({
        "architectures": ["Glm4MoeForCausalLM"], "attention_bias": true, "head_dim": 128,
        "eos_token_id": [151_329, 151_336, 151_338], "first_k_dense_replace": 1,
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 10944,
        "max_position_embeddings": 131_072, "model_type": "glm4_moe",
        "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 128,
        "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 96,
        "num_experts_per_tok": 8, "num_hidden_layers": 46, "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5,
        "rope_scaling": null, "rope_theta": 1_000_000, "routed_scaling_factor": 1.0,
        "tie_word_embeddings": false, "topk_group": 1, "use_cache": true, "use_qk_norm": false,
        "vocab_size": 151_552
    }))
    .unwrap();
    let AttentionSpec::Grouped(attention) = &spec.attention else { panic!("not grouped") };
    assert!(attention.qkv_bias && !attention.output_bias);
    assert_eq!(attention.qk_norm, QkNorm::None);
    assert_eq!(spec.rope.dim, 64);
    assert_eq!(spec.moe.groups, None);
    assert_eq!(spec.eos, [151_329, 151_336, 151_338]);
}

#[test]
fn olmoe_1b_7b() {
    let spec = read(&json!({
        "architectures": ["OlmoeForCausalLM"], "attention_bias": false, "clip_qkv": null,
        "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 1024, "max_position_embeddings": 4096, "model_type": "olmoe",
        "norm_topk_prob": false, "num_attention_heads": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16,
        "rope_scaling": null, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "vocab_size": 50304
    }))
    .unwrap();
    let AttentionSpec::Grouped(attention) = &spec.attention else { panic!("not grouped") };
    assert_eq!((attention.qk_norm, attention.clip), (QkNorm::FullWidth, None));
    assert_eq!(spec.moe.width, 1024);
    assert_eq!(spec.norm_eps, 1e-5);
}
