//! Every architecture against the logits of `transformers`, in f32 and in bf16, however the prompt is cut.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and reports"
)]

mod golden;

use golden::Golden;
use model::{Compute, Isa, Span};

/// Of the standard deviation of the reference's logits.
const F32_TOLERANCE: f32 = 2e-4;
const BF16_TOP1: f64 = 0.97;
const BF16_KL: f64 = 1e-2;

macro_rules! conformance {
    ($($name:ident),*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(mod $name {
            use super::*;

            #[test]
            fn f32_logits_are_those_of_the_reference() {
                f32_logits(&Golden::open(stringify!($name)));
            }

            #[test]
            fn f32_has_the_same_bits_on_every_instruction_set() {
                instruction_sets(&Golden::open(stringify!($name)));
            }

            #[test]
            fn neighbours_change_no_bit() {
                neighbours(&Golden::open(stringify!($name)));
            }

            #[test]
            fn cutting_the_prompt_changes_no_bit() {
                cuts(&Golden::open(stringify!($name)));
            }
        })*
    };
}

conformance!(
    mixtral,
    qwen3_moe,
    qwen3_moe_mixed,
    qwen2_moe,
    olmoe,
    olmoe_clipped,
    deepseek_v3,
    deepseek_v3_yarn,
    glm4_moe
);

fn f32_logits(golden: &Golden) {
    let mut model = golden.load(Compute::F32, None);
    for case in &golden.cases {
        let logits = model.logits(&case.prompt, case.prompt.len()).unwrap();
        assert_eq!(logits.len(), case.logits.len());
        let deviation = standard_deviation(&case.logits);
        let worst = logits
            .iter()
            .zip(&case.logits)
            .map(|(ours, theirs)| (ours - theirs).abs())
            .fold(0.0, f32::max);
        println!(
            "{}: worst {worst:e} of deviation {deviation:.3} = {:.1e}",
            golden.name,
            worst / deviation
        );
        assert!(
            worst <= F32_TOLERANCE * deviation,
            "{}: a logit is {worst} off at a deviation of {deviation}",
            golden.name
        );
        if case.min_margin > 2.0 * F32_TOLERANCE * deviation {
            let greedy = model.greedy(&case.prompt, case.greedy.len()).unwrap();
            assert_eq!(greedy, case.greedy, "{}: greedy tokens", golden.name);
        }
    }
}

/// Top-1 is counted over all architectures together: random weights make near ties in logits and
/// gates, so that single positions flip in bf16, and one golden has too few positions for a share.
#[test]
fn bf16_logits_agree_with_the_reference() {
    let goldens: Vec<_> = NAMES.iter().map(|name| Golden::open(name)).collect();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let (mut positions, mut agreeing) = (0.0, 0.0);
        for golden in &goldens {
            let [rows, equal, divergence] = compare(golden, isa);
            let (name, mean) = (golden.name, divergence / rows);
            println!("{name} on {isa}: top-1 {equal} of {rows}, mean KL {mean:.1e}");
            assert!(mean <= BF16_KL, "{name} on {isa}: mean divergence {mean}");
            positions += rows;
            agreeing += equal;
        }
        let agreement = agreeing / positions;
        println!("{isa}: top-1 agreement {agreement:.4}");
        assert!(agreement >= BF16_TOP1, "{isa}: top-1 agreement {agreement}");
    }
}

/// Positions of a golden's prompts, how many have the reference's top-1, and the sum of divergences.
fn compare(golden: &Golden, isa: Isa) -> [f64; 3] {
    let mut model = golden.load(Compute::Bf16, Some(isa));
    let vocab = model.spec().vocab;
    let mut sums = [0.0; 3];
    for case in &golden.cases {
        let logits = model.logits(&case.prompt, case.prompt.len()).unwrap();
        let pairs = logits.chunks_exact(vocab);
        for (ours, theirs) in pairs.zip(case.logits.chunks_exact(vocab)) {
            sums[0] += 1.0;
            sums[1] += f64::from(u8::from(best(ours) == best(theirs)));
            sums[2] += kullback_leibler(theirs, ours);
        }
    }
    sums
}

