//! Packing: from a checkpoint's row-major matrices to panels of 16 outputs in huge pages.

use super::{LANES, STEP, Storage};
use crate::arena::Block;
use crate::cpu::{Compute, Cpu};
use crate::disjoint::DisjointMut;
use crate::matrix::{MatrixError, MatrixView};
use crate::wire::round_bf16;

/// A packed matrix: `outputs` padded to panels, `inputs` padded to steps, the padding zero.
#[derive(Debug)]
pub(crate) struct Packed {
    block: Block,
    storage: Storage,
    compute: Compute,
    outputs: usize,
    inputs: usize,
}

impl Packed {
    /// Packs `parts` stacked along their rows, all threads taking panels.
    pub(crate) fn pack(
        cpu: &Cpu,
        compute: Compute,
        parts: &[MatrixView<'_>],
    ) -> Result<Self, MatrixError> {
        let inputs = parts.first().map_or(0, MatrixView::cols);
        for part in parts {
            if part.cols() != inputs {
                let what = "columns of a stacked matrix";
                return Err(MatrixError::Shape { what, expected: inputs, got: part.cols() });
            }
        }
        let outputs = parts.iter().map(MatrixView::rows).sum();
        let exact_in_bf16 = parts.iter().all(MatrixView::is_bf16);
        let storage = match compute {
            Compute::F32 if !exact_in_bf16 => Storage::F32,
            _ => Storage::Bf16,
        };
        let panel_bytes = panel_bytes(storage, inputs);
        let panels = usize::div_ceil(outputs, LANES);
        let bytes = panels.checked_mul(panel_bytes);
        let bytes = bytes.ok_or(MatrixError::TooLarge { rows: outputs, cols: inputs })?;
        let mut block = cpu.arena().block(bytes);
        let out = DisjointMut::new(&mut block.as_mut_slice()[..bytes]);
        cpu.for_each(panels, |panel, _| {
            // SAFETY: each task has its own panel.
            let out = unsafe { out.part(panel * panel_bytes..(panel + 1) * panel_bytes) };
            let rows = rows_from(parts, panel * LANES);
            match storage {
                Storage::Bf16 => pack_bf16(rows, inputs, out),
                Storage::F32 => pack_f32(rows, inputs, out),
            }
        });
        Ok(Self { block, storage, compute, outputs, inputs })
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn compute(&self) -> Compute {
        self.compute
    }

    pub(crate) fn storage(&self) -> Storage {
        self.storage
    }

    /// Memory taken, padding included.
    pub(crate) fn bytes(&self) -> usize {
        self.block.bytes()
    }

    pub(crate) fn panels(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    pub(crate) fn steps(&self) -> usize {
        self.inputs.div_ceil(STEP)
    }

    pub(crate) fn panel_bytes(&self) -> usize {
        panel_bytes(self.storage, self.inputs)
    }

    pub(super) fn panel(&self, panel: usize) -> *const u8 {
        debug_assert!(panel < self.panels());
        self.block.as_ptr().wrapping_add(panel * self.panel_bytes())
    }

    pub(super) fn same_shape(&self, other: &Self) -> bool {
        let shape = |packed: &Self| (packed.storage, packed.outputs, packed.inputs);
        shape(self) == shape(other)
    }
}

fn panel_bytes(storage: Storage, inputs: usize) -> usize {
    let elements = inputs.next_multiple_of(STEP) * LANES;
    match storage {
        Storage::Bf16 => elements * 2,
        Storage::F32 => elements * 4,
    }
}

/// The part and row of each of the [`LANES`] outputs from `first` on; none past the end.
fn rows_from<'a>(
    parts: &[MatrixView<'a>],
    first: usize,
) -> [Option<(MatrixView<'a>, usize)>; LANES] {
    let find = |mut row: usize| {
        for part in parts {
            if row < part.rows() {
                return Some((*part, row));
            }
            row -= part.rows();
        }
        None
    };
    std::array::from_fn(|lane| find(first + lane))
}

fn pack_bf16(rows: [Option<(MatrixView<'_>, usize)>; LANES], inputs: usize, out: &mut [u8]) {
    // One step: [pair][output] of two bf16.
    for (step, out) in out.as_chunks_mut::<{ STEP * LANES * 2 }>().0.iter_mut().enumerate() {
        let first = step * STEP;
        let count = STEP.min(inputs - first);
        let lines = out.as_chunks_mut::<{ LANES * 4 }>().0;
        for (lane, row) in rows.iter().enumerate() {
            let Some((view, row)) = row else { continue };
            let mut pairs = [[0u8; 4]; STEP / 2];
            read_bf16(view, *row, first, &mut pairs.as_flattened_mut()[..count * 2]);
            for (line, pair) in lines.iter_mut().zip(pairs) {
                line[lane * 4..lane * 4 + 4].copy_from_slice(&pair);
            }
        }
    }
}

/// Reads elements of a row as native bf16 bytes, rounding what is wider.
fn read_bf16(view: &MatrixView<'_>, row: usize, col: usize, out: &mut [u8]) {
    let count = out.len() / 2;
    if cfg!(target_endian = "little")
        && let Some(bytes) = view.contiguous_bf16(row, col, count)
    {
        out.copy_from_slice(bytes);
        return;
    }
    let mut wide = [0.0; STEP];
    view.read(row, col, &mut wide[..count]);
    for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(wide) {
        *out = round_bf16(value).to_ne_bytes();
    }
}

fn pack_f32(rows: [Option<(MatrixView<'_>, usize)>; LANES], inputs: usize, out: &mut [u8]) {
    for (step, out) in out.as_chunks_mut::<{ STEP * LANES * 4 }>().0.iter_mut().enumerate() {
        let first = step * STEP;
        let count = STEP.min(inputs - first);
        for (lane, row) in rows.iter().enumerate() {
            let Some((view, row)) = row else { continue };
            let mut wide = [0.0; STEP];
            view.read(*row, first, &mut wide[..count]);
            for (input, value) in wide.into_iter().enumerate() {
                let at = (input * LANES + lane) * 4;
                out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            }
        }
    }
}
