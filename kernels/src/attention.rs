//! Causal attention over the paged KV cache, for prefill chunks and decode rows alike.
//!
//! A query row attends in *stretches* of 512 positions counted from the start of its sequence. Each stretch is a
//! softmax of its own (scores, maximum, weights, weighted values) and the stretches of a row are merged in order,
//! as FlashDecoding does with its splits. What a row computes therefore depends on its position and its keys
//! only: prefill in any chunks, decode one by one and any neighbours give the same bits.
//!
//! Work is cut into tiles of up to [`TILE`] query vectors that share one KV head (rows x heads of the group), so
//! that a key or value is loaded once for all of them.

mod fma;
mod softmax;

use std::fmt;

use crate::columns::Columns;
use crate::disjoint::DisjointMut;
use crate::kv::{BLOCK_TOKENS, Element, KvCache, Span};
use crate::lanes::{self, Kernel, Lanes};
use crate::{Compute, Cpu};

/// Query vectors in one tile.
const TILE: usize = 32;

/// Blocks in one stretch.
const STRETCH_BLOCKS: usize = 16;

/// Positions in one stretch.
const STRETCH: usize = STRETCH_BLOCKS * BLOCK_TOKENS;

/// Buffers of [`attend`]; grow to the largest shape seen and are then reused.
#[derive(Default)]
pub struct AttentionScratch {
    tasks: Vec<Task>,
    workers: Vec<Worker>,
}

impl fmt::Debug for AttentionScratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttentionScratch").field("workers", &self.workers.len()).finish()
    }
}

/// One tile: `len` query vectors of a span from vector `first` on (vector = row x group + head in group).
#[derive(Clone, Copy)]
struct Task {
    cost: u64,
    span: u32,
    head: u32,
    first: u32,
    len: u32,
}

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// What one worker needs for a tile; every buffer is row-major with one row per query vector.
#[derive(Default)]
struct Worker {
    /// `[TILE, stored k dim]`.
    queries: Vec<Line>,
    /// `[TILE, STRETCH]`: scores, then weights.
    scores: Vec<Line>,
    /// `[TILE, stored v dim]`: weighted values of one stretch.
    part: Vec<Line>,
    /// `[TILE, stored v dim]`: weighted values of the stretches so far.
    total: Vec<Line>,
    /// Largest score and sum of weights of each row so far.
    merged: Vec<softmax::Merged>,
}

impl Worker {
    fn grow(&mut self, k_dim: usize, v_dim: usize) {
        let grow = |buffer: &mut Vec<Line>, width: usize| {
            let lines = (TILE * width).div_ceil(16);
            buffer.resize(buffer.len().max(lines), Line([0.0; 16]));
        };
        grow(&mut self.queries, k_dim);
        grow(&mut self.scores, STRETCH);
        grow(&mut self.part, v_dim);
        grow(&mut self.total, v_dim);
        self.merged.resize(TILE, softmax::Merged::default());
    }
}

/// Attention of `spans` at one layer: `out = softmax(scale * q k^T) v`, each row over its own and all earlier
/// positions of its sequence, which [`crate::write_kv`] has stored.
///
/// `q` is `[rows, heads * k_dim]`, `out` is `[rows, heads * v_dim]`; query head `h` reads KV head
/// `h / (heads / kv_heads)`. Rows in no span are left alone.
///
/// # Panics
/// If shapes, rows or blocks do not fit the cache, two spans share a row, or `scale` is not positive.
pub fn attend(
    cpu: &Cpu,
    kv: &KvCache,
    (layer, spans): (usize, &[Span<'_>]),
    q: Columns<'_>,
    scale: f32,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let layout = kv.layout();
    let heads = q.width() / layout.k_dim;
    assert!(heads > 0 && heads * layout.k_dim == q.width(), "query columns");
    assert!(
        heads.is_multiple_of(layout.kv_heads),
        "{heads} heads over {} KV heads",
        layout.kv_heads
    );
    assert_eq!(out.len(), q.rows() * heads * layout.v_dim, "output size");
    assert!(scale > 0.0, "scale {scale}");
    kv.check(layer, spans, q.rows());
    plan(&mut scratch.tasks, spans, heads / layout.kv_heads, layout.kv_heads);
    scratch.workers.resize_with(scratch.workers.len().max(cpu.threads()), Worker::default);
    for worker in &mut scratch.workers {
        worker.grow(layout.stored_k_dim(), layout.stored_v_dim());
    }
    let batch = Batch { kv, layer, spans, q, heads, scale, out: DisjointMut::new(out) };
    match kv.compute() {
        Compute::Bf16 => batch.run::<u16>(cpu, &scratch.tasks, &mut scratch.workers),
        Compute::F32 => batch.run::<f32>(cpu, &scratch.tasks, &mut scratch.workers),
    }
}

/// Cuts spans into tiles, the costliest first.
fn plan(tasks: &mut Vec<Task>, spans: &[Span<'_>], group: usize, kv_heads: usize) {
    tasks.clear();
    for (i, span) in spans.iter().enumerate() {
        let vectors = span.rows.len() * group;
        for first in (0..vectors).step_by(TILE) {
            let len = TILE.min(vectors - first);
            let context = span.first_position + (first + len).div_ceil(group);
            // Reading a key costs about as much as four vectors' use of it.
            let cost = context as u64 * (len as u64 + 4);
            tasks.extend((0..kv_heads).map(|head| Task {
                cost,
                span: narrow(i),
                head: narrow(head),
                first: narrow(first),
                len: narrow(len),
            }));
        }
    }
    tasks.sort_unstable_by_key(|task| (std::cmp::Reverse(task.cost), task.span, task.head));
}

fn narrow(x: usize) -> u32 {
    u32::try_from(x).unwrap_or_else(|_| panic!("{x} in one batch"))
}

/// The operands of one call.
struct Batch<'a> {
    kv: &'a KvCache,
    layer: usize,
    spans: &'a [Span<'a>],
    q: Columns<'a>,
    heads: usize,
    scale: f32,
    out: DisjointMut<'a, f32>,
}

impl Batch<'_> {
    fn run<T: Element + fma::Pairs>(&self, cpu: &Cpu, tasks: &[Task], workers: &mut [Worker]) {
        let workers = DisjointMut::new(workers);
        cpu.for_each(tasks.len(), |task, worker| {
            // SAFETY: a worker number is used by one thread at a time.
            let worker = unsafe { &mut workers.part(worker..worker + 1)[0] };
            let tile =
                Tile::<T> { batch: self, task: tasks[task], worker, elements: self.kv.elements() };
            lanes::run(cpu.isa(), tile);
        });
    }
}

