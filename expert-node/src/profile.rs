//! Measures what expert work costs on a node's device, at the edges of tiles, with the kernels that serve.

use std::time::{Duration, Instant};

use domain::{CostCurve, Curves, Expert, Layer};
use model::{ExpertHalf, ExpertWork, FfnRow, ModelError};

/// Tokens per expert at which times are taken: one, and multiples of the kernels' tile of 16 rows.
/// In between the time of the next edge holds.
const EDGES: [usize; 7] = [1, 16, 32, 64, 128, 256, 512];
/// Experts of a layer that are run together, if the model has so many: a node's part of a layer.
const EXPERTS_MAX: usize = 16;
/// Layers are loaded until their experts are this large together. Runs take them in turns, so that
/// weights come from memory as they do while a whole model is served, and not from a cache.
const WEIGHTS_MIN: usize = 256 << 20;
/// A point is the fastest of so many runs, as whatever disturbs one only adds to it,
const RUNS: usize = 9;
/// or of fewer when they take longer than this together.
const POINT_MAX: Duration = Duration::from_millis(200);
/// Bytes of rows: 0.01 as bf16 and as f32.
const ROW_BYTE: u8 = 0x3c;

/// Measures the curves of a node that computes with `half`, which holds no expert yet, and none afterwards.
///
/// The *layer curve* is the time of one run of 16 experts (all, if the model has fewer) against the
/// run's (token, expert) pairs, which are spread evenly; with fewer pairs than experts, one pair per
/// expert. The *expert curve* is one expert's part of such a run, against its tokens. Takes a few
/// seconds at most on a device that serves the model well, and room for the experts of a few
/// layers, which is given back.
///
/// # Errors
/// The checkpoint's experts cannot be read, or the device fails.
pub fn profile(half: &mut ExpertHalf) -> Result<Curves, ModelError> {
    let mut bench = Bench::load(half)?;
    let experts = bench.experts.len();
    let mut layer = Vec::new();
    for few in (0..).map(|power| 1 << power).take_while(|&few| few < experts) {
        layer.push((few, bench.time(few, 1)?));
    }
    let mut expert = Vec::new();
    for tokens in EDGES {
        let ns = bench.time(experts, tokens)?;
        layer.push((experts * tokens, ns));
        expert.push((tokens, ns / experts as u64));
    }
    bench.unload();
    Ok(Curves { expert: rising(&expert), layer: rising(&layer) })
}

/// A curve through measured times. Noise may have made more tokens a little faster: then the time
/// of fewer holds.
fn rising(points: &[(usize, u64)]) -> CostCurve {
    let mut floor = 1;
    let edges = points.iter().map(|&(tokens, ns)| {
        floor = floor.max(ns);
        (u32::try_from(tokens).unwrap_or(u32::MAX), floor)
    });
    CostCurve::new(edges.collect()).expect("tokens ascend and times do not fall")
}

/// Experts of some layers, and rows to run through them.
#[derive(Debug)]
struct Bench<'a> {
    half: &'a mut ExpertHalf,
    layers: Vec<Layer>,
    experts: Vec<Expert>,
    row: Vec<u8>,
    out: Vec<u8>,
    /// Runs so far; tells whose turn it is.
    runs: usize,
}

// === impl Bench ===

impl<'a> Bench<'a> {
    fn load(half: &'a mut ExpertHalf) -> Result<Self, ModelError> {
        let shape = half.spec().shape();
        let room = half.slots().unwrap_or(usize::MAX);
        let experts = (0..shape.experts).map(Expert).take(EXPERTS_MAX.min(room));
        let experts: Vec<Expert> = experts.collect();
        let mut layers = Vec::new();
        for &layer in shape.moe_layers.iter().take(room / experts.len()) {
            for &expert in &experts {
                half.load_expert(layer, expert)?;
            }
            layers.push(layer);
            if half.bytes() >= WEIGHTS_MIN {
                break;
            }
        }
        let row = vec![ROW_BYTE; half.row_bytes()];
        Ok(Self { half, layers, experts, row, out: Vec::new(), runs: 0 })
    }

    fn unload(self) {
        for &layer in &self.layers {
            for &expert in &self.experts {
                self.half.unload(layer, expert);
            }
        }
    }

    /// Nanoseconds of a run of the first `experts` experts with `tokens` tokens each.
    fn time(&mut self, experts: usize, tokens: usize) -> Result<u64, ModelError> {
        self.run(experts, tokens)?;
        let (mut fastest, mut spent) = (Duration::MAX, Duration::ZERO);
        for _ in 0..RUNS {
            let time = self.run(experts, tokens)?;
            fastest = fastest.min(time);
            spent += time;
            if spent >= POINT_MAX {
                break;
            }
        }
        Ok(u64::try_from(fastest.as_nanos()).unwrap_or(u64::MAX))
    }

    fn run(&mut self, experts: usize, tokens: usize) -> Result<Duration, ModelError> {
        let rows: Vec<FfnRow<'_>> = (0..experts * tokens)
            .map(|output| FfnRow { input: &self.row, weight: 1.0, output })
            .collect();
        let work: Vec<ExpertWork<'_>> = self.experts[..experts]
            .iter()
            .zip(rows.chunks(tokens))
            .map(|(&expert, rows)| ExpertWork { expert, rows })
            .collect();
        let layer = self.layers[self.runs % self.layers.len()];
        self.runs += 1;
        let begin = Instant::now();
        self.half.run(layer, &work, &mut self.out)?;
        Ok(begin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_measured_curve_never_falls() {
        let curve = rising(&[(1, 5), (16, 4), (32, 9)]);
        assert_eq!(curve.edges(), [(1, 5), (16, 5), (32, 9)]);
        assert_eq!(rising(&[(1, 0)]).edges(), [(1, 1)]);
    }

    #[test]
    fn the_demo_model_gets_both_curves_at_the_edges() {
        let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
        let checkpoint = Arc::new(model::Checkpoint::open(&demo).unwrap());
        let cpu = Arc::new(model::Cpu::new(&model::CpuOptions::default()).unwrap());
        let mut half = ExpertHalf::new(checkpoint, cpu);
        let Curves { expert, layer } = profile(&mut half).unwrap();
        assert_eq!(half.bytes(), 0);
        let tokens = |curve: &CostCurve| -> Vec<u32> {
            curve.edges().iter().map(|&(tokens, _)| tokens).collect()
        };
        assert_eq!(tokens(&expert), [1, 16, 32, 64, 128, 256, 512]);
        assert_eq!(tokens(&layer), [1, 2, 4, 8, 16, 256, 512, 1024, 2048, 4096, 8192]);
    }
}
