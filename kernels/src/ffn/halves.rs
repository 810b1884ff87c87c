//! The two products of an expert, each with what happens to its sums while they are hot.

use std::ops::Range;

use super::ExpertWeights;
use crate::activation::Activation;
use crate::gemm::{Acts, Column, LANES, Plane, multiply};
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
    multiply([&expert.gate, &expert.up], panels, x, tokens, |panel, first, planes| {
        let bias = expert.bias.as_ref().map(|bias| {
            let lanes = panel * LANES..(panel + 1) * LANES;
            [&bias.gate[lanes.clone()], &bias.up[lanes]]
        });
        let last = panel + 1 == expert.gate.panels();
        let [gate, up] = *planes else { unreachable!("a plane of gate and one of up") };
        let activation = expert.activation;
        let hidden = Hidden { gate, up, bias, activation };
        lanes::run(x.kernel(), Activate { hidden, h, panel, first, last });
    });
}

/// Sums of one panel of gate and up, on their way into `h`.
struct Activate<'a> {
    hidden: Hidden<'a>,
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
        let count = self.hidden.gate.len();
        // SAFETY: the caller vouches for the instruction set, the caller of `gate_up` for the
        // segments of `h`.
        unsafe {
            self.h.put_column::<L>(self.first, count, self.panel, &self.hidden);
            if self.last {
                for padding in self.panel + 1..self.h.segments() {
                    self.h.put_column::<L>(self.first, count, padding, &Zeros);
                }
            }
        }
    }
}

/// What becomes of gate and up.
struct Hidden<'a> {
    gate: Plane<'a>,
    up: Plane<'a>,
    bias: Option<[&'a [f32]; 2]>,
    activation: Activation,
}

impl Column for Hidden<'_> {
    #[inline(always)]
    unsafe fn row<L: Lanes>(&self, row: usize) -> L {
        // SAFETY: the caller vouches for the instruction set; sums and biases are whole lanes.
        unsafe {
            let (mut gate, mut up) =
                (L::load(self.gate[row].as_ptr()), L::load(self.up[row].as_ptr()));
            if let Some([gate_bias, up_bias]) = self.bias {
                gate = gate.add(L::load(gate_bias[..LANES].as_ptr()));
                up = up.add(L::load(up_bias[..LANES].as_ptr()));
            }
            self.activation.apply(gate, up)
        }
    }
}

struct Zeros;

impl Column for Zeros {
    #[inline(always)]
    unsafe fn row<L: Lanes>(&self, _row: usize) -> L {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { L::splat(0.0) }
    }
}

/// What takes output rows of one job piece by piece.
pub(super) trait Output: Copy {
    /// Takes the first `count` of the outputs in `sums` of row `row`, which begin with output `first`.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`, and no other thread has the same outputs.
    unsafe fn take<L: Lanes, const PLANES: usize>(
        &self,
        row: usize,
        first: usize,
        sums: [L; PLANES],
        count: usize,
    );
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
    output: impl Output,
) {
    multiply([&expert.down], panels, h, tokens, |panel, first_row, planes| {
        let first = panel * LANES;
        let count = (planes.len() * LANES).min(expert.hidden() - first);
        let bias = expert.bias.as_ref().map(|bias| &bias.down[first..first + planes.len() * LANES]);
        match *planes {
            [one] => {
                let planes = [one];
                lanes::run(h.kernel(), HandOver { planes, bias, first_row, first, count, output });
            }
            [one, two] => {
                let planes = [one, two];
                lanes::run(h.kernel(), HandOver { planes, bias, first_row, first, count, output });
            }
            _ => unreachable!("one or two planes"),
        }
    });
}

/// Sums of neighbouring panels of down, on their way out.
struct HandOver<'a, O, const PLANES: usize> {
    planes: [Plane<'a>; PLANES],
    bias: Option<&'a [f32]>,
    first_row: usize,
    first: usize,
    count: usize,
    output: O,
}

impl<O: Output, const PLANES: usize> Kernel for HandOver<'_, O, PLANES> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let rows = self.planes[0].len();
        let planes = self.planes.map(|plane| &plane[..rows]);
        // SAFETY: the caller vouches for the instruction set, the caller of `down` for the
        // outputs; sums and biases are whole lanes.
        unsafe {
            for row in 0..rows {
                let mut sums = [L::splat(0.0); PLANES];
                for (plane, (sums, from)) in sums.iter_mut().zip(planes).enumerate() {
                    *sums = L::load(from[row].as_ptr());
                    if let Some(bias) = self.bias {
                        *sums = sums.add(L::load(bias[plane * LANES..][..LANES].as_ptr()));
                    }
                }
                self.output.take::<L, PLANES>(self.first_row + row, self.first, sums, self.count);
            }
        }
    }
}
