//! The shapes of MoE models: a large one's expert matrices and layer, a small one's layers.

use kernels::{
    Compute, Cpu, Dtype, ExpertWeights, FfnJob, FfnRow, Linear, MatrixError, MatrixView,
    encode_rows, grouped_ffn, linear,
};

use crate::limits::Limits;
use crate::timing::sample;

const HIDDEN: usize = 2048;
const WIDTH: usize = 768;
/// One layer of a model of 30 billion parameters.
pub(crate) const LARGE: Moe =
    Moe { layers: 1, experts: 128, top_k: 8, hidden: HIDDEN, width: WIDTH };
/// What `amoe synth` makes by default, less its other layers: these do not stay in a cache either.
pub(crate) const SMALL: Moe = Moe { layers: 4, experts: 32, top_k: 4, hidden: 1024, width: 512 };
/// Copies of a matrix, used in turn so that none stays in a cache.
const COPIES: usize = 100;

/// A small deterministic generator.
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    /// bf16 weights.
    fn weights(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count * 2];
        encode_rows(Compute::Bf16, &self.floats(count), &mut bytes);
        bytes
    }
}

pub(crate) fn linear_layers(cpu: &Cpu, limits: &Limits) -> Result<(), MatrixError> {
    let mut numbers = Numbers(7);
    for (outputs, inputs) in [(WIDTH, HIDDEN), (HIDDEN, HIDDEN)] {
        println!("\nlinear {outputs} x {inputs}, cold weights");
        println!(" rows   us p50   us p90   GB/s p90  of read   GFLOP/s p50    p90  of peak");
        let bytes = numbers.weights(outputs * inputs);
        let view = MatrixView::new(&bytes, Dtype::Bf16, outputs, inputs)?;
        let copies =
            (0..COPIES).map(|_| Linear::pack(cpu, &[view], None)).collect::<Result<Vec<_>, _>>()?;
        for rows in [1, 4, 16, 32, 64, 128, 512] {
            let x = numbers.floats(rows * inputs);
            let mut y = vec![0.0; rows * outputs];
            let seconds = sample(|call| linear(cpu, &copies[call % COPIES], &x, &mut y));
            let (_, read) = seconds.giga(copies[0].bytes() as f64);
            let (slow, fast) = seconds.giga(2.0 * (rows * outputs * inputs) as f64);
            println!(
                "{rows:5} {:8.1} {:8.1} {read:10.1} {:7.0}% {slow:13.0} {fast:6.0} {:7.0}%",
                seconds.p50 * 1e6,
                seconds.p90 * 1e6,
                read / limits.read * 100.0,
                fast / limits.multiply * 100.0,
            );
        }
    }
    Ok(())
}

/// Expert layers that are run in turn.
pub(crate) struct Moe {
    layers: usize,
    experts: usize,
    top_k: usize,
    hidden: usize,
    width: usize,
}

pub(crate) fn moe_layer(cpu: &Cpu, limits: &Limits, moe: &Moe) -> Result<(), MatrixError> {
    let Moe { layers, experts, top_k, hidden, width } = *moe;
    println!("\nMoE layer: {experts} experts, top {top_k}, hidden {hidden}, width {width}");
    println!(" tokens  active   ms p50   ms p90   GB/s p50    p90  of read   GFLOP/s  tokens/s");
    let mut numbers = Numbers(9);
    let bytes = numbers.weights(width * hidden);
    let tall = MatrixView::new(&bytes, Dtype::Bf16, width, hidden)?;
    let wide = MatrixView::new(&bytes, Dtype::Bf16, hidden, width)?;
    let weights = (0..layers * experts)
        .map(|_| ExpertWeights::pack(cpu, tall, tall, wide))
        .collect::<Result<Vec<_>, _>>()?;
    let row_bytes = cpu.compute().row_bytes(hidden);
    for tokens in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] {
        let mut wire = vec![0; tokens * row_bytes];
        encode_rows(cpu.compute(), &numbers.floats(tokens * hidden), &mut wire);
        let routes: Vec<Vec<Vec<FfnRow<'_>>>> =
            (0..8).map(|_| route(&mut numbers, moe, &wire, row_bytes)).collect();
        let launches: Vec<Vec<FfnJob<'_>>> = routes
            .iter()
            .zip(weights.chunks_exact(experts).cycle())
            .map(|(rows, layer)| {
                let jobs = layer.iter().zip(rows).filter(|(_, rows)| !rows.is_empty());
                jobs.map(|(expert, rows)| FfnJob { expert, rows }).collect()
            })
            .collect();
        let mut out = Vec::new();
        let active = launches.iter().map(Vec::len).sum::<usize>() as f64 / launches.len() as f64;
        let seconds = sample(|call| grouped_ffn(cpu, &launches[call % launches.len()], &mut out));
        let (slow, fast) = seconds.giga(active * weights[0].bytes() as f64);
        let flops = 2.0 * (tokens * top_k * 3 * hidden * width) as f64;
        println!(
            "{tokens:7} {active:7.1} {:8.2} {:8.2} {slow:10.1} {fast:6.1} {:7.0}% {:9.0} {:9.0}",
            seconds.p50 * 1e3,
            seconds.p90 * 1e3,
            fast / limits.read * 100.0,
            flops / seconds.p90 / 1e9,
            tokens as f64 / seconds.p90,
        );
    }
    Ok(())
}

/// Sends every row of `wire` to `top_k` different experts.
fn route<'a>(
    numbers: &mut Numbers,
    moe: &Moe,
    wire: &'a [u8],
    row_bytes: usize,
) -> Vec<Vec<FfnRow<'a>>> {
    let mut rows: Vec<Vec<FfnRow<'a>>> = (0..moe.experts).map(|_| Vec::new()).collect();
    for (token, input) in wire.chunks_exact(row_bytes).enumerate() {
        let mut chosen = Vec::new();
        while chosen.len() < moe.top_k {
            let expert = (numbers.bits() >> 20) as usize % moe.experts;
            if !chosen.contains(&expert) {
                let output = token * moe.top_k + chosen.len();
                rows[expert].push(FfnRow { input, weight: 0.125, output });
                chosen.push(expert);
            }
        }
    }
    rows
}
