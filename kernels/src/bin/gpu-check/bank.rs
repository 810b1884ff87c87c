//! A bank of experts against f64, and the same bits however many launches a run takes.

use std::sync::Arc;

use half::bf16;
use kernels::FfnRow;
use kernels::cuda::{BankJob, BankShape, CudaError, Device, ExpertBank, PairList};

use crate::check::Checks;
use crate::ffn::{Layer, add_group};
use crate::random::Random;

const SLOTS: usize = 4;
const ROWS: usize = 9;

pub(crate) fn check(device: &Arc<Device>, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    let layer = Layer::random((136, 72), SLOTS, ROWS, seed);
    let mut random = Random(seed + 3);
    let mut list = PairList::default();
    for (slot, count) in [(2, 5), (0, 11), (3, 0), (1, 3)] {
        add_group(&mut list, &mut random, slot, count, ROWS as u32);
    }
    let whole = run(device, &layer, &list, list.row.len())?;
    checks.close(&whole, &layer.reference(&list), 5e-3, "a bank of experts");
    // Groups cut in two, groups that fill a launch, and a last launch of few.
    for pairs in [1, 4, 5, 16] {
        let same = run(device, &layer, &list, pairs)? == whole;
        checks.expect(same, &format!("a bank in launches of {pairs}: same bits"));
    }
    Ok(())
}

/// The list's outputs in its order, though they are asked for in the opposite one.
fn run(
    device: &Arc<Device>,
    layer: &Layer,
    list: &PairList,
    pairs: usize,
) -> Result<Vec<bf16>, CudaError> {
    let (hidden, inter) = (layer.hidden, layer.inter);
    let shape = BankShape { hidden, inter, groups: list.slot.len(), pairs };
    let mut bank = ExpertBank::new(Arc::clone(device), shape, SLOTS)?;
    let each = hidden * inter;
    for slot in 0..SLOTS {
        let part = |weights: &'_ Vec<bf16>| weights[slot * each..][..each].to_vec();
        let [gate, up, down] = layer.weights.each_ref().map(part);
        bank.write(slot as u32, [&gate, &up, &down])?;
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
