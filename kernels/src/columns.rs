//! Views of some columns of a row-major matrix, so that the parts of a fused q|k|v projection need no copy.
use std::ops::Range;

use crate::Cpu;
use crate::disjoint::DisjointMut;

/// Floats that one task should at least touch; below twice this the caller works alone.
const TASK_FLOATS: usize = 16 * 1024;

/// Columns `start..start + width` of every row of a row-major `[rows, stride]` matrix.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    data: &'a [f32],
    stride: usize,
    start: usize,
    width: usize,
}

impl<'a> Columns<'a> {
    /// All of a `[rows, width]` matrix.
    ///
    /// # Panics
    /// If `data` is not a whole number of rows.
    #[must_use]
    pub fn dense(data: &'a [f32], width: usize) -> Self {
        Self::part(data, width, 0..width)
    }

    /// The columns `range` of a `[rows, stride]` matrix.
    ///
    /// # Panics
    /// If `data` is not a whole number of rows, or the range leaves the row.
    #[must_use]
    pub fn part(data: &'a [f32], stride: usize, range: Range<usize>) -> Self {
        check(data.len(), stride, &range);
        Self { data, stride, start: range.start, width: range.len() }
    }

    /// The columns `range` of this view (0 is this view's first column).
    ///
    /// # Panics
    /// If the range leaves the view.
    #[must_use]
    pub fn narrow(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.width, "columns {range:?} of a view {} wide", self.width);
        Self { start: self.start + range.start, width: range.len(), ..self }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.data.len() / self.stride
    }

    /// Number of columns.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row of the view.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [f32] {
        let from = row * self.stride + self.start;
        &self.data[from..from + self.width]
    }
}

/// As [`Columns`], for writing.
#[derive(Debug)]
pub struct ColumnsMut<'a> {
    data: &'a mut [f32],
    stride: usize,
    start: usize,
    width: usize,
}

impl<'a> ColumnsMut<'a> {
    /// All of a `[rows, width]` matrix.
    ///
    /// # Panics
    /// If `data` is not a whole number of rows.
    #[must_use]
    pub fn dense(data: &'a mut [f32], width: usize) -> Self {
        Self::part(data, width, 0..width)
    }

    /// The columns `range` of a `[rows, stride]` matrix.
    ///
    /// # Panics
    /// If `data` is not a whole number of rows, or the range leaves the row.
    #[must_use]
    pub fn part(data: &'a mut [f32], stride: usize, range: Range<usize>) -> Self {
        check(data.len(), stride, &range);
        Self { data, stride, start: range.start, width: range.len() }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.data.len() / self.stride
    }

    /// Number of columns.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Runs `f(row number, row)` on every row, on all threads when there is enough to do.
    pub(crate) fn for_each_row(&mut self, cpu: &Cpu, f: impl Fn(usize, &mut [f32]) + Sync) {
        let (stride, start, width) = (self.stride, self.start, self.width);
        let rows = self.rows();
        let data = DisjointMut::new(self.data);
        for_each_chunk(cpu, rows, width, |rows| {
            for row in rows {
                let from = row * stride + start;
                // SAFETY: rows do not overlap, and each is handed to exactly one task.
                f(row, unsafe { data.part(from..from + width) });
            }
        });
    }
}

fn check(len: usize, stride: usize, range: &Range<usize>) {
    assert!(stride > 0 && len.is_multiple_of(stride), "{len} floats are not rows of {stride}");
    assert!(
        range.start <= range.end && range.end <= stride,
        "columns {range:?} of rows of {stride}"
    );
}

/// Calls `f` on ranges that cover `0..items` once; several tasks when `items * cost` (in floats) is worth it.
pub(crate) fn for_each_chunk(
    cpu: &Cpu,
    items: usize,
    cost: usize,
    f: impl Fn(Range<usize>) + Sync,
) {
    let size = TASK_FLOATS.div_ceil(cost.max(1)).max(1);
    if items <= size {
        return f(0..items);
    }
    cpu.for_each(items.div_ceil(size), |task, _worker| {
        f(task * size..items.min((task + 1) * size));
    });
}
