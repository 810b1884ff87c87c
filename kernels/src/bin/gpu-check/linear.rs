//! Products with one matrix against f64, and the same row in two batches.

use half::bf16;
use kernels::cuda::{CudaError, Dense, Device, Exact, FfnKernel, Finish, Matrix, WeightForm};

use crate::check::Checks;
use crate::random::Random;

const FEATURES: usize = 344;
const INNER: usize = 200;

pub(crate) fn check(device: &Device, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    let mut random = Random(seed);
    let weights = random.halves(FEATURES * INNER, 0.2);
    let x = random.halves(137 * INNER, 1.0);
    let matrix = Matrix::new(device, (FEATURES, INNER), device.upload(&weights)?)?;
    let mut kernels = vec![FfnKernel::Portable];
    if FfnKernel::of(device, WeightForm::Bf16) == FfnKernel::Hopper {
        kernels.push(FfnKernel::Hopper);
    }
    for kernel in kernels {
        let all = product(device, kernel, &matrix, &x)?;
        let what = format!("product of 137 rows, {kernel:?}");
        checks.close(&all, &reference(&weights, &x), 5e-3, &what);
        for (row, rows) in [(0, 1), (100, 20)] {
            let some = product(device, kernel, &matrix, &x[row * INNER..(row + rows) * INNER])?;
            let same = some[..] == all[row * FEATURES..][..rows * FEATURES];
            checks.expect(same, &format!("{what}: the same bits in a batch of {rows}"));
        }
    }
    let what = "product of 137 rows, sums as they are";
    let mut dense = Dense::new(device, FfnKernel::Portable)?;
    let mut sums = |x: &[bf16]| {
        let mut out = device.alloc(x.len() / INNER * FEATURES)?;
        device.poison(&mut out)?;
        dense.launch_exact(device, &matrix, &device.upload(x)?, &mut out)?;
        device.download(&out)
    };
    let all = sums(&x)?;
    checks.close(&all, &reference(&weights, &x), 1e-6, what);
    let same = sums(&x[100 * INNER..][..3 * INNER])? == all[100 * FEATURES..][..3 * FEATURES];
    checks.expect(same, &format!("{what}: the same bits in a batch of 3"));
    gates(device, checks, &x, &mut random)
}

/// Weights in f32 that bf16 would not hold.
fn gates(
    device: &Device,
    checks: &mut Checks,
    x: &[bf16],
    random: &mut Random,
) -> Result<(), CudaError> {
    let exact = Exact::new(device)?;
    for (features, finish) in [(1, Finish::Sigmoid), (37, Finish::Sum)] {
        let weights = random.floats(features * INNER, 0.2);
        let there = device.upload(&weights)?;
        let run = |x: &[bf16]| {
            let mut out = device.alloc(x.len() / INNER * features)?;
            device.poison(&mut out)?;
            exact.launch(device, (&there, INNER), &device.upload(x)?, finish, &mut out)?;
            device.download(&out)
        };
        let all = run(x)?;
        let dot = |x: &[bf16], w: &[f32]| -> f64 {
            x.iter().zip(w).map(|(x, w)| x.to_f64() * f64::from(*w)).sum()
        };
        let row = |x| weights.chunks_exact(INNER).map(move |w| dot(x, w));
        let sums = x.chunks_exact(INNER).flat_map(row);
        let want: Vec<f64> = match finish {
            Finish::Sum => sums.collect(),
            Finish::Sigmoid => sums.map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        };
        let what = format!("gate of {features}");
        checks.close(&all, &want, 1e-6, &what);
        let same = run(&x[70 * INNER..][..2 * INNER])? == all[70 * features..][..2 * features];
        checks.expect(same, &format!("{what}: the same bits in a batch of 2"));
    }
    Ok(())
}

/// Runs twice with the same counters; the second run's output.
fn product(
    device: &Device,
    kernel: FfnKernel,
    matrix: &Matrix,
    x: &[bf16],
) -> Result<Vec<bf16>, CudaError> {
    let mut dense = Dense::new(device, kernel)?;
    let there = device.upload(x)?;
    let mut out = device.alloc(x.len() / INNER * FEATURES)?;
    for _ in 0..2 {
        device.poison(&mut out)?;
        dense.launch(device, matrix, &there, &mut out)?;
    }
    device.download(&out)
}

fn reference(weights: &[bf16], x: &[bf16]) -> Vec<f64> {
    let dot = |x: &[bf16], w: &[bf16]| -> f64 {
        x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64()).sum()
    };
    let row = |x| weights.chunks_exact(INNER).map(move |w| dot(x, w));
    x.chunks_exact(INNER).flat_map(row).collect()
}
