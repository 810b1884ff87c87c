//! A run's cluster, worked out from its description: devices, boxes, speeds and costs.

use std::path::Path;

use domain::{CostCurve, Epoch, Layer, ModelShape};
use policy::placement::Host;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use crate::{
    hardware::Costs,
    spec::{Layout, Nodes, Run, SpeedOn},
};

/// Positions of one KV block, as the live nodes have them.
pub(crate) const BLOCK_TOKENS: usize = 16;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Part {
    /// Its number among attention nodes.
    pub(crate) attention: Option<u16>,
    /// Its number among expert nodes.
    pub(crate) expert: Option<u16>,
    /// The box that it is in.
    pub(crate) in_box: u16,
    /// What attention takes on it, as a multiple of the hardware's time.
    pub(crate) attention_factor: f64,
    /// What experts take on it.
    pub(crate) expert_factor: f64,
}

/// The cluster of one run.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) costs: Costs,
    /// Devices: attention nodes first, then expert nodes.
    pub(crate) parts: Vec<Part>,
    /// Attention nodes.
    pub(crate) attention: usize,
    /// Expert nodes.
    pub(crate) experts: usize,
    /// Time of one activated expert, per expert node.
    pub(crate) curves: Vec<CostCurve>,
    /// For planners: the model's sizes.
    pub(crate) shape: ModelShape,
    /// For planners: the expert nodes and their slots.
    pub(crate) hosts: Vec<Host>,
    /// For planners: the time of a whole layer, per expert node.
    pub(crate) layer_curves: Vec<CostCurve>,
    /// For planners: further replicas per layer.
    pub(crate) further: u32,
}

// === impl Cluster ===

impl Cluster {
    /// Works out the cluster of a checked run; its files are looked up from `folder`.
    pub(crate) fn new(run: &Run, folder: &Path) -> Result<Self, String> {
        let costs = run.hardware.costs(folder)?;
        let mut parts = parts(run.layout, run.nodes);
        set_factors(run, &mut parts);
        let attention = parts.iter().filter(|part| part.attention.is_some()).count();
        let factors: Vec<f64> = parts
            .iter()
            .filter(|part| part.expert.is_some())
            .map(|part| part.expert_factor)
            .collect();
        let (per_node, further) = slots(run.placement.replicas, costs.experts, factors.len());
        let layer = costs.layer(u16::try_from(per_node).unwrap_or(u16::MAX));
        let slots = per_node * u32::from(costs.layers);
        let ids = 0..u32::try_from(factors.len()).unwrap_or(u32::MAX);
        Ok(Self {
            attention,
            experts: factors.len(),
            curves: factors.iter().map(|&factor| costs.expert.scaled(factor)).collect(),
            shape: shape(&costs),
            hosts: ids.map(|id| Host { id: domain::NodeId(id), slots }).collect(),
            layer_curves: factors.iter().map(|&factor| layer.scaled(factor)).collect(),
            further,
            parts,
            costs,
        })
    }

    /// MoE layers.
    pub(crate) fn layers(&self) -> usize {
        usize::from(self.costs.layers)
    }

    /// Experts per layer.
    pub(crate) fn experts_per_layer(&self) -> usize {
        usize::from(self.costs.experts)
    }

    /// The epoch of a run's first plan.
    pub(crate) const FIRST_EPOCH: Epoch = Epoch(1);
}

/// Slots per layer and node, and further replicas per layer.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "experts and replicas are checked and small"
)]
fn slots(replicas: f64, experts: u16, nodes: usize) -> (u32, u32) {
    let wanted = (f64::from(experts) * replicas).round() as u32;
    ((f64::from(wanted) / nodes as f64).ceil() as u32, wanted - u32::from(experts))
}

fn shape(costs: &Costs) -> ModelShape {
    ModelShape {
        layers: costs.layers,
        moe_layers: (0..costs.layers).map(Layer).collect(),
        experts: costs.experts,
        top_k: costs.top_k,
        hidden: costs.row_bytes,
        expert_bytes: costs.expert_bytes,
        vocab: 1,
        positions_max: u32::MAX,
    }
}

