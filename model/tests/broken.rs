//! A broken or unsupported checkpoint gets one clear line that names file, key and what was expected.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scratch_checkpoint;

use std::{fs, sync::Arc};

use model::{Checkpoint, Compute, Cpu, CpuOptions, ModelError, Reference};
use scratch_checkpoint::ScratchCheckpoint;
use serde_json::json;

/// Opens and loads everything.
fn load(checkpoint: &ScratchCheckpoint) -> Result<Reference, ModelError> {
    let options = CpuOptions { threads: 1, compute: Compute::F32, isa: None, pin: false };
    let cpu = Arc::new(Cpu::new(&options)?);
    Reference::load(&Arc::new(Checkpoint::open(checkpoint.path())?), &cpu, 1)
}

/// The line that loading ends with, which has to hold all of `parts`.
#[track_caller]
fn refused(checkpoint: &ScratchCheckpoint, parts: &[&str]) {
    let line = match load(checkpoint) {
        Ok(_) => panic!("a broken checkpoint was loaded"),
        Err(error) => error.to_string(),
    };
    assert!(!line.contains('\n'), "more than one line: {line}");
    let folder = checkpoint.path().to_str().unwrap();
    assert!(line.starts_with(folder), "names no file: {line}");
    for part in parts {
        assert!(line.contains(part), "lacks {part:?}: {line}");
    }
}

#[test]
fn the_copies_themselves_load() {
    for golden in ["mixtral", "deepseek_v3"] {
        load(&ScratchCheckpoint::copy(golden)).unwrap();
    }
}

#[test]
fn an_absent_file_is_named() {
    for name in ["config.json", "model.safetensors"] {
        let checkpoint = ScratchCheckpoint::copy("mixtral");
        fs::remove_file(checkpoint.file(name)).unwrap();
        refused(&checkpoint, &[name, "No such file"]);
    }
}

#[test]
fn a_missing_key_is_named_with_what_belongs_there() {
    for key in ["hidden_size", "num_hidden_layers", "vocab_size", "num_local_experts"] {
        let checkpoint = ScratchCheckpoint::copy("mixtral");
        checkpoint.configure(|config| {
            config.as_object_mut().unwrap().remove(key);
        });
        refused(&checkpoint, &["config.json", key, "expected a whole number", "found nothing"]);
    }
}

#[test]
fn a_wrong_value_is_shown() {
    let cases = [
        ("hidden_size", json!("wide"), "found \"wide\""),
        ("hidden_size", json!(-64), "found -64"),
        ("hidden_size", json!(64.5), "found 64.5"),
        ("num_experts_per_tok", json!(9), "at most the model's 8 experts"),
        ("num_key_value_heads", json!(3), "a divisor of num_attention_heads 4"),
        ("rms_norm_eps", json!(0), "a number above 0"),
        ("tie_word_embeddings", json!("yes"), "true or false"),
        ("eos_token_id", json!(512), "whole numbers from 0 to 511"),
        ("rope_parameters", json!([]), "expected an object, found a list"),
        ("architectures", json!([]), "MixtralForCausalLM, OlmoeForCausalLM"),
    ];
    for (key, value, part) in cases {
        let checkpoint = ScratchCheckpoint::copy("mixtral");
        checkpoint.set(key, value);
        refused(&checkpoint, &["config.json", &format!("\"{key}\""), part]);
    }
}

#[test]
fn what_is_not_supported_is_refused() {
    let cases = [
        ("architectures", json!(["GptOssForCausalLM"]), "known are DeepseekV3ForCausalLM, Glm4Moe"),
        ("hidden_act", json!("gelu"), "\"gelu\" is not supported; silu is"),
        ("sliding_window", json!(128), "a window of 128"),
        ("rope_parameters", json!({"rope_type": "longrope"}), "known are default, linear"),
        ("rope_parameters", json!({"full_attention": {"rope_theta": 1e4}}), "full_attention"),
    ];
    for (key, value, part) in cases {
        let checkpoint = ScratchCheckpoint::copy("mixtral");
        checkpoint.set(key, value);
        refused(&checkpoint, &["config.json", key, part]);
    }
    for (key, value) in [("scoring_func", "softmax"), ("topk_method", "greedy")] {
        let checkpoint = ScratchCheckpoint::copy("deepseek_v3");
        checkpoint.set(key, json!(value));
        refused(&checkpoint, &["config.json", key, value]);
    }
}

#[test]
fn a_window_that_hides_nothing_is_accepted() {
    let checkpoint = ScratchCheckpoint::copy("mixtral");
    checkpoint.set("sliding_window", json!(512));
    load(&checkpoint).unwrap();
    let checkpoint = ScratchCheckpoint::copy("qwen3_moe");
    checkpoint.set("sliding_window", json!(128));
    load(&checkpoint).unwrap();
    checkpoint.set("use_sliding_window", json!(true));
    refused(&checkpoint, &["sliding_window", "a window of 128"]);
}

#[test]
fn a_config_that_is_not_an_object_is_refused() {
    for (text, part) in
        [("", "EOF"), ("[1]", "found a list"), ("{\"a\":", "EOF"), ("\u{1}", "expected")]
    {
        let checkpoint = ScratchCheckpoint::copy("mixtral");
        fs::write(checkpoint.file("config.json"), text).unwrap();
        refused(&checkpoint, &["config.json", "JSON object", part]);
    }
}

