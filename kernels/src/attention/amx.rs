//! The two products of attention on AMX tiles: bf16 queries and weights, f32 sums.
//!
//! Sixteen or thirty-two query vectors are the left tiles, keys and values the right ones, straight from the cache.
//! A result is summed by one accumulator tile in order of dims or positions, however many rows stand in the tile.

use std::arch::asm;
use std::ops::Range;

use super::{Line, Products, SCORES_STRIDE, TILE, Worker, floats};
use crate::kv::{BLOCK_TOKENS, KvLayout, VALUE_TILE};
use crate::lanes::{self, LANES, Lanes};
use crate::tiles::{self, LINE, ROWS};

/// Dims in one step of a key tile, and elements in one line of bf16.
const STEP: usize = 32;

/// Marker of the AMX products.
pub(super) struct Tiles;

impl Products for Tiles {
    type Stored = u16;

    /// `[step of 32 dims][row][dim]` for each tile.
    #[inline(always)]
    unsafe fn load_query<L: Lanes>(
        worker: &mut Worker,
        (row, rows): (usize, usize),
        query: &[f32],
        stored: usize,
    ) {
        let queries = bf16_lines(&mut worker.queries);
        let tile = row / TILE * TILE;
        let rows = TILE.min(rows - tile);
        let tile_start = tile * stored / STEP;
        for step in 0..stored / STEP {
            let line = &mut queries[tile_start + step * rows + row - tile];
            for (half, to) in line.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let dims = query.get(step * STEP + half * LANES..).unwrap_or(&[]);
                // SAFETY: the caller vouches for the instruction set; 16 places are there.
                unsafe { lanes::load_or::<L>(dims, 0.0).store_bf16(to.as_mut_ptr()) };
            }
        }
    }

    #[inline(always)]
    unsafe fn scores<L: Lanes>(
        worker: &mut Worker,
        layout: &KvLayout,
        blocks: &[*const u16],
        tile: Range<usize>,
    ) {
        let stored = layout.stored_k_dim();
        let queries = worker.queries[tile.start * stored / STEP..].as_ptr();
        let to = worker.scores.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's promise; a block's keys are two halves of `stored` lines of 16 positions.
        unsafe {
            let _tiles = configure(tile.len());
            for (i, &keys) in blocks.iter().enumerate() {
                let to = to.add(i * BLOCK_TOKENS);
                let operands = Scores { queries, keys, to, rows: tile.len(), stored };
                if tile.len() <= ROWS { operands.few() } else { operands.many() }
            }
        }
    }

    #[inline(always)]
    unsafe fn values<L: Lanes>(
        worker: &mut Worker,
        layout: &KvLayout,
        blocks: &[*const u16],
        rows: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { round_weights::<L>(worker, blocks.len(), rows) };
        let dims = layout.stored_v_dim();
        let weights = worker.weights.as_ptr();
        let part = worker.part.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's promise; a pair of value tiles begins every 32 dims.
        unsafe {
            let _tiles = configure(rows);
            for first in (0..dims).step_by(2 * ROWS) {
                let offset = layout.stored_k_dim() * BLOCK_TOKENS + first * BLOCK_TOKENS;
                let to = part.add(first);
                let operands = Values { weights, blocks, offset, to, rows, stride: dims };
                if rows <= ROWS { operands.few() } else { operands.many() }
            }
        }
    }
}

/// Lines as rows of bf16.
#[inline(always)]
fn bf16_lines(lines: &mut [Line]) -> &mut [[u16; STEP]] {
    // SAFETY: a line is 64 bytes, 32 elements without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len()) }
}

/// Rounds weights to `[block][row][position]`.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn round_weights<L: Lanes>(worker: &mut Worker, blocks: usize, rows: usize) {
    let weights = bf16_lines(&mut worker.weights);
    for row in 0..rows {
        let scores = &floats(&mut worker.scores)[row * SCORES_STRIDE..][..blocks * BLOCK_TOKENS];
        for (block, scores) in scores.as_chunks::<STEP>().0.iter().enumerate() {
            let (left, right) = weights[block * rows + row].split_at_mut(LANES);
            // SAFETY: the caller's promise; each half has 16 elements.
            unsafe {
                L::load(scores.as_ptr()).store_bf16(left.as_mut_ptr());
                L::load(scores[LANES..].as_ptr()).store_bf16(right.as_mut_ptr());
            }
        }
    }
}

/// Tiles for `rows` query vectors: 0 to 3 hold sums, 4 and 5 the left operand, 6 and 7 the right one.
///
/// # Safety
/// The process may use tiles, and nothing on this thread does.
unsafe fn configure(rows: usize) -> tiles::Tiles {
    let (upper, lower) = (rows.min(ROWS) as u8, rows.saturating_sub(ROWS).max(1) as u8);
    // SAFETY: the caller's promise.
    unsafe { tiles::Tiles::configure([upper, upper, lower, lower, upper, lower, 16, 16]) }
}

