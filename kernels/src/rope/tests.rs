use std::f64::consts::PI;

use super::*;
use crate::random::{backends, bits, numbers};

fn spec(dim: usize, pairing: Pairing, scaling: RopeScaling) -> RopeSpec {
    RopeSpec { theta: 10_000.0, dim, pairing, scaling, positions: 5000 }
}

fn yarn() -> YarnScaling {
    YarnScaling {
        factor: 40.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position_embeddings: 4096,
        attention_factor: None,
        mscales: None,
        truncate: true,
    }
}

/// Rotates one head by the plain angles, in f64.
fn reference(head: &[f32], position: usize, pairing: Pairing) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
    for i in 0..half {
        let angle = position as f64 / 10_000_f64.powf(2.0 * i as f64 / head.len() as f64);
        let (a, b) = match pairing {
            Pairing::Halves => (i, i + half),
            Pairing::Neighbours => (2 * i, 2 * i + 1),
        };
        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
        out[a] = x * angle.cos() - y * angle.sin();
        out[b] = y * angle.cos() + x * angle.sin();
    }
    out
}

#[test]
fn rotates_the_named_part_of_each_head() {
    let (head, first, dim, stride) = (40, 8, 24, 90);
    let positions = [0, 1, 300, 4097];
    for cpu in backends() {
        for pairing in [Pairing::Halves, Pairing::Neighbours] {
            let rope = Rope::new(&spec(dim, pairing, RopeScaling::None));
            let before = numbers(5, positions.len() * stride);
            let mut x = before.clone();
            let columns = ColumnsMut::part(&mut x, stride, 3..3 + 2 * head);
            rope.apply(&cpu, columns, (head, first), &positions);
            let rows = before.chunks(stride).zip(x.chunks(stride)).zip(positions);
            for ((before, after), position) in rows {
                let mut want: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
                for start in [3 + first, 3 + head + first] {
                    let rotated =
                        reference(&before[start..start + dim], position as usize, pairing);
                    want[start..start + dim].copy_from_slice(&rotated);
                }
                for (got, want) in after.iter().zip(want) {
                    // An f32 angle of some thousand radians is off by 1e-4.
                    assert!((f64::from(*got) - want).abs() < 5e-4, "{got} for {want}");
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_machine() {
    let positions: Vec<u32> = (0..300).collect();
    let rope = Rope::new(&spec(64, Pairing::Halves, RopeScaling::Yarn(yarn())));
    let results: Vec<_> = backends()
        .iter()
        .map(|cpu| {
            let mut x = numbers(6, 300 * 256);
            rope.apply(cpu, ColumnsMut::dense(&mut x, 256), (64, 0), &positions);
            bits(&x)
        })
        .collect();
    assert!(results.iter().all(|result| *result == results[0]));
}

fn inverse_frequencies(scaling: RopeScaling) -> (Vec<f32>, f32) {
    frequencies::of(&spec(64, Pairing::Halves, scaling))
}

#[test]
fn linear_scaling_divides_every_frequency() {
    let (plain, one) = inverse_frequencies(RopeScaling::None);
    let (linear, amplitude) = inverse_frequencies(RopeScaling::Linear { factor: 4.0 });
    assert_eq!((one, amplitude), (1.0, 1.0));
    assert_eq!(plain[0], 1.0);
    assert!(plain.iter().zip(&linear).all(|(plain, linear)| plain / 4.0 == *linear));
}

#[test]
fn llama3_keeps_high_divides_low_and_ramps_between() {
    let scaling = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let (plain, _) = inverse_frequencies(RopeScaling::None);
    let (scaled, amplitude) = inverse_frequencies(RopeScaling::Llama3(scaling));
    assert_eq!(amplitude, 1.0);
    let mut kinds = [0; 3];
    for (plain, scaled) in plain.iter().zip(scaled) {
        let turns = 8192.0 * f64::from(*plain) / (2.0 * PI);
        let keep = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
        let want = f64::from(*plain) * ((1.0 - keep) / 8.0 + keep);
        assert!((f64::from(scaled) - want).abs() < 1e-6 * want, "{scaled} for {want}");
        kinds[if keep == 0.0 {
            0
        } else if keep < 1.0 {
            1
        } else {
            2
        }] += 1;
    }
    assert!(kinds.iter().all(|&count| count > 0), "all three regimes: {kinds:?}");
}

/// Numbers from transformers' `_compute_yarn_parameters` formulas, evaluated in f64.
#[test]
fn yarn_interpolates_low_frequencies_and_sets_the_amplitude() {
    let (plain, _) = inverse_frequencies(RopeScaling::None);
    let (scaled, amplitude) = inverse_frequencies(RopeScaling::Yarn(yarn()));
    assert!((f64::from(amplitude) - (0.1 * 40_f64.ln() + 1.0)).abs() < 1e-6);
    let dim_of = |turns: f64| 64.0 * (4096.0 / (turns * 2.0 * PI)).ln() / (2.0 * 10_000_f64.ln());
    let (low, high) = (dim_of(32.0).floor(), dim_of(1.0).ceil());
    assert_eq!((low, high), (10.0, 23.0));
    for (i, (plain, scaled)) in plain.iter().zip(scaled).enumerate() {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let want = f64::from(*plain) * (ramp / 40.0 + 1.0 - ramp);
        assert!((f64::from(scaled) - want).abs() < 1e-6 * want, "{i}: {scaled} for {want}");
    }
}

#[test]
fn yarn_amplitude_follows_the_file() {
    let given = YarnScaling { attention_factor: Some(1.5), ..yarn() };
    assert_eq!(inverse_frequencies(RopeScaling::Yarn(given)).1, 1.5);
    // DeepSeek-V3 writes both as 1, so that only its softmax scale grows.
    let deepseek = YarnScaling { mscales: Some((1.0, 1.0)), ..yarn() };
    assert_eq!(inverse_frequencies(RopeScaling::Yarn(deepseek)).1, 1.0);
    assert_eq!(YarnScaling::mscale(0.5, 1.0), 1.0);
    let whole = inverse_frequencies(RopeScaling::Yarn(yarn())).0;
    let exact = YarnScaling { truncate: false, ..yarn() };
    assert_ne!(inverse_frequencies(RopeScaling::Yarn(exact)).0, whole);
}

#[test]
fn yarn_scales_queries_by_its_amplitude() {
    let scaling = YarnScaling { attention_factor: Some(2.0), ..yarn() };
    let rope = Rope::new(&spec(8, Pairing::Halves, RopeScaling::Yarn(scaling)));
    let mut x = [1.0; 8];
    rope.apply(&backends()[0], ColumnsMut::dense(&mut x, 8), (8, 0), &[0]);
    assert_eq!(x, [2.0; 8]);
}

#[test]
#[should_panic(expected = "past the bound")]
fn a_position_past_the_bound_is_refused() {
    let rope = Rope::new(&spec(8, Pairing::Halves, RopeScaling::None));
    rope.apply(&backends()[0], ColumnsMut::dense(&mut [0.0; 8], 8), (8, 0), &[6000]);
}
