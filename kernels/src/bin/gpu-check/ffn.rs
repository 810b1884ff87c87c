//! The grouped SwiGLU against f64, and the same row in two different batches.

use half::bf16;
use kernels::cuda::{Buffer, CudaError, Device, Experts, FfnKernel, GroupedFfn, PairList, Pairs};

use crate::check::Checks;
use crate::random::Random;

pub(crate) fn check(device: &Device, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    let mut kernels = vec![FfnKernel::Portable];
    if FfnKernel::of(device) == FfnKernel::Hopper {
        kernels.push(FfnKernel::Hopper);
    }
    for kernel in kernels {
        for seed in seed..seed + 3 {
            against_f64(device, kernel, checks, seed)?;
        }
        for neighbours in [2, 12, 40, 90, 128, 200] {
            same_bits(device, kernel, checks, (seed, neighbours))?;
        }
        without_list(device, kernel, checks, seed)?;
    }
    Ok(())
}

/// A layer's experts and some rows, on both sides.
pub(crate) struct Layer {
    pub(crate) hidden: usize,
    pub(crate) inter: usize,
    rows: usize,
    pub(crate) x: Vec<bf16>,
    pub(crate) weights: [Vec<bf16>; 3],
}

impl Layer {
    pub(crate) fn random(
        (hidden, inter): (usize, usize),
        slots: usize,
        rows: usize,
        seed: u64,
    ) -> Self {
        let mut random = Random(seed);
        let x = random.halves(rows * hidden, 1.0);
        let weights = [(); 3].map(|()| random.halves(slots * hidden * inter, 0.2));
        Self { hidden, inter, rows, x, weights }
    }

    fn slots(&self) -> usize {
        self.weights[0].len() / (self.hidden * self.inter)
    }

    /// Runs the list twice with the same scratch memory and returns what both runs agree on.
    fn run(
        &self,
        device: &Device,
        kernel: FfnKernel,
        list: &PairList,
    ) -> Result<Vec<bf16>, CudaError> {
        let [gate, up, down] = &self.weights;
        let weights = [device.upload(gate)?, device.upload(up)?, device.upload(down)?];
        let experts = Experts::new(device, (self.slots(), self.hidden, self.inter), weights)?;
        let pairs = Pairs::upload(device, list, self.slots(), self.rows)?;
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

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Appends `count` random pairs of one expert.
pub(crate) fn add_group(
    list: &mut PairList,
    random: &mut Random,
    slot: u32,
    count: usize,
    rows: u32,
) {
    if list.first.is_empty() {
        list.first.push(0);
    }
    list.slot.push(slot);
    list.row.extend((0..count).map(|_| random.below(rows)));
    list.weight.extend((0..count).map(|_| random.uniform(1.0)));
    list.first.push(list.row.len() as u32);
}

/// Groups of every width the kernels know, an empty one, ones that take several tiles; features and
/// depths that are no multiple of a tile.
fn against_f64(
    device: &Device,
    kernel: FfnKernel,
    checks: &mut Checks,
    seed: u64,
) -> Result<(), CudaError> {
    let layer = Layer::random((264, 152), 5, 7, seed);
    let mut random = Random(seed + 1);
    let mut list = PairList::default();
    for count in [3, 0, 130, 17, 70] {
        let slot = random.below(5);
        add_group(&mut list, &mut random, slot, count, 7);
    }
    let got = layer.run(device, kernel, &list)?;
    let what = format!("grouped SwiGLU, {kernel:?}, seed {seed}");
    checks.close(&got, &layer.reference(&list), 5e-3, &what);
    Ok(())
}

/// A row alone, and the same row in the middle of `neighbours` others of its expert.
fn same_bits(
    device: &Device,
    kernel: FfnKernel,
    checks: &mut Checks,
    (seed, neighbours): (u64, usize),
) -> Result<(), CudaError> {
    let layer = Layer::random((136, 72), 2, 4, seed);
    let alone = PairList { slot: vec![1], first: vec![0, 1], row: vec![2], weight: vec![0.7] };
    let mut random = Random(seed + 2);
    let mut among = PairList::default();
    add_group(&mut among, &mut random, 0, 5, 4);
    add_group(&mut among, &mut random, 1, neighbours, 4);
    let place = 5 + neighbours / 2;
    (among.row[place], among.weight[place]) = (2, 0.7);
    let want = layer.run(device, kernel, &alone)?;
    let got = layer.run(device, kernel, &among)?;
    let same = !want.is_empty() && got[place * 136..][..136] == want[..];
    checks.expect(same, &format!("grouped SwiGLU, {kernel:?}: same bits among {neighbours} rows"));
    Ok(())
}

/// One expert over all rows, with and without weights: the bits that a list of all rows gives.
fn without_list(
    device: &Device,
    kernel: FfnKernel,
    checks: &mut Checks,
    seed: u64,
) -> Result<(), CudaError> {
    let layer = Layer::random((136, 72), 1, 141, seed);
    let mut random = Random(seed + 3);
    let list =
        |weight| PairList { slot: vec![0], first: vec![0, 141], row: (0..141).collect(), weight };
    let [gate, up, down] = &layer.weights;
    let weights = [device.upload(gate)?, device.upload(up)?, device.upload(down)?];
    let expert = Experts::new(device, (1, layer.hidden, layer.inter), weights)?;
    let x = device.upload(&layer.x)?;
    let mut ffn = GroupedFfn::new(device, kernel, (141, 1, layer.inter))?;
    for weight in [None, Some(random.floats(141, 1.0))] {
        let there = weight.as_ref().map(|weight| device.upload(weight)).transpose()?;
        let mut out: Buffer<bf16> = device.alloc(141 * layer.hidden)?;
        device.poison(&mut out)?;
        ffn.launch_all(device, &expert, (&x, there.as_ref()), &mut out)?;
        let what = format!("SwiGLU of all rows, {kernel:?}, weighted: {}", weight.is_some());
        let want = layer.run(device, kernel, &list(weight.unwrap_or_else(|| vec![1.0; 141])))?;
        let same = !want.is_empty() && bits(&device.download(&out)?) == bits(&want);
        checks.expect(same, &what);
    }
    Ok(())
}
