//! Expert FFNs: `down(silu(gate x) * up x)`, many experts in one launch.

mod grouped;
mod halves;

pub(crate) use grouped::FfnScratch;
pub use grouped::grouped_ffn;

use crate::activation::Activation;
use crate::cpu::Cpu;
use crate::gemm::{LANES, Packed};
use crate::matrix::{MatrixError, MatrixView};

/// Packed weights of one expert (or one dense gated MLP).
#[derive(Debug)]
pub struct ExpertWeights {
    gate: Packed,
    up: Packed,
    down: Packed,
    activation: Activation,
    bias: Option<Bias>,
}

/// Biases padded to whole panels.
#[derive(Debug)]
struct Bias {
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
}

impl ExpertWeights {
    /// Packs `gate` and `up` (`[width, hidden]`) and `down` (`[hidden, width]`); SiLU, no biases.
    ///
    /// # Errors
    /// When the three shapes do not belong together.
    pub fn pack(
        cpu: &Cpu,
        gate: MatrixView<'_>,
        up: MatrixView<'_>,
        down: MatrixView<'_>,
    ) -> Result<Self, MatrixError> {
        let (width, hidden) = (gate.rows(), gate.cols());
        check("rows of up", width, up.rows())?;
        check("columns of up", hidden, up.cols())?;
        check("rows of down", hidden, down.rows())?;
        check("columns of down", width, down.cols())?;
        // Gate and up are read as one, so they are stored alike.
        if gate.kind() != up.kind() {
            return Err(MatrixError::Kinds { gate: gate.kind(), up: up.kind() });
        }
        let compute = cpu.compute();
        Ok(Self {
            gate: Packed::pack(cpu, compute, &[gate])?,
            up: Packed::pack(cpu, compute, &[up])?,
            down: Packed::pack(cpu, compute, &[down])?,
            activation: Activation::Silu,
            bias: None,
        })
    }

    /// Another activation.
    #[must_use]
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Biases of `gate` and `up` (`width`) and of `down` (`hidden`).
    ///
    /// # Errors
    /// When a length is wrong.
    pub fn with_bias(self, gate: &[f32], up: &[f32], down: &[f32]) -> Result<Self, MatrixError> {
        check("length of the gate bias", self.width(), gate.len())?;
        check("length of the up bias", self.width(), up.len())?;
        check("length of the down bias", self.hidden(), down.len())?;
        let padded = |bias: &[f32]| {
            let mut bias = bias.to_vec();
            bias.resize(bias.len().next_multiple_of(LANES), 0.0);
            bias
        };
        let bias = Bias { gate: padded(gate), up: padded(up), down: padded(down) };
        Ok(Self { bias: Some(bias), ..self })
    }

    /// Elements of an input and an output row.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.gate.inputs()
    }

    /// Elements between gate/up and down.
    #[must_use]
    pub fn width(&self) -> usize {
        self.gate.outputs()
    }

    /// Memory taken by the packed weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }
}

fn check(what: &'static str, expected: usize, got: usize) -> Result<(), MatrixError> {
    if expected == got { Ok(()) } else { Err(MatrixError::Shape { what, expected, got }) }
}

/// One row for one expert.
#[derive(Clone, Copy, Debug)]
pub struct FfnRow<'a> {
    /// The row in wire form, [`crate::Compute::row_bytes`] of the hidden size.
    pub input: &'a [u8],
    /// Factor of the result (the gate weight).
    pub weight: f32,
    /// Index of the row of the output that gets the result; no two rows may share one.
    pub output: usize,
}

/// The rows of one expert.
#[derive(Clone, Copy, Debug)]
pub struct FfnJob<'a> {
    pub expert: &'a ExpertWeights,
    pub rows: &'a [FfnRow<'a>],
}

/// Adds a dense gated MLP (or a shared expert) to `y`: `y += scale * down(act(gate x, up x))`, with
/// `x` and `y` `[rows, hidden]` and one scale per row if given.
///
/// # Panics
/// When the lengths of `x`, `y` and `scale` are not the same number of rows.
pub fn swiglu(cpu: &Cpu, w: &ExpertWeights, x: &[f32], scale: Option<&[f32]>, y: &mut [f32]) {
    grouped::dense(cpu, w, x, scale, y);
}
