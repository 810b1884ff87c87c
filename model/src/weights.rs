//! Turns tensors of a checkpoint into packed weights, and gives their pages back as soon as they are packed.

use half::{bf16, f16};
use kernels::{Compute, Cpu, Dtype, ExpertWeights, Linear, MatrixView, decode_bf16, decode_rows};

use crate::{Checkpoint, ModelError, checkpoint::Tensor};

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

    /// A matrix as it is stored.
    pub(crate) fn stored(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Tensor<'a>, ModelError> {
        self.tensor(name, &[rows, cols])
    }

    /// One projection of `inputs` columns from several tensors, their outputs one after another.
    pub(crate) fn linear(&self, parts: &[Part<'_>], inputs: usize) -> Result<Linear, ModelError> {
        let mut tensors = Vec::with_capacity(parts.len());
        let mut views = Vec::with_capacity(parts.len());
        let mut bias = Vec::new();
        for part in parts {
            let tensor = self.stored(&format!("{}.weight", part.name), part.outputs, inputs)?;
            views.push(tensor.matrix(part.outputs, inputs)?);
            tensors.push(tensor);
            if part.bias {
                bias.extend(self.vector(&format!("{}.bias", part.name), part.outputs)?);
            } else {
                bias.resize(bias.len() + part.outputs, 0.0);
            }
        }
        let biased = parts.iter().any(|part| part.bias);
        let linear = Linear::pack(self.cpu, &views, biased.then_some(bias.as_slice()))?;
        for tensor in &tensors {
            tensor.release();
        }
        Ok(linear)
    }

    /// A projection whose products are taken in f32 in every precision, as those of gates are.
    pub(crate) fn exact(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Linear, ModelError> {
        let tensor = self.stored(name, outputs, inputs)?;
        let linear = Linear::pack_f32(self.cpu, &[tensor.matrix(outputs, inputs)?], None)?;
        tensor.release();
        Ok(linear)
    }

    /// A matrix in bf16, row after row.
    pub(crate) fn halves(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<bf16>, ModelError> {
        let tensor = self.stored(name, rows, cols)?;
        if tensor.dtype != Dtype::Bf16 {
            return Ok(tensor.floats(rows * cols).into_iter().map(bf16::from_f32).collect());
        }
        let mut values = vec![bf16::ZERO; rows * cols];
        decode_bf16(tensor.bytes(), &mut values);
        tensor.release();
        Ok(values)
    }

    /// The elements of a matrix as they are.
    pub(crate) fn floats(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<f32>, ModelError> {
        Ok(self.stored(name, rows, cols)?.floats(rows * cols))
    }

    /// A gated MLP: an expert, the shared experts or a dense layer's. `names` are gate, up and down.
    pub(crate) fn mlp(
        &self,
        names: [&str; 3],
        hidden: usize,
        width: usize,
    ) -> Result<ExpertWeights, ModelError> {
        let gate = self.stored(names[0], width, hidden)?;
        let up = self.stored(names[1], width, hidden)?;
        let down = self.stored(names[2], hidden, width)?;
        let packed = ExpertWeights::pack(
            self.cpu,
            gate.matrix(width, hidden)?,
            up.matrix(width, hidden)?,
            down.matrix(hidden, width)?,
        )?;
        for tensor in [gate, up, down] {
            tensor.release();
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

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, ModelError> {
        self.checkpoint.tensor(&format!("{}{name}", self.prefix), shape)
    }
}

impl<'a> Tensor<'a> {
    /// The values of its `len` elements; its pages are given back.
    fn floats(self, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        widen(self.dtype, self.bytes(), &mut values);
        self.release();
        values
    }

    /// Its elements as a matrix; the shape was checked when it was found.
    pub(crate) fn matrix(&self, rows: usize, cols: usize) -> Result<MatrixView<'a>, ModelError> {
        Ok(MatrixView::new(self.bytes(), self.dtype, rows, cols)?)
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
