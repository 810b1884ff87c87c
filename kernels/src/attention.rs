//! Causal attention over the paged KV cache, for prefill chunks and decode rows alike.
//!
//! A query row attends in *stretches* of 512 positions counted from the start of its sequence. Each stretch is a
//! softmax of its own (scores, maximum, weights, weighted values) and the stretches of a row are merged in order,
//! as FlashDecoding does with its splits. What a row computes therefore depends on its position and its keys
//! only: prefill in any chunks, decode one by one and any neighbours give the same bits.
//!
//! Work is cut into tiles of up to [`TILE`] query vectors that share one KV head (rows x heads of the group), so
//! that a key or value is loaded once for all of them.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod fma;
mod softmax;

use std::cmp::Reverse;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use crate::columns::Columns;
use crate::disjoint::DisjointMut;
use crate::kv::{BLOCK_TOKENS, Element, KvCache, KvLayout, Span};
use crate::lanes::{self, Kernel, Lanes};
use crate::{Compute, Cpu, Isa};

/// Query vectors that share a load.
const TILE: usize = 32;

/// The most tiles in one task: those of one task read a stretch while it is in the cache.
const TASK_TILES: usize = 4;

/// Blocks in one stretch.
const STRETCH_BLOCKS: usize = 16;

/// Positions in one stretch.
const STRETCH: usize = STRETCH_BLOCKS * BLOCK_TOKENS;

/// Floats from one row of scores to the next: a line more than needed, so that rows spread over the cache's sets.
const SCORES_STRIDE: usize = STRETCH + 16;

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

/// `len` query vectors of a span from vector `first` on (vector = row x group + head in group).
#[derive(Clone, Copy)]
struct Task {
    span_cost: usize,
    span: u32,
    head: u32,
    first: u32,
    len: u32,
}

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// What one worker needs for a task.
#[derive(Default)]
struct Worker {
    /// The task's queries, as [`Products::load_query`] lays them out.
    queries: Vec<Line>,
    /// `[TILE, SCORES_STRIDE]`: scores of one tile and stretch, then weights.
    scores: Vec<Line>,
    /// The weights again in bf16, for AMX.
    weights: Vec<Line>,
    /// `[TILE, stored v dim]`: weighted values of one tile and stretch.
    part: Vec<Line>,
    /// `[task, stored v dim]`: weighted values of the stretches so far.
    total: Vec<Line>,
    /// The softmax of each row of the task so far.
    merged: Vec<softmax::Merged>,
}

impl Worker {
    fn grow(&mut self, layout: &KvLayout) {
        let grow = |buffer: &mut Vec<Line>, floats: usize| {
            let lines = floats.div_ceil(16);
            buffer.resize(buffer.len().max(lines), Line([0.0; 16]));
        };
        grow(&mut self.queries, TASK_TILES * TILE * layout.stored_k_dim());
        grow(&mut self.scores, TILE * SCORES_STRIDE);
        grow(&mut self.weights, TILE * STRETCH / 2);
        grow(&mut self.part, TILE * layout.stored_v_dim());
        grow(&mut self.total, TASK_TILES * TILE * layout.stored_v_dim());
        self.merged.resize(TASK_TILES * TILE, softmax::Merged::default());
    }
}

/// The two matrix products of attention, for one way of computing them.
///
/// Each result is summed in ascending order of dims or positions by one accumulator, whatever the rows beside it.
trait Products {
    /// Element type of the cache.
    type Stored: Element;

