//! Turns tensors of a checkpoint into packed weights, and gives their pages back as soon as they are packed.

use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;
use kernels::{Cpu, ExpertWeights, Linear, fp8_nan};

use crate::{
    Checkpoint, ModelError,
    tensor::{Coded, Elements, Matrix, Tensor},
};

/// Codes that one task looks through.
const TASK_CODES: usize = 1 << 20;

/// Reads and packs the tensors whose names begin alike, such as `model.layers.3.`.
#[derive(Clone, Debug)]
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    cpu: &'a Cpu,
    prefix: String,
}

/// One tensor of a projection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// Its name without `.weight`.
    pub(crate) name: &'a str,
    /// Its rows.
    pub(crate) outputs: usize,
    /// Whether there is a `.bias` too.
    pub(crate) bias: bool,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, cpu: &'a Cpu, prefix: String) -> Self {
        Self { checkpoint, cpu, prefix }
    }

    pub(crate) fn cpu(&self) -> &'a Cpu {
        self.cpu
    }

    /// The elements of a tensor of one dimension.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.tensor(name, &[len])?.floats(len))
    }

    /// A matrix of elements that mean themselves, to be read row by row.
    pub(crate) fn table(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Tensor<'a>, ModelError> {
        self.tensor(name, &[rows, cols])
    }

    /// A matrix of weights of any form, all of whose elements are numbers if they are E4M3 codes.
    pub(crate) fn matrix(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix<'a>, ModelError> {
        let name = format!("{}{name}", self.prefix);
        let matrix = self.checkpoint.matrix(&name, rows, cols)?;
        if let Elements::Fp8(_) = &matrix.elements
            && let Some(place) = self.first_nan(matrix.place.bytes())
        {
            return Err(ModelError::Tensor {
                file: matrix.place.file.path().display().to_string(),
                tensor: name,
                expected: "numbers".to_owned(),
                found: format!("NaN in row {}, column {}", place / cols, place % cols),
            });
        }
        Ok(matrix)
    }

    /// Where the first code is that stands for no number; all threads look.
    fn first_nan(&self, codes: &[u8]) -> Option<usize> {
        let first = AtomicUsize::new(usize::MAX);
        self.cpu.for_each(codes.len().div_ceil(TASK_CODES), |task, _| {
            let begin = task * TASK_CODES;
            let codes = &codes[begin..codes.len().min(begin + TASK_CODES)];
            if let Some(place) = fp8_nan(codes) {
                first.fetch_min(begin + place, Ordering::Relaxed);
            }
        });
        Some(first.into_inner()).filter(|&place| place != usize::MAX)
    }

    /// One projection of `inputs` columns from several tensors, their outputs one after another.
    pub(crate) fn linear(&self, parts: &[Part<'_>], inputs: usize) -> Result<Linear, ModelError> {
        let mut matrices = Vec::with_capacity(parts.len());
        let mut bias = Vec::new();
        for part in parts {
            let name = format!("{}.weight", part.name);
            matrices.push(self.matrix(&name, part.outputs, inputs)?);
            if part.bias {
                bias.extend(self.vector(&format!("{}.bias", part.name), part.outputs)?);
            } else {
                bias.resize(bias.len() + part.outputs, 0.0);
            }
        }
        let biased = parts.iter().any(|part| part.bias);
        let views = matrices.iter().map(Matrix::view).collect::<Result<Vec<_>, _>>()?;
        let linear = Linear::pack(self.cpu, &views, biased.then_some(bias.as_slice()))?;
        matrices.iter().for_each(Matrix::release);
        Ok(linear)
    }

    /// A projection whose products are taken in f32 in every precision, as those of gates are.
    pub(crate) fn exact(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Linear, ModelError> {
        let matrix = self.matrix(name, outputs, inputs)?;
        let linear = Linear::pack_f32(self.cpu, &[matrix.view()?], None)?;
        matrix.release();
        Ok(linear)
    }

    /// A matrix in bf16, row after row.
    pub(crate) fn halves(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<bf16>, ModelError> {
        self.matrix(name, rows, cols)?.halves()
    }

    /// The elements of a matrix as they are.
    pub(crate) fn floats(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<f32>, ModelError> {
        self.matrix(name, rows, cols)?.floats()
    }

    /// A gated MLP: an expert, the shared experts or a dense layer's. `names` are gate, up and down.
    pub(crate) fn mlp(
        &self,
        names: [&str; 3],
        hidden: usize,
        width: usize,
    ) -> Result<ExpertWeights, ModelError> {
        let gate = self.matrix(names[0], width, hidden)?;
        let up = self.matrix(names[1], width, hidden)?;
        let down = self.matrix(names[2], hidden, width)?;
        let packed = ExpertWeights::pack(self.cpu, gate.view()?, up.view()?, down.view()?)?;
        for matrix in [gate, up, down] {
            matrix.release();
        }
        Ok(packed)
    }

    /// Gate, up and down of a gated MLP in bf16, as [`mlp`](Self::mlp) reads them.
    pub(crate) fn mlp_halves(
        &self,
        names: [&str; 3],
        hidden: usize,
        width: usize,
    ) -> Result<[Vec<bf16>; 3], ModelError> {
        Ok([
            self.halves(names[0], width, hidden)?,
            self.halves(names[1], width, hidden)?,
            self.halves(names[2], hidden, width)?,
        ])
    }

    /// Gate, up and down of a gated MLP in fp8, as they are stored.
    ///
    /// # Panics
    /// When one of them is not in fp8.
    pub(crate) fn mlp_coded(
        &self,
        names: [&str; 3],
        hidden: usize,
        width: usize,
    ) -> Result<[Coded; 3], ModelError> {
        Ok([
            self.matrix(names[0], width, hidden)?.coded(),
            self.matrix(names[1], width, hidden)?.coded(),
            self.matrix(names[2], hidden, width)?.coded(),
        ])
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, ModelError> {
        self.checkpoint.tensor(&format!("{}{name}", self.prefix), shape)
    }
}