#[test]
fn a_wrong_tensor_is_named() {
    let norm = "model.layers.1.input_layernorm.weight";
    let expert = "model.layers.2.block_sparse_moe.experts.7.w3.weight";
    for name in [norm, expert, "lm_head.weight"] {
        let checkpoint = ScratchCheckpoint::copy("mixtral");
        checkpoint.rewrite(|tensors| {
            tensors.remove(name);
        });
        refused(&checkpoint, &[name, "no such tensor"]);

        let checkpoint = ScratchCheckpoint::copy("mixtral");
        checkpoint.rewrite(|tensors| tensors.get_mut(name).unwrap().shape.push(1));
        refused(&checkpoint, &["model.safetensors", name, "expected shape"]);

        let checkpoint = ScratchCheckpoint::copy("mixtral");
        checkpoint.rewrite(|tensors| tensors.get_mut(name).unwrap().dtype = "I16".to_owned());
        refused(&checkpoint, &["model.safetensors", name, "BF16, F16", "F32", "found I16"]);
    }
}

#[test]
fn a_corrupt_header_is_refused() {
    let entry = |text: &str| format!("{{\"a\":{text}}}");
    let cases = [
        (Some(u64::MAX), String::new(), "a length of 18446744073709551615"),
        (Some(100), entry("{}"), "at most"),
        (None, "{\"a\":".to_owned(), "in JSON"),
        (None, entry("{}"), "tensor a"),
        (None, entry("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}"), "within 0 bytes"),
        (None, entry("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}"), "offsets 4 to 0"),
        (
            None,
            entry("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,0]}"),
            "the 4 bytes of F32 [1], found 0",
        ),
        (
            None,
            entry(
                "{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4294967296],\"data_offsets\":[0,0]}",
            ),
            "too many bytes",
        ),
        (None, entry("{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,0]}"), "tensor a"),
        (
            None,
            entry("{\"dtype\":\"F32\",\"shape\":[0,0,0,0,0,0,0,0,0],\"data_offsets\":[0,0]}"),
            "dimensions",
        ),
    ];
    for (length, header, part) in cases {
        let checkpoint = ScratchCheckpoint::copy("mixtral");
        let length = length.unwrap_or(header.len() as u64).to_le_bytes();
        let bytes = [&length, header.as_bytes()].concat();
        fs::write(checkpoint.file("model.safetensors"), bytes).unwrap();
        refused(&checkpoint, &["model.safetensors", part]);
    }
}

#[test]
fn a_truncated_file_is_refused() {
    let whole = fs::read(ScratchCheckpoint::copy("mixtral").file("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    for length in [0, 7, 8, 100, 8 + header, whole.len() - 1] {
        let checkpoint = ScratchCheckpoint::copy("mixtral");
        fs::write(checkpoint.file("model.safetensors"), &whole[..length]).unwrap();
        refused(&checkpoint, &["model.safetensors", "expected"]);
    }
}

#[test]
fn a_wrong_index_is_refused() {
    let index = |map: serde_json::Value| {
        let checkpoint = ScratchCheckpoint::copy("mixtral");
        let single = checkpoint.file("model.safetensors");
        fs::rename(single, checkpoint.file("part.safetensors")).unwrap();
        let text = json!({ "weight_map": map }).to_string();
        fs::write(checkpoint.file("model.safetensors.index.json"), text).unwrap();
        checkpoint
    };
    let file = "model.safetensors.index.json";
    let absent = index(json!({"a": "model-00001-of-00002.safetensors"}));
    refused(&absent, &[file, "weight_map", "model-00001-of-00002.safetensors, which is not there"]);
    for outside in ["../part.safetensors", "/etc/passwd", "a/b.safetensors", "", "."] {
        refused(
            &index(json!({"a": outside})),
            &[file, "weight_map.a", "a file in the same folder"],
        );
    }
    refused(&index(json!({"a": 1})), &[file, "weight_map.a", "found 1"]);
    refused(&index(json!([])), &[file, "weight_map", "an object"]);
    refused(&index(json!(null)), &[file, "weight_map", "found nothing"]);
    let elsewhere = index(json!({"a": "part.safetensors"}));
    refused(&elsewhere, &["part.safetensors", "tensor a", "index.json says", "nothing"]);
    let none = index(json!({}));
    refused(&none, &["no such tensor"]);
}

/// Whatever the bytes are, opening and loading ends in an answer.
#[test]
fn no_bytes_make_it_panic() {
    let whole = fs::read(ScratchCheckpoint::copy("deepseek_v3").file("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let config = fs::read(ScratchCheckpoint::copy("deepseek_v3").file("config.json")).unwrap();
    let mut random = Random(7);
    let mut loaded = 0;
    for _ in 0..300 {
        let checkpoint = ScratchCheckpoint::copy("deepseek_v3");
        let (mut weights, mut text) = (whole.clone(), config.clone());
        if random.below(2) == 0 {
            random.damage(&mut weights[..header]);
        } else {
            random.damage(&mut text);
        }
        if random.below(8) == 0 {
            weights.truncate(random.below(weights.len()));
        }
        fs::write(checkpoint.file("model.safetensors"), weights).unwrap();
        fs::write(checkpoint.file("config.json"), text).unwrap();
        match load(&checkpoint) {
            Ok(_) => loaded += 1,
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    assert!((1..300).contains(&loaded), "{loaded} of 300 damaged checkpoints were loaded");
}

/// A linear congruential generator (Knuth's constants).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    /// Changes one to four bytes, often to a digit so that JSON stays JSON.
    fn damage(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(4) {
            let place = self.below(bytes.len());
            bytes[place] = if self.below(2) == 0 {
                b'0' + self.below(10) as u8
            } else {
                self.below(256) as u8
            };
        }
    }
}
