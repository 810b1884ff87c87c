//! The grouped SwiGLU against f64, and the same row in two different batches.

use half::bf16;
use kernels::cuda::{Buffer, CudaError, Device, FfnKernel, GroupedFfn, PairList, WeightForm};

use crate::check::Checks;
use crate::layer::{Layer, odd_sizes};
use crate::random::Random;

pub(crate) fn check(device: &Device, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    let mut kernels = vec![FfnKernel::Portable, FfnKernel::PortableFp8];
    if FfnKernel::of(device, WeightForm::Bf16) == FfnKernel::Hopper {
        kernels.extend([FfnKernel::Hopper, FfnKernel::HopperFp8]);
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
    as_in_bf16(device, checks, seed)
}

pub(crate) fn bits(values: &[bf16]) -> Vec<u16> {
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

/// Groups of every width the kernels know, an empty one, ones that take several tiles.
fn several_tiles(seed: u64) -> PairList {
    let (mut list, mut random) = (PairList::default(), Random(seed + 1));
    for count in [3, 0, 130, 17, 70] {
        let slot = random.below(4);
        add_group(&mut list, &mut random, slot, count, 7);
    }
    list
}

/// Weights in fp8 give the bits that their values give in bf16; features and depths of two and of three blocks.
fn as_in_bf16(device: &Device, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    for sizes in [(272, 144), (144, 272)] {
        let layer = Layer::random(WeightForm::Fp8, sizes, (4, 7), seed);
        let list = several_tiles(seed);
        let [got, want] = [WeightForm::Fp8, WeightForm::Bf16]
            .map(|form| layer.run(device, FfnKernel::of(device, form), &list));
        let (got, want) = (got?, want?);
        let same = !got.is_empty() && bits(&got) == bits(&want);
        checks.expect(same, &format!("grouped SwiGLU in fp8, {sizes:?}: the bits of bf16"));
    }
    Ok(())
}

/// Features and depths that are no multiple of a tile.
fn against_f64(
    device: &Device,
    kernel: FfnKernel,
    checks: &mut Checks,
    seed: u64,
) -> Result<(), CudaError> {
    let sizes = match kernel.form() {
        WeightForm::Bf16 => (264, 152),
        WeightForm::Fp8 => (272, 144),
    };
    let layer = Layer::random(kernel.form(), sizes, (4, 7), seed);
    let list = several_tiles(seed);
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
    let layer = Layer::random(kernel.form(), odd_sizes(kernel.form()), (2, 4), seed);
    let alone = PairList { slot: vec![1], first: vec![0, 1], row: vec![2], weight: vec![0.7] };
    let mut random = Random(seed + 2);
    let mut among = PairList::default();
    add_group(&mut among, &mut random, 0, 5, 4);
    add_group(&mut among, &mut random, 1, neighbours, 4);
    let place = 5 + neighbours / 2;
    (among.row[place], among.weight[place]) = (2, 0.7);
    let want = layer.run(device, kernel, &alone)?;
    let got = layer.run(device, kernel, &among)?;
    let same = !want.is_empty() && got[place * layer.hidden..][..layer.hidden] == want[..];
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
    let layer = Layer::random(kernel.form(), odd_sizes(kernel.form()), (1, 141), seed);
    let mut random = Random(seed + 3);
    let list =
        |weight| PairList { slot: vec![0], first: vec![0, 141], row: (0..141).collect(), weight };
    let expert = layer.experts(device, kernel.form())?;
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
