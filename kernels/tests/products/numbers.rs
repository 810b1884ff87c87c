//! Seeded test data, exact reference products and the backends under test.

use half::{bf16, f16};
use kernels::{Compute, Cpu, CpuOptions, Dtype, Isa, MatrixView};

/// A small deterministic generator (splitmix64).
pub(crate) struct Numbers(pub u64);

impl Numbers {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Uniform in `-scale..scale`.
    pub(crate) fn float(&mut self, scale: f32) -> f32 {
        ((self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    }

    pub(crate) fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.float(scale)).collect()
    }
}

/// A matrix as a checkpoint holds it, and the values it stands for.
pub(crate) struct Stored {
    pub(crate) dtype: Dtype,
    pub(crate) bytes: Vec<u8>,
    pub(crate) values: Vec<f32>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Stored {
    pub(crate) fn random(numbers: &mut Numbers, dtype: Dtype, rows: usize, cols: usize) -> Self {
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for value in numbers.floats(rows * cols, 1.0 / (cols as f32).sqrt()) {
            match dtype {
                Dtype::Bf16 => {
                    let value = bf16::from_f32(value);
                    bytes.extend(value.to_le_bytes());
                    values.push(value.to_f32());
                }
                Dtype::F16 => {
                    let value = f16::from_f32(value);
                    bytes.extend(value.to_le_bytes());
                    values.push(value.to_f32());
                }
                Dtype::F32 => {
                    bytes.extend(value.to_le_bytes());
                    values.push(value);
                }
            }
        }
        Self { dtype, bytes, values, rows, cols }
    }

    pub(crate) fn view(&self) -> MatrixView<'_> {
        MatrixView::new(&self.bytes, self.dtype, self.rows, self.cols).expect("whole rows")
    }

    /// The values as packing keeps them in this precision.
    pub(crate) fn packed_values(&self, compute: Compute) -> Vec<f32> {
        self.values.iter().map(|&value| rounded(compute, value)).collect()
    }
}

pub(crate) fn rounded(compute: Compute, value: f32) -> f32 {
    match compute {
        Compute::Bf16 => bf16::from_f32(value).to_f32(),
        Compute::F32 => value,
    }
}

/// `y = x Wᵀ` by one chain of fused multiply-adds per output, in order.
pub(crate) fn chained(w: &[f32], x: &[f32], inputs: usize) -> Vec<f32> {
    let (rows, outputs) = (x.chunks_exact(inputs), w.chunks_exact(inputs));
    rows.flat_map(|x| {
        outputs.clone().map(move |w| w.iter().zip(x).fold(0.0f32, |sum, (w, x)| w.mul_add(*x, sum)))
    })
    .collect()
}

pub(crate) fn cpu(isa: Isa, compute: Compute, threads: usize) -> Cpu {
    Cpu::new(&CpuOptions { threads, compute, isa: Some(isa), pin: false }).expect("a backend")
}

/// Every instruction set of this machine with every precision.
pub(crate) fn backends() -> Vec<(Isa, Compute)> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| [(isa, Compute::Bf16), (isa, Compute::F32)]).collect()
}

/// Asserts the same bits.
#[track_caller]
pub(crate) fn assert_same(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{what}: element {i}: {a} is not {b}");
    }
}

/// Asserts a distance of at most `tolerance`.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "{what}: element {i}: {a} is not near {b}");
    }
}
