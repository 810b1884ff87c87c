//! Reads experts from the checkpoint into the form that their half computes with.

use std::sync::Arc;

use domain::{Expert, Layer};
use half::bf16;
use kernels::{Cpu, CpuOptions, ExpertWeights, cuda::WeightForm};

use crate::{Checkpoint, LayerKind, ModelError, tensor::Coded, weights::Weights};

/// Reads and packs experts, on the engine's processor or beside it.
#[derive(Clone, Debug)]
pub struct ExpertLoader {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) cpu: Arc<Cpu>,
    pub(super) form: Form,
}

/// How weights lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As the processor's kernels read them.
    Packed,
    /// Row after row, on their way to a GPU, in one of its forms.
    Plain(WeightForm),
}

/// An expert in memory that no half holds yet.
#[derive(Debug)]
pub struct LoadedExpert {
    pub(super) layer: Layer,
    pub(super) expert: Expert,
    pub(super) weights: LoadedWeights,
}

#[derive(Debug)]
pub(super) enum LoadedWeights {
    Packed(Box<ExpertWeights>),
    /// Gate, up and down, values.
    Halves([Vec<bf16>; 3]),
    /// The same in fp8.
    Coded([Coded; 3]),
}

impl ExpertLoader {
    /// Reads and packs one expert; touches no other tensor's pages.
    ///
    /// # Errors
    /// If the model has no such expert, or its tensors are missing or wrong.
    pub fn load(&self, layer: Layer, expert: Expert) -> Result<LoadedExpert, ModelError> {
        let spec = self.checkpoint.spec();
        let routed = spec.layers.get(layer.index()) == Some(&LayerKind::Moe);
        if !routed || expert.index() >= spec.moe.experts {
            return Err(ModelError::NoSuchExpert { layer, expert });
        }
        let prefix = spec.expert_prefix(layer, expert);
        let weights = Weights::new(&self.checkpoint, &self.cpu, prefix);
        let (names, hidden, width) = (spec.names.expert_parts, spec.hidden, spec.moe.width);
        let weights = match self.form {
            Form::Packed => LoadedWeights::Packed(Box::new(weights.mlp(names, hidden, width)?)),
            Form::Plain(WeightForm::Bf16) => {
                LoadedWeights::Halves(weights.mlp_halves(names, hidden, width)?)
            }
            Form::Plain(WeightForm::Fp8) => {
                LoadedWeights::Coded(weights.mlp_coded(names, hidden, width)?)
            }
        };
        Ok(LoadedExpert { layer, expert, weights })
    }

    /// The same with a processor of its own, one thread, so that experts can be read while the engine computes.
    pub(super) fn beside(&self) -> Result<Self, ModelError> {
        Ok(Self { cpu: Arc::new(single_thread(&self.cpu)?), ..self.clone() })
    }
}

/// A processor of one thread that computes the bits of `cpu`.
pub(crate) fn single_thread(cpu: &Cpu) -> Result<Cpu, ModelError> {
    let (compute, isa) = (cpu.compute(), Some(cpu.isa()));
    Ok(Cpu::new(&CpuOptions { threads: 1, compute, isa, pin: false })?)
}
