//! Sequences whose blocks lie scattered in a cache, and the batches they are cut into.

use std::ops::Range;

use half::bf16;
use kernels::{BLOCK_TOKENS, Span};

use crate::random::Random;

/// Ranges of positions of sequences, side by side in a batch.
pub(crate) type Pass = Vec<(usize, Range<usize>)>;

/// Each sequence's blocks.
pub(crate) struct Sequences {
    blocks: Vec<Vec<u32>>,
}

impl Sequences {
    /// Of so many positions each, in a cache of `blocks` blocks.
    pub(crate) fn scattered(random: &mut Random, lengths: &[usize], blocks: usize) -> Self {
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        let mut take = |_| free.swap_remove(random.below(free.len() as u32) as usize);
        let blocks = lengths.iter().map(|n| (0..n.div_ceil(BLOCK_TOKENS)).map(&mut take).collect());
        Self { blocks: blocks.collect() }
    }

    /// The rows of a batch.
    pub(crate) fn spans(&self, pass: &Pass) -> Vec<Span<'_>> {
        let mut begin = 0;
        let span = |(sequence, range): &(usize, Range<usize>)| {
            let rows = begin..begin + range.len();
            begin = rows.end;
            let blocks = &self.blocks[*sequence][..range.end.div_ceil(BLOCK_TOKENS)];
            Span { rows, first_position: range.start, blocks }
        };
        pass.iter().map(span).collect()
    }

    /// A batch's rows of `width` out of those of every position.
    pub(crate) fn gather(&self, pass: &Pass, width: usize, of: &[Vec<bf16>]) -> Vec<bf16> {
        let rows = |(sequence, range): &(usize, Range<usize>)| {
            &of[*sequence][range.start * width..range.end * width]
        };
        pass.iter().flat_map(rows).copied().collect()
    }

    /// Puts a batch's rows of `width` behind those that their sequences have.
    pub(crate) fn sort(&self, pass: &Pass, width: usize, rows: &[bf16], to: &mut [Vec<bf16>]) {
        let mut rest = rows;
        for (sequence, range) in pass {
            let (mine, others) = rest.split_at(range.len() * width);
            to[*sequence].extend_from_slice(mine);
            rest = others;
        }
    }
}

/// `[positions, turned]`: cosines, then sines.
pub(crate) fn angles(positions: usize, turned: usize) -> Vec<f32> {
    let half = turned / 2;
    let angle =
        move |position: usize, i: usize| position as f64 / 10_000_f64.powf(i as f64 / half as f64);
    let row = |position| {
        let cosines = (0..half).map(move |i| angle(position, i).cos() as f32);
        cosines.chain((0..half).map(move |i| angle(position, i).sin() as f32))
    };
    (0..positions).flat_map(row).collect()
}
