//! What follows attention in a layer: a dense MLP, or the gate of routed experts with the shared ones.

use domain::Expert;
use kernels::{
    ExpertWeights, Linear, RouterSpec, Routing, encode_rows, linear, swiglu, top_k_route,
};

use super::{Scratch, host::Host, scratch::sized};
use crate::rows::for_each_row;

#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Box<ExpertWeights>),
    Routed(Box<RoutedExperts>),
}

/// What the attention half has of an MoE layer.
#[derive(Debug)]
pub(super) struct RoutedExperts {
    pub(super) gate: Linear,
    pub(super) router: RouterSpec,
    pub(super) shared: Option<Shared>,
}

/// Experts that see every token.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) weights: ExpertWeights,
    /// Qwen2's gate: one output, whose sigmoid scales the row.
    pub(super) gate: Option<Linear>,
}

/// The rows of a batch as they go to expert nodes, and which experts each row needs.
///
/// Reused from call to call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routed {
    /// Normalised rows in wire form, one after another.
    pub(super) wire: Vec<u8>,
    pub(super) row_bytes: usize,
    pub(super) routing: Routing,
}

impl Routed {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.routing.rows()
    }

    /// Experts of each row.
    #[must_use]
    pub fn top_k(&self) -> usize {
        self.routing.top_k()
    }

    /// Bytes of one wire row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// All rows in wire form, one after another: the expert's input.
    #[must_use]
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// One row in wire form.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u8] {
        &self.wire[row * self.row_bytes..][..self.row_bytes]
    }

    /// The experts of a row with their weights, ascending by expert.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn choices(&self, row: usize) -> impl ExactSizeIterator<Item = (Expert, f32)> + Clone {
        let experts = self.routing.experts(row).iter();
        let weights = self.routing.weights(row).iter();
        experts.zip(weights).map(|(&expert, &weight)| (Expert(expert as u16), weight))
    }
}

impl FeedForward {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Dense(mlp) => mlp.bytes(),
            Self::Routed(routed) => {
                let shared = routed.shared.as_ref().map_or(0, |shared| {
                    shared.weights.bytes() + shared.gate.as_ref().map_or(0, Linear::bytes)
                });
                routed.gate.bytes() + shared
            }
        }
    }

    /// Whether [`local`](Self::local) does anything.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Dense(_) => true,
            Self::Routed(routed) => routed.shared.is_some(),
        }
    }

    /// From `scratch.normed` to `scratch.gate`.
    pub(super) fn gate(&self, half: &Host, scratch: &mut Scratch) {
        let routed = self.routed();
        let rows = scratch.normed.len() / half.spec.hidden;
        let logits = sized(&mut scratch.gate, rows * routed.router.experts);
        linear(&half.cpu, &routed.gate, &scratch.normed, logits);
    }

    /// From `scratch.normed` to `into`.
    pub(super) fn route(&self, half: &Host, into: &mut Routed, scratch: &mut Scratch) {
        self.gate(half, scratch);
        let cpu = &*half.cpu;
        top_k_route(cpu, &self.routed().router, &scratch.gate, &mut into.routing);
        into.row_bytes = cpu.compute().row_bytes(half.spec.hidden);
        into.wire.resize(into.routing.rows() * into.row_bytes, 0);
        let hidden = half.spec.hidden;
        for_each_row(cpu, &mut into.wire, into.row_bytes, |row, wire| {
            encode_rows(cpu.compute(), &scratch.normed[row * hidden..][..hidden], wire);
        });
    }

    pub(super) fn replace_gate(&mut self, gate: Linear) {
        match self {
            Self::Dense(_) => panic!("a dense layer has no gate"),
            Self::Routed(routed) => routed.gate = gate,
        }
    }

    fn routed(&self) -> &RoutedExperts {
        match self {
            Self::Dense(_) => panic!("a dense layer routes nothing"),
            Self::Routed(routed) => routed,
        }
    }

    /// Adds what `scratch.normed` gives to `residual`.
    pub(super) fn local(&self, half: &Host, residual: &mut [f32], scratch: &mut Scratch) {
        let cpu = &*half.cpu;
        match self {
            Self::Dense(mlp) => swiglu(cpu, mlp, &scratch.normed, None, residual),
            Self::Routed(routed) => {
                let Some(shared) = &routed.shared else {
                    return;
                };
                let scale = shared.gate.as_ref().map(|gate| {
                    let rows = residual.len() / half.spec.hidden;
                    let scale = sized(&mut scratch.gate, rows);
                    linear(cpu, gate, &scratch.normed, scale);
                    for value in scale.iter_mut() {
                        *value = 1.0 / (1.0 + (-*value).exp());
                    }
                    &*scale
                });
                swiglu(cpu, &shared.weights, &scratch.normed, scale, residual);
            }
        }
    }
}
