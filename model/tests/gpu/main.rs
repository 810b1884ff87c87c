//! The attention half on an emulated GPU beside the processor's, for every family of models, and its bits in other
//! batches and chunks.
//!
//! The emulated driver is found by the environment that a process starts with, so each test runs in a child: one of
//! the ignored tests of this file.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod families;
#[path = "../scratch_checkpoint/quantised.rs"]
mod quantised;
#[path = "../scratch_checkpoint/stored.rs"]
mod stored;

use std::{collections::BTreeMap, ops::Range, path::Path, process::Command, sync::Arc};

use domain::{Expert, Layer};
use model::{
    AttentionHalf, BLOCK_TOKENS, Checkpoint, Compute, Cpu, CpuOptions, ExpertHalf, Gpu, Isa,
    Reference, Span,
};

use families::Family;
use tempfile::TempDir;

/// Runs an ignored test of this file on the emulated GPU.
fn on_the_emulated_gpu(test: &str, environment: &[(&str, &str)]) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated-gpu");
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/cuda/emulator/build.sh");
    let built = Command::new(build).arg(&folder).output().unwrap();
    let text = String::from_utf8_lossy(&built.stderr).into_owned();
    assert!(built.status.success(), "this test needs a C++ compiler called c++: {text}");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "--nocapture", test]);
    child.env("LD_LIBRARY_PATH", &folder).envs(environment.iter().copied());
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn every_family_gives_the_logits_that_the_processor_gives() {
    on_the_emulated_gpu("families_agree", &[]);
}

#[test]
fn bits_depend_neither_on_the_batch_nor_on_the_chunks() {
    on_the_emulated_gpu("bits_stay", &[]);
}

#[test]
fn nor_do_they_on_an_older_gpu() {
    on_the_emulated_gpu("bits_stay", &[("AMOE_EMULATED_CAPABILITY", "80")]);
}

#[test]
fn experts_in_fp8_give_the_bits_of_their_values_in_bf16() {
    on_the_emulated_gpu("fp8_experts", &[]);
}

#[test]
fn so_they_do_on_an_older_gpu() {
    on_the_emulated_gpu("fp8_experts", &[("AMOE_EMULATED_CAPABILITY", "80")]);
}

#[test]
fn half_the_memory_holds_as_many_experts_in_fp8() {
    on_the_emulated_gpu("fp8_slots", &[]);
}

#[test]
fn what_has_no_kernels_is_refused_with_a_sentence() {
    on_the_emulated_gpu("refusals", &[]);
}

#[test]
fn too_little_memory_is_said() {
    on_the_emulated_gpu("memory_is_out", &[("AMOE_EMULATED_FAULT", "out-of-memory")]);
}

const BLOCKS: usize = 12;
/// What the norm of the difference may be of the norm of the processor's logits, both in bf16.
const TOLERANCE: f64 = 2e-2;

#[test]
#[ignore = "runs as a child on the emulated GPU"]
fn families_agree() {
    for family in Family::ALL {
        let dir = family.checkpoint(11);
        let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
        let tokens = tokens(41, 3);
        // In two chunks, and the last tokens one by one.
        let passes: Vec<_> = [0..17, 17..39, 39..40, 40..41].map(|range| vec![(0, range)]).into();
        let sequences = [tokens.as_slice()];
        let want = run(&mut on_cpu(&checkpoint), &sequences, &passes);
        let got = run(&mut on_gpu(&checkpoint), &sequences, &passes);
        let error = relative_error(&got[0], &want[0]);
        assert!(error <= TOLERANCE, "{family:?}: error {error:.1e}");
    }
}

#[test]
#[ignore = "runs as a child on the emulated GPU"]
fn bits_stay() {
    for family in [Family::Qwen3, Family::Glm, Family::DeepSeek] {
        let dir = family.checkpoint(12);
        let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
        let texts = [tokens(45, 4), tokens(70, 5), tokens(3, 6)];
        let sequences = texts.each_ref().map(Vec::as_slice);
        let alone = [vec![(0, 0..45)], vec![(1, 0..70)], vec![(2, 0..3)]];
        let mut among = vec![
            vec![(0, 0..20), (2, 0..1), (1, 0..33)],
            vec![(1, 33..69)],
            vec![(2, 1..3), (0, 20..43), (1, 69..70)],
        ];
        among.extend((43..45).map(|at| vec![(0, at..at + 1)]));
        let mut model = on_gpu(&checkpoint);
        let want = run(&mut model, &sequences, &alone);
        let got = run(&mut model, &sequences, &among);
        for (sequence, (got, want)) in got.iter().zip(&want).enumerate() {
            let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(want.iter().all(|x| x.is_finite()), "{family:?}, sequence {sequence}");
            assert!(bits(got) == bits(want), "{family:?}, sequence {sequence}: other bits");
        }
    }
}

/// A checkpoint in fp8, and one of the values that it stands for.
fn coded_and_plain(family: Family, seed: u64) -> [TempDir; 2] {
    let mut values = BTreeMap::new();
    let coded = family.changed(seed, |config, tensors| {
        values = quantised::quantise(tensors);
        config["quantization_config"] = quantised::config();
    });
    [coded, family.changed(seed, |_, tensors| quantised::write_out(tensors, &values, "BF16"))]
}

#[test]
#[ignore = "runs as a child on the emulated GPU"]
fn fp8_experts() {
    for family in [Family::Qwen3, Family::Mixtral] {
        let tokens = tokens(21, 3);
        let passes: Vec<_> = [0..9, 9..20, 20..21].map(|range| vec![(0, range)]).into();
        let [coded, plain] = coded_and_plain(family, 14).map(|dir| {
            let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
            run(&mut on_gpu(&checkpoint), &[tokens.as_slice()], &passes).remove(0)
        });
        assert!(coded.iter().all(|logit| logit.is_finite()));
        let same = coded.iter().zip(&plain).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{family:?}: other bits");
    }
}

