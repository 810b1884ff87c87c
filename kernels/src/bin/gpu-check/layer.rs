//! Experts and rows to check a grouped SwiGLU with, on the device and in f64.

use half::bf16;
use kernels::FP8_BLOCK;
use kernels::cuda::{
    Buffer, CudaError, Device, Experts, FfnKernel, GroupedFfn, HostExpert, PairList, Pairs,
    WeightForm,
};

use crate::ffn::bits;
use crate::random::Random;

/// A layer's experts and some rows.
pub(crate) struct Layer {
    pub(crate) hidden: usize,
    pub(crate) inter: usize,
    slots: usize,
    rows: usize,
    pub(crate) x: Vec<bf16>,
    /// Gate, up and down of every slot, also where there are codes: what those stand for.
    weights: [Vec<bf16>; 3],
    /// Codes and scales, empty for a layer in bf16.
    codes: [Vec<u8>; 3],
    scales: [Vec<f32>; 3],
}

/// Sizes that a form just allows: no multiples of a tile, nor of more than a copy moves at once.
pub(crate) fn odd_sizes(form: WeightForm) -> (usize, usize) {
    match form {
        WeightForm::Bf16 => (136, 72),
        WeightForm::Fp8 => (144, 80),
    }
}

impl Layer {
    pub(crate) fn random(
        form: WeightForm,
        (hidden, inter): (usize, usize),
        (slots, rows): (usize, usize),
        seed: u64,
    ) -> Self {
        let mut random = Random(seed);
        let x = random.halves(rows * hidden, 1.0);
        let (mut codes, mut scales) = <([Vec<u8>; 3], [Vec<f32>; 3])>::default();
        let shapes = [(inter, hidden), (inter, hidden), (hidden, inter)];
        let weights = [0, 1, 2].map(|part| match form {
            WeightForm::Bf16 => random.halves(slots * hidden * inter, 0.2),
            WeightForm::Fp8 => {
                let values;
                (codes[part], scales[part], values) = coded(&mut random, slots, shapes[part]);
                values
            }
        });
        Self { hidden, inter, slots, rows, x, weights, codes, scales }
    }

    /// The weights of a slot.
    pub(crate) fn host(&self, form: WeightForm, slot: usize) -> HostExpert<'_> {
        match form {
            WeightForm::Bf16 => HostExpert::Bf16(self.part(&self.weights, slot)),
            WeightForm::Fp8 => HostExpert::Fp8 {
                codes: self.part(&self.codes, slot),
                scales: self.part(&self.scales, slot),
            },
        }
    }

    fn part<'a, T>(&self, of: &'a [Vec<T>; 3], slot: usize) -> [&'a [T]; 3] {
        of.each_ref().map(|all| {
            let each = all.len() / self.slots;
            &all[slot * each..][..each]
        })
    }

    /// All slots on a device.
    pub(crate) fn experts(&self, device: &Device, form: WeightForm) -> Result<Experts, CudaError> {
        let mut experts = Experts::vacant(device, form, (self.slots, self.hidden, self.inter))?;
        for slot in 0..self.slots {
            experts.write(device, slot, self.host(form, slot))?;
        }
        Ok(experts)
    }

    /// Runs the list twice with the same scratch memory and returns what both runs agree on.
    pub(crate) fn run(
        &self,
        device: &Device,
        kernel: FfnKernel,
        list: &PairList,
    ) -> Result<Vec<bf16>, CudaError> {
        let experts = self.experts(device, kernel.form())?;
        let pairs = Pairs::upload(device, list, self.slots, self.rows)?;
        let x = device.upload(&self.x)?;
        let sizes = (list.row.len(), list.slot.len(), self.inter);
        let mut ffn = GroupedFfn::new(device, kernel, sizes)?;
        let mut out: Buffer<bf16> = device.alloc(list.row.len() * self.hidden)?;
        let mut runs = Vec::new();
        for _ in 0..2 {
            device.poison(&mut out)?;
            ffn.launch(device, &experts, (&x, &pairs), &mut out)?;
            runs.push(device.download(&out)?);
        }
        let agree = bits(&runs[0]) == bits(&runs[1]);
        Ok(if agree { runs.swap_remove(0) } else { Vec::new() })
    }

    pub(crate) fn reference(&self, list: &PairList) -> Vec<f64> {
        let bounds = list.slot.iter().zip(list.first.windows(2));
        let slots = bounds.flat_map(|(slot, b)| (b[0]..b[1]).map(move |pair| (*slot, pair)));
        slots.flat_map(|(slot, pair)| self.row(slot as usize, list, pair as usize)).collect()
    }

    fn row(&self, slot: usize, list: &PairList, pair: usize) -> Vec<f64> {
        let [gate, up, down] = &self.weights;
        let x = &self.x[list.row[pair] as usize * self.hidden..][..self.hidden];
        let x: Vec<f64> = x.iter().map(|v| v.to_f64()).collect();
        let act: Vec<f64> = (0..self.inter)
            .map(|i| {
                let at = (slot * self.inter + i) * self.hidden;
                let gate = dot(&gate[at..], &x);
                gate / (1.0 + (-gate).exp()) * dot(&up[at..], &x)
            })
            .collect();
        let weight = f64::from(list.weight[pair]);
        let at = |m| (slot * self.hidden + m) * self.inter;
        (0..self.hidden).map(|m| weight * dot(&down[at(m)..], &act)).collect()
    }
}

fn dot(a: &[bf16], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a.to_f64() * b).sum()
}

/// Codes that are numbers, scales for the blocks of each slot, and the values they stand for.
fn coded(
    random: &mut Random,
    slots: usize,
    (rows, cols): (usize, usize),
) -> (Vec<u8>, Vec<f32>, Vec<bf16>) {
    let number = |code: u8| if code & 0x7f == 0x7f { 0x38 } else { code };
    let codes: Vec<u8> = (0..slots * rows * cols).map(|_| number(random.next() as u8)).collect();
    let blocks = [rows.div_ceil(FP8_BLOCK), cols.div_ceil(FP8_BLOCK)];
    let each = blocks[0] * blocks[1];
    let scales: Vec<f32> = (0..slots * each).map(|_| 1e-3 + random.uniform(5e-4)).collect();
    let value = |(at, &code): (usize, &u8)| {
        let (slot, row, col) = (at / (rows * cols), at / cols % rows, at % cols);
        let block = row / FP8_BLOCK * blocks[1] + col / FP8_BLOCK;
        bf16::from_f32(decoded(code) * scales[slot * each + block])
    };
    let values = codes.iter().enumerate().map(value).collect();
    (codes, scales, values)
}

/// What a code stands for, as its format is defined.
fn decoded(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match exponent {
        0 => fraction * 2_f32.powi(-9),
        _ => (8.0 + fraction) * 2_f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { size } else { -size }
}
