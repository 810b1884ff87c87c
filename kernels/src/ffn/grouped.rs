//! One launch over many experts: pack, gate/up, down, each waiting only for its own expert.
//!
//! All tasks of a launch stand in one list that the threads take in order, jobs with most rows
//! first. A job that is a small part of the launch is one task: its rows never leave a core. The
//! largest jobs, and the last ones, are cut up (every packing, then every gate/up, then every down)
//! so that all threads have work to the end. A piece counts down what its job still waits for; the
//! piece that needs it was put behind it, so whoever it waits for is running.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::halves::{Output, down, gate_up};
use super::{ExpertWeights, FfnJob, FfnRow};
use crate::cpu::{Compute, Cpu};
use crate::disjoint::DisjointMut;
use crate::gemm::{Acts, Buffer, Packed, Row, Split, kernel_for, tile_tokens};
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes};
use crate::memory::fetch_to_write;

/// Polls of an unfinished dependency before the thread sleeps, and for how long it then does. A
/// thread that waits this long waits for one that has lost its core.
const POLLS: u32 = 1500;
const NAP: Duration = Duration::from_micros(20);

/// Buffers of a launch, kept for the next.
#[derive(Debug, Default)]
pub(crate) struct FfnScratch {
    inputs: Buffer,
    hidden: Buffer,
    stages: Vec<Stage>,
    /// Bytes of each worker's room at the beginning of the two buffers, for jobs that are one task.
    worker_inputs: usize,
    worker_hidden: usize,
    tasks: Vec<Task>,
    taken: Vec<u64>,
}

/// Where a job stands.
#[derive(Debug, Default)]
struct Stage {
    /// Index in the caller's list.
    job: usize,
    rows: usize,
    /// Bytes into the input and the hidden buffer, if it is cut up.
    inputs_at: usize,
    hidden_at: usize,
    unpacked: AtomicU32,
    gate_up_left: AtomicU32,
}

#[derive(Clone, Debug)]
struct Task {
    /// Index into the stages.
    stage: usize,
    kind: Kind,
    panels: Range<usize>,
    tokens: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// All of a job.
    Whole,
    Pack,
    GateUp,
    Down,
}

/// Runs every job: row `row.output` of `out` becomes `row.weight * down(act(gate x, up x))`, in wire form.
/// `out` gets as many rows as all jobs together have; what it held is gone.
///
/// # Panics
/// When the experts' hidden sizes differ, an input is not one wire row of that size, an output index is
/// out of range or two rows share one.
pub fn grouped_ffn(cpu: &Cpu, jobs: &[FfnJob<'_>], out: &mut Vec<u8>) {
    out.clear();
    let Some(first) = jobs.first() else { return };
    let compute = cpu.compute();
    let hidden = first.expert.hidden();
    let row_bytes = compute.row_bytes(hidden);
    let rows = jobs.iter().map(|job| job.rows.len()).sum();
    let mut scratch = cpu.scratch();
    let scratch = &mut scratch.ffn;
    scratch.check_outputs(jobs, hidden, row_bytes, rows);
    let bytes = rows * row_bytes;
    out.reserve(bytes);
    let unwritten = DisjointMut::new(&mut out.spare_capacity_mut()[..bytes]);
    launch(
        cpu,
        scratch,
        jobs.iter().map(|job| job.rows.len()),
        |job| jobs[job].expert,
        |job, row| Row::Wire(compute, jobs[job].rows[row].input),
        |job| WireRows { rows: jobs[job].rows, compute, row_bytes, out: &unwritten },
    );
    // SAFETY: there are as many rows as outputs and each output is one row's (`check_outputs`), and a
    // launch takes all sums of every row.
    unsafe { out.set_len(bytes) };
}

/// Rows of a job in wire form, each scaled by its weight.
#[derive(Clone, Copy)]
struct WireRows<'a> {
    rows: &'a [FfnRow<'a>],
    compute: Compute,
    row_bytes: usize,
    out: &'a DisjointMut<'a, MaybeUninit<u8>>,
}

