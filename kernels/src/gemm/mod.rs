//! Products of packed weights with packed activations, one block of outputs at a time.
//!
//! Weights are cut into panels of 16 outputs, stored with the outputs of one pair of inputs side by
//! side. A kernel multiplies a few panels (each a stream of its own through memory) with a few
//! tokens over the whole inner length, with one accumulator per output: that is what makes a result
//! independent of how the work was cut.

mod acts;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod pack;
mod split;
mod vector;

use std::ops::Range;

pub(crate) use acts::{Acts, Row, tile_tokens};
pub(crate) use pack::Packed;
pub(crate) use split::Split;

use crate::cpu::Compute;
use crate::ffn::FfnScratch;
use crate::isa::Isa;
use crate::lanes;
use crate::memory::Region;

/// Outputs of one panel: the lanes of a 512-bit register and the columns of a tile.
pub(crate) const LANES: usize = 16;
/// Inputs are padded to this many: one tile of bf16.
pub(crate) const STEP: usize = 32;
/// Most panels and tokens of one block.
const PANELS_MAX: usize = 4;
const TOKENS_MAX: usize = 48;
/// Steps that tiles work on between two turns of what else is to be done.
const STEPS_AT_ONCE: usize = 4;
/// Sums of one block: no kernel works on more than two panels of that many tokens.
const SUMS: usize = 2 * TOKENS_MAX * LANES;

/// How packed weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// `[panel][input pair][output][2]` bf16.
    Bf16,
    /// `[panel][input][output]` f32.
    F32,
}

/// Buffers that operators reuse; grown, never shrunk.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) acts: Buffer,
    pub(crate) ffn: FfnScratch,
}

/// Bytes that keep their place between calls unless more are asked for.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    region: Option<Region>,
}

impl Buffer {
    /// `bytes` bytes with anything in them, aligned to a cache line.
    pub(crate) fn bytes(&mut self, bytes: usize) -> &mut [u8] {
        let enough = self.region.as_ref().is_some_and(|region| region.len() >= bytes);
        if !enough {
            self.region = None;
        }
        let region = self.region.get_or_insert_with(|| Region::zeroed(bytes.next_power_of_two()));
        // SAFETY: the region has at least `bytes` initialised bytes, reached through `self` only.
        unsafe { std::slice::from_raw_parts_mut(region.as_ptr(), bytes) }
    }
}

/// The kernel that a precision gets on an instruction set: tiles know bf16 only.
pub(crate) fn kernel_for(isa: Isa, compute: Compute) -> Isa {
    match compute {
        Compute::Bf16 => isa,
        Compute::F32 => isa.min(Isa::Avx512),
    }
}

/// Panels of one block when a product has `rows` rows.
///
/// Few rows: as many weight streams as possible. Many rows: as much reuse per loaded byte.
fn block_panels(kernel: Isa, rows: usize) -> usize {
    match kernel {
        Isa::Amx if rows <= 16 => 4,
        Isa::Avx512 if rows <= 4 => 4,
        Isa::Amx | Isa::Avx512 => 2,
        Isa::Avx2 | Isa::Portable => 1,
    }
}

