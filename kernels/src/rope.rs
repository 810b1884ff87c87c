//! Rotary position embedding: the frequencies of each scaling rule, a table of angles, the rotation.
//!
//! Frequencies, angles and their cosines are rounded to f32 where transformers rounds them, so that logits agree.

mod frequencies;

use std::sync::OnceLock;

pub use frequencies::{Llama3Scaling, RopeScaling, YarnScaling};

use crate::Cpu;
use crate::columns::ColumnsMut;
use crate::lanes::{self, Kernel, Lanes};

/// Positions whose angles are computed at once, when the first of them is asked for.
const PAGE: usize = 256;

/// Which two elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + dim / 2` (Llama, Qwen, Mixtral, GLM-4.5).
    Halves,
    /// `2i` and `2i + 1` (DeepSeek's `rope_interleave`).
    Neighbours,
}

/// How positions become rotations.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Elements of a head that rotate (even).
    pub dim: usize,
    pub pairing: Pairing,
    pub scaling: RopeScaling,
    /// One more than the largest position.
    pub positions: usize,
}

/// Rotations for every position below a bound; filled in as positions are used.
#[derive(Debug)]
pub struct Rope {
    pairing: Pairing,
    inverse_frequencies: Vec<f32>,
    /// What cosines and sines are multiplied by (yarn's attention factor).
    amplitude: f32,
    /// Per page and position: `dim / 2` cosines, then as many sines.
    pages: Vec<OnceLock<Vec<f32>>>,
}

impl Rope {
    /// # Panics
    /// If the rotary dimension is zero or odd.
    #[must_use]
    pub fn new(spec: &RopeSpec) -> Self {
        assert!(spec.dim > 0 && spec.dim.is_multiple_of(2), "rotary dimension {}", spec.dim);
        let (inverse_frequencies, amplitude) = frequencies::of(spec);
        let mut pages = Vec::new();
        pages.resize_with(spec.positions.div_ceil(PAGE), OnceLock::new);
        Self { pairing: spec.pairing, inverse_frequencies, amplitude, pages }
    }

    /// Rotates, in each head of `head_dim` columns, the elements from `first` on; row `i` stands at
    /// `positions[i]`.
    ///
    /// # Panics
    /// If the columns are not whole heads, a position is missing or past the bound, or a head is too narrow.
    pub fn apply(
        &self,
        cpu: &Cpu,
        mut x: ColumnsMut<'_>,
        (head_dim, first): (usize, usize),
        positions: &[u32],
    ) {
        let dim = 2 * self.inverse_frequencies.len();
        assert!(x.width().is_multiple_of(head_dim), "heads of {head_dim} in {}", x.width());
        assert!(first + dim <= head_dim, "rotating {first}..{} of {head_dim}", first + dim);
        assert_eq!(x.rows(), positions.len(), "one position for each row");
        x.for_each_row(cpu, |row, heads| {
            let angles = self.angles(positions[row] as usize);
            let rotate = Rotate { heads, head_dim, first, angles, pairing: self.pairing };
            lanes::run(cpu.isa(), rotate);
        });
    }

    /// The rotations of the first `positions` positions, `[positions, dim]`: of each `dim / 2` cosines,
    /// then as many sines.
    ///
    /// # Panics
    /// If that is past the bound.
    #[must_use]
    pub fn table(&self, positions: usize) -> Vec<f32> {
        (0..positions).flat_map(|position| self.angles(position)).copied().collect()
    }

    /// Cosines, then sines.
    fn angles(&self, position: usize) -> &[f32] {
        let dim = 2 * self.inverse_frequencies.len();
        assert!(position / PAGE < self.pages.len(), "position {position} is past the bound");
        let page = self.pages[position / PAGE].get_or_init(|| self.page(position / PAGE * PAGE));
        &page[position % PAGE * dim..][..dim]
    }

    fn page(&self, first: usize) -> Vec<f32> {
        let half = self.inverse_frequencies.len();
        let mut out = vec![0.0; PAGE * 2 * half];
        for (i, row) in out.chunks_exact_mut(2 * half).enumerate() {
            let (cosines, sines) = row.split_at_mut(half);
            for (j, &frequency) in self.inverse_frequencies.iter().enumerate() {
                #[expect(clippy::cast_precision_loss, reason = "as transformers does")]
                let angle = f64::from((first + i) as f32 * frequency);
                cosines[j] = rounded(angle.cos()) * self.amplitude;
                sines[j] = rounded(angle.sin()) * self.amplitude;
            }
        }
        out
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
fn rounded(x: f64) -> f32 {
    x as f32
}

struct Rotate<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    first: usize,
    angles: &'a [f32],
    pairing: Pairing,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    /// Plain loops: they turn into vector code for the instruction set this is inlined under.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let half = self.angles.len() / 2;
        let (cosines, sines) = self.angles.split_at(half);
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            let head = &mut head[self.first..self.first + 2 * half];
            match self.pairing {
                Pairing::Halves => {
                    let (a, b) = head.split_at_mut(half);
                    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cosines).zip(sines) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
                Pairing::Neighbours => {
                    for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cosines).zip(sines) {
                        let (a, b) = (pair[0], pair[1]);
                        pair[0] = a * cos - b * sin;
                        pair[1] = b * cos + a * sin;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
