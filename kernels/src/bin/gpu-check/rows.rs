//! Residual sums, norms and the gate against f64.

use half::bf16;
use kernels::cuda::{Buffer, CudaError, Device, RouteSpec, Rows, Terms};

use crate::check::Checks;
use crate::random::Random;

pub(crate) fn check(device: &Device, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    let rows = Rows::new(device)?;
    for (count, width, biased) in [(0, 64, false), (1, 2056, true), (8, 4104, false)] {
        add_norm(device, &rows, checks, (count, width, biased), seed)?;
    }
    let plain = RouteSpec {
        experts: 128,
        top_k: 8,
        groups: (1, 1),
        sigmoid: false,
        normalize: true,
        scale: 1.0,
    };
    let few = RouteSpec { experts: 8, top_k: 2, ..plain };
    let odd = RouteSpec { experts: 72, top_k: 6, normalize: false, ..plain };
    let grouped = RouteSpec { experts: 256, groups: (8, 4), sigmoid: true, scale: 2.5, ..plain };
    for spec in [plain, few, odd, grouped] {
        route(device, &rows, checks, (&spec, seed))?;
    }
    edges(device, &rows, checks)
}

fn add_norm(
    device: &Device,
    kernels: &Rows,
    checks: &mut Checks,
    (count, width, biased): (usize, usize, bool),
    seed: u64,
) -> Result<(), CudaError> {
    const ROWS: usize = 5;
    let mut random = Random(seed);
    let mut residual = random.floats(ROWS * width, 1.0);
    let values = random.halves(9 * width, 1.0);
    let place: Vec<u32> = (0..ROWS * count).map(|_| random.below(9)).collect();
    let weight = random.halves(width, 2.0);
    let bias = random.floats(width, if biased { 1.0 } else { 0.0 });
    let bias_there = device.upload(&bias)?;
    let terms = Terms {
        values: &device.upload(&values)?,
        place: &device.upload(&place)?,
        count,
        bias: biased.then_some(&bias_there),
    };
    let mut residual_there = device.upload(&residual)?;
    let mut alone = device.upload(&residual)?;
    kernels.add(device, &mut alone, terms, width)?;
    let mut out: Buffer<bf16> = device.alloc(ROWS * width)?;
    device.poison(&mut out)?;
    let norm = (&device.upload(&weight)?, 1e-6);
    kernels.add_norm(device, &mut residual_there, terms, norm, &mut out)?;
    for (row, residual) in residual.chunks_exact_mut(width).enumerate() {
        for term in &place[row * count..][..count] {
            let term = &values[*term as usize * width..][..width];
            residual.iter_mut().zip(term).for_each(|(x, y)| *x += y.to_f32());
        }
        residual.iter_mut().zip(&bias).for_each(|(x, bias)| *x += bias);
    }
    let same =
        device.download(&residual_there)? == residual && device.download(&alone)? == residual;
    checks.expect(same, &format!("residual of {width} with {count} terms: exact"));
    let want: Vec<f64> =
        residual.chunks_exact(width).flat_map(|row| norm_of(row, &weight)).collect();
    checks.close(&device.download(&out)?, &want, 5e-3, &format!("norm of {width}"));
    Ok(())
}

fn norm_of(row: &[f32], weight: &[bf16]) -> Vec<f64> {
    let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
    let scale = 1.0 / (squares / row.len() as f64 + 1e-6).sqrt();
    row.iter().zip(weight).map(|(x, w)| f64::from(*x) * scale * w.to_f64()).collect()
}

fn route(
    device: &Device,
    kernels: &Rows,
    checks: &mut Checks,
    (spec, seed): (&RouteSpec, u64),
) -> Result<(), CudaError> {
    const ROWS: usize = 37;
    let mut random = Random(seed);
    let logits = random.floats(ROWS * spec.experts, 4.0);
    let bias = spec.sigmoid.then(|| random.floats(spec.experts, 0.5));
    let (chosen, weight) = run(device, kernels, spec, (&logits, bias.as_deref()))?;
    let rows = logits.chunks_exact(spec.experts).map(|row| reference(spec, row, bias.as_deref()));
    let want: Vec<(u32, f64)> = rows.flatten().collect();
    let (ids, weights): (Vec<u32>, Vec<f64>) = want.into_iter().unzip();
    let name = format!("{} of {} experts, {:?} groups", spec.top_k, spec.experts, spec.groups);
    checks.expect(chosen == ids, &format!("gate, {name}: the same experts"));
    checks.close(&weight, &weights, 1e-5, &format!("gate, {name}: weights"));
    Ok(())
}

