//! Products of packed weights with packed activations, one block of outputs at a time.
//!
//! Weights are cut into panels of 16 outputs, stored with the outputs of one pair of inputs side by
//! side. A kernel multiplies a few panels (each a stream of its own through memory) with a few
//! tokens over the whole inner length, with one accumulator per output: that is what makes a result
//! independent of how the work was cut.

mod acts;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod finish;
mod order;
mod pack;
mod split;
mod vector;

use std::ops::Range;

pub(crate) use acts::{Acts, Column, Row, tile_tokens};
use finish::Finish;
pub(crate) use finish::Plane;
use order::{Ahead, Order, block_count, block_panels, block_tokens};
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
/// Rows of sums of one block: no kernel works on more than two panels of that many tokens.
const SUMS: usize = 2 * TOKENS_MAX;

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
    ahead: Ahead,
}

impl Block {
    /// The same block with only its `index`-th panel.
    fn single(&self, index: usize) -> Self {
        let mut panels = self.panels;
        panels.swap(0, index);
        Self { panels, count: 1, ..*self }
    }
}

/// Multiplies panels `range` of each source with `acts` and hands `done` the outcome piece by
/// piece: first panel, first token, and the planes of the panel in each source (gate and up are
/// worked on together), or of one or two neighbouring panels of a single source.
///
/// All sources have the same shape and storage.
pub(crate) fn multiply<const SOURCES: usize>(
    sources: [&Packed; SOURCES],
    range: Range<usize>,
    acts: &Acts<'_>,
    tokens: Range<usize>,
    mut done: impl FnMut(usize, usize, &[Plane<'_>]),
) {
    let first = sources[0];
    assert!(range.end <= first.panels() && tokens.end <= acts.rows());
    assert!(sources.iter().all(|source| source.same_shape(first)));
    assert_eq!(acts.steps(), first.steps());
    let panels_max = block_panels(acts.kernel(), tokens.len());
    let blocks = block_count(acts.kernel(), tokens.len());
    let neighbours = panels_max == 2 && blocks > 1;
    let order = Order::new(range, (panels_max / SOURCES).max(1), neighbours);
    let mut sums = [[[0.0; LANES]; SUMS]; 2];
    let [mut sums, mut before] = sums.each_mut();
    let mut finish = Finish::default();
    let mut panels = order.at(0, sources);
    let engine = Engine::new(acts.kernel(), acts.padded(tokens.len()));
    for position in 0..order.positions() {
        let next = order.at(position + 1, sources);
        let mut token = tokens.start;
        for index in 0..blocks {
            let count = block_tokens(acts.kernel(), tokens.end - token);
            let block = Block {
                panels: panels.pointers,
                count: panels.count,
                storage: first.storage(),
                steps: first.steps(),
                acts: acts.tile(token),
                tokens: acts.padded(count),
                ahead: Ahead::of(position, index, blocks, &next, first.steps()),
            };
            let part = finish.part_of(block.steps);
            engine.run(&block, sums, || finish.rows(part, before, &mut done));
            finish.rows(usize::MAX, before, &mut done);
            let group = if neighbours { panels.count } else { SOURCES };
            finish = Finish::new(panels, group, token..token + count, block.tokens);
            (sums, before) = (before, sums);
            token += count;
        }
        panels = next;
    }
    finish.rows(usize::MAX, before, &mut done);
}

/// What runs the blocks of one product.
enum Engine {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Tiles(amx::Tiles),
    Vectors(Isa),
}

impl Engine {
    /// For blocks of `tokens` tokens at least, or of whole tiles of them.
    fn new(kernel: Isa, tokens: usize) -> Self {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if kernel == Isa::Amx {
            // SAFETY: the `Cpu` that reported the instruction set has asked for tiles, and only
            // products use them, one after the other.
            return Self::Tiles(unsafe { amx::Tiles::configure(tokens) });
        }
        Self::Vectors(kernel)
    }

    /// Runs one block; `sums` gets `[panel][token][LANES]`. Calls `meanwhile` every
    /// [`STEPS_AT_ONCE`] steps where that is of use.
    fn run(&self, block: &Block, sums: &mut [[f32; LANES]; SUMS], meanwhile: impl FnMut()) {
        assert!(block.count <= PANELS_MAX && block.tokens <= TOKENS_MAX);
        assert!(block.count * block.tokens <= SUMS);
        let sums = sums.as_flattened_mut().as_mut_ptr();
        match self {
            // SAFETY: the operands are whole panels and whole bf16 tiles of `steps` steps (`multiply`
            // took them from Packed and Acts), and `sums` has room (checked above).
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Tiles(tiles) => unsafe { tiles.multiply(block, sums, meanwhile) },
            Self::Vectors(kernel) => {
                drop(meanwhile);
                // SAFETY: as above, with f32 tiles.
                lanes::run(*kernel, unsafe { vector::Product::new(block, sums) });
            }
        }
    }
}
