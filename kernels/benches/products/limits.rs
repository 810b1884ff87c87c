//! The limits of this machine: reading memory, and multiplying registers.

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;

use kernels::{Cpu, Isa};

use crate::timing::sample;

/// Bytes read in turn: far past any cache share.
const MEMORY: usize = 1 << 30;
/// Bytes of one timed pass, and of one task.
const PASS: usize = 64 << 20;
const TASK: usize = 1 << 20;
const HUGE_PAGE: usize = 2 << 20;
const STREAMS: usize = 4;

/// GB/s and GFLOP/s of all threads together, undisturbed (p90).
pub(crate) struct Limits {
    pub(crate) read: f64,
    pub(crate) multiply: f64,
}

impl Limits {
    pub(crate) fn measure(cpu: &Cpu) -> Self {
        let (read_p50, read) = read(cpu);
        let (multiply_p50, multiply) = multiply(cpu);
        println!("reads 2 MiB pages, 4 streams   p50 {read_p50:6.1}  p90 {read:6.1} GB/s");
        println!(
            "multiplies registers           p50 {multiply_p50:6.0}  p90 {multiply:6.0} GFLOP/s"
        );
        Self { read, multiply }
    }
}

fn read(cpu: &Cpu) -> (f64, f64) {
    let layout = Layout::from_size_align(MEMORY, HUGE_PAGE).expect("a valid layout");
    // SAFETY: the layout is not empty; the advice and the fill stay inside the allocation.
    let memory = unsafe {
        let memory = alloc(layout);
        assert!(!memory.is_null());
        libc::madvise(memory.cast(), MEMORY, libc::MADV_HUGEPAGE);
        memory.write_bytes(1, MEMORY);
        std::slice::from_raw_parts(memory.cast::<u64>(), MEMORY / 8)
    };
    let words = TASK / 8;
    let seconds = sample(|call| {
        let pass = call % (MEMORY / PASS) * (PASS / 8);
        cpu.for_each(PASS / TASK, |task, _| {
            black_box(sum(&memory[pass + task * words..pass + (task + 1) * words]));
        });
    });
    // SAFETY: allocated above with this layout; the slice is not used again.
    unsafe { dealloc(memory.as_ptr().cast_mut().cast(), layout) };
    seconds.giga(PASS as f64)
}

/// Adds up four streams at once, each fetched ahead.
fn sum(words: &[u64]) -> u64 {
    let quarter = words.len() / STREAMS;
    let streams: [&[u64]; STREAMS] =
        std::array::from_fn(|i| &words[i * quarter..(i + 1) * quarter]);
    let mut sums = [0u64; 8];
    for line in 0..quarter / 8 {
        for stream in streams {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a hint; no address faults.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                let ahead = stream.as_ptr().wrapping_add(line * 8 + 64);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
            for (sum, word) in sums.iter_mut().zip(&stream[line * 8..line * 8 + 8]) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

fn multiply(cpu: &Cpu) -> (f64, f64) {
    const ROUNDS: usize = 4000;
    let tasks = cpu.threads();
    let flops: f64 = if cpu.isa() == Isa::Amx && cpu.compute() == kernels::Compute::Bf16 {
        // 16 x 16 outputs, 32 inputs, four tiles a round.
        ROUNDS as f64 * 4.0 * 2.0 * 16.0 * 16.0 * 32.0
    } else {
        // Sixteen registers a round.
        ROUNDS as f64 * 16.0 * 2.0 * lanes(cpu.isa()) as f64
    };
    let seconds = sample(|_| cpu.for_each(tasks, |_, _| rounds(cpu, ROUNDS)));
    seconds.giga(flops * tasks as f64)
}

fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Amx | Isa::Avx512 => 16,
        Isa::Avx2 => 8,
        Isa::Portable => 1,
    }
}

#[cfg(target_arch = "x86_64")]
fn rounds(cpu: &Cpu, rounds: usize) {
    match cpu.isa() {
        Isa::Amx if cpu.compute() == kernels::Compute::Bf16 => tiles(rounds),
        // SAFETY: the backend exists, so the instructions do.
        Isa::Amx | Isa::Avx512 => unsafe { registers512(rounds) },
        // SAFETY: as above.
        Isa::Avx2 => unsafe { registers256(rounds) },
        Isa::Portable => scalars(rounds),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn rounds(_cpu: &Cpu, rounds: usize) {
    scalars(rounds);
}

fn scalars(rounds: usize) {
    let mut sums = [black_box(0.5f32); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sum.mul_add(0.5, 0.25);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn registers512(rounds: usize) {
    use std::arch::x86_64::*;
    let factor = _mm512_set1_ps(black_box(0.5));
    let mut sums = [_mm512_set1_ps(black_box(0.25)); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    for sum in sums {
        black_box(_mm512_reduce_add_ps(sum));
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn registers256(rounds: usize) {
    use std::arch::x86_64::*;
    let factor = _mm256_set1_ps(black_box(0.5));
    let mut sums = [_mm256_set1_ps(black_box(0.25)); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, factor);
        }
    }
    for sum in sums {
        black_box(_mm256_cvtss_f32(sum));
    }
}

#[cfg(target_arch = "x86_64")]
fn tiles(rounds: usize) {
    let mut config = [0u64; 8];
    config[0] = 1;
    // 64-byte lines and 16 rows for tiles 0 to 7.
    config[2] = 0x0040_0040_0040_0040;
    config[3] = 0x0040_0040_0040_0040;
    config[6] = 0x1010_1010_1010_1010;
    // SAFETY: the AMX backend exists, so tiles may be used; the code touches tile registers only and
    // reads the 64 bytes of the configuration.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) &raw const config,
            rounds = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
