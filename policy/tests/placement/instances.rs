//! Seeded traces and node speeds as the GEM paper describes them.

#[path = "../dice/mod.rs"]
mod dice;

use dice::Dice;
use domain::{CostCurve, Layer, ModelShape, NodeId, Trace};
use policy::placement::Host;

/// Sizes of an instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) layers: u16,
    pub(crate) experts: u16,
    pub(crate) hosts: u32,
    pub(crate) steps: usize,
    /// (token, expert) pairs per step and layer.
    pub(crate) tokens: u32,
    /// Slots per host and layer.
    pub(crate) slots: u32,
}

/// Everything a placement looks at.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) shape: ModelShape,
    pub(crate) hosts: Vec<Host>,
    pub(crate) curves: Vec<CostCurve>,
    pub(crate) trace: Trace,
}

impl Instance {
    /// Layers with consistent experts (Zipf) and temporal ones, which come in bursts together, on
    /// hosts whose speeds lie within `spread` of the mean.
    pub(crate) fn new(seed: u64, sizes: Sizes, spread: f64) -> Self {
        let mut random = Dice(seed);
        let curves = (0..sizes.hosts)
            .map(|_| layer_curve().scaled(1.0 + spread * (2.0 * random.unit() - 1.0)))
            .collect();
        let hosts = (1..=sizes.hosts)
            .map(|id| Host { id: NodeId(id), slots: sizes.slots * u32::from(sizes.layers) })
            .collect();
        let habits: Vec<Habits> =
            (0..sizes.layers).map(|_| Habits::new(&mut random, sizes)).collect();
        let mut trace = Trace::new(sizes.layers.into(), sizes.experts.into());
        for _ in 0..sizes.steps {
            let counts: Vec<u32> =
                habits.iter().flat_map(|habits| habits.step(&mut random, sizes.tokens)).collect();
            trace.push(&counts).expect("a count per expert of every layer");
        }
        Self { shape: shape(sizes.layers, sizes.experts), hosts, curves, trace }
    }
}

/// How the experts of one layer are used.
#[derive(Clone, Debug)]
struct Habits {
    weights: Vec<f64>,
    /// The burst of each temporal expert.
    bursts: Vec<Option<usize>>,
}

const BURSTS: usize = 4;

impl Habits {
    fn new(random: &mut Dice, sizes: Sizes) -> Self {
        let skew = 1.2 * random.unit();
        let mut weights: Vec<f64> =
            (1..=sizes.experts).map(|rank| f64::from(rank).powf(-skew)).collect();
        for at in (1..weights.len()).rev() {
            weights.swap(at, random.below(at + 1));
        }
        let temporal = |random: &mut Dice| (random.unit() < 0.3).then(|| random.below(BURSTS));
        let bursts = weights.iter().map(|_| temporal(random)).collect();
        Self { weights, bursts }
    }

    fn step(&self, random: &mut Dice, tokens: u32) -> Vec<u32> {
        let on: Vec<bool> = (0..BURSTS).map(|_| random.unit() < 0.17).collect();
        let weights: Vec<f64> = self
            .weights
            .iter()
            .zip(&self.bursts)
            .map(|(weight, burst)| {
                let factor = burst.map_or(1.0, |burst| if on[burst] { 3.0 } else { 0.0 });
                weight * factor * (0.7 + 0.6 * random.unit())
            })
            .collect();
        let sum = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        weights.iter().map(|weight| (weight / sum * f64::from(tokens)).round() as u32).collect()
    }
}

/// 100 µs for reading weights and 1.5 µs per token, in tiles of 16 tokens.
pub(crate) fn layer_curve() -> CostCurve {
    let edges = std::iter::once(1).chain((16..=4096).step_by(16));
    CostCurve::new(edges.map(|tokens| (tokens, 100_000 + 1_500 * u64::from(tokens))).collect())
        .expect("edges ascend")
}

pub(crate) fn shape(layers: u16, experts: u16) -> ModelShape {
    ModelShape {
        layers,
        moe_layers: (0..layers).map(Layer).collect(),
        experts,
        top_k: 8,
        hidden: 2048,
        expert_bytes: 9 << 20,
        vocab: 512,
        positions_max: 128,
    }
}
