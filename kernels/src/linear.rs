//! Linear layers: `y = x Wᵀ + b`.

use std::ops::{Range, RangeInclusive};

use crate::cpu::{Compute, Cpu};
use crate::disjoint::DisjointMut;
use crate::gemm::{Acts, LANES, Packed, Plane, Row, Split, kernel_for, multiply, tile_tokens};
use crate::isa::Isa;
use crate::lanes::{self, Kernel, Lanes};
use crate::matrix::{MatrixError, MatrixView};

/// Packed weights of one linear layer, with an optional bias.
#[derive(Debug)]
pub struct Linear {
    weights: Packed,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Packs `parts` stacked along their rows (q, k and v; gate and up) in the precision of `cpu`:
    /// bf16, or for [`Compute::F32`] whatever holds the stored values exactly.
    ///
    /// # Errors
    /// When the parts' columns differ or the bias is not as long as the rows together.
    pub fn pack(
        cpu: &Cpu,
        parts: &[MatrixView<'_>],
        bias: Option<&[f32]>,
    ) -> Result<Self, MatrixError> {
        Self::pack_as(cpu, cpu.compute(), parts, bias)
    }

    /// As [`Linear::pack`], but computed in f32 whatever the precision of `cpu` (router gates).
    ///
    /// # Errors
    /// As [`Linear::pack`].
    pub fn pack_f32(
        cpu: &Cpu,
        parts: &[MatrixView<'_>],
        bias: Option<&[f32]>,
    ) -> Result<Self, MatrixError> {
        Self::pack_as(cpu, Compute::F32, parts, bias)
    }

    fn pack_as(
        cpu: &Cpu,
        compute: Compute,
        parts: &[MatrixView<'_>],
        bias: Option<&[f32]>,
    ) -> Result<Self, MatrixError> {
        let weights = Packed::pack(cpu, compute, parts)?;
        if let Some(bias) = bias
            && bias.len() != weights.outputs()
        {
            let (what, expected) = ("length of a bias", weights.outputs());
            return Err(MatrixError::Shape { what, expected, got: bias.len() });
        }
        Ok(Self { weights, bias: bias.map(<[f32]>::to_vec) })
    }

    /// Elements of an output row.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.weights.outputs()
    }

    /// Elements of an input row.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.weights.inputs()
    }

    /// Memory taken by the packed weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }
}

/// `y = x Wᵀ + b`, with `x` `[rows, inputs]` and `y` `[rows, outputs]`.
///
/// # Panics
/// When the lengths of `x` and `y` are not the same number of whole rows.
pub fn linear(cpu: &Cpu, w: &Linear, x: &[f32], y: &mut [f32]) {
    apply::<false>(cpu, w, x, y);
}

/// `y += x Wᵀ + b`, with `x` `[rows, inputs]` and `y` `[rows, outputs]`.
///
/// # Panics
/// As [`linear`].
pub fn linear_add(cpu: &Cpu, w: &Linear, x: &[f32], y: &mut [f32]) {
    apply::<true>(cpu, w, x, y);
}

fn apply<const ADD: bool>(cpu: &Cpu, w: &Linear, x: &[f32], y: &mut [f32]) {
    let (inputs, outputs) = (w.inputs(), w.outputs());
    if inputs == 0 || outputs == 0 {
        return;
    }
    let rows = x.len() / inputs;
    assert_eq!(x.len(), rows * inputs, "x is not whole rows of {inputs}");
    assert_eq!(y.len(), rows * outputs, "y is not {rows} rows of {outputs}");
    let compute = w.weights.compute();
    let kernel = kernel_for(cpu.isa(), compute);
    let y = DisjointMut::new(y);
    let finish = |panel: usize, first: usize, planes: &[Plane<'_>]| {
        for (panel, sums) in (panel..).zip(planes) {
            let columns = panel * LANES..outputs.min((panel + 1) * LANES);
            let bias = w.bias.as_ref().map(|bias| &bias[columns.clone()]);
            lanes::run(kernel, Finish::<ADD> { sums, bias, y: &y, first, columns, outputs });
        }
    };
    let mut scratch = cpu.scratch();
    if let Some(each) = rows_alone(cpu, kernel, rows) {
        let room = Acts::bytes(kernel, each, inputs);
        let bytes = DisjointMut::new(scratch.acts.bytes(cpu.threads() * room));
        cpu.for_each(rows.div_ceil(each), |task, worker| {
            let first = task * each;
            let count = each.min(rows - first);
            let acts = Acts::new(&bytes, worker * room, kernel, compute, count, inputs);
            let row = |row| Row::F32(&x[(first + row) * inputs..(first + row + 1) * inputs]);
            // SAFETY: a worker number is used by one thread at a time, and so is its room.
            unsafe { acts.put_rows(0..count, row) };
            let panels = 0..w.weights.panels();
            multiply([&w.weights], panels, &acts, 0..count, |panel, row, planes| {
                finish(panel, first + row, planes);
            });
        });
        return;
    }
    let bytes = DisjointMut::new(scratch.acts.bytes(Acts::bytes(kernel, rows, inputs)));
    let acts = Acts::new(&bytes, 0, kernel, compute, rows, inputs);
    pack_rows(cpu, &acts, x, inputs);
    let panel_bytes = w.weights.panel_bytes();
    let split = Split::new(w.weights.panels(), panel_bytes, rows, cpu.threads() * 4);
    cpu.for_each(split.tasks(), |task, _| {
        let (panels, tokens) = split.task(task);
        multiply([&w.weights], panels, &acts, tokens, finish);
    });
}

/// Rows that one thread multiplies with all the weights where there are many: reading the weights
/// once for each thread then costs less than passing packed rows between cores. With fewer rows it
/// does not, and more leave the cache.
const ALONE: RangeInclusive<usize> = 128..=320;

/// Rows of each task if a product is done so.
fn rows_alone(cpu: &Cpu, kernel: Isa, rows: usize) -> Option<usize> {
    let turns = rows.div_ceil(cpu.threads() * ALONE.end());
    let each = rows.div_ceil((turns * cpu.threads()).max(1));
    (kernel == Isa::Amx && each >= *ALONE.start())
        .then(|| each.next_multiple_of(tile_tokens(kernel)))
}

/// Sums of one panel, on their way into `y`.
struct Finish<'a, const ADD: bool> {
    sums: Plane<'a>,
    bias: Option<&'a [f32]>,
    y: &'a DisjointMut<'a, f32>,
    first: usize,
    columns: Range<usize>,
    outputs: usize,
}