fn run(
    device: &Device,
    kernels: &Rows,
    spec: &RouteSpec,
    (logits, bias): (&[f32], Option<&[f32]>),
) -> Result<(Vec<u32>, Vec<f32>), CudaError> {
    let rows = logits.len() / spec.experts;
    let mut chosen: Buffer<u32> = device.alloc(rows * spec.top_k)?;
    let mut weight: Buffer<f32> = device.alloc(rows * spec.top_k)?;
    device.poison(&mut chosen)?;
    device.poison(&mut weight)?;
    let bias = bias.map(|bias| device.upload(bias)).transpose()?;
    let input = (&device.upload(logits)?, bias.as_ref());
    kernels.route(device, spec, input, &mut chosen, &mut weight)?;
    Ok((device.download(&chosen)?, device.download(&weight)?))
}

/// One row in f64: experts ascending with their weights.
fn reference(spec: &RouteSpec, logits: &[f32], bias: Option<&[f32]>) -> Vec<(u32, f64)> {
    let logits = logits.iter().map(|x| f64::from(*x));
    let scores: Vec<f64> = if spec.sigmoid {
        logits.map(|x| 1.0 / (1.0 + (-x).exp())).collect()
    } else {
        let powers: Vec<f64> = logits.map(f64::exp).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|x| x / sum).collect()
    };
    let choice = |id: usize| scores[id] + bias.map_or(0.0, |bias| f64::from(bias[id]));
    let size = spec.experts / spec.groups.0;
    let worth = |group: &usize| {
        let mut of: Vec<f64> = (group * size..(group + 1) * size).map(choice).collect();
        of.sort_by(|a, b| b.total_cmp(a));
        of.iter().take(2).sum::<f64>()
    };
    let mut groups: Vec<usize> = (0..spec.groups.0).collect();
    groups.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
    let eligible = |id: &usize| groups[..spec.groups.1].contains(&(id / size));
    let mut ids: Vec<usize> = (0..spec.experts).filter(eligible).collect();
    ids.sort_by(|a, b| choice(*b).total_cmp(&choice(*a)));
    ids.truncate(spec.top_k);
    ids.sort_unstable();
    let sum: f64 = if spec.normalize { ids.iter().map(|id| scores[*id]).sum() } else { 1.0 };
    ids.iter().map(|id| (*id as u32, scores[*id] / sum * f64::from(spec.scale))).collect()
}

/// Ties go to the lower expert, NaN loses, and a kept group's worst beats an other group's best.
fn edges(device: &Device, kernels: &Rows, checks: &mut Checks) -> Result<(), CudaError> {
    let spec = RouteSpec {
        experts: 64,
        top_k: 4,
        groups: (1, 1),
        sigmoid: false,
        normalize: true,
        scale: 1.0,
    };
    let mut logits = vec![0.5; 64];
    logits[0] = f32::NAN;
    logits[63] = 1.0;
    let (chosen, _) = run(device, kernels, &spec, (&logits, None))?;
    checks.expect(chosen == [1, 2, 3, 63], "gate: ties to the lower expert, NaN loses");
    let (chosen, _) = run(device, kernels, &spec, (&[f32::NEG_INFINITY; 64], None))?;
    checks.expect(chosen == [0, 1, 2, 3], "gate: a row of nothing still names experts");
    let grouped = RouteSpec { groups: (4, 1), sigmoid: true, ..spec };
    let mut logits = vec![-9.0; 64];
    (logits[5], logits[20], logits[21]) = (3.0, 2.0, 2.0);
    let (chosen, _) = run(device, kernels, &grouped, (&logits, None))?;
    checks.expect(chosen == [16, 17, 20, 21], "gate: the best pair decides between groups");
    Ok(())
}
