//! Matrix products and expert FFNs on every instruction set this machine has.

mod ffn;
mod fp8;
mod linear;
mod numbers;
