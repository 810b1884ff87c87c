//! The order of a product's blocks: which panels, which tokens, and what is fetched meanwhile.

use std::ops::Range;

use super::{PANELS_MAX, Packed, TOKENS_MAX};
use crate::isa::Isa;

/// Panels of one block when a product has `rows` rows.
///
/// Few rows: as many weight streams as possible. Many rows: as much reuse per loaded byte.
pub(super) fn block_panels(kernel: Isa, rows: usize) -> usize {
    match kernel {
        Isa::Amx if rows <= 16 => 4,
        Isa::Avx512 if rows <= 4 => 4,
        Isa::Amx | Isa::Avx512 => 2,
        Isa::Avx2 | Isa::Portable => 1,
    }
}

/// Tokens of the next block when `left` are left.
pub(super) fn block_tokens(kernel: Isa, left: usize) -> usize {
    let most = match kernel {
        Isa::Amx if left <= 16 => 16,
        // A single tile would be left over.
        Isa::Amx if left.div_ceil(16) == 4 => 32,
        Isa::Amx => TOKENS_MAX,
        Isa::Avx512 if left <= 4 => 4,
        Isa::Avx512 => 8,
        Isa::Avx2 | Isa::Portable => 4,
    };
    most.min(left)
}

/// Blocks that `tokens` tokens are worked on in.
pub(super) fn block_count(kernel: Isa, tokens: usize) -> usize {
    let (mut left, mut blocks) = (tokens, 0);
    while left > 0 {
        left -= block_tokens(kernel, left);
        blocks += 1;
    }
    blocks
}

/// Which panels a block works on at each position of a product.
pub(super) struct Order {
    range: Range<usize>,
    /// Panels of each source at one position.
    streams: usize,
    /// From position to position, and from stream to stream.
    step: usize,
    stride: usize,
}

impl Order {
    /// Few tokens: each source is as many contiguous streams as can be, for the sake of the memory.
    /// Many: neighbours together, so that whole lines of outputs are handed over.
    pub(super) fn new(range: Range<usize>, streams: usize, neighbours: bool) -> Self {
        let length = range.len().div_ceil(streams);
        let (step, stride) = if neighbours { (streams, 1) } else { (1, length) };
        Self { range, streams, step, stride }
    }

    pub(super) fn positions(&self) -> usize {
        self.range.len().div_ceil(self.streams)
    }

    /// The panels of a position: none behind the last one.
    pub(super) fn at<const SOURCES: usize>(
        &self,
        position: usize,
        sources: [&Packed; SOURCES],
    ) -> Panels {
        let mut panels = Panels::default();
        if position >= self.positions() {
            return panels;
        }
        for stream in 0..self.streams {
            let panel = self.range.start + position * self.step + stream * self.stride;
            if panel >= self.range.end {
                break;
            }
            for source in sources {
                panels.numbers[panels.count] = panel;
                panels.pointers[panels.count] = source.panel(panel);
                panels.count += 1;
            }
        }
        panels
    }
}

/// The panels of one block.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    /// Number of each panel in its source.
    pub(super) numbers: [usize; PANELS_MAX],
    pub(super) pointers: [*const u8; PANELS_MAX],
    pub(super) count: usize,
}

impl Default for Panels {
    fn default() -> Self {
        Self { numbers: [0; PANELS_MAX], pointers: [std::ptr::null(); PANELS_MAX], count: 0 }
    }
}

/// What a block of tiles fetches into the cache while it multiplies: its part of the panels that
/// come next, so that the memory works without a rest while the panels in use serve block after
/// block of tokens.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) panels: [*const u8; 2],
    /// Cache lines of each panel at every step. With none of them a block fetches its own panels.
    pub(super) lines: usize,
}

impl Ahead {
    const NOTHING: Self = Self { panels: [std::ptr::null(); 2], lines: 0 };

    /// What the `index`-th of a position's `blocks` blocks fetches of the next position's panels, of
    /// `steps` steps. Alone, or as the first of all, it has its own panels to fetch.
    pub(super) fn of(
        position: usize,
        index: usize,
        blocks: usize,
        next: &Panels,
        steps: usize,
    ) -> Self {
        match (position, index) {
            _ if blocks == 1 || next.count == 0 => Self::NOTHING,
            (0, 0) => Self::NOTHING,
            (0, _) => Self::share(next, index - 1, blocks - 1, steps),
            _ => Self::share(next, index, blocks, steps),
        }
    }

    fn share(next: &Panels, index: usize, blocks: usize, steps: usize) -> Self {
        /// Bytes and lines of a step of a panel of tiles.
        const LINE: usize = 64;
        const LINES: usize = 16;
        let from = LINES * index / blocks;
        let panels = [next.pointers[0], next.pointers[next.count.min(2) - 1]];
        Self {
            panels: panels.map(|panel| panel.wrapping_add(from * steps * LINE)),
            lines: LINES * (index + 1) / blocks - from,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_next_panels_is_fetched_once() {
        let steps = 3;
        let mut next = Panels { count: 2, ..Panels::default() };
        next.pointers[1] = next.pointers[0].wrapping_add(1 << 20);
        for blocks in 2..20 {
            for position in [0, 1] {
                let mut lines = Vec::new();
                for index in 0..blocks {
                    let ahead = Ahead::of(position, index, blocks, &next, steps);
                    let from = ahead.panels[0].addr() / 64;
                    lines.extend(from..from + ahead.lines * steps);
                    if ahead.lines > 0 {
                        assert_eq!(ahead.panels[1], ahead.panels[0].wrapping_add(1 << 20));
                    }
                }
                assert_eq!(lines, Vec::from_iter(0..16 * steps), "{blocks} blocks at {position}");
            }
        }
    }
}