impl Output for WireRows<'_> {
    #[inline(always)]
    unsafe fn take<L: Lanes, const PLANES: usize>(
        &self,
        row: usize,
        first: usize,
        sums: [L; PLANES],
        count: usize,
    ) {
        let row = &self.rows[row];
        let size = self.compute.row_bytes(1);
        let at = row.output * self.row_bytes + first * size;
        // SAFETY: output rows are distinct (`check_outputs`), these outputs of one are the caller's.
        let out = unsafe { self.out.part(at..at + count * size) };
        // Rows lie far apart, and a core has few stores under way: the next outputs' line is fetched now.
        fetch_to_write(out.as_ptr().wrapping_add(out.len()).cast());
        for (sums, out) in sums.into_iter().zip(out.chunks_mut(LANES * size)) {
            // SAFETY: the caller vouches for the instruction set; the array has room for 16.
            unsafe {
                let scaled = sums.mul(L::splat(row.weight));
                let mut bytes = [0; LANES * 4];
                match self.compute {
                    Compute::Bf16 => scaled.store_bf16(bytes.as_mut_ptr().cast()),
                    Compute::F32 => scaled.store(bytes.as_mut_ptr().cast()),
                }
                if cfg!(target_endian = "big") {
                    bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
                }
                copy(&bytes, out);
            }
        }
    }
}

/// Fills `out` with the first of `bytes`; whole rows of lanes without a loop.
#[inline(always)]
fn copy(bytes: &[u8; LANES * 4], out: &mut [MaybeUninit<u8>]) {
    match out.len() {
        len if len == LANES * 2 => out.write_copy_of_slice(&bytes[..LANES * 2]),
        len if len == LANES * 4 => out.write_copy_of_slice(bytes),
        len => out.write_copy_of_slice(&bytes[..len]),
    };
}

/// See [`super::swiglu`].
pub(super) fn dense(cpu: &Cpu, w: &ExpertWeights, x: &[f32], scale: Option<&[f32]>, y: &mut [f32]) {
    let hidden = w.hidden();
    let rows = x.len() / hidden.max(1);
    assert_eq!(x.len(), rows * hidden, "x is not whole rows of {hidden}");
    assert_eq!(y.len(), x.len(), "y has another length than x");
    assert!(scale.is_none_or(|scale| scale.len() == rows), "not one scale for each of {rows} rows");
    let y = DisjointMut::new(y);
    launch(
        cpu,
        &mut cpu.scratch().ffn,
        std::iter::once(rows),
        |_| w,
        |_, row| Row::F32(&x[row * hidden..(row + 1) * hidden]),
        |_| Residual { hidden, scale, y: &y },
    );
}

/// Rows that are added to what is there, each scaled.
#[derive(Clone, Copy)]
struct Residual<'a> {
    hidden: usize,
    scale: Option<&'a [f32]>,
    y: &'a DisjointMut<'a, f32>,
}

impl Output for Residual<'_> {
    #[inline(always)]
    unsafe fn take<L: Lanes, const PLANES: usize>(
        &self,
        row: usize,
        first: usize,
        sums: [L; PLANES],
        count: usize,
    ) {
        let at = row * self.hidden + first;
        // SAFETY: these outputs are the caller's.
        let y = unsafe { self.y.part(at..at + count) };
        // SAFETY: the caller vouches for the instruction set.
        let scale = unsafe { L::splat(self.scale.map_or(1.0, |scale| scale[row])) };
        for (sums, y) in sums.into_iter().zip(y.chunks_mut(LANES)) {
            for (y, sum) in y.iter_mut().zip(sums.mul(scale).array()) {
                *y += sum;
            }
        }
    }
}