/// Scores of one block.
struct Scores {
    queries: *const Line,
    keys: *const u16,
    to: *mut f32,
    rows: usize,
    stored: usize,
}

impl Scores {
    /// Up to 16 rows.
    ///
    /// # Safety
    /// The tiles are configured for the rows; operands and results have the extents that `scores` says.
    unsafe fn few(self) {
        // SAFETY: each step reads one tile of each half and of the queries; the stores write two lines of each row.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "2:",
                "tileloadd tmm4, [{queries} + {line}]",
                "tileloadd tmm6, [{keys} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{second} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {queries}, {size}",
                "add {keys}, 1024",
                "add {second}, 1024",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{to} + {stride}], tmm0",
                "tilestored [{to} + {stride} + 64], tmm1",
                queries = inout(reg) self.queries => _,
                keys = inout(reg) self.keys => _,
                second = inout(reg) self.keys.add(self.stored * ROWS) => _,
                steps = inout(reg) self.stored / STEP => _,
                size = in(reg) self.rows * LINE,
                to = in(reg) self.to,
                stride = in(reg) SCORES_STRIDE * 4,
                line = in(reg) LINE,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// 17 to 32 rows.
    ///
    /// # Safety
    /// As [`Self::few`].
    unsafe fn many(self) {
        // SAFETY: as in `few`; the second tile of queries stands 16 lines behind the first in each step.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{queries} + {line}]",
                "tileloadd tmm6, [{keys} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{second} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{queries} + {line} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {queries}, {size}",
                "add {keys}, 1024",
                "add {second}, 1024",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{to} + {stride}], tmm0",
                "tilestored [{to} + {stride} + 64], tmm1",
                "tilestored [{lower} + {stride}], tmm2",
                "tilestored [{lower} + {stride} + 64], tmm3",
                queries = inout(reg) self.queries => _,
                keys = inout(reg) self.keys => _,
                second = inout(reg) self.keys.add(self.stored * ROWS) => _,
                steps = inout(reg) self.stored / STEP => _,
                size = in(reg) self.rows * LINE,
                to = in(reg) self.to,
                lower = in(reg) self.to.add(ROWS * SCORES_STRIDE),
                stride = in(reg) SCORES_STRIDE * 4,
                line = in(reg) LINE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Weighted sums of two value tiles over all blocks of a stretch.
struct Values<'a> {
    weights: *const Line,
    blocks: &'a [*const u16],
    /// Elements from a block's start to the first tile.
    offset: usize,
    to: *mut f32,
    rows: usize,
    /// Floats from row to row of the results.
    stride: usize,
}

impl Values<'_> {
    /// Up to 16 rows.
    ///
    /// # Safety
    /// The tiles are configured for the rows; operands and results have the extents that `values` says.
    unsafe fn few(self) {
        // SAFETY: each step reads two value tiles of a block and its weights; the stores write two lines of each row.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "2:",
                "mov {tile}, [{blocks}]",
                "add {tile}, {offset}",
                "tileloadd tmm4, [{weights} + {line}]",
                "tileloadd tmm6, [{tile} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{tile} + {line} + {tile_bytes}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {weights}, {size}",
                "add {blocks}, 8",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{to} + {stride}], tmm0",
                "tilestored [{to} + {stride} + 64], tmm1",
                tile = out(reg) _,
                blocks = inout(reg) self.blocks.as_ptr() => _,
                weights = inout(reg) self.weights => _,
                steps = inout(reg) self.blocks.len() => _,
                offset = in(reg) self.offset * 2,
                size = in(reg) self.rows * LINE,
                to = in(reg) self.to,
                stride = in(reg) self.stride * 4,
                line = in(reg) LINE,
                tile_bytes = const VALUE_TILE * 2,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// 17 to 32 rows.
    ///
    /// # Safety
    /// As [`Self::few`].
    unsafe fn many(self) {
        // SAFETY: as in `few`; the second tile of weights stands 16 lines behind the first in each block.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "mov {tile}, [{blocks}]",
                "add {tile}, {offset}",
                "tileloadd tmm4, [{weights} + {line}]",
                "tileloadd tmm6, [{tile} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{tile} + {line} + {tile_bytes}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{weights} + {line} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {weights}, {size}",
                "add {blocks}, 8",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{to} + {stride}], tmm0",
                "tilestored [{to} + {stride} + 64], tmm1",
                "tilestored [{lower} + {stride}], tmm2",
                "tilestored [{lower} + {stride} + 64], tmm3",
                tile = out(reg) _,
                blocks = inout(reg) self.blocks.as_ptr() => _,
                weights = inout(reg) self.weights => _,
                steps = inout(reg) self.blocks.len() => _,
                offset = in(reg) self.offset * 2,
                size = in(reg) self.rows * LINE,
                to = in(reg) self.to,
                lower = in(reg) self.to.add(ROWS * self.stride),
                stride = in(reg) self.stride * 4,
                line = in(reg) LINE,
                tile_bytes = const VALUE_TILE * 2,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
