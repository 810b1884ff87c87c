//! The paged KV cache: where keys and values of every layer lie, and how they get there.
//!
//! A block holds [`BLOCK_TOKENS`] positions of one sequence for every layer and KV head. Inside, elements are
//! paired and tiled the way the attention kernels read them: 64 bytes (bf16) or 128 (f32) at a time, in order,
//! sixteen results wide.
//! Keys: `[half of 16 positions][pair of dims][position][dim in pair]`;
//! values: `[tile of 16 dims][pair of positions][dim][position in pair]`.
//! In f32 a pair is two rows of 16 instead of 16 pairs. Both are also what an AMX tile load wants.

use std::ops::Range;

use crate::columns::{Columns, for_each_chunk};
use crate::disjoint::DisjointMut;
use crate::memory::Region;
use crate::wire::round_bf16;
use crate::{Compute, Cpu};

/// Positions in one block.
pub const BLOCK_TOKENS: usize = 32;

/// Results that one load serves: positions of a key half, dims of a value tile.
pub(crate) const WIDE: usize = 16;

/// Elements of a pair of steps.
const PAIR: usize = 2 * WIDE;

/// Elements of one value tile: 16 dims of a whole block.
pub(crate) const VALUE_TILE: usize = WIDE * BLOCK_TOKENS;

/// The shape of a KV cache.
///
/// Multi-head latent attention in its absorbed form is `kv_heads: 1`, `k_dim: latent + rope`, `v_dim: latent`;
/// values are stored again beside the keys, since the two products want different orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub layers: usize,
    pub kv_heads: usize,
    /// Elements of one head's key.
    pub k_dim: usize,
    /// Elements of one head's value.
    pub v_dim: usize,
}

impl KvLayout {
    /// Bytes that one block takes over all layers.
    #[must_use]
    pub fn block_bytes(&self, compute: Compute) -> usize {
        compute.row_bytes(self.layers * self.kv_heads * self.head_elements())
    }

    /// Dims of a key as stored: whole AMX tiles of 32.
    pub(crate) fn stored_k_dim(&self) -> usize {
        self.k_dim.next_multiple_of(2 * WIDE)
    }

    /// Dims of a value as stored: whole pairs of tiles.
    pub(crate) fn stored_v_dim(&self) -> usize {
        self.v_dim.next_multiple_of(2 * WIDE)
    }

    /// Elements of one (layer, block, head): its keys, then its values.
    fn head_elements(&self) -> usize {
        BLOCK_TOKENS * (self.stored_k_dim() + self.stored_v_dim())
    }
}

/// Why a cache could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    #[error(
        "a KV cache needs at least one layer, head, dimension and block: got {blocks} blocks of {layout:?}"
    )]
    Empty { layout: KvLayout, blocks: usize },
    #[error("{blocks} KV blocks of {layout:?} do not fit in the address space")]
    TooLarge { layout: KvLayout, blocks: usize },
}

/// Consecutive tokens of one sequence inside a batch.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// Their rows in the batch.
    pub rows: Range<usize>,
    /// Position of the first of them in the sequence.
    pub first_position: usize,
    /// The sequence's blocks in order; they cover positions `0..first_position + rows.len()` at least.
    pub blocks: &'a [u32],
}

impl Span<'_> {
    /// Its positions that lie in its block number `block`.
    fn positions_in(&self, block: usize) -> Range<usize> {
        let end = self.first_position + self.rows.len();
        let first = (block * BLOCK_TOKENS).max(self.first_position);
        first..((block + 1) * BLOCK_TOKENS).min(end).max(first)
    }
}

/// Keys and values of every sequence this process holds; bf16 or f32 as the [`Cpu`] computes.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    compute: Compute,
    blocks: usize,
    memory: Region,
}

