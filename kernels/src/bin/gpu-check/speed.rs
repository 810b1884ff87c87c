//! How fast the kernels are, beside the rate at which the device reads memory.

mod latent;
mod movers;

use half::bf16;
use kernels::cuda::{
    Buffer, CudaError, Device, Experts, FfnKernel, GroupedFfn, PairList, Pairs, Probe, WeightForm,
    filled,
};

use crate::check::Checks;
use crate::layer::Layer;
use crate::random::Random;

/// Expert shapes of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) model: &'static str,
    pub(crate) hidden: usize,
    pub(crate) inter: usize,
    pub(crate) experts: usize,
    pub(crate) form: WeightForm,
}

const SHAPES: [Shape; 4] = [
    shape("Qwen3-30B-A3B", (2048, 768), 128, WeightForm::Bf16),
    shape("Mixtral-8x7B", (4096, 14336), 8, WeightForm::Bf16),
    shape("DeepSeek-V3", (7168, 2048), 256, WeightForm::Bf16),
    shape("DeepSeek-V3 in fp8", (7168, 2048), 256, WeightForm::Fp8),
];

/// For a machine where nothing is fast.
const TINY: [Shape; 2] = [
    shape("tiny", (128, 64), 3, WeightForm::Bf16),
    shape("tiny in fp8", (128, 64), 3, WeightForm::Fp8),
];

