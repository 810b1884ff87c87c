//! Where resident experts lie and rows go through them: in the processor's memory, or in slots on a GPU.

use std::sync::Arc;

use kernels::{
    Cpu, ExpertWeights, FfnJob, FfnRow,
    cuda::{BankJob, ExpertBank, HostExpert},
    grouped_ffn,
};

use super::loader::LoadedWeights;

/// Places for the experts of a model, some of them taken.
#[derive(Debug)]
pub(super) enum Bank {
    Cpu {
        cpu: Arc<Cpu>,
        places: Vec<Option<Box<ExpertWeights>>>,
    },
    Gpu {
        gpu: Box<ExpertBank>,
        /// The slot of each place.
        places: Vec<Option<u32>>,
        /// Slots that nobody is in, the next one last.
        free: Vec<u32>,
    },
}

/// Why an expert was not put into its place.
pub(super) enum NotPut {
    /// All slots are taken.
    Full {
        slots: usize,
    },
    Gpu(kernels::cuda::CudaError),
}

impl Bank {
    pub(super) fn cpu(cpu: Arc<Cpu>, places: usize) -> Self {
        Self::Cpu { cpu, places: vacant(places) }
    }

    pub(super) fn gpu(gpu: ExpertBank, places: usize) -> Self {
        let free = (0..gpu.slots() as u32).rev().collect();
        Self::Gpu { gpu: Box::new(gpu), places: vacant(places), free }
    }

    /// How many experts there is room for, if that is fixed.
    pub(super) fn slots(&self) -> Option<usize> {
        match self {
            Self::Cpu { .. } => None,
            Self::Gpu { gpu, .. } => Some(gpu.slots()),
        }
    }

    pub(super) fn places(&self) -> usize {
        match self {
            Self::Cpu { places, .. } => places.len(),
            Self::Gpu { places, .. } => places.len(),
        }
    }

    pub(super) fn holds(&self, place: usize) -> bool {
        match self {
            Self::Cpu { places, .. } => places[place].is_some(),
            Self::Gpu { places, .. } => places[place].is_some(),
        }
    }

    /// Puts an expert into an empty place; its bytes.
    pub(super) fn put(&mut self, place: usize, weights: LoadedWeights) -> Result<usize, NotPut> {
        match (self, weights) {
            (Self::Cpu { places, .. }, LoadedWeights::Packed(weights)) => {
                Ok(places[place].insert(weights).bytes())
            }
            (Self::Gpu { gpu, places, free }, LoadedWeights::Halves(weights)) => {
                let expert = HostExpert::Bf16(weights.each_ref().map(Vec::as_slice));
                write(gpu, &mut places[place], free, expert)
            }
            (Self::Gpu { gpu, places, free }, LoadedWeights::Coded(weights)) => {
                let expert = HostExpert::Fp8 {
                    codes: weights.each_ref().map(|part| part.codes.as_slice()),
                    scales: weights.each_ref().map(|part| part.scales.as_slice()),
                };
                write(gpu, &mut places[place], free, expert)
            }
            (Self::Cpu { .. }, LoadedWeights::Halves(_) | LoadedWeights::Coded(_))
            | (Self::Gpu { .. }, LoadedWeights::Packed(_)) => {
                unreachable!("a half installs what its own loaders have read")
            }
        }
    }

    /// Empties a place; the bytes of the expert that was there.
    pub(super) fn clear(&mut self, place: usize) -> Option<usize> {
        match self {
            Self::Cpu { places, .. } => places[place].take().map(|weights| weights.bytes()),
            Self::Gpu { gpu, places, free } => {
                free.push(places[place].take()?);
                Some(gpu.bytes_each())
            }
        }
    }

    /// Sends rows through the experts in taken places; see [`grouped_ffn`].
    pub(super) fn run<'a>(
        &mut self,
        work: impl Iterator<Item = (usize, &'a [FfnRow<'a>])>,
        out: &mut Vec<u8>,
    ) -> Result<(), kernels::cuda::CudaError> {
        match self {
            Self::Cpu { cpu, places } => {
                let jobs = work.filter_map(|(place, rows)| {
                    Some(FfnJob { expert: places[place].as_deref()?, rows })
                });
                grouped_ffn(cpu, &jobs.collect::<Vec<_>>(), out);
                Ok(())
            }
            Self::Gpu { gpu, places, .. } => {
                let jobs =
                    work.filter_map(|(place, rows)| Some(BankJob { slot: places[place]?, rows }));
                gpu.run(&jobs.collect::<Vec<_>>(), out)
            }
        }
    }
}

/// Takes the next free slot for an expert; its bytes.
fn write(
    gpu: &mut ExpertBank,
    place: &mut Option<u32>,
    free: &mut Vec<u32>,
    expert: HostExpert<'_>,
) -> Result<usize, NotPut> {
    let slot = free.pop().ok_or(NotPut::Full { slots: gpu.slots() })?;
    *place = Some(slot);
    gpu.write(slot, expert).map_err(NotPut::Gpu)?;
    Ok(gpu.bytes_each())
}

fn vacant<T>(places: usize) -> Vec<Option<T>> {
    std::iter::repeat_with(|| None).take(places).collect()
}