    /// Stores the query of row `row` of a task of `rows`, padded to `stored` dims.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    unsafe fn load_query<L: Lanes>(
        worker: &mut Worker,
        row_of: (usize, usize),
        query: &[f32],
        stored: usize,
    );

    /// `scores[row][position] = queries[tile.start + row] . key[position]` for all positions of `blocks`.
    ///
    /// # Safety
    /// The processor has the instruction set of `L` and of the products; `grow` sized the buffers for the layout,
    /// `tile` lies in the task and is at most [`TILE`] long; each block is where a head's keys begin.
    unsafe fn scores<L: Lanes>(
        worker: &mut Worker,
        layout: &KvLayout,
        blocks: &[*const Self::Stored],
        tile: Range<usize>,
    );

    /// `part[row][dim] = sum over positions of weights[row][position] * value[position][dim]`, where weights beyond a
    /// row's own position are zero.
    ///
    /// # Safety
    /// As [`Self::scores`].
    unsafe fn values<L: Lanes>(
        worker: &mut Worker,
        layout: &KvLayout,
        blocks: &[*const Self::Stored],
        rows: usize,
    );
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
    plan(&mut scratch.tasks, spans, heads / layout.kv_heads, &layout, cpu.threads());
    scratch.workers.resize_with(scratch.workers.len().max(cpu.threads()), Worker::default);
    scratch.workers.iter_mut().for_each(|worker| worker.grow(&layout));
    let batch = Batch { kv, layer, spans, q, heads, scale, out: DisjointMut::new(out) };
    let AttentionScratch { tasks, workers } = scratch;
    match (kv.compute(), cpu.isa()) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        (Compute::Bf16, Isa::Amx) => batch.run::<amx::Tiles>(cpu, tasks, workers),
        (Compute::Bf16, _) => batch.run::<fma::Fma<u16>>(cpu, tasks, workers),
        (Compute::F32, _) => batch.run::<fma::Fma<f32>>(cpu, tasks, workers),
    }
}

/// Cuts spans into tasks: the costliest span first, and in it the tasks of a head together, so that they find its
/// keys in the cache; the later rows of a span, which see more, before the earlier ones.
fn plan(
    tasks: &mut Vec<Task>,
    spans: &[Span<'_>],
    group: usize,
    layout: &KvLayout,
    threads: usize,
) {
    tasks.clear();
    // Large groups are worth a task of several tiles, if that leaves a few tasks for each thread.
    let vectors: usize = spans.iter().map(|span| span.rows.len() * group).sum();
    let large = TASK_TILES * TILE;
    let enough = vectors * layout.kv_heads >= 4 * threads * large;
    let unit = if group > TILE && enough { large } else { TILE };
    for (i, span) in spans.iter().enumerate() {
        let vectors = span.rows.len() * group;
        // Reading a key costs about as much as eight vectors' use of it.
        let span_cost = (span.first_position + span.rows.len()) * (vectors + 8);
        for first in (0..vectors).step_by(unit) {
            let len = unit.min(vectors - first);
            tasks.extend((0..layout.kv_heads).map(|head| Task {
                span_cost,
                span: narrow(i),
                head: narrow(head),
                first: narrow(first),
                len: narrow(len),
            }));
        }
    }
    tasks.sort_unstable_by_key(|task| {
        (Reverse(task.span_cost), task.span, task.head, Reverse(task.first))
    });
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
    fn run<P: Products>(&self, cpu: &Cpu, tasks: &[Task], workers: &mut [Worker]) {
        let workers = DisjointMut::new(workers);
        cpu.for_each(tasks.len(), |task, worker| {
            // SAFETY: a worker number is used by one thread at a time.
            let worker = unsafe { &mut workers.part(worker..worker + 1)[0] };
            let elements = self.kv.elements();
            let products = PhantomData::<P>;
            let job = Job { batch: self, task: tasks[task], worker, elements, products };
            lanes::run(cpu.isa(), job);
        });
    }
}

/// One task at work.
struct Job<'a, P: Products> {
    batch: &'a Batch<'a>,
    task: Task,
    worker: &'a mut Worker,
    elements: &'a [P::Stored],
    products: PhantomData<P>,
}

