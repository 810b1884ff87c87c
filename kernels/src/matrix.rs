//! A borrowed matrix as a checkpoint stores it, before packing.

use std::ops::Range;

use half::{bf16, f16};

use crate::fp8::{self, FP8_BLOCK, fp8_blocks};

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
    #[error("gate is {gate} and up is {up}: they must be stored alike")]
    Kinds { gate: &'static str, up: &'static str },
    #[error("{what} is {got}, expected {expected}")]
    Shape { what: &'static str, expected: usize, got: usize },
}

/// `rows x cols` elements inside borrowed bytes of any alignment, as linear layers store them:
/// one row per output, one column per input.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a> {
    bytes: &'a [u8],
    elements: Elements<'a>,
    rows: usize,
    cols: usize,
    /// In elements: from the first element, from row to row, from column to column.
    offset: usize,
    row_stride: usize,
    col_stride: usize,
}

/// What the bytes are.
#[derive(Clone, Copy, Debug)]
enum Elements<'a> {
    Plain(Dtype),
    /// E4M3 codes; `scales` are those of the stored matrix's blocks, row after row, and `width` is its columns.
    Fp8 {
        scales: &'a [f32],
        width: usize,
    },
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
        Ok(Self::row_major(bytes, Elements::Plain(dtype), rows, cols))
    }

    /// A row-major matrix of E4M3 codes, an element being its code's value times the scale of its block of
    /// [`FP8_BLOCK`] rows and columns, rounded to f32. `scales` are `[blocks of rows, blocks of columns]`.
    ///
    /// # Errors
    /// When there is not one code for each element and one scale for each block.
    pub fn fp8(
        codes: &'a [u8],
        scales: &'a [f32],
        rows: usize,
        cols: usize,
    ) -> Result<Self, MatrixError> {
        let expected = rows.checked_mul(cols).ok_or(MatrixError::TooLarge { rows, cols })?;
        let blocks = fp8_blocks(rows, cols).into_iter().product();
        for (what, expected, got) in [
            ("codes of an fp8 matrix", expected, codes.len()),
            ("scales of an fp8 matrix", blocks, scales.len()),
        ] {
            if expected != got {
                return Err(MatrixError::Shape { what, expected, got });
            }
        }
        Ok(Self::row_major(codes, Elements::Fp8 { scales, width: cols }, rows, cols))
    }

    fn row_major(bytes: &'a [u8], elements: Elements<'a>, rows: usize, cols: usize) -> Self {
        Self { bytes, elements, rows, cols, offset: 0, row_stride: cols, col_stride: 1 }
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

    /// Whether bf16 holds its elements as they are.
    pub(crate) fn is_bf16(&self) -> bool {
        matches!(self.elements, Elements::Plain(Dtype::Bf16))
    }

    /// The kind of its elements, in a word.
    pub(crate) fn kind(&self) -> &'static str {
        match self.elements {
            Elements::Plain(Dtype::Bf16) => "bf16",
            Elements::Plain(Dtype::F16) => "f16",
            Elements::Plain(Dtype::F32) => "f32",
            Elements::Fp8 { .. } => "fp8",
        }
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
        let at = self.offset + row * self.row_stride + col * self.col_stride;
        let dtype = match self.elements {
            Elements::Plain(dtype) => dtype,
            Elements::Fp8 { scales, width } => {
                return fp8::value(self.bytes[at]) * scales[block(at, width)];
            }
        };
        let at = at * dtype.bytes();
        let half_bits = || u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]);
        match dtype {
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
    ///
    /// # Panics
    /// When they are not all inside the matrix.
    pub fn read(&self, row: usize, col: usize, out: &mut [f32]) {
        assert!(row < self.rows && col + out.len() <= self.cols, "row {row} of {self:?}");
        match self.elements {
            Elements::Fp8 { scales, width } if self.col_stride == 1 => {
                let first = self.offset + row * self.row_stride + col;
                read_fp8(self.bytes, (scales, width), first, out);
            }
            _ => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = self.element(row, col + i);
                }
            }
        }
    }

    /// The stored bytes of `count` bf16 elements of `row` from column `col` on, if that is what they are and they lie
    /// together.
    pub(crate) fn contiguous_bf16(&self, row: usize, col: usize, count: usize) -> Option<&'a [u8]> {
        let at = (self.offset + row * self.row_stride + col) * 2;
        (self.is_bf16() && self.col_stride == 1).then(|| &self.bytes[at..at + count * 2])
    }
}

/// Which block the code at `at` of a matrix of `width` columns is in.
fn block(at: usize, width: usize) -> usize {
    let (row, col) = (at / width, at % width);
    row / FP8_BLOCK * width.div_ceil(FP8_BLOCK) + col / FP8_BLOCK
}

/// Widens codes that lie together from `at` on, a run of one block at a time.
fn read_fp8(codes: &[u8], (scales, width): (&[f32], usize), mut at: usize, out: &mut [f32]) {
    let mut rest = out;
    while !rest.is_empty() {
        let col = at % width;
        let run = (FP8_BLOCK - col % FP8_BLOCK).min(width - col).min(rest.len());
        let (now, later) = rest.split_at_mut(run);
        fp8::widen(&codes[at..at + run], scales[block(at, width)], now);
        (at, rest) = (at + run, later);
    }
}
