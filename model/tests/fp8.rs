//! A checkpoint in fp8 is the model whose weights are the values that codes and scales stand for, bit for bit.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "gpu/families.rs"]
mod families;
#[path = "scratch_checkpoint/quantised.rs"]
mod quantised;
mod scratch_checkpoint;
#[path = "scratch_checkpoint/shards.rs"]
mod shards;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use families::Family;
use half::bf16;
use model::{Checkpoint, Compute, Cpu, CpuOptions, ModelError, Reference};
use quantised::{config, quantise, write_out};
use scratch_checkpoint::{ScratchCheckpoint, Stored, stored};
use serde_json::{Value, json};
use shards::shard;

const TOKENS: [u32; 9] = [287, 39, 319, 252, 1, 2, 300, 0, 77];

fn load(dir: &Path, compute: Compute) -> Result<Reference, ModelError> {
    let options = CpuOptions { threads: 2, compute, isa: None, pin: false };
    let cpu = Arc::new(Cpu::new(&options).unwrap());
    Reference::load(&Arc::new(Checkpoint::open(dir)?), &cpu, 1)
}

fn logits(checkpoint: &ScratchCheckpoint, compute: Compute) -> Vec<u32> {
    let mut model = load(checkpoint.path(), compute).unwrap();
    let logits = model.logits(&TOKENS, TOKENS.len()).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits.into_iter().map(f32::to_bits).collect()
}

/// A copy with projections in fp8, and the values these stand for.
fn in_fp8(original: &Path) -> (ScratchCheckpoint, BTreeMap<String, Vec<f32>>) {
    let checkpoint = ScratchCheckpoint::copy_of(original);
    let mut values = BTreeMap::new();
    checkpoint.rewrite(|tensors| values = quantise(tensors));
    checkpoint.set("quantization_config", config());
    assert!(!values.is_empty());
    (checkpoint, values)
}

fn same_bits(original: &Path) {
    let (checkpoint, values) = in_fp8(original);
    for (compute, dtype) in [(Compute::Bf16, "BF16"), (Compute::F32, "F32")] {
        let written_out = ScratchCheckpoint::copy_of(original);
        written_out.rewrite(|tensors| write_out(tensors, &values, dtype));
        let got = logits(&checkpoint, compute);
        let want = logits(&written_out, compute);
        assert!(got == want, "{compute}, {}: other bits", original.display());
        let before = logits(&ScratchCheckpoint::copy_of(original), compute);
        assert!(got != before, "quantising changed nothing");
    }
}

#[test]
fn every_architecture_reads_the_values_of_codes_and_scales() {
    for golden in ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "deepseek_v3", "glm4_moe"] {
        same_bits(&ScratchCheckpoint::golden(golden));
    }
}

/// Projections of 160 and 256 features, on both sides of a matrix.
#[test]
fn blocks_at_the_edges_have_scales_of_their_own() {
    for family in Family::ALL {
        same_bits(family.checkpoint(21).path());
    }
}

#[test]
fn scales_may_be_in_bf16_and_in_another_file() {
    let original = ScratchCheckpoint::golden("qwen3_moe");
    let (wide, narrow) = (in_fp8(&original).0, in_fp8(&original).0);
    let halved = |tensors: &mut BTreeMap<String, Stored>, dtype: &str| {
        for (_, scales) in tensors.iter_mut().filter(|(name, _)| name.ends_with("_scale_inv")) {
            let values = scales.bytes.as_chunks::<4>().0;
            let rounded = values.iter().map(|bytes| bf16::from_f32(f32::from_le_bytes(*bytes)));
            scales.bytes = match dtype {
                "F32" => rounded.flat_map(|scale| scale.to_f32().to_le_bytes()).collect(),
                _ => rounded.flat_map(bf16::to_le_bytes).collect(),
            };
            scales.dtype = dtype.to_owned();
        }
    };
    wide.rewrite(|tensors| halved(tensors, "F32"));
    narrow.rewrite(|tensors| halved(tensors, "BF16"));
    shard(&narrow, 3);
    assert_eq!(logits(&narrow, Compute::F32), logits(&wide, Compute::F32));
}

#[test]
fn equal_codes_with_other_scales_are_another_checkpoint() {
    let fingerprint =
        |of: &ScratchCheckpoint| Checkpoint::open(of.path()).unwrap().fingerprint().to_owned();
    let original = ScratchCheckpoint::golden("mixtral");
    let (one, twice) = (in_fp8(&original).0, in_fp8(&original).0);
    assert_eq!(fingerprint(&one), fingerprint(&twice));
    // As in large files, samples of a file as a whole miss the scales.
    let padding = |len| Stored { dtype: "U8".to_owned(), shape: vec![len], bytes: vec![0; len] };
    for checkpoint in [&one, &twice] {
        checkpoint.rewrite(|tensors| {
            tensors.insert("before".to_owned(), padding(4 << 20));
            tensors.insert("z".to_owned(), padding(5 << 20));
        });
    }
    twice.rewrite(|tensors| {
        for (_, scales) in tensors.iter_mut().filter(|(name, _)| name.ends_with("_scale_inv")) {
            for bytes in scales.bytes.as_chunks_mut::<4>().0 {
                *bytes = (f32::from_le_bytes(*bytes) * 2.0).to_le_bytes();
            }
        }
    });
    assert_ne!(fingerprint(&one), fingerprint(&twice));
}