impl<const ADD: bool> Kernel for Finish<'_, ADD> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (row, sums) in self.sums.iter().enumerate() {
            let start = (self.first + row) * self.outputs;
            let part = start + self.columns.start..start + self.columns.end;
            // SAFETY: tasks differ in panel or tokens, so no two write the same outputs.
            let y = unsafe { self.y.part(part) };
            if let Some(y) = y.first_chunk_mut::<LANES>() {
                // SAFETY: the caller vouches for the instruction set; all three have 16 floats.
                unsafe {
                    let mut sums = L::load(sums.as_ptr());
                    if let Some(bias) = self.bias {
                        sums = sums.add(L::load(bias[..LANES].as_ptr()));
                    }
                    if ADD {
                        sums = L::load(y.as_ptr()).add(sums);
                    }
                    sums.store(y.as_mut_ptr());
                }
                continue;
            }
            for (column, y) in y.iter_mut().enumerate() {
                let sum = sums[column] + self.bias.map_or(0.0, |bias| bias[column]);
                *y = if ADD { *y + sum } else { sum };
            }
        }
    }
}

/// Packs the rows of `x`, in parallel when there are many.
fn pack_rows(cpu: &Cpu, acts: &Acts<'_>, x: &[f32], inputs: usize) {
    let pack = |rows: Range<usize>| {
        // SAFETY: each row belongs to one call, and nobody reads before all are done.
        unsafe { acts.put_rows(rows, |row| Row::F32(&x[row * inputs..(row + 1) * inputs])) };
    };
    let rows = acts.rows();
    let unit = tile_tokens(acts.kernel());
    if rows <= unit {
        pack(0..rows);
        return;
    }
    cpu.for_each(rows.div_ceil(unit), |tile, _| {
        pack(tile * unit..rows.min((tile + 1) * unit));
    });
}
