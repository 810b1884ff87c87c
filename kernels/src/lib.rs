//! Numerics of amoe: matrix products, expert FFNs, attention and sampling on the CPU.
//!
//! Everything between operators is `f32`. A [`Cpu`] is opened once with an instruction set and a
//! [`Compute`] precision; from then on a row's result has the same bits whatever rows stand beside
//! it, however many threads take part and in whatever order they finish (design.md, invariant 2).

mod activation;
mod arena;
mod cpu;
mod disjoint;
mod ffn;
mod filemap;
mod gemm;
mod isa;
mod linear;
mod matrix;
mod memory;
mod pool;
mod wire;

pub use cpu::{Compute, Cpu, CpuError, CpuOptions};
pub use ffn::{Activation, ExpertWeights, FfnJob, FfnRow, grouped_ffn, swiglu};
pub use filemap::FileMap;
pub use isa::Isa;
pub use linear::{Linear, linear, linear_add};
pub use matrix::{Dtype, MatrixError, MatrixView};
pub use wire::{add_wire_rows, decode_rows, encode_rows};