/// The line that opening and loading end with; it holds all of `parts`.
#[track_caller]
fn refused(checkpoint: &ScratchCheckpoint, parts: &[&str]) {
    let Err(error) = load(checkpoint.path(), Compute::Bf16) else { panic!("it was loaded") };
    let line = error.to_string();
    assert!(line.starts_with(checkpoint.path().to_str().unwrap()), "names no file: {line}");
    assert!(!line.contains('\n') && parts.iter().all(|part| line.contains(part)), "{line}");
}

#[test]
fn other_ways_to_quantise_are_refused() {
    let cases: [(&str, Value, &str); 8] = [
        ("quant_method", json!("gptq"), "\"gptq\" is not supported; fp8 is"),
        ("quant_method", json!(null), "expected \"fp8\", found nothing"),
        ("quant_method", json!(8), "expected a text, found 8"),
        ("fmt", json!("e5m2"), "\"e5m2\" is not supported; e4m3 is"),
        (
            "weight_block_size",
            json!([64, 128]),
            "blocks of [64, 128] are not supported; [128, 128]",
        ),
        ("weight_block_size", json!(128), "blocks of [128] are not supported"),
        ("weight_block_size", json!(null), "expected [128, 128], as other scales"),
        ("weight_block_size", json!("all"), "expected whole numbers"),
    ];
    let checkpoint = ScratchCheckpoint::copy("mixtral");
    for (key, value, part) in cases {
        checkpoint.set("quantization_config", config());
        checkpoint.configure(|config| config["quantization_config"][key] = value);
        refused(&checkpoint, &["config.json", &format!("\"quantization_config.{key}\""), part]);
    }
    checkpoint.set("quantization_config", json!(4));
    refused(&checkpoint, &["\"quantization_config\"", "expected an object, found 4"]);
}

#[test]
fn broken_codes_and_scales_are_named() {
    let name = "model.layers.1.block_sparse_moe.experts.5.w2.weight";
    let scales = "model.layers.1.block_sparse_moe.experts.5.w2.weight_scale_inv";
    let broken = |change: &dyn Fn(&mut BTreeMap<String, Stored>)| {
        let (checkpoint, _) = in_fp8(&ScratchCheckpoint::golden("mixtral"));
        checkpoint.rewrite(change);
        checkpoint
    };
    refused(
        &broken(&|t| drop(t.remove(scales))),
        &[
            scales,
            "expected shape [1, 1], a scale for each block of 128 x 128, found no such tensor",
        ],
    );
    let wide = |t: &mut BTreeMap<String, Stored>| {
        let scales = t.get_mut(scales).unwrap();
        scales.shape = vec![2, 1];
        scales.bytes.extend([0; 4]);
    };
    refused(
        &broken(&wide),
        &["model.safetensors", scales, "expected shape [1, 1], a scale", "found [2, 1]"],
    );
    let exponents = |t: &mut BTreeMap<String, Stored>| {
        let scales = t.get_mut(scales).unwrap();
        (scales.dtype, scales.bytes) = ("F8_E8M0".to_owned(), vec![127]);
    };
    refused(&broken(&exponents), &[scales, "expected BF16, F16 or F32, found F8_E8M0"]);
    for scale in [f32::NAN, f32::INFINITY, -1e38] {
        let set = |t: &mut BTreeMap<String, Stored>| {
            t.get_mut(scales).unwrap().bytes = scale.to_le_bytes().to_vec();
        };
        refused(
            &broken(&set),
            &[scales, "expected scales of at most 7.5", &format!("found {scale}")],
        );
    }
    for code in [0x7f, 0xff] {
        // Of 64 rows of 96 columns.
        let set =
            |t: &mut BTreeMap<String, Stored>| t.get_mut(name).unwrap().bytes[2 * 96 + 5] = code;
        refused(
            &broken(&set),
            &["model.safetensors", name, "expected numbers, found NaN in row 2, column 5"],
        );
    }
    let e5m2 =
        |t: &mut BTreeMap<String, Stored>| t.get_mut(name).unwrap().dtype = "F8_E5M2".to_owned();
    refused(&broken(&e5m2), &[name, "expected BF16, F16, F32 or F8_E4M3, found F8_E5M2"]);
}

#[test]
fn what_is_no_projection_is_not_in_fp8() {
    let (checkpoint, _) = in_fp8(&ScratchCheckpoint::golden("mixtral"));
    let norm = "model.norm.weight";
    checkpoint.rewrite(|tensors| {
        let norm = tensors.get_mut(norm).unwrap();
        norm.bytes.truncate(64);
        norm.dtype = "F8_E4M3".to_owned();
    });
    refused(&checkpoint, &[norm, "expected BF16, F16 or F32, found F8_E4M3"]);
}