/// Tokens of the next block when `left` are left.
fn block_tokens(kernel: Isa, left: usize) -> usize {
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

/// One block's operands.
#[derive(Clone, Copy)]
struct Block {
    /// Panels in use: the first `count` of `panels`.
    panels: [*const u8; PANELS_MAX],
    count: usize,
    storage: Storage,
    /// Inner length in [`STEP`]s.
    steps: usize,
    acts: *const u8,
    tokens: usize,
    /// Whether these are the panels' first tokens, for which the weights come from memory.
    fetch: bool,
}

impl Block {
    /// The same block with only its `index`-th panel.
    fn single(&self, index: usize) -> Self {
        let mut panels = self.panels;
        panels.swap(0, index);
        Self { panels, count: 1, ..*self }
    }
}

/// Multiplies panels `range` of each source with `acts` and hands `done` the outcome block by
/// block: panel, first token, and per source the sums `[tokens][LANES]`.
///
/// All sources have the same shape and storage. Two sources are worked on together (gate and up).
pub(crate) fn multiply<const SOURCES: usize>(
    sources: [&Packed; SOURCES],
    range: Range<usize>,
    acts: &Acts<'_>,
    tokens: Range<usize>,
    mut done: impl FnMut(usize, usize, [&[f32]; SOURCES]),
) {
    let first = sources[0];
    assert!(range.end <= first.panels() && tokens.end <= acts.rows());
    assert!(sources.iter().all(|source| source.same_shape(first)));
    assert_eq!(acts.steps(), first.steps());
    let panels_max = block_panels(acts.kernel(), tokens.len());
    // Each source is read as `streams` contiguous streams that advance together.
    let streams = (panels_max / SOURCES).max(1);
    let stream_len = range.len().div_ceil(streams);
    let mut sums = [[0.0; SUMS]; 2];
    let [mut sums, mut before] = sums.each_mut();
    let mut finish = Finish::default();
    for position in 0..stream_len {
        let panels = (0..streams)
            .map(|stream| range.start + stream * stream_len + position)
            .take_while(|&panel| panel < range.end);
        let mut block = Block {
            panels: [std::ptr::null(); PANELS_MAX],
            count: 0,
            storage: first.storage(),
            steps: first.steps(),
            acts: std::ptr::null(),
            tokens: 0,
            fetch: true,
        };
        for panel in panels.clone() {
            for source in sources {
                block.panels[block.count] = source.panel(panel);
                block.count += 1;
            }
        }
        let mut token = tokens.start;
        while token < tokens.end {
            let count = block_tokens(acts.kernel(), tokens.end - token);
            block.tokens = acts.padded(count);
            block.acts = acts.tile(token);
            let part = finish.part_of(block.steps);
            run(acts.kernel(), &block, sums, || finish.rows(part, before, &mut done));
            finish.rows(usize::MAX, before, &mut done);
            finish = Finish::new(panels.clone(), token..token + count, block.tokens);
            (sums, before) = (before, sums);
            token += count;
            block.fetch = false;
        }
    }
    finish.rows(usize::MAX, before, &mut done);
}

/// What is left to hand over of a block's sums: its panels, row by row.
///
/// Tiles rest badly: half a microsecond without them and they take as long to come back. So the
/// sums of one block are handed over in small parts while the next one is multiplied.
#[derive(Default)]
struct Finish<const SOURCES: usize> {
    panels: [usize; PANELS_MAX],
    /// First token, and tokens.
    token: usize,
    count: usize,
    /// Tokens with padding: rows from panel to panel.
    stride: usize,
    /// Rows handed over of all rows of all panels.
    next: usize,
    end: usize,
}

impl<const SOURCES: usize> Finish<SOURCES> {
    fn new(from: impl Iterator<Item = usize>, tokens: Range<usize>, stride: usize) -> Self {
        let mut panels = [0; PANELS_MAX];
        let mut used = 0;
        for (place, panel) in panels.iter_mut().zip(from) {
            *place = panel;
            used += 1;
        }
        let (token, count) = (tokens.start, tokens.len());
        Self { panels, token, count, stride, next: 0, end: used * count }
    }

    /// Rows to hand over at each turn of a block of `steps` steps.
    fn part_of(&self, steps: usize) -> usize {
        self.end.div_ceil((steps / STEPS_AT_ONCE).max(1))
    }

    /// Hands over up to `rows` more.
    fn rows(
        &mut self,
        rows: usize,
        sums: &[f32; SUMS],
        done: &mut impl FnMut(usize, usize, [&[f32]; SOURCES]),
    ) {
        let end = self.end.min(self.next.saturating_add(rows));
        while self.next < end {
            let (index, row) = (self.next / self.count, self.next % self.count);
            let rows = (self.count - row).min(end - self.next);
            let parts = std::array::from_fn(|source| {
                let at = ((index * SOURCES + source) * self.stride + row) * LANES;
                &sums[at..at + rows * LANES]
            });
            done(self.panels[index], self.token + row, parts);
            self.next += rows;
        }
    }
}

/// Runs one block; `sums` gets `[panel][token][LANES]`. Calls `meanwhile` every
/// [`STEPS_AT_ONCE`] steps where that is of use.
fn run(kernel: Isa, block: &Block, sums: &mut [f32; SUMS], meanwhile: impl FnMut()) {
    assert!(block.count <= PANELS_MAX && block.tokens <= TOKENS_MAX);
    assert!(block.count * block.tokens * LANES <= SUMS);
    let sums = sums.as_mut_ptr();
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if kernel == Isa::Amx {
        // SAFETY: the operands are whole panels and whole bf16 tiles of `steps` steps (`multiply`
        // took them from Packed and Acts), and `sums` has room (checked above).
        return unsafe { amx::block(block, sums, meanwhile) };
    }
    drop(meanwhile);
    // SAFETY: as above, with f32 tiles.
    lanes::run(kernel, unsafe { vector::Product::new(block, sums) });
}