fn cuts(golden: &Golden) {
    for compute in [Compute::F32, Compute::Bf16] {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let mut model = golden.load(compute, Some(isa));
            let case = golden.cases.iter().max_by_key(|case| case.prompt.len()).unwrap();
            // Past a block of the cache, so that attention spans several.
            let tokens: Vec<u32> = [&case.prompt[..], &case.greedy].concat();
            let whole = model.logits(&tokens, tokens.len()).unwrap();
            for chunk in [7, 1] {
                let cut = model.logits(&tokens, chunk).unwrap();
                let differing = whole.iter().zip(&cut).filter(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(
                    differing.count(),
                    0,
                    "{}: {compute} on {isa} in chunks of {chunk}",
                    golden.name
                );
            }
        }
    }
}

/// Three sequences in two mixed batches, one of prefill and decode, against each by itself.
fn neighbours(golden: &Golden) {
    for compute in [Compute::F32, Compute::Bf16] {
        let mut model = golden.load(compute, None);
        let vocab = model.spec().vocab;
        let tokens = |seed: u32, len: u32| -> Vec<u32> {
            (0..len).map(|i| (i * 7919 + seed * 104_729) % vocab as u32).collect()
        };
        let sequences = [tokens(1, 250), tokens(2, 256), tokens(3, 199)];
        let blocks: Vec<Vec<u32>> =
            [0, 1, 2].map(|s| (0..8).map(|b| 23 - 3 * b - s).collect()).into();
        let mut batched = vec![Vec::new(); 3];
        let mut logits = Vec::new();
        for cuts in [[0..249, 0..128, 0..0], [249..250, 128..256, 0..199]] {
            let (mut rows, mut spans, mut fed) = (0, Vec::new(), Vec::new());
            for (sequence, cut) in cuts.iter().enumerate() {
                fed.extend_from_slice(&sequences[sequence][cut.clone()]);
                spans.push(Span {
                    rows: rows..rows + cut.len(),
                    first_position: cut.start,
                    blocks: &blocks[sequence],
                });
                rows += cut.len();
            }
            model.step(&spans, &fed, &mut logits).unwrap();
            for (span, batched) in spans.iter().zip(&mut batched) {
                batched.extend_from_slice(&logits[span.rows.start * vocab..span.rows.end * vocab]);
            }
        }
        for (tokens, batched) in sequences.iter().zip(&batched) {
            let alone = model.logits(tokens, 100).unwrap();
            let differing = alone.iter().zip(batched).filter(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differing.count(), 0, "{}: {compute}", golden.name);
        }
    }
}

/// What makes synthetic checkpoints the same on every machine.
fn instruction_sets(golden: &Golden) {
    let case = golden.cases.iter().max_by_key(|case| case.prompt.len()).unwrap();
    let tokens = [&case.prompt[..], &case.greedy].concat();
    let mut logits = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(|isa| {
        let mut model = golden.load(Compute::F32, Some(isa));
        model.logits(&tokens, tokens.len()).unwrap()
    });
    let portable = logits.next().unwrap();
    for logits in logits {
        let differing = portable.iter().zip(&logits).filter(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differing.count(), 0, "{}", golden.name);
    }
}

fn standard_deviation(values: &[f32]) -> f32 {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let squares = values.iter().map(|&value| (f64::from(value) - mean).powi(2));
    (squares.sum::<f64>() / count).sqrt() as f32
}

fn best(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()
}

/// Of the distribution `ours` from `theirs`, in nats.
fn kullback_leibler(theirs: &[f32], ours: &[f32]) -> f64 {
    let (theirs, ours) = (log_softmax(theirs), log_softmax(ours));
    theirs.iter().zip(&ours).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|&logit| f64::from(logit - max));
    let total = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|logit| logit - total).collect()
}