#[test]
#[ignore = "runs as a child on the emulated GPU"]
fn fp8_slots() {
    let [coded, plain] = coded_and_plain(Family::Glm, 15);
    // One matrix that is not in fp8, and all experts are kept in bf16.
    let mixed = Family::Glm.changed(15, |_, tensors| {
        let name = "model.layers.1.mlp.experts.7.up_proj.weight";
        let plain = tensors[name].clone();
        quantised::quantise(tensors);
        tensors.insert(name.to_owned(), plain);
    });
    // Three matrices of 64 x 128 for each of the layer's eight experts, and what 128 pairs take.
    let (each, launch) = (3 * 64 * 128, 128 * (2 * 128 + 64) * 2 + (2 * 128 + 3 * 8 + 2) * 4);
    let half = |dir: &TempDir| {
        let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
        let bytes = launch + 2 * 3 * each + 500;
        let mut half = ExpertHalf::on_gpu(checkpoint, cpu(), gpu(), (bytes, 128)).unwrap();
        half.load_expert(Layer(1), Expert(7)).unwrap();
        (half.slots().unwrap(), half.bytes())
    };
    assert_eq!(half(&coded), (6, each + 3 * 4));
    assert_eq!(half(&plain), (3, 2 * each));
    assert_eq!(half(&mixed), (3, 2 * each));
}

#[test]
#[ignore = "runs as a child on the emulated GPU"]
fn refusals() {
    let gpu = gpu();
    let refused = |dir: &Path| {
        let checkpoint = Checkpoint::open(dir).unwrap();
        let half = AttentionHalf::on_gpu(&checkpoint, cpu(), Arc::clone(&gpu), |_, _| ());
        half.unwrap_err().to_string()
    };
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    let small = refused(&goldens.join("deepseek_v3"));
    let want = "DeepseekV3ForCausalLM does not run on a GPU: no attention for 4 heads over 24 compressed and 16 turned \
                elements in 1 blocks: 128 or 512 are compressed, and 64 turned";
    assert_eq!(small, want);
    let narrow = refused(&goldens.join("mixtral"));
    let part = "MixtralForCausalLM does not run on a GPU: no attention for";
    assert!(narrow.starts_with(part), "{narrow}");
}

#[test]
#[ignore = "runs as a child on the emulated GPU"]
fn memory_is_out() {
    let dir = Family::Qwen3.checkpoint(13);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let half = AttentionHalf::on_gpu(&checkpoint, cpu(), gpu(), |_, _| ());
    let sentence = half.unwrap_err().to_string();
    assert!(sentence.starts_with("out of device memory: "), "{sentence}");
}

fn cpu() -> Arc<Cpu> {
    let isa = Some(Isa::Portable);
    let options = CpuOptions { threads: 2, compute: Compute::Bf16, isa, pin: false };
    Arc::new(Cpu::new(&options).unwrap())
}

fn gpu() -> Arc<Gpu> {
    // The emulated driver has the kernels compiled in, and takes any image for them.
    Arc::new(Gpu::open_with(0, b"any").unwrap())
}

fn on_cpu(checkpoint: &Arc<Checkpoint>) -> Reference {
    Reference::load(checkpoint, &cpu(), BLOCKS).unwrap()
}

/// Both halves on the GPU.
fn on_gpu(checkpoint: &Arc<Checkpoint>) -> Reference {
    let (cpu, gpu) = (cpu(), gpu());
    let attention =
        AttentionHalf::on_gpu(checkpoint, Arc::clone(&cpu), Arc::clone(&gpu), |_, _| ());
    let mut experts =
        ExpertHalf::on_gpu(Arc::clone(checkpoint), cpu, gpu, (64 << 20, 128)).unwrap();
    for (layer, expert) in checkpoint.spec().shape().slots() {
        experts.load_expert(layer, expert).unwrap();
    }
    Reference::of(attention.unwrap(), experts, (BLOCKS, 128)).unwrap()
}

fn tokens(count: u32, seed: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 37 + seed * 101) % families::VOCAB as u32).collect()
}

/// Each sequence's logits, `[positions, vocab]`, from batches of ranges of positions.
fn run(
    model: &mut Reference,
    sequences: &[&[u32]],
    passes: &[Vec<(usize, Range<usize>)>],
) -> Vec<Vec<f32>> {
    let mut first = 0;
    let blocks: Vec<Vec<u32>> = sequences
        .iter()
        .map(|tokens| {
            let count = tokens.len().div_ceil(BLOCK_TOKENS) as u32;
            first += count;
            // Not in order: a sequence's blocks lie anywhere.
            (first - count..first).rev().collect()
        })
        .collect();
    let (mut all, mut logits) = (vec![Vec::new(); sequences.len()], Vec::new());
    for pass in passes {
        let (mut spans, mut fed) = (Vec::new(), Vec::new());
        for (sequence, range) in pass {
            let rows = fed.len()..fed.len() + range.len();
            spans.push(Span { rows, first_position: range.start, blocks: &blocks[*sequence] });
            fed.extend_from_slice(&sequences[*sequence][range.clone()]);
        }
        model.step(&spans, &fed, &mut logits).unwrap();
        let vocab = model.spec().vocab;
        for (span, (sequence, _)) in spans.iter().zip(pass) {
            all[*sequence]
                .extend_from_slice(&logits[span.rows.start * vocab..span.rows.end * vocab]);
        }
    }
    all
}

fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let pairs = got.iter().zip(want);
    let difference: f64 = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (difference / want.iter().map(|x| square(f64::from(*x))).sum::<f64>()).sqrt()
}