impl KvCache {
    /// A cache of `blocks` blocks. Memory becomes resident as it is first written.
    ///
    /// # Errors
    /// When the shape has a zero in it or is larger than the address space.
    pub fn new(cpu: &Cpu, layout: KvLayout, blocks: usize) -> Result<Self, KvError> {
        let KvLayout { layers, kv_heads, k_dim, v_dim } = layout;
        if [layers, kv_heads, k_dim, v_dim, blocks].contains(&0) {
            return Err(KvError::Empty { layout, blocks });
        }
        let too_large = KvError::TooLarge { layout, blocks };
        let product = [layers, kv_heads, blocks, BLOCK_TOKENS, size_of::<f32>()]
            .into_iter()
            .try_fold(k_dim.saturating_add(v_dim).saturating_add(4 * WIDE), usize::checked_mul);
        if product.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            return Err(too_large);
        }
        let memory = Region::zeroed(layout.block_bytes(cpu.compute()) * blocks);
        Ok(Self { layout, compute: cpu.compute(), blocks, memory })
    }

    /// The shape it was made with.
    #[must_use]
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes that it may grow to.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layout.block_bytes(self.compute) * self.blocks
    }

    /// Precision of what is stored.
    pub(crate) fn compute(&self) -> Compute {
        self.compute
    }

    /// Where the heads of `layer` begin.
    pub(crate) fn head_starts(&self, layer: usize) -> HeadStarts {
        HeadStarts { first_block: layer * self.blocks, layout: self.layout }
    }

    /// All elements. `T` is the stored type: `u16` (bf16 bits) or `f32`.
    pub(crate) fn elements<T: Element>(&self) -> &[T] {
        assert_eq!(self.compute, T::COMPUTE, "the cache holds another type");
        let len = self.bytes() / size_of::<T>();
        // SAFETY: the region is zeroed or written as `T`, at least `bytes()` long and 64-byte aligned.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), len) }
    }

    fn elements_mut<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.compute, T::COMPUTE, "the cache holds another type");
        let len = self.bytes() / size_of::<T>();
        // SAFETY: as in `elements`, and the cache is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().cast(), len) }
    }

    /// Panics unless `spans` can be served at `layer` for `rows` rows: the caller's bug, never a client's.
    pub(crate) fn check(&self, layer: usize, spans: &[Span<'_>], rows: usize) {
        assert!(layer < self.layout.layers, "layer {layer} of {}", self.layout.layers);
        for span in spans {
            let end = span.first_position + span.rows.len();
            assert!(
                span.rows.start <= span.rows.end && span.rows.end <= rows,
                "span outside the batch"
            );
            assert!(
                span.blocks.len() * BLOCK_TOKENS >= end,
                "span without blocks for its positions"
            );
            let used = &span.blocks[..end.div_ceil(BLOCK_TOKENS)];
            assert!(used.iter().all(|&b| (b as usize) < self.blocks), "block outside the cache");
        }
    }
}

/// A stored element: f32, or the bits of a bf16.
pub(crate) trait Element: Copy + Default + Send + Sync {
    const COMPUTE: Compute;

    fn from_f32(x: f32) -> Self;

    /// Place of step `deep` (0 or 1) of result `wide` (below 16) in the 32 elements of a pair of steps.
    fn place(wide: usize, deep: usize) -> usize;
}

impl Element for u16 {
    const COMPUTE: Compute = Compute::Bf16;

    fn from_f32(x: f32) -> Self {
        round_bf16(x)
    }

    fn place(wide: usize, deep: usize) -> usize {
        wide % WIDE * 2 + deep % 2
    }
}

impl Element for f32 {
    const COMPUTE: Compute = Compute::F32;

    fn from_f32(x: f32) -> Self {
        x
    }

    fn place(wide: usize, deep: usize) -> usize {
        deep % 2 * WIDE + wide % WIDE
    }
}