fn parts(layout: Layout, nodes: Nodes) -> Vec<Part> {
    let part = |attention, expert, in_box| Part {
        attention,
        expert,
        in_box,
        attention_factor: 1.0,
        expert_factor: 1.0,
    };
    match layout {
        Layout::Colocated => {
            (0..nodes.both).map(|at| part(Some(at), Some(at), at / nodes.per_box)).collect()
        }
        Layout::Split => {
            let boxes = (nodes.attention + nodes.expert).div_ceil(nodes.per_box);
            // Both kinds are dealt out over all boxes.
            let in_box = |at: u16, of: u16| {
                u16::try_from(u32::from(at) * u32::from(boxes) / u32::from(of)).unwrap_or(0)
            };
            let attention =
                (0..nodes.attention).map(|at| part(Some(at), None, in_box(at, nodes.attention)));
            let expert = (0..nodes.expert).map(|at| part(None, Some(at), in_box(at, nodes.expert)));
            attention.chain(expert).collect()
        }
    }
}

/// Gives devices their factors.
fn set_factors(run: &Run, parts: &mut [Part]) {
    let both = run.speed.on == SpeedOn::All;
    let differing: Vec<usize> = match run.layout {
        Layout::Split if !both && run.speed.factors.is_empty() => {
            (usize::from(run.nodes.attention)..parts.len()).collect()
        }
        _ => (0..parts.len()).collect(),
    };
    let factors = match &run.speed.factors[..] {
        [] => spread(run.speed.spread, differing.len(), run.seed),
        factors => factors.to_vec(),
    };
    for (at, factor) in differing.into_iter().zip(factors) {
        parts[at].expert_factor = factor;
        if both {
            parts[at].attention_factor = factor;
        }
    }
}

/// The factors of `count` devices whose speeds lie evenly between the slowest and the fastest, have
/// a mean of 1, and come in an order drawn from the seed.
fn spread(spread: f64, count: usize, seed: u64) -> Vec<f64> {
    if count < 2 {
        return vec![1.0; count];
    }
    let slowest = 2.0 / (2.0 + spread);
    let mut factors: Vec<f64> = (0..count)
        .map(|rank| {
            #[expect(clippy::cast_precision_loss, reason = "a few thousand devices")]
            let share = rank as f64 / (count - 1) as f64;
            1.0 / (slowest * (1.0 + spread * share))
        })
        .collect();
    let mut chance = SmallRng::seed_from_u64(seed ^ 0x5eed);
    for at in (1..count).rev() {
        factors.swap(at, chance.random_range(0..=at));
    }
    factors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_spread_evenly_around_one() {
        let factors = spread(0.5, 5, 3);
        let speeds: Vec<f64> = factors.iter().map(|factor| 1.0 / factor).collect();
        let (low, high) = speeds
            .iter()
            .fold((f64::MAX, 0.0_f64), |(low, high), &speed| (low.min(speed), high.max(speed)));
        assert!((high / low - 1.5).abs() < 1e-12);
        assert!((speeds.iter().sum::<f64>() - 5.0).abs() < 1e-12);
        assert_ne!(factors, spread(0.5, 5, 4), "the order is drawn");
        assert_eq!(spread(0.0, 3, 1), [1.0; 3]);
        assert_eq!(spread(0.5, 1, 1), [1.0]);
    }

    #[test]
    fn boxes_get_their_part_of_both_kinds() {
        let nodes = Nodes { attention: 4, expert: 12, both: 0, per_box: 8 };
        let boxes: Vec<u16> = parts(Layout::Split, nodes).iter().map(|part| part.in_box).collect();
        assert_eq!(boxes, [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn slots_hold_the_wanted_replicas() {
        assert_eq!(slots(1.0, 8, 4), (2, 0));
        assert_eq!(slots(1.5, 128, 8), (24, 64));
        assert_eq!(slots(1.1, 8, 8), (2, 1));
    }
}
