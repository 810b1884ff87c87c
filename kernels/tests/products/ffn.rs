//! Expert FFNs: right against plain arithmetic, and independent of batch, order and threads.

use kernels::{
    Activation, Compute, Cpu, Dtype, ExpertWeights, FfnJob, FfnRow, Isa, MatrixError, decode_rows,
    encode_rows, grouped_ffn, swiglu,
};

use crate::numbers::*;

struct Expert {
    gate: Stored,
    up: Stored,
    down: Stored,
}

impl Expert {
    fn random(numbers: &mut Numbers, hidden: usize, width: usize) -> Self {
        Self {
            gate: Stored::random(numbers, Dtype::Bf16, width, hidden),
            up: Stored::random(numbers, Dtype::Bf16, width, hidden),
            down: Stored::random(numbers, Dtype::Bf16, hidden, width),
        }
    }

    fn pack(&self, cpu: &Cpu) -> ExpertWeights {
        ExpertWeights::pack(cpu, self.gate.view(), self.up.view(), self.down.view())
            .expect("the three shapes belong together")
    }

    /// In f64, activations as they are.
    fn reference(&self, x: &[f32], act: impl Fn(f64, f64) -> f64) -> Vec<f32> {
        let product = |w: &Stored, x: &[f64]| -> Vec<f64> {
            let rows = w.values.chunks_exact(w.cols);
            rows.map(|w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
        };
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let (gate, up) = (product(&self.gate, &x), product(&self.up, &x));
        let h: Vec<f64> = gate.iter().zip(&up).map(|(&gate, &up)| act(gate, up)).collect();
        product(&self.down, &h).into_iter().map(|y| y as f32).collect()
    }
}

fn silu_up(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

fn wire(compute: Compute, x: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; compute.row_bytes(x.len())];
    encode_rows(compute, x, &mut bytes);
    bytes
}

#[test]
fn grouped_experts_match_plain_arithmetic() {
    let mut numbers = Numbers(11);
    for (isa, compute) in backends() {
        let cpu = cpu(isa, compute, 2);
        for (hidden, width) in [(64, 48), (48, 96), (33, 17), (96, 64)] {
            let experts: Vec<Expert> =
                (0..5).map(|_| Expert::random(&mut numbers, hidden, width)).collect();
            let packed: Vec<ExpertWeights> = experts.iter().map(|e| e.pack(&cpu)).collect();
            let counts = [1, 0, 20, 3, 41];
            let rows: usize = counts.iter().sum();
            let xs: Vec<Vec<f32>> = (0..rows).map(|_| numbers.floats(hidden, 1.0)).collect();
            let wires: Vec<Vec<u8>> = xs.iter().map(|x| wire(compute, x)).collect();
            let mut at = 0;
            let ffn_rows: Vec<Vec<FfnRow<'_>>> = counts
                .iter()
                .map(|&count| {
                    at += count;
                    (at - count..at)
                        .map(|i| FfnRow { input: &wires[i], weight: 0.5, output: rows - 1 - i })
                        .collect()
                })
                .collect();
            let jobs: Vec<FfnJob<'_>> = packed
                .iter()
                .zip(&ffn_rows)
                .map(|(expert, rows)| FfnJob { expert, rows })
                .collect();
            let mut out = Vec::new();
            grouped_ffn(&cpu, &jobs, &mut out);
            let mut y = vec![0.0; rows * hidden];
            decode_rows(compute, &out, &mut y);
            let tolerance = if compute == Compute::F32 { 1e-5 } else { 2e-2 };
            let mut i = 0;
            for (expert, &count) in experts.iter().zip(&counts) {
                for _ in 0..count {
                    let mut expected = expert.reference(&xs[i], silu_up);
                    expected.iter_mut().for_each(|y| *y *= 0.5);
                    let row = rows - 1 - i;
                    let got = &y[row * hidden..(row + 1) * hidden];
                    let what = format!("{isa} {compute} {hidden}x{width} row {i}");
                    assert_close(got, &expected, tolerance, &what);
                    i += 1;
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_launch() {
    let mut numbers = Numbers(12);
    for (isa, compute) in backends() {
        let (hidden, width) = if isa == Isa::Portable { (48, 32) } else { (320, 208) };
        let experts: Vec<Expert> =
            (0..4).map(|_| Expert::random(&mut numbers, hidden, width)).collect();
        let wires: Vec<Vec<u8>> =
            (0..120).map(|_| wire(compute, &numbers.floats(hidden, 1.0))).collect();
        let alone = cpu(isa, compute, 1);
        let packed: Vec<ExpertWeights> = experts.iter().map(|e| e.pack(&alone)).collect();
        let size = compute.row_bytes(hidden);
        let single = |expert: usize, x: usize| {
            let rows = [FfnRow { input: &wires[x], weight: 0.7, output: 0 }];
            let mut out = Vec::new();
            grouped_ffn(&alone, &[FfnJob { expert: &packed[expert], rows: &rows }], &mut out);
            out
        };
        let expected: Vec<Vec<Vec<u8>>> =
            (0..4).map(|e| (0..wires.len()).map(|x| single(e, x)).collect()).collect();
        for launch in 0..30 {
            let cpu = cpu(isa, compute, 1 + launch % 3);
            let packed: Vec<ExpertWeights> = experts.iter().map(|e| e.pack(&cpu)).collect();
            let mut picks = Vec::new();
            // Few jobs are all cut up; of many, most are one task each.
            for job in 0..1 + numbers.below([4, 24][launch % 2]) {
                let expert = (job + launch) % 4;
                let count = [1, 2, 7, 16, 17, 40, 100][numbers.below(7)];
                let xs: Vec<usize> = (0..count).map(|_| numbers.below(wires.len())).collect();
                picks.push((expert, xs));
            }
            let mut output = 0;
            let rows: Vec<Vec<FfnRow<'_>>> = picks
                .iter()
                .map(|(_, xs)| {
                    let row = |&x: &usize| {
                        output += 1;
                        FfnRow { input: &wires[x], weight: 0.7, output: output - 1 }
                    };
                    xs.iter().map(row).collect()
                })
                .collect();
            let jobs: Vec<FfnJob<'_>> = picks
                .iter()
                .zip(&rows)
                .map(|((expert, _), rows)| FfnJob { expert: &packed[*expert], rows })
                .collect();
            let mut out = vec![7; 3];
            grouped_ffn(&cpu, &jobs, &mut out);
            assert_eq!(out.len(), output * size);
            let named = picks.iter().flat_map(|(e, xs)| xs.iter().map(|x| (*e, *x)));
            for (got, (expert, x)) in out.chunks_exact(size).zip(named) {
                assert_eq!(got, expected[expert][x], "{isa} {compute} launch {launch}");
            }
        }
    }
}

#[test]
fn a_dense_mlp_adds_to_the_residual() {
    let mut numbers = Numbers(13);
    for (isa, compute) in backends() {
        let cpu = cpu(isa, compute, 2);
        let expert = Expert::random(&mut numbers, 64, 100);
        let packed = expert.pack(&cpu);
        let x = numbers.floats(9 * 64, 1.0);
        let before = numbers.floats(9 * 64, 1.0);
        let scale = numbers.floats(9, 1.0);
        let (mut plain, mut scaled) = (before.clone(), before.clone());
        swiglu(&cpu, &packed, &x, None, &mut plain);
        swiglu(&cpu, &packed, &x, Some(&scale), &mut scaled);
        let tolerance = if compute == Compute::F32 { 1e-5 } else { 2e-2 };
        for (row, scale) in scale.iter().enumerate() {
            let part = row * 64..(row + 1) * 64;
            let expected = expert.reference(&x[part.clone()], silu_up);
            for (i, y) in part.zip(expected) {
                assert!((plain[i] - before[i] - y).abs() < tolerance, "{isa} {compute}");
                assert!((scaled[i] - before[i] - scale * y).abs() < tolerance, "{isa} {compute}");
            }
        }
    }
}

#[test]
fn biases_and_the_clamped_activation() {
    let mut numbers = Numbers(14);
    let (hidden, width) = (32, 40);
    let expert = Expert::random(&mut numbers, hidden, width);
    let (gate_bias, up_bias) = (numbers.floats(width, 1.0), numbers.floats(width, 1.0));
    let down_bias = numbers.floats(hidden, 1.0);
    // A bias is a weight of an input that is always 1: put it there for the reference.
    let with_bias = |w: &Stored, bias: &[f32]| {
        let rows = w.values.chunks_exact(w.cols).zip(bias);
        let values: Vec<f32> =
            rows.flat_map(|(row, bias)| row.iter().copied().chain([*bias])).collect();
        Stored { values, cols: w.cols + 1, rows: w.rows, dtype: w.dtype, bytes: Vec::new() }
    };
    let biased = Expert {
        gate: with_bias(&expert.gate, &gate_bias),
        up: with_bias(&expert.up, &up_bias),
        down: Stored::random(&mut numbers, Dtype::F32, hidden, width),
    };
    let biased =
        Expert { down: Stored { values: expert.down.values.clone(), ..biased.down }, ..biased };
    let x = numbers.floats(hidden, 1.0);
    let one: Vec<f32> = x.iter().copied().chain([1.0]).collect();
    let mut expected = biased.reference(&one, |gate, up| {
        let (gate, up) = (gate.min(0.5), up.clamp(-0.5, 0.5));
        (up + 1.0) * gate / (1.0 + (-1.702 * gate).exp())
    });
    expected.iter_mut().zip(&down_bias).for_each(|(y, bias)| *y += bias);
    for (isa, compute) in backends() {
        let cpu = cpu(isa, compute, 2);
        let packed = expert
            .pack(&cpu)
            .with_activation(Activation::ClampedSwish { alpha: 1.702, limit: 0.5 })
            .with_bias(&gate_bias, &up_bias, &down_bias)
            .unwrap();
        let mut y = vec![0.0; hidden];
        swiglu(&cpu, &packed, &x, None, &mut y);
        let tolerance = if compute == Compute::F32 { 1e-5 } else { 2e-2 };
        assert_close(&y, &expected, tolerance, &format!("{isa} {compute}"));
    }
}

#[test]
fn shapes_that_do_not_belong_together_are_told() {
    let mut numbers = Numbers(15);
    let cpu = cpu(Isa::Portable, Compute::F32, 1);
    let wide = Expert::random(&mut numbers, 8, 4);
    let narrow = Expert::random(&mut numbers, 8, 3);
    let error = ExpertWeights::pack(&cpu, wide.gate.view(), narrow.up.view(), wide.down.view())
        .unwrap_err();
    assert_eq!(error, MatrixError::Shape { what: "rows of up", expected: 4, got: 3 });
    assert!(wide.pack(&cpu).with_bias(&[0.0; 4], &[0.0; 4], &[0.0; 4]).is_err());
}

#[test]
#[should_panic(expected = "named twice")]
fn two_rows_may_not_share_an_output() {
    let mut numbers = Numbers(16);
    let cpu = cpu(Isa::Portable, Compute::F32, 2);
    let expert = Expert::random(&mut numbers, 8, 4).pack(&cpu);
    let input = [0; 32];
    let rows = [FfnRow { input: &input, weight: 1.0, output: 0 }; 2];
    grouped_ffn(&cpu, &[FfnJob { expert: &expert, rows: &rows }], &mut Vec::new());
}