const fn shape(
    model: &'static str,
    (hidden, inter): (usize, usize),
    experts: usize,
    form: WeightForm,
) -> Shape {
    Shape { model, hidden, inter, experts, form }
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) shape: Shape,
    pub(crate) kernel: FfnKernel,
    pub(crate) tokens: usize,
    pub(crate) milliseconds: f64,
    /// Weights, rows and outputs, each once.
    pub(crate) bytes: f64,
    pub(crate) operations: f64,
}

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Speed {
    /// Bytes a second of a pass that only reads.
    pub(crate) stream: f64,
    pub(crate) lines: Vec<Line>,
    /// The kernels that mostly move bytes.
    pub(crate) movers: Vec<Mover>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Mover {
    pub(crate) what: String,
    pub(crate) milliseconds: f64,
    /// In and out, each once.
    pub(crate) bytes: f64,
    /// Of products.
    pub(crate) operations: f64,
}

/// Measures every shape at 1 to 512 tokens for each expert; `tiny` is a rehearsal.
pub(crate) fn measure(
    device: &Device,
    checks: &mut Checks,
    tiny: bool,
) -> Result<Speed, CudaError> {
    let probe = Probe::new(device)?;
    let stream = stream_rate(device, &probe, if tiny { 1 << 14 } else { 1 << 32 })?;
    let (shapes, most) = if tiny { (&TINY[..], 2) } else { (&SHAPES[..], 512) };
    let mut lines = Vec::new();
    for shape in shapes {
        let shape = Shape { experts: shape.experts.min(fitting(device, shape)?), ..*shape };
        let mut bench = Bench::new(device, &probe, shape, most)?;
        for tokens in std::iter::successors(Some(1), |t| Some(t * 2)).take_while(|t| *t <= most) {
            lines.push(bench.line(device, tokens, checks)?);
        }
    }
    let movers = movers::measure(device, &probe, tiny)?;
    Ok(Speed { stream, lines, movers })
}

/// How many experts leave a tenth of the memory free.
fn fitting(device: &Device, shape: &Shape) -> Result<usize, CudaError> {
    let each = shape.form.expert_bytes(shape.hidden, shape.inter);
    Ok(device.memory()?.0 / 10 * 9 / each)
}

fn stream_rate(device: &Device, probe: &Probe, len: usize) -> Result<f64, CudaError> {
    let mut data = device.alloc(len)?;
    probe.fill(device, &mut data, (1, 1.0))?;
    let milliseconds = median(device, || probe.stream(device, &data))?;
    Ok((len * size_of::<bf16>()) as f64 / milliseconds * 1e3)
}

/// The median time of a launch, each between two events, after two that do not count.
fn median(
    device: &Device,
    mut launch: impl FnMut() -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    const RUNS: usize = 15;
    for _ in 0..2 {
        launch()?;
    }
    device.synchronize()?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let timer = device.timer()?;
        launch()?;
        times.push(f64::from(timer.stop()?));
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

/// A layer of a shape with random weights, and room for its largest batch.
struct Bench {
    shape: Shape,
    experts: Experts,
    ffn: GroupedFfn,
    kernel: FfnKernel,
    /// The weights of every slot, where they are in fp8: what the device cannot make is copied there.
    coded: Option<Layer>,
    rows: usize,
    x: Buffer<bf16>,
    out: Buffer<bf16>,
}

impl Bench {
    fn new(device: &Device, probe: &Probe, shape: Shape, most: usize) -> Result<Self, CudaError> {
        let Shape { hidden, inter, experts, form, .. } = shape;
        let rows = most * 2;
        let make = |len: usize, seed, scale| {
            let mut buffer = device.alloc(len)?;
            probe.fill(device, &mut buffer, (seed, scale)).map(|()| buffer)
        };
        let each = experts * hidden * inter;
        let scales = shape.scales();
        let coded = (form == WeightForm::Fp8)
            .then(|| Layer::random(form, (hidden, inter), (1, 0), experts as u64));
        let there = match &coded {
            None => {
                let [first, second] = scales;
                let weights =
                    [make(each, 1, first)?, make(each, 2, first)?, make(each, 3, second)?];
                Experts::new(device, (experts, hidden, inter), weights)?
            }
            Some(layer) => {
                let mut there = Experts::vacant(device, form, (experts, hidden, inter))?;
                for slot in 0..experts {
                    there.write(device, slot, layer.host(form, 0))?;
                }
                there
            }
        };
        let kernel = FfnKernel::of(device, form);
        Ok(Self {
            shape,
            experts: there,
            ffn: GroupedFfn::new(device, kernel, (experts * most, experts, inter))?,
            kernel,
            coded,
            rows,
            x: make(rows * hidden, 4, 1.0)?,
            out: device.alloc(experts * most * hidden)?,
        })
    }

    /// Times `tokens` rows for each expert and checks one of them against f64.
    fn line(
        &mut self,
        device: &Device,
        tokens: usize,
        checks: &mut Checks,
    ) -> Result<Line, CudaError> {
        let Shape { model, hidden, inter, experts, .. } = self.shape;
        let list = self.list(tokens);
        let pairs = Pairs::upload(device, &list, experts, self.rows)?;
        device.poison(&mut self.out)?;
        let milliseconds = median(device, || {
            self.ffn.launch(device, &self.experts, (&self.x, &pairs), &mut self.out)
        })?;
        let pair = list.row.len() - 1;
        let got = device.download_range(&self.out, pair * hidden..(pair + 1) * hidden)?;
        let want = self.reference(experts - 1, list.row[pair], list.weight[pair]);
        checks.close(&got, &want, 1e-2, &format!("{model}, {tokens} tokens for each expert"));
        let count = (experts * tokens) as f64;
        let rows = 2.0 * count * hidden as f64 * size_of::<bf16>() as f64;
        Ok(Line {
            shape: self.shape,
            kernel: self.kernel,
            tokens,
            milliseconds,
            bytes: (experts * self.experts.bytes_each()) as f64 + rows,
            operations: 6.0 * count * hidden as f64 * inter as f64,
        })
    }

    /// One row in f64.
    fn reference(&mut self, expert: usize, row: u32, weight: f32) -> Vec<f64> {
        let Some(layer) = &mut self.coded else {
            return self.shape.reference(expert, row, weight);
        };
        layer.x = self.shape.row(row);
        let alone =
            PairList { slot: vec![0], first: vec![0, 1], row: vec![0], weight: vec![weight] };
        layer.reference(&alone)
    }

    fn list(&self, tokens: usize) -> PairList {
        let (mut random, experts) = (Random(tokens as u64), self.shape.experts);
        PairList {
            slot: (0..experts as u32).collect(),
            first: (0..=experts).map(|e| (e * tokens) as u32).collect(),
            row: (0..experts * tokens).map(|_| random.below(self.rows as u32)).collect(),
            weight: (0..experts * tokens).map(|_| random.uniform(1.0)).collect(),
        }
    }
}

impl Shape {
    /// Scales of the weights that keep the values between layers near one.
    fn scales(&self) -> [f32; 2] {
        [self.hidden, self.inter].map(|inner| 3.0 / (inner as f32).sqrt())
    }

    /// A row of the input.
    fn row(&self, row: u32) -> Vec<bf16> {
        let first = row as usize * self.hidden;
        (first..first + self.hidden).map(|index| filled(index as u64, 4, 1.0)).collect()
    }

    /// One row in f64, from weights computed again.
    fn reference(&self, expert: usize, row: u32, weight: f32) -> Vec<f64> {
        let Self { hidden, inter, .. } = *self;
        let [first, second] = self.scales();
        let value = |index: usize, seed, scale| filled(index as u64, seed, scale).to_f64();
        let x: Vec<f64> = self.row(row).into_iter().map(f64::from).collect();
        let dot = |at: usize, seed, scale, with: &[f64]| -> f64 {
            with.iter().enumerate().map(|(k, y)| value(at + k, seed, scale) * y).sum()
        };
        let act: Vec<f64> = (0..inter)
            .map(|i| {
                let at = (expert * inter + i) * hidden;
                let gate = dot(at, 1, first, &x);
                gate / (1.0 + (-gate).exp()) * dot(at, 2, first, &x)
            })
            .collect();
        let at = |m| (expert * hidden + m) * inter;
        (0..hidden).map(|m| f64::from(weight) * dot(at(m), 3, second, &act)).collect()
    }
}
