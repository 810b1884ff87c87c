//! One model in the forms checkpoints come in: shards, element types, tied embeddings, old and new configurations.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scratch_checkpoint;
#[path = "scratch_checkpoint/shards.rs"]
mod shards;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use model::{
    AttentionHalf, Checkpoint, Compute, Cpu, CpuOptions, ExpertHalf, ModelError, ModelSpec,
    Reference,
};
use scratch_checkpoint::{ScratchCheckpoint, Stored};
use serde_json::{Value, json};
use shards::shard;

const TOKENS: [u32; 9] = [287, 339, 319, 352, 1, 2, 500, 0, 77];

fn cpu() -> Arc<Cpu> {
    let options = CpuOptions { threads: 1, compute: Compute::F32, isa: None, pin: false };
    Arc::new(Cpu::new(&options).unwrap())
}

fn open(dir: &Path) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(dir).unwrap())
}

fn logits(dir: &Path) -> Vec<f32> {
    let mut model = Reference::load(&open(dir), &cpu(), 1).unwrap();
    model.logits(&TOKENS, TOKENS.len()).unwrap()
}

/// Of the golden as it is.
fn golden_logits(name: &str) -> Vec<f32> {
    logits(ScratchCheckpoint::copy(name).path())
}

#[test]
fn shards_are_one_model() {
    let checkpoint = ScratchCheckpoint::copy("qwen2_moe");
    shard(&checkpoint, 3);
    assert_eq!(logits(checkpoint.path()), golden_logits("qwen2_moe"));
}

#[test]
fn widened_weights_are_the_same_model() {
    let checkpoint = ScratchCheckpoint::copy("mixtral");
    checkpoint.rewrite(|tensors| {
        for tensor in tensors.values_mut() {
            let pairs = tensor.bytes.as_chunks::<2>().0;
            tensor.bytes = pairs.iter().flat_map(|&[low, high]| [0, 0, low, high]).collect();
            tensor.dtype = "F32".to_owned();
        }
    });
    assert_eq!(logits(checkpoint.path()), golden_logits("mixtral"));
}

#[test]
fn f16_weights_are_nearly_the_same_model() {
    let checkpoint = ScratchCheckpoint::copy("glm4_moe");
    checkpoint.rewrite(|tensors| {
        for tensor in tensors.values_mut() {
            let pairs = tensor.bytes.as_chunks::<2>().0;
            let to_f16 = |&bits| half::f16::from_f32(half::bf16::from_le_bytes(bits).to_f32());
            tensor.bytes = pairs.iter().map(to_f16).flat_map(half::f16::to_le_bytes).collect();
            tensor.dtype = "F16".to_owned();
        }
    });
    // Only weights below f16's normal range were rounded.
    for (ours, theirs) in logits(checkpoint.path()).iter().zip(golden_logits("glm4_moe")) {
        assert!((ours - theirs).abs() < 1e-3, "{ours} is not {theirs}");
    }
}

#[test]
fn a_tied_head_is_the_embedding() {
    let (tied, written_out) = (ScratchCheckpoint::copy("olmoe"), ScratchCheckpoint::copy("olmoe"));
    tied.set("tie_word_embeddings", json!(true));
    tied.rewrite(|tensors| {
        tensors.remove("lm_head.weight");
    });
    written_out.rewrite(|tensors| {
        let table = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_owned(), table);
    });
    assert_eq!(logits(tied.path()), logits(written_out.path()));
    assert_ne!(logits(tied.path()), golden_logits("olmoe"));
}

#[test]
fn layers_for_predicting_ahead_are_ignored() {
    let checkpoint = ScratchCheckpoint::copy("deepseek_v3");
    checkpoint.rewrite(|tensors| {
        let odd = Stored { dtype: "F8_E4M3".to_owned(), shape: vec![3], bytes: vec![1, 2, 3] };
        tensors.insert("model.layers.4.eh_proj.weight".to_owned(), odd);
    });
    assert_eq!(logits(checkpoint.path()), golden_logits("deepseek_v3"));
}

#[test]
fn a_configuration_before_transformers_5_says_the_same() {
    for name in [
        "mixtral",
        "qwen3_moe",
        "qwen2_moe",
        "olmoe",
        "deepseek_v3",
        "deepseek_v3_yarn",
        "glm4_moe",
        "qwen3_moe_mixed",
    ] {
        let checkpoint = ScratchCheckpoint::copy(name);
        let new = ModelSpec::read(checkpoint.path()).unwrap();
        checkpoint.configure(make_classic);
        assert_eq!(ModelSpec::read(checkpoint.path()).unwrap(), new, "{name}");
    }
}