/// Stores the keys and values of `spans` for one layer.
///
/// `k` is `[rows, kv_heads * k_dim]`, `v` is `[rows, kv_heads * v_dim]` (for latent attention `v` is a prefix of
/// `k`'s columns). Positions of a sequence are written in order, each block from its first position on: the
/// first write to a block also clears what an earlier owner left in it.
///
/// # Panics
/// If shapes, rows or blocks do not fit the cache. No two spans may share a block that they write.
pub fn write_kv(
    cpu: &Cpu,
    kv: &mut KvCache,
    layer: usize,
    spans: &[Span<'_>],
    k: Columns<'_>,
    v: Columns<'_>,
) {
    let layout = kv.layout;
    assert_eq!(k.width(), layout.kv_heads * layout.k_dim, "key columns");
    assert_eq!(v.width(), layout.kv_heads * layout.v_dim, "value columns");
    kv.check(layer, spans, k.rows().min(v.rows()));
    match kv.compute {
        Compute::Bf16 => write::<u16>(cpu, kv, layer, spans, k, v),
        Compute::F32 => write::<f32>(cpu, kv, layer, spans, k, v),
    }
}

fn write<T: Element>(
    cpu: &Cpu,
    kv: &mut KvCache,
    layer: usize,
    spans: &[Span<'_>],
    k: Columns<'_>,
    v: Columns<'_>,
) {
    let layout = kv.layout;
    let starts = kv.head_starts(layer);
    let elements = DisjointMut::new(kv.elements_mut::<T>());
    // One item is one block of one span; shorter spans have empty ones.
    let blocks_of = |span: &Span<'_>| span.rows.len().div_ceil(BLOCK_TOKENS) + 1;
    let blocks = spans.iter().map(blocks_of).max().unwrap_or(0);
    let items = spans.len() * blocks;
    let rows: usize = spans.iter().map(|span| span.rows.len()).sum();
    let cost = rows * (k.width() + v.width()) / items.max(1);
    for_each_chunk(cpu, items, cost, |items| {
        for item in items {
            let span = &spans[item / blocks];
            let block = span.first_position / BLOCK_TOKENS + item % blocks;
            for position in span.positions_in(block) {
                let row = span.rows.start + position - span.first_position;
                let (keys, values) = (k.row(row), v.row(row));
                let heads = keys.chunks_exact(layout.k_dim).zip(values.chunks_exact(layout.v_dim));
                for (head, (key, value)) in heads.enumerate() {
                    let start = starts.of(span.blocks[block], head);
                    // SAFETY: a block is written by one span only, and for one span by one task.
                    let place = unsafe { elements.part(start..start + layout.head_elements()) };
                    write_token(&layout, place, position % BLOCK_TOKENS, key, value);
                }
            }
        }
    });
}

/// Writes one token into its head's part of a block.
fn write_token<T: Element>(
    layout: &KvLayout,
    place: &mut [T],
    at: usize,
    key: &[f32],
    value: &[f32],
) {
    if at == 0 {
        place.fill(T::default());
    }
    let (keys, values) = place.split_at_mut(BLOCK_TOKENS * layout.stored_k_dim());
    let half = &mut keys[at / WIDE * WIDE * layout.stored_k_dim()..];
    // Rounded in runs, which vectorises, and then spread.
    let pairs = half.as_chunks_mut::<PAIR>().0;
    for (pairs, dims) in pairs.chunks_mut(WIDE).zip(key.chunks(PAIR)) {
        let rounded = round::<T>(dims);
        for (pair, dims) in pairs.iter_mut().zip(rounded.as_chunks::<2>().0) {
            pair[T::place(at, 0)] = dims[0];
            pair[T::place(at, 1)] = dims[1];
        }
    }
    for (tile, dims) in values.as_chunks_mut::<VALUE_TILE>().0.iter_mut().zip(value.chunks(WIDE)) {
        let rounded = round::<T>(dims);
        let pair = &mut tile.as_chunks_mut::<PAIR>().0[at / 2];
        for (d, &x) in rounded[..WIDE].iter().enumerate() {
            pair[T::place(d, at)] = x;
        }
    }
}

/// Up to 32 floats as stored, zeros behind them.
fn round<T: Element>(x: &[f32]) -> [T; PAIR] {
    let mut out = [T::default(); PAIR];
    for (to, &x) in out.iter_mut().zip(x) {
        *to = T::from_f32(x);
    }
    out
}

/// Finds the elements of a (block, head) of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadStarts {
    first_block: usize,
    layout: KvLayout,
}

impl HeadStarts {
    /// Index of the first element; keys come first, then values.
    pub(crate) fn of(&self, block: u32, head: usize) -> usize {
        let block = self.first_block + block as usize;
        (block * self.layout.kv_heads + head) * self.layout.head_elements()
    }
}

#[cfg(test)]
mod tests;
