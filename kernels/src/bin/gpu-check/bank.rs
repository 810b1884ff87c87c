//! A bank of experts against f64, and the same bits however many launches a run takes.

use std::sync::Arc;

use half::bf16;
use kernels::FfnRow;
use kernels::cuda::{BankJob, BankShape, CudaError, Device, ExpertBank, PairList, WeightForm};

use crate::check::Checks;
use crate::ffn::add_group;
use crate::layer::{Layer, odd_sizes};
use crate::random::Random;

const SLOTS: usize = 4;
const ROWS: usize = 9;

pub(crate) fn check(device: &Arc<Device>, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    for form in [WeightForm::Bf16, WeightForm::Fp8] {
        of_form(device, form, checks, seed)?;
    }
    Ok(())
}

fn of_form(
    device: &Arc<Device>,
    form: WeightForm,
    checks: &mut Checks,
    seed: u64,
) -> Result<(), CudaError> {
    let layer = Layer::random(form, odd_sizes(form), (SLOTS, ROWS), seed);
    let mut random = Random(seed + 3);
    let mut list = PairList::default();
    for (slot, count) in [(2, 5), (0, 11), (3, 0), (1, 3)] {
        add_group(&mut list, &mut random, slot, count, ROWS as u32);
    }
    let whole = run(device, (&layer, form), &list, list.row.len())?;
    let what = format!("a bank of experts in {form:?}");
    checks.close(&whole, &layer.reference(&list), 5e-3, &what);
    // Groups cut in two, groups that fill a launch, and a last launch of few.
    for pairs in [1, 4, 5, 16] {
        let same = run(device, (&layer, form), &list, pairs)? == whole;
        checks.expect(same, &format!("{what}, in launches of {pairs}: same bits"));
    }
    Ok(())
}

/// The list's outputs in its order, though they are asked for in the opposite one.
fn run(
    device: &Arc<Device>,
    (layer, form): (&Layer, WeightForm),
    list: &PairList,
    pairs: usize,
) -> Result<Vec<bf16>, CudaError> {
    let (hidden, inter) = (layer.hidden, layer.inter);
    let shape = BankShape { form, hidden, inter, groups: list.slot.len(), pairs };
    let mut bank = ExpertBank::new(Arc::clone(device), shape, SLOTS)?;
    for slot in 0..SLOTS {
        bank.write(slot as u32, layer.host(form, slot))?;
    }
    let wire: Vec<u8> = layer.x.iter().flat_map(|value| value.to_le_bytes()).collect();
    let inputs: Vec<&[u8]> = wire.chunks_exact(2 * hidden).collect();
    let last = list.row.len() - 1;
    let row = |pair: usize| FfnRow {
        input: inputs[list.row[pair] as usize],
        weight: list.weight[pair],
        output: last - pair,
    };
    let rows: Vec<FfnRow<'_>> = (0..=last).map(row).collect();
    let bounds = list.slot.iter().zip(list.first.windows(2));
    let jobs: Vec<BankJob<'_>> = bounds
        .map(|(&slot, b)| BankJob { slot, rows: &rows[b[0] as usize..b[1] as usize] })
        .collect();
    let mut out = Vec::new();
    bank.run(&jobs, &mut out)?;
    let values = out.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes));
    let values: Vec<bf16> = values.collect();
    Ok(values.chunks_exact(hidden).rev().flatten().copied().collect())
}
