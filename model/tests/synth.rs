//! A synthetic checkpoint is deterministic, loads, runs, and routes as it was asked to.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, sync::Arc};

use model::{Checkpoint, Compute, Cpu, CpuOptions, Reference, SynthSpec, synth};
use tempfile::TempDir;

fn tiny() -> SynthSpec {
    SynthSpec {
        layers: 3,
        experts: 16,
        top_k: 2,
        hidden: 64,
        width: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 300,
        positions_max: 256,
        zipf: 1.0,
        ..SynthSpec::default()
    }
}

fn weights(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("model.safetensors")).unwrap()
}

#[test]
fn equal_seeds_give_equal_files_whatever_the_threads() {
    let dirs = [(7, 1), (7, 2), (8, 2)].map(|(seed, threads)| {
        let dir = TempDir::new().unwrap();
        synth(&SynthSpec { seed, ..tiny() }, dir.path(), threads).unwrap();
        dir
    });
    assert_eq!(weights(dirs[0].path()), weights(dirs[1].path()));
    assert_ne!(weights(dirs[0].path()), weights(dirs[2].path()));
}

#[test]
fn experts_are_as_popular_as_asked() {
    for zipf in [0.0, 1.0] {
        let dir = TempDir::new().unwrap();
        let spec = SynthSpec { zipf, ..tiny() };
        let report = synth(&spec, dir.path(), 2).unwrap();
        assert_eq!(report.bytes, weights(dir.path()).len());
        for layer in &report.layers {
            for (target, reached) in layer.target.iter().zip(&layer.reached) {
                let off = (target - reached).abs();
                assert!(off < 0.03, "zipf {zipf}: {reached} of the tokens, expected {target}");
            }
        }
    }
}

#[test]
fn it_loads_and_generates() {
    let dir = TempDir::new().unwrap();
    synth(&tiny(), dir.path(), 2).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
    assert!(checkpoint.spec().is_eos(258));
    for compute in [Compute::F32, Compute::Bf16] {
        let options = CpuOptions { threads: 2, compute, isa: None, pin: false };
        let cpu = Arc::new(Cpu::new(&options).unwrap());
        let mut model = Reference::load(&checkpoint, &cpu, 2).unwrap();
        let tokens = model.greedy(&[72, 105, 33], 20).unwrap();
        let first = tokens[0];
        assert!(tokens.iter().any(|&token| token != first), "one token over and over");
    }
}

/// What is drawn is the same; the file is smaller and the routing as even as asked.
#[test]
fn in_fp8_it_is_nearly_the_same_model() {
    let [plain, fp8] = [false, true].map(|fp8| {
        let dir = TempDir::new().unwrap();
        let spec = SynthSpec { fp8, hidden: 160, width: 144, ..tiny() };
        let report = synth(&spec, dir.path(), 2).unwrap();
        let share = |layer: &model::LayerShares| {
            layer.target.iter().zip(&layer.reached).all(|(a, b)| (a - b).abs() < 0.03)
        };
        assert!(report.layers.iter().all(share));
        let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
        let options = CpuOptions { threads: 2, compute: Compute::F32, isa: None, pin: false };
        let cpu = Arc::new(Cpu::new(&options).unwrap());
        let mut model = Reference::load(&checkpoint, &cpu, 1).unwrap();
        (report.bytes, model.logits(&[72, 105, 33], 3).unwrap())
    });
    // Embedding and head stay as they are.
    assert!(fp8.0 * 10 < plain.0 * 6, "{} bytes in fp8, {} in bf16", fp8.0, plain.0);
    let square = |x: f32| f64::from(x).powi(2);
    let off: f64 = plain.1.iter().zip(&fp8.1).map(|(a, b)| square(a - b)).sum();
    let all: f64 = plain.1.iter().map(|x| square(*x)).sum();
    let error = (off / all).sqrt();
    assert!(error > 0.0 && error < 0.25, "{error}");
}

#[test]
fn contradictions_are_refused() {
    let cases = [
        (SynthSpec { vocab: 100, ..tiny() }, "vocab is 100, expected at least 259"),
        (SynthSpec { layers: 0, ..tiny() }, "layers is 0"),
        (SynthSpec { zipf: -1.0, ..tiny() }, "zipf is -1"),
        (SynthSpec { share_max: 0.1, ..tiny() }, "share_max is 0.1"),
        (SynthSpec { top_k: 17, share_max: 1.0, ..tiny() }, "share_max"),
        (SynthSpec { kv_heads: 3, ..tiny() }, "num_key_value_heads"),
    ];
    for (spec, part) in cases {
        let dir = TempDir::new().unwrap();
        let line = synth(&spec, dir.path(), 1).unwrap_err().to_string();
        assert!(line.contains(part), "lacks {part:?}: {line}");
    }
}
