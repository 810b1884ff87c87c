//! Numerics of amoe: matrix products, expert FFNs, attention and sampling on the CPU.
//!
//! Everything between operators is `f32`. A [`Cpu`] is opened once with an instruction set and a
//! [`Compute`] precision; from then on a row's result has the same bits whatever rows stand beside
//! it, however many threads take part and in whatever order they finish (design.md, invariant 2).

mod activation;
mod arena;
mod attention;
mod columns;
mod cpu;
pub mod cuda;
mod disjoint;
mod ffn;
mod filemap;
mod fp8;
mod gemm;
mod isa;
mod kv;
mod lanes;
mod linear;
mod matrix;
mod memory;
pub mod nccl;
mod norm;
mod pool;
#[cfg(test)]
mod random;
mod rope;
mod router;
mod sampling;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;
mod wire;

pub use activation::Activation;
pub use attention::{AttentionScratch, attend};
pub use columns::{Columns, ColumnsMut};
pub use cpu::{Compute, Cpu, CpuError, CpuOptions};
pub use ffn::{ExpertWeights, FfnJob, FfnRow, grouped_ffn, swiglu};
pub use filemap::FileMap;
pub use fp8::{FP8_BLOCK, fp8_blocks, fp8_nan, to_fp8};
pub use isa::Isa;
pub use kv::{BLOCK_TOKENS, KvCache, KvError, KvLayout, Span, write_kv};
pub use linear::{Linear, linear, linear_add};
pub use matrix::{Dtype, MatrixError, MatrixView};
pub use norm::{rms_norm, rms_norm_heads};
pub use rope::{Llama3Scaling, Pairing, Rope, RopeScaling, RopeSpec, YarnScaling};
pub use router::{Groups, RouterSpec, Routing, Scoring, top_k_route};
pub use sampling::{Draw, Sampled, SamplingScratch, SamplingSpec, TokenCounts, sample};
pub use wire::{add_wire_rows, decode_bf16, decode_rows, encode_bf16, encode_rows};
