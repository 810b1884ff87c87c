//! Tensors that were found in a checkpoint, and their values as packing, embedding and GPUs want them.

use std::ops::Range;

use half::{bf16, f16};
use kernels::{Compute, Dtype, MatrixView, decode_bf16, decode_rows};

use crate::{ModelError, safetensors::TensorFile};

/// Where in which file a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) file: &'a TensorFile,
    pub(crate) range: Range<usize>,
}

/// A tensor of elements that mean themselves, found with the shape it should have.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) dtype: Dtype,
}

/// A matrix of weights of any form, found with the shape it should have.
#[derive(Clone, Debug)]
pub(crate) struct Matrix<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) elements: Elements,
}

/// What a matrix is stored as.
#[derive(Clone, Debug)]
pub(crate) enum Elements {
    Plain(Dtype),
    /// E4M3 codes, and the scales of their blocks, row after row.
    Fp8(Vec<f32>),
}

/// A matrix in fp8 as it is stored.
#[derive(Debug)]
pub(crate) struct Coded {
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<f32>,
}

impl<'a> Place<'a> {
    /// The elements, row after row, little endian, of any alignment.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        &self.file.bytes()[self.range.clone()]
    }

    /// Lets the system take back its pages once it has been packed.
    pub(crate) fn release(&self) {
        self.file.release(self.range.clone());
    }
}

impl Tensor<'_> {
    /// The values of its `len` elements; its pages are given back.
    pub(crate) fn floats(self, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        widen(self.dtype, self.place.bytes(), &mut values);
        self.place.release();
        values
    }
}

impl Matrix<'_> {
    /// Its elements to be packed; the shape was checked when it was found.
    pub(crate) fn view(&self) -> Result<MatrixView<'_>, ModelError> {
        let (bytes, rows, cols) = (self.place.bytes(), self.rows, self.cols);
        Ok(match &self.elements {
            Elements::Plain(dtype) => MatrixView::new(bytes, *dtype, rows, cols)?,
            Elements::Fp8(scales) => MatrixView::fp8(bytes, scales, rows, cols)?,
        })
    }

    pub(crate) fn release(&self) {
        self.place.release();
    }

    /// Its values, row after row; its pages are given back.
    pub(crate) fn floats(self) -> Result<Vec<f32>, ModelError> {
        let mut values = vec![0.0; self.rows * self.cols];
        let view = self.view()?;
        for (row, values) in values.chunks_exact_mut(self.cols).enumerate() {
            view.read(row, 0, values);
        }
        self.release();
        Ok(values)
    }

    /// Its codes and the scales of their blocks; its pages are given back.
    ///
    /// # Panics
    /// When it is not in fp8.
    pub(crate) fn coded(self) -> Coded {
        let codes = self.place.bytes().to_vec();
        self.release();
        match self.elements {
            Elements::Fp8(scales) => Coded { codes, scales },
            Elements::Plain(dtype) => panic!("codes were asked of a matrix in {dtype:?}"),
        }
    }

    /// Its values rounded to bf16, row after row; its pages are given back.
    pub(crate) fn halves(self) -> Result<Vec<bf16>, ModelError> {
        let mut values = vec![bf16::ZERO; self.rows * self.cols];
        if matches!(self.elements, Elements::Plain(Dtype::Bf16)) {
            decode_bf16(self.place.bytes(), &mut values);
        } else {
            let (view, mut wide) = (self.view()?, vec![0.0; self.cols]);
            for (row, values) in values.chunks_exact_mut(self.cols).enumerate() {
                view.read(row, 0, &mut wide);
                values
                    .iter_mut()
                    .zip(&wide)
                    .for_each(|(value, wide)| *value = bf16::from_f32(*wide));
            }
        }
        self.release();
        Ok(values)
    }
}

/// The values of stored elements.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    match dtype {
        Dtype::Bf16 => decode_rows(Compute::Bf16, bytes, values),
        Dtype::F32 => decode_rows(Compute::F32, bytes, values),
        Dtype::F16 => {
            for (value, bits) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*bits).to_f32();
            }
        }
    }
}
