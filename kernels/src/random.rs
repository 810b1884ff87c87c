//! Reproducible numbers and every kind of CPU backend, for the tests of this crate.

use half::bf16;

use crate::{Compute, Cpu, CpuOptions, Isa};

/// `count` numbers in [-1, 1).
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..32).for_each(|_| {
        next();
    });
    (0..count).map(|_| next()).collect()
}

/// What is left of `x` in the cache and on the wire.
pub(crate) fn stored(compute: Compute, x: f32) -> f64 {
    f64::from(match compute {
        Compute::Bf16 => bf16::from_f32(x).to_f32(),
        Compute::F32 => x,
    })
}

/// A backend.
pub(crate) fn cpu(isa: Isa, compute: Compute, threads: usize) -> Cpu {
    let options = CpuOptions { threads, compute, isa: Some(isa), pin: false };
    Cpu::new(&options).expect("an available instruction set")
}

/// Every instruction set of this machine in both precisions, on two threads.
pub(crate) fn backends() -> Vec<Cpu> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| [Compute::Bf16, Compute::F32].map(|compute| cpu(isa, compute, 2))).collect()
}

/// The bits, for comparisons that must be exact.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