/// Runs jobs of the given numbers of rows, each with its expert: `read(job, row)` gives an input
/// row, `output(job)` takes the results.
fn launch<'a, O: Output>(
    cpu: &Cpu,
    scratch: &mut FfnScratch,
    jobs: impl Iterator<Item = usize>,
    expert: impl Fn(usize) -> &'a ExpertWeights + Sync,
    read: impl Fn(usize, usize) -> Row<'a> + Sync,
    output: impl Fn(usize) -> O + Sync,
) {
    let kernel = kernel_for(cpu.isa(), cpu.compute());
    let (inputs_bytes, hidden_bytes) = scratch.plan(cpu.threads(), kernel, jobs, &expert);
    let inputs = DisjointMut::new(scratch.inputs.bytes(inputs_bytes));
    let hidden = DisjointMut::new(scratch.hidden.bytes(hidden_bytes));
    let (stages, tasks) = (&scratch.stages, &scratch.tasks);
    let (worker_inputs, worker_hidden) = (scratch.worker_inputs, scratch.worker_hidden);
    cpu.for_each(tasks.len(), |task, worker| {
        let task = &tasks[task];
        let stage = &stages[task.stage];
        let (panels, tokens) = (task.panels.clone(), task.tokens.clone());
        let expert = expert(stage.job);
        let (inputs_at, hidden_at) = match task.kind {
            Kind::Whole => (worker * worker_inputs, worker * worker_hidden),
            _ => (stage.inputs_at, stage.hidden_at),
        };
        let acts =
            |bytes, at, length| Acts::new(bytes, at, kernel, cpu.compute(), stage.rows, length);
        let x = acts(&inputs, inputs_at, expert.hidden());
        let h = acts(&hidden, hidden_at, expert.width());
        match task.kind {
            Kind::Whole => {
                // SAFETY: a worker number is used by one thread at a time, and so is its room; the
                // outputs of a job belong to its one task.
                unsafe {
                    x.put_rows(tokens, |row| read(stage.job, row));
                    Split::of_tokens(expert.gate.panels(), stage.rows)
                        .for_each(|panels, tokens| gate_up(expert, panels, tokens, &x, &h));
                    Split::of_tokens(expert.down.panels(), stage.rows).for_each(
                        |panels, tokens| down(expert, panels, tokens, &h, output(stage.job)),
                    );
                }
            }
            Kind::Pack => {
                let _done = CountDown(&stage.unpacked);
                // SAFETY: each row belongs to one task; readers wait for `unpacked`.
                unsafe { x.put_rows(tokens, |row| read(stage.job, row)) };
            }
            Kind::GateUp => {
                let _done = CountDown(&stage.gate_up_left);
                wait_for(cpu, worker, &stage.unpacked);
                // SAFETY: each panel of a row belongs to one task; readers wait for `gate_up_left`.
                unsafe { gate_up(expert, panels, tokens, &x, &h) };
            }
            Kind::Down => {
                wait_for(cpu, worker, &stage.gate_up_left);
                // SAFETY: each panel of a row belongs to one task.
                unsafe { down(expert, panels, tokens, &h, output(stage.job)) };
            }
        }
    });
}

