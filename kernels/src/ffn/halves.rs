//! The two products of an expert, each with what happens to its sums while they are hot.

use std::ops::Range;

use super::ExpertWeights;
use crate::activation::Activation;
use crate::gemm::{Acts, LANES, multiply};
use crate::lanes::{self, Kernel, Lanes};

/// Gate, up and activation of some panels and tokens, stored as the input of down.
///
/// # Safety
/// Nobody else may store or read these panels' segments of `h` at the same time.
pub(super) unsafe fn gate_up(
    expert: &ExpertWeights,
    panels: Range<usize>,
    tokens: Range<usize>,
    x: &Acts<'_>,
    h: &Acts<'_>,
) {
    multiply([&expert.gate, &expert.up], panels, x, tokens, |panel, first, [gate, up]| {
        let bias = expert.bias.as_ref().map(|bias| {
            let lanes = panel * LANES..(panel + 1) * LANES;
            [&bias.gate[lanes.clone()], &bias.up[lanes]]
        });
        let last = panel + 1 == expert.gate.panels();
        let sums = [gate.as_chunks().0, up.as_chunks().0];
        let activation = expert.activation;
        lanes::run(x.kernel(), Activate { sums, bias, activation, h, panel, first, last });
    });
}

/// Sums of one panel of gate and up, on their way into `h`.
struct Activate<'a> {
    /// Gate and up, `[token][lane]`.
    sums: [&'a [[f32; LANES]]; 2],
    bias: Option<[&'a [f32]; 2]>,
    activation: Activation,
    h: &'a Acts<'a>,
    panel: usize,
    /// First token.
    first: usize,
    /// Whether the padding behind this panel is to be stored too.
    last: bool,
}

impl Kernel for Activate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller vouches for the instruction set; sums and biases are whole lanes; the
        // caller of `gate_up` vouches for the segments of `h`.
        unsafe {
            let [gate_bias, up_bias] = match self.bias {
                Some(bias) => bias.map(|bias| L::load(bias[..LANES].as_ptr())),
                None => [L::splat(0.0); 2],
            };
            for (row, (gate, up)) in self.sums[0].iter().zip(self.sums[1]).enumerate() {
                let gate = L::load(gate.as_ptr()).add(gate_bias);
                let up = L::load(up.as_ptr()).add(up_bias);
                let product = self.activation.apply(gate, up);
                self.h.put(self.first + row, self.panel, product);
                if self.last {
                    for padding in self.panel + 1..self.h.segments() {
                        self.h.put(self.first + row, padding, L::splat(0.0));
                    }
                }
            }
        }
    }
}

/// What takes output rows piece by piece.
pub(super) trait Output: Sync {
    /// Takes the first `count` of the sixteen outputs of job `job`'s row `row` from `first` on.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`, and no other thread has the same outputs.
    unsafe fn take<L: Lanes>(&self, job: usize, row: usize, first: usize, sums: L, count: usize);
}

/// Down of some panels and tokens of one job, handed to `output`.
///
/// # Safety
/// No other thread may hand over these outputs at the same time.
pub(super) unsafe fn down(
    expert: &ExpertWeights,
    panels: Range<usize>,
    tokens: Range<usize>,
    h: &Acts<'_>,
    job: usize,
    output: &impl Output,
) {
    multiply([&expert.down], panels, h, tokens, |panel, first_row, [sums]| {
        let first = panel * LANES;
        let count = LANES.min(expert.hidden() - first);
        let bias = expert.bias.as_ref().map(|bias| &bias.down[first..first + LANES]);
        let sums = sums.as_chunks().0;
        lanes::run(h.kernel(), HandOver { sums, bias, job, first_row, first, count, output });
    });
}

/// Sums of one panel of down, on their way out.
struct HandOver<'a, O> {
    /// `[token][lane]`.
    sums: &'a [[f32; LANES]],
    bias: Option<&'a [f32]>,
    job: usize,
    first_row: usize,
    first: usize,
    count: usize,
    output: &'a O,
}

impl<O: Output> Kernel for HandOver<'_, O> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (row, sums) in self.sums.iter().enumerate() {
            // SAFETY: the caller vouches for the instruction set, the caller of `down` for the
            // outputs; sums and bias are whole lanes.
            unsafe {
                let mut sums = L::load(sums.as_ptr());
                if let Some(bias) = self.bias {
                    sums = sums.add(L::load(bias[..LANES].as_ptr()));
                }
                self.output.take(self.job, self.first_row + row, self.first, sums, self.count);
            }
        }
    }
}
