//! The expert half: experts that are loaded one by one, and the grouped FFN over the rows they are sent.

mod bank;
mod loader;

use std::sync::Arc;

use domain::{Expert, Layer};
use kernels::{
    Cpu, FfnRow,
    cuda::{BankShape, Device, ExpertBank, WeightForm},
};

use self::bank::{Bank, NotPut};
use self::loader::Form;
pub(crate) use self::loader::single_thread;
pub use self::loader::{ExpertLoader, LoadedExpert};
use crate::{Checkpoint, ModelError, ModelSpec};

/// The experts of a model that one node holds.
#[derive(Debug)]
pub struct ExpertHalf {
    loader: ExpertLoader,
    /// Its places are `[layer][expert]`, flattened; dense layers have their empty places too.
    bank: Bank,
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

impl ExpertHalf {
    /// A half that computes on the processor and holds no expert yet. It has room for as many as memory has.
    #[must_use]
    pub fn new(checkpoint: Arc<Checkpoint>, cpu: Arc<Cpu>) -> Self {
        let bank = Bank::cpu(Arc::clone(&cpu), places(checkpoint.spec()));
        Self { loader: ExpertLoader { checkpoint, cpu, form: Form::Packed }, bank, bytes: 0 }
    }

    /// A half that computes on a GPU, in launches of at most `pairs` rows for experts, and holds no expert yet. It takes
    /// its memory now: at most `bytes` of the GPU's, and for no more than all experts of the model. `cpu` reads experts.
    /// Experts that the checkpoint has in fp8 stay so, in half the memory; their results have the bits that the same
    /// values in bf16 give.
    ///
    /// # Errors
    /// If the GPU does not compute such experts or has no room for one.
    pub fn on_gpu(
        checkpoint: Arc<Checkpoint>,
        cpu: Arc<Cpu>,
        gpu: Arc<Device>,
        (bytes, pairs): (usize, usize),
    ) -> Result<Self, ModelError> {
        let spec = checkpoint.spec();
        let (hidden, inter) = (spec.hidden, spec.moe.width);
        // Codes stay codes, in half the memory, where every expert is stored so and rows are whole chunks.
        let form = match WeightForm::Fp8.fits(hidden, inter) && checkpoint.has_fp8_experts() {
            true => WeightForm::Fp8,
            false => WeightForm::Bf16,
        };
        let shape = BankShape { form, hidden, inter, groups: spec.moe.experts, pairs };
        let slots = shape.slots_within(bytes).min(spec.shape().slots().count());
        if slots == 0 {
            let each = form.expert_bytes(hidden, inter);
            return Err(ModelError::NoRoomAtAll { bytes, each, pairs });
        }
        let bank = Bank::gpu(ExpertBank::new(gpu, shape, slots)?, places(spec));
        Ok(Self {
            loader: ExpertLoader { checkpoint, cpu, form: Form::Plain(form) },
            bank,
            bytes: 0,
        })
    }

    /// The model this is a half of.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        self.loader.checkpoint.spec()
    }

    /// Bytes of one row in wire form.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.loader.cpu.compute().row_bytes(self.spec().hidden)
    }

    /// How many experts it has room for, if that is fixed.
    #[must_use]
    pub fn slots(&self) -> Option<usize> {
        self.bank.slots()
    }

    /// Loads one expert on the engine's processor; nothing to do if it is there.
    ///
    /// # Errors
    /// If the model has no such expert, its tensors are missing or wrong, or there is no room for it.
    pub fn load_expert(&mut self, layer: Layer, expert: Expert) -> Result<(), ModelError> {
        if self.holds(layer, expert) {
            return Ok(());
        }
        let loaded = self.loader.load(layer, expert)?;
        self.install(loaded)
    }

    /// A loader with a processor of its own, one thread, so that experts can be read while the engine computes.
    ///
    /// # Errors
    /// If the processor cannot be opened.
    pub fn loader(&self) -> Result<ExpertLoader, ModelError> {
        self.loader.beside()
    }

    /// Takes an expert that a [`loader`](Self::loader) has read.
    ///
    /// # Errors
    /// If there is no room for it, or the GPU fails.
    pub fn install(&mut self, loaded: LoadedExpert) -> Result<(), ModelError> {
        let LoadedExpert { layer, expert, weights } = loaded;
        self.unload(layer, expert);
        let Some(place) = self.place(layer, expert) else { return Ok(()) };
        let put = self.bank.put(place, weights);
        self.bytes += put.map_err(|why| match why {
            NotPut::Full { slots } => ModelError::NoRoom { layer, expert, slots },
            NotPut::Gpu(error) => ModelError::Gpu(error),
        })?;
        Ok(())
    }

    /// Drops one expert and says whether it was there.
    pub fn unload(&mut self, layer: Layer, expert: Expert) -> bool {
        let freed = self.place(layer, expert).and_then(|place| self.bank.clear(place));
        self.bytes -= freed.unwrap_or(0);
        freed.is_some()
    }

    /// Whether an expert is resident.
    #[must_use]
    pub fn holds(&self, layer: Layer, expert: Expert) -> bool {
        self.place(layer, expert).is_some_and(|place| self.bank.holds(place))
    }

    /// Every resident expert, ascending.
    pub fn resident(&self) -> impl Iterator<Item = (Layer, Expert)> + '_ {
        let experts = self.spec().moe.experts;
        (0..self.bank.places())
            .filter(|&place| self.bank.holds(place))
            .map(move |place| (Layer((place / experts) as u16), Expert((place % experts) as u16)))
    }

    /// Bytes of the resident experts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Computes rows of several experts of one layer in one launch.
    ///
    /// Each row's result, scaled by its weight, becomes wire row `output` of `out`, which gets as many rows
    /// as there are in `work`. Wire rows are [`row_bytes`](Self::row_bytes) long.
    ///
    /// # Errors
    /// If one of the experts is not resident, when nothing is computed, or the GPU fails.
    ///
    /// # Panics
    /// If a row does not fit the model, or outputs are not the numbers from 0 on.
    pub fn run(
        &mut self,
        layer: Layer,
        work: &[ExpertWork<'_>],
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let place = |work: &ExpertWork<'_>| {
            let place = self.place(layer, work.expert).filter(|&place| self.bank.holds(place));
            place.ok_or(ModelError::NotResident { layer, expert: work.expert })
        };
        let places = work.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        let work = places.into_iter().zip(work.iter().map(|work| work.rows));
        Ok(self.bank.run(work, out)?)
    }

    fn place(&self, layer: Layer, expert: Expert) -> Option<usize> {
        let spec = self.spec();
        (layer.index() < spec.layers.len() && expert.index() < spec.moe.experts)
            .then(|| layer.index() * spec.moe.experts + expert.index())
    }
}

/// Places for all experts that the layers of a model could have.
fn places(spec: &ModelSpec) -> usize {
    spec.layers.len() * spec.moe.experts
}