impl FfnScratch {
    /// Lists stages and tasks; returns the bytes of all packed inputs and of all hidden rows.
    fn plan<'a>(
        &mut self,
        threads: usize,
        kernel: Isa,
        jobs: impl Iterator<Item = usize>,
        expert: &impl Fn(usize) -> &'a ExpertWeights,
    ) -> (usize, usize) {
        self.stages.clear();
        self.tasks.clear();
        for (job, rows) in jobs.enumerate().filter(|&(_, rows)| rows > 0) {
            self.stages.push(Stage { job, rows, ..Stage::default() });
        }
        self.stages.sort_by_key(|stage| (std::cmp::Reverse(stage.rows), stage.job));
        let whole = self.whole(threads);
        (self.worker_inputs, self.worker_hidden) = (0, 0);
        for stage in &self.stages[whole.clone()] {
            let expert = expert(stage.job);
            let inputs = Acts::bytes(kernel, stage.rows, expert.hidden());
            let hidden = Acts::bytes(kernel, stage.rows, expert.width());
            self.worker_inputs = self.worker_inputs.max(inputs);
            self.worker_hidden = self.worker_hidden.max(hidden);
        }
        let (mut inputs_at, mut hidden_at) =
            (threads * self.worker_inputs, threads * self.worker_hidden);
        let (first, last) = (0..whole.start, whole.end..self.stages.len());
        for stage in first.clone().chain(last.clone()) {
            let stage = &mut self.stages[stage];
            let expert = expert(stage.job);
            (stage.inputs_at, stage.hidden_at) = (inputs_at, hidden_at);
            inputs_at += Acts::bytes(kernel, stage.rows, expert.hidden());
            hidden_at += Acts::bytes(kernel, stage.rows, expert.width());
        }
        self.cut_up(threads, kernel, first, expert);
        for stage in whole {
            let tokens = 0..self.stages[stage].rows;
            self.tasks.push(Task { stage, kind: Kind::Whole, panels: 0..0, tokens });
        }
        self.cut_up(threads, kernel, last, expert);
        (inputs_at, hidden_at)
    }

    /// The stages that are one task each: small parts of the launch, but not the last ones.
    fn whole(&self, threads: usize) -> Range<usize> {
        // Reading the weights costs about as much as this many rows.
        let cost = |stage: &Stage| stage.rows + 64;
        let fair = self.stages.iter().map(cost).sum::<usize>() / (4 * threads);
        let first = self.stages.partition_point(|stage| cost(stage) > fair);
        first..self.stages.len().saturating_sub(2 * threads).max(first)
    }

    /// Lists the tasks of stages that are cut up.
    fn cut_up<'a>(
        &mut self,
        threads: usize,
        kernel: Isa,
        stages: Range<usize>,
        expert: &impl Fn(usize) -> &'a ExpertWeights,
    ) {
        let tasks_min = (threads * 4).div_ceil(stages.len().max(1));
        let pack_rows = tile_tokens(kernel).max(16);
        for kind in [Kind::Pack, Kind::GateUp, Kind::Down] {
            for stage in stages.clone() {
                let at = &self.stages[stage];
                let expert = expert(at.job);
                let before = self.tasks.len();
                let split = |weights: &Packed, sources| {
                    let bytes = weights.panel_bytes() * sources;
                    Split::new(weights.panels(), bytes, at.rows, tasks_min)
                };
                let mut push = |panels, tokens| {
                    self.tasks.push(Task { stage, kind, panels, tokens });
                };
                match kind {
                    Kind::GateUp => split(&expert.gate, 2).for_each(push),
                    Kind::Down => split(&expert.down, 1).for_each(push),
                    Kind::Whole | Kind::Pack => {
                        for first in (0..at.rows).step_by(pack_rows) {
                            push(0..0, first..at.rows.min(first + pack_rows));
                        }
                    }
                }
                let count = (self.tasks.len() - before) as u32;
                match kind {
                    Kind::Pack => at.unpacked.store(count, Ordering::Relaxed),
                    Kind::GateUp => at.gate_up_left.store(count, Ordering::Relaxed),
                    Kind::Whole | Kind::Down => {}
                }
            }
        }
    }

    /// Checks the rows of a launch, so that tasks can write their outputs without looking.
    fn check_outputs(&mut self, jobs: &[FfnJob<'_>], hidden: usize, row_bytes: usize, rows: usize) {
        self.taken.clear();
        self.taken.resize(rows.div_ceil(64), 0);
        for job in jobs {
            assert_eq!(job.expert.hidden(), hidden, "experts of one launch differ in hidden size");
            for row in job.rows {
                assert_eq!(row.input.len(), row_bytes, "bytes of an input row");
                assert!(row.output < rows, "output row {} of {rows}", row.output);
                let (word, bit) = (&mut self.taken[row.output / 64], 1 << (row.output % 64));
                assert_eq!(*word & bit, 0, "output row {} is named twice", row.output);
                *word |= bit;
            }
        }
    }
}

/// Counts a finished task even if it panics, so that nobody waits for ever.
struct CountDown<'a>(&'a AtomicU32);

impl Drop for CountDown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

fn wait_for(cpu: &Cpu, worker: usize, left: &AtomicU32) {
    let (mut polls, mut since) = (0, None);
    while left.load(Ordering::Acquire) > 0 {
        polls += 1;
        if polls < POLLS {
            std::hint::spin_loop();
        } else {
            cpu.wait(worker, *since.get_or_insert_with(Instant::now));
            std::thread::sleep(NAP);
        }
    }
}
