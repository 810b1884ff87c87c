//! A borrowed matrix as a checkpoint stores it, before packing.

use std::ops::Range;

use half::{bf16, f16};

/// Element type of a stored matrix (little endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    Bf16,
    F16,
    F32,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Why matrices could not be viewed or packed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    #[error("a {rows} x {cols} {dtype:?} matrix takes {expected} bytes, got {got}")]
    Length { rows: usize, cols: usize, dtype: Dtype, expected: usize, got: usize },
    #[error("a matrix of {rows} x {cols} elements is larger than memory can be")]
    TooLarge { rows: usize, cols: usize },
    #[error("gate is {gate:?} and up is {up:?}: they must be stored alike")]
    Dtypes { gate: Dtype, up: Dtype },
    #[error("{what} is {got}, expected {expected}")]
    Shape { what: &'static str, expected: usize, got: usize },
}

/// `rows x cols` elements inside borrowed bytes of any alignment, as linear layers store them:
/// one row per output, one column per input.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
    rows: usize,
    cols: usize,
    /// In elements: from the first element, from row to row, from column to column.
    offset: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// A row-major matrix.
    ///
    /// # Errors
    /// When `bytes` is not exactly `rows * cols` elements long.
    pub fn new(
        bytes: &'a [u8],
        dtype: Dtype,
        rows: usize,
        cols: usize,
    ) -> Result<Self, MatrixError> {
        let expected = rows.checked_mul(cols).and_then(|count| count.checked_mul(dtype.bytes()));
        let expected = expected.ok_or(MatrixError::TooLarge { rows, cols })?;
        if bytes.len() != expected {
            return Err(MatrixError::Length { rows, cols, dtype, expected, got: bytes.len() });
        }
        Ok(Self { bytes, dtype, rows, cols, offset: 0, row_stride: cols, col_stride: 1 })
    }

    /// Rows (outputs).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns (inputs).
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The same elements with rows and columns exchanged (checkpoints that store `[in, out]`).
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the rows (one expert of a stacked tensor, one part of a fused projection).
    ///
    /// # Panics
    /// When `range` is not inside `0..rows`.
    #[must_use]
    pub fn row_range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {self:?}");
        Self { rows: range.len(), offset: self.offset + range.start * self.row_stride, ..self }
    }

    /// Rows `first`, `first + step`, ... (gate and up rows stored alternately).
    ///
    /// # Panics
    /// When `step` is 0 or `first` is past the rows.
    #[must_use]
    pub fn every_row(self, first: usize, step: usize) -> Self {
        assert!(step > 0 && first <= self.rows, "every {step}th row from {first} of {self:?}");
        Self {
            rows: (self.rows - first).div_ceil(step),
            offset: self.offset + first * self.row_stride,
            row_stride: self.row_stride * step,
            ..self
        }
    }

    /// One element.
    ///
    /// # Panics
    /// When the position is outside the matrix.
    #[must_use]
    pub fn get(&self, row: usize, col: usize) -> f32 {
        assert!(row < self.rows && col < self.cols, "element ({row}, {col}) of {self:?}");
        self.element(row, col)
    }

    fn element(&self, row: usize, col: usize) -> f32 {
        let at = (self.offset + row * self.row_stride + col * self.col_stride) * self.dtype.bytes();
        let half_bits = || u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]);
        match self.dtype {
            Dtype::Bf16 => bf16::from_bits(half_bits()).to_f32(),
            Dtype::F16 => f16::from_bits(half_bits()).to_f32(),
            Dtype::F32 => f32::from_le_bytes([
                self.bytes[at],
                self.bytes[at + 1],
                self.bytes[at + 2],
                self.bytes[at + 3],
            ]),
        }
    }

    /// Widens `out.len()` elements of `row` from column `col` on.
    pub(crate) fn read(&self, row: usize, col: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = self.element(row, col + i);
        }
    }

    /// The stored bytes of `count` elements of `row` from column `col` on, if they lie together.
    pub(crate) fn contiguous(&self, row: usize, col: usize, count: usize) -> Option<&'a [u8]> {
        let size = self.dtype.bytes();
        let at = (self.offset + row * self.row_stride + col) * size;
        (self.col_stride == 1).then(|| &self.bytes[at..at + count * size])
    }
}
