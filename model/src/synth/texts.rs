//! The JSON files of a synthetic checkpoint: configuration and a tokenizer of single bytes.

use kernels::FP8_BLOCK;
use serde_json::{Map, Value, json};

use super::SynthSpec;

/// Tokens after the 256 bytes.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const END_OF_TEXT: usize = 256;
const MESSAGE_END: usize = 258;
/// The smallest vocabulary that the tokenizer fits in.
pub(super) const VOCAB_MIN: usize = 256 + SPECIAL.len();

const CHAT_TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] \
     + '<|im_end|>' + '\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Every file but the weights: its name and contents.
pub(super) fn all(spec: &SynthSpec) -> [(&'static str, Value); 4] {
    [
        ("config.json", config(spec)),
        ("generation_config.json", json!({ "eos_token_id": [MESSAGE_END], "do_sample": false })),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", tokenizer_config(spec)),
    ]
}

fn config(spec: &SynthSpec) -> Value {
    let mut config = model(spec);
    if spec.fp8 {
        config["quantization_config"] = json!({
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": ["lm_head"],
            "quant_method": "fp8",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        });
    }
    config
}

fn model(spec: &SynthSpec) -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": false,
        "bos_token_id": END_OF_TEXT,
        "decoder_sparse_step": 1,
        "dtype": "bfloat16",
        "eos_token_id": MESSAGE_END,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.width * spec.top_k,
        "max_position_embeddings": spec.positions_max,
        "mlp_only_layers": [],
        "moe_intermediate_size": spec.width,
        "norm_topk_prob": true,
        "num_attention_heads": spec.heads,
        "num_experts": spec.experts,
        "num_experts_per_tok": spec.top_k,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": null,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "use_sliding_window": false,
        "vocab_size": spec.vocab,
    })
}

/// A byte-level BPE without merges: token `b` is byte `b`. Ids past the special ones decode to nothing.
fn tokenizer() -> Value {
    let vocab: Map<String, Value> =
        (0..=255).map(|byte: u8| (shown(byte).to_string(), json!(byte))).collect();
    let added: Vec<_> = (256..)
        .zip(SPECIAL)
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    })
}

fn tokenizer_config(spec: &SynthSpec) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.positions_max,
        "bos_token": null,
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    })
}

/// The character that stands for a byte in byte-level vocabularies (GPT-2's table): itself if it
/// prints, else one of the characters from U+0100 on, in order.
fn shown(byte: u8) -> char {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if prints(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&byte| !prints(byte)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_gpt2_shows_them() {
        assert_eq!([b' ', b'\n', b'A', 0x00, 0xff].map(shown), ['Ġ', 'Ċ', 'A', 'Ā', 'ÿ']);
        let all: std::collections::BTreeSet<char> = (0..=255).map(shown).collect();
        assert_eq!(all.len(), 256);
    }
}