impl<P: Products> Kernel for Job<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(mut self) {
        let layout = self.batch.kv.layout();
        let rows = self.task.len as usize;
        // SAFETY: the caller vouches for the instruction set.
        unsafe { self.load_queries::<L>() };
        for stretch in 0..=self.position(rows - 1) / STRETCH {
            for first in (0..rows).step_by(TILE) {
                let tile = first..rows.min(first + TILE);
                // SAFETY: the caller vouches for the instruction set.
                unsafe { self.attend_stretch::<L>(&layout, stretch, tile) };
            }
        }
        // SAFETY: as above; `grow` sized the buffers.
        unsafe { softmax::divide::<L>(self.worker, rows, layout.stored_v_dim()) };
        self.store_output();
    }
}

impl<P: Products> Job<'_, P> {
    /// Adds one stretch to the rows of one tile.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    #[inline(always)]
    unsafe fn attend_stretch<L: Lanes>(
        &mut self,
        layout: &KvLayout,
        stretch: usize,
        tile: Range<usize>,
    ) {
        let start = stretch * STRETCH;
        let end = (self.position(tile.end - 1) + 1).min(start + STRETCH);
        let Some(blocks) = end.checked_sub(start).map(|seen| seen.div_ceil(BLOCK_TOKENS)) else {
            return;
        };
        let heads = self.head_blocks(stretch * STRETCH_BLOCKS, blocks);
        let heads = &heads[..blocks];
        let scale = self.batch.scale * std::f32::consts::LOG2_E;
        // SAFETY: the caller vouches for the instruction set; `grow` sized the buffers for this layout and any tile,
        // and `KvCache::check` proved that the blocks lie in the cache.
        unsafe {
            P::scores::<L>(self.worker, layout, heads, tile.clone());
            for row in tile.clone() {
                let visible = (self.position(row) + 1).saturating_sub(start).min(STRETCH);
                let scores =
                    &mut floats(&mut self.worker.scores)[(row - tile.start) * SCORES_STRIDE..];
                let scores = &mut scores[..blocks * BLOCK_TOKENS];
                self.worker.merged[row].part = softmax::weigh::<L>(scores, visible, scale);
            }
            P::values::<L>(self.worker, layout, heads, tile.len());
            softmax::merge::<L>(self.worker, tile, layout.stored_v_dim(), scale, stretch == 0);
        }
    }

    fn group(&self) -> usize {
        self.batch.heads / self.batch.kv.layout().kv_heads
    }

    /// Position in the sequence of vector `row` of the task.
    #[inline(always)]
    fn position(&self, row: usize) -> usize {
        let span = &self.batch.spans[self.task.span as usize];
        span.first_position + (self.task.first as usize + row) / self.group()
    }

    /// Row in the batch and query head of vector `row` of the task.
    fn place(&self, row: usize) -> (usize, usize) {
        let span = &self.batch.spans[self.task.span as usize];
        let (group, vector) = (self.group(), self.task.first as usize + row);
        (span.rows.start + vector / group, self.task.head as usize * group + vector % group)
    }

    /// # Safety
    /// The processor has the instruction set of `L`.
    #[inline(always)]
    unsafe fn load_queries<L: Lanes>(&mut self) {
        let layout = self.batch.kv.layout();
        let rows = self.task.len as usize;
        for row in 0..rows {
            let (batch_row, head) = self.place(row);
            let query = &self.batch.q.row(batch_row)[head * layout.k_dim..][..layout.k_dim];
            // SAFETY: the caller's promise.
            unsafe { P::load_query::<L>(self.worker, (row, rows), query, layout.stored_k_dim()) };
        }
    }

    /// Where this head's keys begin in `count` blocks from the sequence's block `first` on.
    fn head_blocks(&self, first: usize, count: usize) -> [*const P::Stored; STRETCH_BLOCKS] {
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
            // SAFETY: rows belong to one span, and a (row, head) to one task.
            let to = unsafe { self.batch.out.part(at..at + width) };
            to.copy_from_slice(&floats(&mut self.worker.total)[row * stored..][..width]);
        }
    }
}

/// Lines as floats.
#[inline(always)]
fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is 16 floats without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

#[cfg(test)]
mod tests;
