//! Products with a matrix for each head against f64, and the same rows in another batch.

use half::bf16;
use kernels::cuda::{CudaError, Device, HeadMatrices, HeadProduct, HeadsView};

use crate::check::Checks;
use crate::random::Random;

const HEADS: usize = 3;
const FEATURES: usize = 200;
const INNER: usize = 136;
const ROWS: usize = 71;
/// Heads lie apart, and behind something else.
const FROM: HeadsView = HeadsView { first: 8, row: 480, head: 152 };
const TO: HeadsView = HeadsView { first: 16, row: 640, head: 208 };

pub(crate) fn check(device: &Device, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    let mut random = Random(seed);
    let weights = random.halves(HEADS * FEATURES * INNER, 0.2);
    let matrices = HeadMatrices::new((HEADS, FEATURES, INNER), device.upload(&weights)?)?;
    let x = random.halves(ROWS * FROM.row, 1.0);
    let product = HeadProduct::new(device)?;
    let run = |x: &[bf16]| {
        let rows = x.len() / FROM.row;
        let mut out = device.alloc(rows * TO.row)?;
        device.poison(&mut out)?;
        let there = device.upload(x)?;
        product.launch(device, (&matrices, rows), (&there, FROM), (&mut out, TO))?;
        device.download(&out)
    };
    let all = run(&x)?;
    let name = format!("product of {ROWS} rows of {HEADS} heads");
    checks.close(&heads(&all), &reference(&weights, &x), 5e-3, &name);
    let kept = all.iter().filter(|x| x.is_nan()).count();
    let gaps = ROWS * (TO.row - HEADS * FEATURES);
    checks.expect(kept == gaps, &format!("{name}: what lies between them stays"));
    let some = run(&x[66 * FROM.row..])?;
    let same = heads(&some) == heads(&all)[66 * HEADS * FEATURES..];
    checks.expect(same, &format!("{name}: the same bits in a batch of 5"));
    checks.expect(run(&[])?.is_empty(), &format!("{name}: none at all"));
    Ok(())
}

/// `[rows, heads, features]` of an output.
fn heads(out: &[bf16]) -> Vec<bf16> {
    let row = |row: &[bf16]| -> Vec<bf16> {
        (0..HEADS).flat_map(|h| &row[TO.first + h * TO.head..][..FEATURES]).copied().collect()
    };
    out.chunks_exact(TO.row).flat_map(row).collect()
}

fn reference(weights: &[bf16], x: &[bf16]) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks_exact(FROM.row) {
        for head in 0..HEADS {
            let x = &row[FROM.first + head * FROM.head..][..INNER];
            let matrix = &weights[head * FEATURES * INNER..][..FEATURES * INNER];
            let dot =
                |w: &[bf16]| -> f64 { x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64()).sum() };
            out.extend(matrix.chunks_exact(INNER).map(dot));
        }
    }
    out
}
