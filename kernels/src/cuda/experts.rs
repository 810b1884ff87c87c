//! The weights of experts on a device, in bf16 or as E4M3 codes with a scale for each block.

use cudarc::driver::DeviceRepr;
use half::bf16;

use super::device::{Buffer, Device};
use super::error::{CudaError, require};
use super::ffn::{FfnKernel, Params};
use super::tensor_map::TensorMap;
use crate::fp8::fp8_blocks;

/// How weights lie on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightForm {
    /// Two bytes each.
    Bf16,
    /// E4M3 codes, a byte each, and a scale in f32 for each block of [`FP8_BLOCK`](crate::FP8_BLOCK) rows and columns. A
    /// weight is its code's value times the scale, rounded to f32 and then to bf16: both forms of equal values give
    /// equal bits on a device.
    Fp8,
}

/// The weights of one expert on the host: gate and up, `[inter, hidden]`, and down, `[hidden, inter]`.
#[derive(Debug, Clone, Copy)]
pub enum HostExpert<'a> {
    /// Values.
    Bf16([&'a [bf16]; 3]),
    /// Codes, and the scales of each matrix's blocks, `[blocks of rows, blocks of columns]`.
    Fp8 {
        /// All of them numbers: see [`fp8_nan`](crate::fp8_nan).
        codes: [&'a [u8]; 3],
        /// All of them such that no value overflows.
        scales: [&'a [f32]; 3],
    },
}

/// The weights of the experts that a device holds for one layer.
#[derive(Debug)]
pub struct Experts {
    slots: usize,
    pub(super) hidden: usize,
    pub(super) inter: usize,
    weights: Weights,
    /// How the copy engine reads gate, up and down, on a device where it does.
    maps: Option<Box<[TensorMap; 3]>>,
}

/// Gate, up and down of all slots.
#[derive(Debug)]
enum Weights {
    Bf16([Buffer<bf16>; 3]),
    Fp8 { codes: [Buffer<u8>; 3], scales: [Buffer<f32>; 3] },
}

// === impl WeightForm ===

impl WeightForm {
    /// Whether rows of `hidden` and of `inter` weights are copied in whole chunks of sixteen bytes.
    #[must_use]
    pub fn fits(self, hidden: usize, inter: usize) -> bool {
        let unit = self.unit();
        hidden.is_multiple_of(unit) && inter.is_multiple_of(unit)
    }

    /// Bytes of an expert's weights on a device.
    #[must_use]
    pub fn expert_bytes(self, hidden: usize, inter: usize) -> usize {
        let each = hidden * inter;
        match self {
            Self::Bf16 => 3 * each * size_of::<bf16>(),
            Self::Fp8 => 3 * (each + blocks(hidden, inter) * size_of::<f32>()),
        }
    }

    /// Weights of sixteen bytes.
    fn unit(self) -> usize {
        match self {
            Self::Bf16 => 8,
            Self::Fp8 => 16,
        }
    }
}

/// Blocks of each of an expert's matrices.
fn blocks(hidden: usize, inter: usize) -> usize {
    fp8_blocks(inter, hidden).into_iter().product()
}

impl Weights {
    fn form(&self) -> WeightForm {
        match self {
            Self::Bf16(_) => WeightForm::Bf16,
            Self::Fp8 { .. } => WeightForm::Fp8,
        }
    }
}

// === impl Experts ===

impl Experts {
    /// Takes over weights in bf16: `gate` and `up` are `[slots, inter, hidden]`, `down` is `[slots, hidden, inter]`.
    ///
    /// # Errors
    /// When the sizes do not fit, or `hidden` or `inter` is no multiple of 8.
    pub fn new(
        device: &Device,
        (slots, hidden, inter): (usize, usize, usize),
        values: [Buffer<bf16>; 3],
    ) -> Result<Self, CudaError> {
        check(WeightForm::Bf16, (slots, hidden, inter))?;
        for (name, values) in ["gate", "up", "down"].iter().zip(&values) {
            require(values.len() == slots * hidden * inter, || {
                let have = values.len();
                format!("{name} weights: {have} values for {slots} experts of {hidden} x {inter}")
            })?;
        }
        Self::with(device, Weights::Bf16(values), (slots, hidden, inter))
    }

    /// Slots that nobody has written yet.
    ///
    /// # Errors
    /// When the device has no memory for them, or `hidden` or `inter` does not [fit](WeightForm::fits) the form.
    pub fn vacant(
        device: &Device,
        form: WeightForm,
        (slots, hidden, inter): (usize, usize, usize),
    ) -> Result<Self, CudaError> {
        check(form, (slots, hidden, inter))?;
        let each = slots * hidden * inter;
        match form {
            WeightForm::Bf16 => {
                let values = [device.alloc(each)?, device.alloc(each)?, device.alloc(each)?];
                Self::new(device, (slots, hidden, inter), values)
            }
            WeightForm::Fp8 => {
                let codes = [device.alloc(each)?, device.alloc(each)?, device.alloc(each)?];
                let each = slots * blocks(hidden, inter);
                let scales = [device.alloc(each)?, device.alloc(each)?, device.alloc(each)?];
                Self::with(device, Weights::Fp8 { codes, scales }, (slots, hidden, inter))
            }
        }
    }

    fn with(
        device: &Device,
        weights: Weights,
        (slots, hidden, inter): (usize, usize, usize),
    ) -> Result<Self, CudaError> {
        let [tall, wide] = [(slots * inter, hidden), (slots * hidden, inter)];
        let map = |part: usize, (rows, width): (usize, usize)| match &weights {
            Weights::Bf16(values) => TensorMap::of(&values[part], rows, width),
            Weights::Fp8 { codes, .. } => TensorMap::of_codes(&codes[part], rows, width),
        };
        let maps = match FfnKernel::of(device, weights.form()) {
            FfnKernel::Hopper | FfnKernel::HopperFp8 => {
                Some(Box::new([map(0, tall)?, map(1, tall)?, map(2, wide)?]))
            }
            FfnKernel::Portable | FfnKernel::PortableFp8 => None,
        };
        Ok(Self { slots, hidden, inter, weights, maps })
    }

    /// How many experts it has room for.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// How the weights lie.
    #[must_use]
    pub fn form(&self) -> WeightForm {
        self.weights.form()
    }

    /// Puts other weights into a slot, behind the launches before.
    ///
    /// # Errors
    /// When there is no such slot, the form or a length is another, or the copy fails.
    pub fn write(
        &mut self,
        device: &Device,
        slot: usize,
        expert: HostExpert<'_>,
    ) -> Result<(), CudaError> {
        require(slot < self.slots, || format!("slot {slot} of {}", self.slots))?;
        let each = self.hidden * self.inter;
        match (&mut self.weights, expert) {
            (Weights::Bf16(values), HostExpert::Bf16(from)) => {
                put(device, values, (slot, each), from)
            }
            (Weights::Fp8 { codes, scales }, HostExpert::Fp8 { codes: from, scales: factors }) => {
                put(device, codes, (slot, each), from)?;
                put(device, scales, (slot, blocks(self.hidden, self.inter)), factors)
            }
            (Weights::Bf16(_) | Weights::Fp8 { .. }, _) => {
                Err(CudaError::Shape("weights of another form than the slots are of".into()))
            }
        }
    }

    /// Bytes of one expert's weights.
    #[must_use]
    pub fn bytes_each(&self) -> usize {
        self.form().expert_bytes(self.hidden, self.inter)
    }

    /// How the copy engine reads gate, up and down, on a device where it does.
    pub(super) fn maps(&self) -> Option<&[TensorMap; 3]> {
        self.maps.as_deref()
    }

    /// Parameters that say where the weights are.
    pub(super) fn params(&self) -> Params {
        match &self.weights {
            Weights::Bf16([gate, up, down]) => Params {
                gate: gate.pointer(),
                up: up.pointer(),
                down: down.pointer(),
                ..Params::default()
            },
            Weights::Fp8 { codes: [gate, up, down], scales } => Params {
                gate: gate.pointer(),
                up: up.pointer(),
                down: down.pointer(),
                gate_scale: scales[0].pointer(),
                up_scale: scales[1].pointer(),
                down_scale: scales[2].pointer(),
                ..Params::default()
            },
        }
    }
}

fn check(form: WeightForm, (slots, hidden, inter): (usize, usize, usize)) -> Result<(), CudaError> {
    require(form.fits(hidden, inter) && slots * hidden * inter > 0, || {
        let unit = form.unit();
        format!("experts of {hidden} x {inter}: both must be multiples of {unit}, and some must be")
    })
}

/// Writes slot `slot` of `each` values of three matrices.
fn put<T: DeviceRepr>(
    device: &Device,
    to: &mut [Buffer<T>; 3],
    (slot, each): (usize, usize),
    from: [&[T]; 3],
) -> Result<(), CudaError> {
    require(from.iter().all(|part| part.len() == each), || {
        let lens = from.map(<[T]>::len);
        format!("slot {slot}: parts of {lens:?} values, expected {each} each")
    })?;
    for (to, from) in to.iter_mut().zip(from) {
        device.write(to, slot * each, from)?;
    }
    Ok(())
}
