//! The expert half: experts that are loaded one by one, and the grouped FFN over the rows they are sent.

use std::sync::Arc;

use domain::{Expert, Layer};
use kernels::{Cpu, CpuOptions, ExpertWeights, FfnJob, FfnRow, grouped_ffn};

use crate::{Checkpoint, LayerKind, ModelError, ModelSpec, weights::Weights};

/// The experts of a model that one node holds.
#[derive(Debug)]
pub struct ExpertHalf {
    loader: ExpertLoader,
    /// `[layer][expert]`, flattened; dense layers have their empty places too.
    places: Vec<Option<Box<ExpertWeights>>>,
    bytes: usize,
}

/// The rows that one expert has to compute.
#[derive(Clone, Copy, Debug)]
pub struct ExpertWork<'a> {
    /// The logical expert.
    pub expert: Expert,
    /// Its rows, each with its weight and its place in the output.
    pub rows: &'a [FfnRow<'a>],
}

/// Reads and packs experts, on the engine's processor or beside it.
#[derive(Clone, Debug)]
pub struct ExpertLoader {
    checkpoint: Arc<Checkpoint>,
    cpu: Arc<Cpu>,
}

/// An expert in memory that no half holds yet.
#[derive(Debug)]
pub struct LoadedExpert {
    layer: Layer,
    expert: Expert,
    weights: ExpertWeights,
}

impl ExpertHalf {
    /// A half that holds no expert yet.
    #[must_use]
    pub fn new(checkpoint: Arc<Checkpoint>, cpu: Arc<Cpu>) -> Self {
        let spec = checkpoint.spec();
        let mut places = Vec::new();
        places.resize_with(spec.layers.len() * spec.moe.experts, || None);
        Self { loader: ExpertLoader { checkpoint, cpu }, places, bytes: 0 }
    }

    /// The model this is a half of.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        self.loader.checkpoint.spec()
    }

    /// The processor it computes on.
    #[must_use]
    pub fn cpu(&self) -> &Arc<Cpu> {
        &self.loader.cpu
    }

    /// Loads one expert on the engine's processor; nothing to do if it is there.
    ///
    /// # Errors
    /// If the model has no such expert, or its tensors are missing or wrong.
    pub fn load_expert(&mut self, layer: Layer, expert: Expert) -> Result<(), ModelError> {
        if !self.holds(layer, expert) {
            let loaded = self.loader.load(layer, expert)?;
            self.install(loaded);
        }
        Ok(())
    }

    /// A loader with a processor of its own, one thread, so that experts can be read while the engine computes.
    ///
    /// # Errors
    /// If the processor cannot be opened.
    pub fn loader(&self) -> Result<ExpertLoader, ModelError> {
        Ok(ExpertLoader {
            checkpoint: Arc::clone(&self.loader.checkpoint),
            cpu: Arc::new(single_thread(&self.loader.cpu)?),
        })
    }

    /// Takes an expert that a [`loader`](Self::loader) has read.
    pub fn install(&mut self, loaded: LoadedExpert) {
        let LoadedExpert { layer, expert, weights } = loaded;
        self.unload(layer, expert);
        self.bytes += weights.bytes();
        if let Some(place) = self.place(layer, expert) {
            self.places[place] = Some(Box::new(weights));
        }
    }

    /// Drops one expert and says whether it was there.
    pub fn unload(&mut self, layer: Layer, expert: Expert) -> bool {
        let dropped = self.place(layer, expert).and_then(|place| self.places[place].take());
        self.bytes -= dropped.as_ref().map_or(0, |weights| weights.bytes());
        dropped.is_some()
    }

    /// Whether an expert is resident.
    #[must_use]
    pub fn holds(&self, layer: Layer, expert: Expert) -> bool {
        self.weights(layer, expert).is_some()
    }

    /// Every resident expert, ascending.
    pub fn resident(&self) -> impl Iterator<Item = (Layer, Expert)> + '_ {
        let experts = self.spec().moe.experts;
        self.places.iter().enumerate().filter(|(_, weights)| weights.is_some()).map(
            move |(place, _)| (Layer((place / experts) as u16), Expert((place % experts) as u16)),
        )
    }

    /// Bytes of the resident experts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Computes rows of several experts of one layer in one launch.
    ///
    /// Each row's result, scaled by its weight, becomes wire row `output` of `out`, which gets as many rows
    /// as there are in `work`. Wire rows are [`Compute::row_bytes`](kernels::Compute::row_bytes) of the
    /// model's hidden width.
    ///
    /// # Errors
    /// If one of the experts is not resident; nothing is computed then.
    ///
    /// # Panics
    /// If a row does not fit the model, or outputs are not the numbers from 0 on.
    pub fn run(
        &self,
        layer: Layer,
        work: &[ExpertWork<'_>],
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let jobs = work
            .iter()
            .map(|work| {
                let expert = self.weights(layer, work.expert);
                let expert =
                    expert.ok_or(ModelError::NotResident { layer, expert: work.expert })?;
                Ok(FfnJob { expert, rows: work.rows })
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        grouped_ffn(&self.loader.cpu, &jobs, out);
        Ok(())
    }

    fn weights(&self, layer: Layer, expert: Expert) -> Option<&ExpertWeights> {
        self.place(layer, expert).and_then(|place| self.places[place].as_deref())
    }

    fn place(&self, layer: Layer, expert: Expert) -> Option<usize> {
        let spec = self.spec();
        (layer.index() < spec.layers.len() && expert.index() < spec.moe.experts)
            .then(|| layer.index() * spec.moe.experts + expert.index())
    }
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
        let prefix = format!("model.layers.{}.{}.{}.", layer.0, spec.names.experts, expert.0);
        let weights = Weights::new(&self.checkpoint, &self.cpu, prefix).mlp(
            spec.names.expert_parts,
            spec.hidden,
            spec.moe.width,
        )?;
        Ok(LoadedExpert { layer, expert, weights })
    }
}

/// A processor of one thread that computes the bits of `cpu`.
pub(crate) fn single_thread(cpu: &Cpu) -> Result<Cpu, ModelError> {
    let (compute, isa) = (cpu.compute(), Some(cpu.isa()));
    Ok(Cpu::new(&CpuOptions { threads: 1, compute, isa, pin: false })?)
}