/// One tile at work.
struct Tile<'a, T> {
    batch: &'a Batch<'a>,
    task: Task,
    worker: &'a mut Worker,
    elements: &'a [T],
}

impl<T: Element + fma::Pairs> Kernel for Tile<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(mut self) {
        let layout = self.batch.kv.layout();
        self.load_queries();
        let len = self.task.len as usize;
        let last = self.position(len - 1);
        for stretch in 0..=last / STRETCH {
            let start = stretch * STRETCH;
            let blocks = ((last + 1 - start).div_ceil(BLOCK_TOKENS)).min(STRETCH_BLOCKS);
            let heads = self.head_blocks(stretch * STRETCH_BLOCKS, blocks);
            // SAFETY (all four): the caller vouches for the instruction set; `grow` sized the buffers for
            // TILE rows of this layout, and `check` proved that the blocks lie in the cache.
            unsafe { fma::scores::<L, T>(self.worker, &layout, &heads[..blocks], len) };
            for row in 0..len {
                let visible = (self.position(row) + 1).saturating_sub(start).min(STRETCH);
                unsafe { softmax::weigh::<L>(self.worker, row, visible, blocks, self.batch.scale) };
            }
            unsafe { fma::values::<L, T>(self.worker, &layout, &heads[..blocks], len) };
            unsafe {
                softmax::merge::<L>(
                    self.worker,
                    len,
                    layout.stored_v_dim(),
                    self.batch.scale,
                    stretch == 0,
                )
            };
        }
        // SAFETY: as above.
        unsafe { softmax::divide::<L>(self.worker, len, layout.stored_v_dim()) };
        self.store_output();
    }
}

impl<T: Element> Tile<'_, T> {
    fn group(&self) -> usize {
        self.batch.heads / self.batch.kv.layout().kv_heads
    }

    /// Position in the sequence of vector `row` of the tile.
    #[inline(always)]
    fn position(&self, row: usize) -> usize {
        let span = &self.batch.spans[self.task.span as usize];
        span.first_position + (self.task.first as usize + row) / self.group()
    }

    /// Row in the batch and query head of vector `row` of the tile.
    fn place(&self, row: usize) -> (usize, usize) {
        let span = &self.batch.spans[self.task.span as usize];
        let (group, vector) = (self.group(), self.task.first as usize + row);
        (span.rows.start + vector / group, self.task.head as usize * group + vector % group)
    }

    fn load_queries(&mut self) {
        let layout = self.batch.kv.layout();
        let stored = layout.stored_k_dim();
        for row in 0..self.task.len as usize {
            let (batch_row, head) = self.place(row);
            let from = &self.batch.q.row(batch_row)[head * layout.k_dim..][..layout.k_dim];
            let to = &mut floats(&mut self.worker.queries)[row * stored..][..stored];
            to[..layout.k_dim].copy_from_slice(from);
            to[layout.k_dim..].fill(0.0);
        }
    }

    /// Where this head's keys begin in `count` blocks from the sequence's block `first` on.
    fn head_blocks(&self, first: usize, count: usize) -> [*const T; STRETCH_BLOCKS] {
        let starts = self.batch.kv.head_starts(self.batch.layer);
        let blocks = &self.batch.spans[self.task.span as usize].blocks[first..first + count];
        let mut out = [self.elements.as_ptr(); STRETCH_BLOCKS];
        for (to, &block) in out.iter_mut().zip(blocks) {
            *to = self.elements[starts.of(block, self.task.head as usize)..].as_ptr();
        }
        out
    }

    fn store_output(&mut self) {
        let layout = self.batch.kv.layout();
        let (stored, width) = (layout.stored_v_dim(), layout.v_dim);
        for row in 0..self.task.len as usize {
            let (batch_row, head) = self.place(row);
            let at = (batch_row * self.batch.heads + head) * width;
            // SAFETY: rows belong to one span, and a (row, head) to one tile.
            let to = unsafe { self.batch.out.part(at..at + width) };
            to.copy_from_slice(&floats(&mut self.worker.total)[row * stored..][..width]);
        }
    }
}

/// Lines as floats.
fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is 16 floats without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

#[cfg(test)]
mod tests;
