//! Rooflines: what a layer takes on an accelerator of which two rates are known.

use domain::CostCurve;

use super::{Attention, Costs, Head, free, model::Shape, tile_edges};

/// Share of the memory's data-sheet rate that a stream of weights reaches. The best grouped product
/// published for few rows, DeepGEMM's, reads 2668 GB/s of an H800's 3350.
const MEMORY_REACHED: f64 = 0.8;

/// Share of the data-sheet's dense rate that a large product reaches (DeepGEMM on H800: 0.66 for
/// grouped ones, 0.78 for plain ones).
const MATH_REACHED: f64 = 0.7;

/// Shortest time from one kernel's start to the next one's in a CUDA graph, in nanoseconds (NVIDIA,
/// "Getting Started with CUDA Graphs": 3.4 µs a kernel, 2.9 of which the kernel ran).
const KERNEL_NS: u64 = 3_000;

/// Kernels of a layer's attention half: norm, projections (2), rotary embedding, cache write,
/// attention and merge, output, norm, gate and top-k.
const ATTENTION_KERNELS: u64 = 10;

/// Kernels of a MoE layer on an expert node: sort, gather, two grouped products with the activation
/// between them, scatter.
const EXPERT_KERNELS: u64 = 6;

/// Kernels after the last layer: norm, head, sampler (2).
const HEAD_KERNELS: u64 = 4;

/// An accelerator's rates, from its maker's data sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accelerator {
    /// Bytes per microsecond from its memory.
    memory_rate: u64,
    /// Dense 16-bit floating-point operations per nanosecond; twice as many in 8 bits where
    /// `eight_bit` says so.
    math_rate: u64,
    eight_bit: bool,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes per microsecond in one direction to its peers in the node.
    pub link_rate: u64,
}

impl Accelerator {
    /// NVIDIA A100 40 GB: 1555 GB/s, 312 TFLOP/s, NVLink 300 GB/s each way.
    pub const A100_40G: Self = Self {
        memory_rate: 1_555_000,
        math_rate: 312_000,
        eight_bit: false,
        memory_bytes: 40_000_000_000,
        link_rate: 300_000,
    };
    /// NVIDIA A100 SXM 80 GB: 2039 GB/s, 312 TFLOP/s, NVLink 300 GB/s each way.
    pub const A100_80G: Self =
        Self { memory_rate: 2_039_000, memory_bytes: 80_000_000_000, ..Self::A100_40G };
    /// NVIDIA H100 SXM: 3350 GB/s, 989 TFLOP/s, NVLink 450 GB/s each way.
    pub const H100: Self = Self {
        memory_rate: 3_350_000,
        math_rate: 989_000,
        eight_bit: true,
        memory_bytes: 80_000_000_000,
        link_rate: 450_000,
    };
    /// NVIDIA H200 SXM: an H100 with 141 GB at 4800 GB/s.
    pub const H200: Self =
        Self { memory_rate: 4_800_000, memory_bytes: 141_000_000_000, ..Self::H100 };
    /// NVIDIA B200 (HGX): 8000 GB/s, 2250 TFLOP/s, 192 GB, NVLink 900 GB/s each way.
    pub const B200: Self = Self {
        memory_rate: 8_000_000,
        math_rate: 2_250_000,
        eight_bit: true,
        memory_bytes: 192_000_000_000,
        link_rate: 900_000,
    };

    /// What a model's layers cost here.
    pub(super) fn costs(&self, model: &Shape) -> Costs {
        let kv = self.stream_ns(model.kv_bytes()).max(self.math_ns(model.kv_flops, false));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "picoseconds of one token of one layer"
        )]
        let ps_per_context_token = (kv * 1000.0).ceil() as u64;
        let head_weights =
            model.hidden * model.vocab + u64::from(model.dense_layers) * dense_layer(model);
        let head_kernels = HEAD_KERNELS + u64::from(model.dense_layers) * ATTENTION_KERNELS;
        Costs {
            attention: Attention::Roofline {
                projections: self.product(model.attention_weights, model),
                ps_per_context_token,
                launch_ns: ATTENTION_KERNELS * KERNEL_NS,
            },
            head: Head::Curve {
                curve: self.product(head_weights, model),
                launch_ns: head_kernels * KERNEL_NS,
            },
            expert: self.product(model.expert_weights(), model),
            launch_ns: EXPERT_KERNELS * KERNEL_NS,
            ..free(model)
        }
    }

    /// Rows against `weights` weights: the longer of reading them and multiplying whole tiles.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "times are positive and far below 2^52"
    )]
    fn product(&self, weights: u64, model: &Shape) -> CostCurve {
        let read = self.stream_ns(weights * model.weight_bytes);
        let edge = |rows: u32| {
            let flops = 2 * weights * u64::from(rows);
            let ns = read.max(self.math_ns(flops, model.weight_bytes == 1));
            (rows, (ns.ceil() as u64).max(1))
        };
        CostCurve::new(tile_edges().map(edge).collect()).expect("tile edges ascend")
    }

    #[expect(clippy::cast_precision_loss, reason = "rates and sizes are far below 2^52")]
    fn stream_ns(&self, bytes: u64) -> f64 {
        bytes as f64 * 1000.0 / (self.memory_rate as f64 * MEMORY_REACHED)
    }

    #[expect(clippy::cast_precision_loss, reason = "rates and operations are far below 2^52")]
    fn math_ns(&self, flops: u64, eight_bit: bool) -> f64 {
        let rate = self.math_rate * if eight_bit && self.eight_bit { 2 } else { 1 };
        flops as f64 / (rate as f64 * MATH_REACHED)
    }
}

/// Weights of a dense layer; its attention's cache is left out, three layers of 61 in DeepSeek-V3.
fn dense_layer(model: &Shape) -> u64 {
    model.attention_weights + model.dense_weights
}