/// Moves what transformers 5 writes to where earlier versions had it.
fn make_classic(config: &mut Value) {
    let config = config.as_object_mut().unwrap();
    let Some(Value::Object(mut rope)) = config.remove("rope_parameters") else {
        panic!("no rope_parameters");
    };
    let theta = rope.remove("rope_theta").unwrap();
    config.insert("rope_theta".to_owned(), theta);
    let kind = rope.remove("rope_type").unwrap();
    let scaling = if kind == "default" {
        Value::Null
    } else {
        rope.insert("type".to_owned(), kind);
        Value::Object(rope)
    };
    config.insert("rope_scaling".to_owned(), scaling);
    config.remove("dtype");
    config.insert("torch_dtype".to_owned(), json!("bfloat16"));
    if config["model_type"] == "qwen3_moe" {
        let experts = config.remove("num_local_experts").unwrap();
        config.insert("num_experts".to_owned(), experts);
    }
}

#[test]
fn each_half_reads_its_own_tensors_only() {
    let is_expert = |name: &str| name.contains(".experts.");
    let attention = ScratchCheckpoint::copy("qwen2_moe");
    attention.rewrite(|tensors| tensors.retain(|name, _| !is_expert(name)));
    AttentionHalf::load(&open(attention.path()), cpu(), |_, _| ()).unwrap();

    let experts = ScratchCheckpoint::copy("qwen2_moe");
    experts.rewrite(|tensors| tensors.retain(|name, _| is_expert(name)));
    let mut half = ExpertHalf::new(open(experts.path()), cpu());
    let slots: Vec<_> = half.spec().shape().slots().collect();
    for &(layer, expert) in &slots {
        half.load_expert(layer, expert).unwrap();
    }
    assert_eq!(half.resident().collect::<Vec<_>>(), slots);
    assert!(AttentionHalf::load(&open(experts.path()), cpu(), |_, _| ()).is_err());
}

#[test]
fn experts_come_and_go() {
    let checkpoint = ScratchCheckpoint::copy("deepseek_v3");
    let mut half = ExpertHalf::new(open(checkpoint.path()), cpu());
    let slots: Vec<_> = half.spec().shape().slots().collect();
    let (layer, expert) = slots[3];
    assert!(!half.holds(layer, expert));
    half.load_expert(layer, expert).unwrap();
    let bytes = half.bytes();
    assert!(bytes > 0);
    half.load_expert(layer, expert).unwrap();
    let beside = half.loader().unwrap().load(slots[4].0, slots[4].1).unwrap();
    half.install(beside).unwrap();
    assert_eq!(half.bytes(), 2 * bytes);
    assert!(half.unload(layer, expert));
    assert!(!half.unload(layer, expert));
    assert_eq!(half.resident().collect::<Vec<_>>(), [slots[4]]);
    assert_eq!(half.bytes(), bytes);

    let missing = half.load_expert(domain::Layer(0), expert);
    assert!(matches!(missing, Err(ModelError::NoSuchExpert { .. })), "layer 0 is dense");
    let missing = half.load_expert(layer, domain::Expert(16));
    assert!(matches!(missing, Err(ModelError::NoSuchExpert { .. })));
    let work = model::ExpertWork { expert, rows: &[] };
    let refused = half.run(layer, &[work], &mut Vec::new());
    assert!(matches!(refused, Err(ModelError::NotResident { .. })));
}

#[test]
fn fingerprints_tell_checkpoints_apart() {
    let print = |checkpoint: &ScratchCheckpoint| open(checkpoint.path()).fingerprint().to_owned();
    let original = ScratchCheckpoint::copy("mixtral");
    assert_eq!(print(&original), print(&ScratchCheckpoint::copy("mixtral")));
    let configured = ScratchCheckpoint::copy("mixtral");
    configured.set("rms_norm_eps", json!(1e-6));
    let trained = ScratchCheckpoint::copy("mixtral");
    trained.rewrite(|tensors| {
        for tensor in tensors.values_mut() {
            tensor.bytes.iter_mut().step_by(2).for_each(|byte| *byte ^= 1);
        }
    });
    let prints: BTreeSet<_> = [&original, &configured, &trained].map(print).into();
    assert_eq!(prints.len(), 3);

    // Rows of another precision are not understood.
    let checkpoint = open(original.path());
    assert_ne!(checkpoint.fingerprint_in(Compute::F32), checkpoint.fingerprint_in(Compute::Bf16));
}
