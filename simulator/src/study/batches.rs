//! The batches of a study: tokens per expert, step by step, and the costs they are judged by.

use std::path::Path;

use domain::{Epoch, Layer, ModelShape, NodeId, Plan, Trace};
use policy::{
    placement::{self, Host, Input, Spare},
    routing::Hosts,
};

use super::Spec;
use crate::{hardware::Costs, skew};

/// Where batches come from.
pub(super) struct Source<'a> {
    pub(super) spec: &'a Spec,
    pub(super) costs: Costs,
    skew: &'a skew::Spec,
    folder: &'a Path,
}

impl<'a> Source<'a> {
    pub(super) fn new(
        spec: &'a Spec,
        skew: &'a skew::Spec,
        folder: &'a Path,
    ) -> Result<Self, String> {
        let costs = spec.hardware.costs(folder)?;
        Ok(Self { spec, costs, skew, folder })
    }

    /// The past, which placement sees, and the present, which is judged: batches of `tokens`
    /// tokens under the same popularity. Positions are steps, and no token is in both.
    pub(super) fn draw(&self, tokens: u32) -> Result<(Trace, Trace), String> {
        let Costs { layers, experts, top_k, .. } = self.costs;
        let Spec { seed, steps, past, .. } = *self.spec;
        let mut chooser = skew::Chooser::new(self.skew, layers, experts, seed, self.folder)?;
        let mut counts = vec![0; usize::from(layers) * usize::from(experts)];
        let mut chosen = vec![0; usize::from(top_k)];
        let mut record = |from: u32, steps: u32| {
            let mut trace = Trace::new(usize::from(layers), usize::from(experts));
            for step in from..from + steps {
                counts.fill(0);
                for (layer, counts) in (0..).zip(counts.chunks_mut(usize::from(experts))) {
                    for token in 0..u64::from(tokens) {
                        chooser.choose(layer, token, step, &mut chosen);
                        chosen.iter().for_each(|&expert| counts[usize::from(expert)] += 1);
                    }
                }
                trace.push(&counts).map_err(|error| error.to_string())?;
            }
            Ok::<_, String>(trace)
        };
        Ok((record(0, past)?, record(past, steps)?))
    }

    /// Slots of a node in each layer for a ratio of replicas.
    fn slots(&self, ratio: f64) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a ratio of some thousand slots; too large a one saturates"
        )]
        let wanted = (f64::from(self.costs.experts) * ratio).round() as u32;
        wanted.div_ceil(u32::from(self.spec.nodes))
    }

    /// A plan for nodes that take `factors` times as long as the costs say.
    pub(super) fn place(
        &self,
        policy: placement::Policy,
        ratio: f64,
        past: &Trace,
        factors: &[f64],
    ) -> Result<Plan, String> {
        let Costs { layers, experts, top_k, row_bytes, expert_bytes, .. } = self.costs;
        let shape = ModelShape {
            layers,
            moe_layers: (0..layers).map(Layer).collect(),
            experts,
            top_k,
            hidden: row_bytes / 2,
            expert_bytes,
            vocab: 1,
            positions_max: 1,
        };
        let slots = self.slots(ratio) * u32::from(layers);
        let hosts: Vec<Host> =
            (0..u32::from(self.spec.nodes)).map(|id| Host { id: NodeId(id), slots }).collect();
        let resident = u16::try_from(self.slots(ratio)).unwrap_or(u16::MAX);
        let layer = self.costs.layer_under(past, resident, self.spec.seed);
        let layer = layer.ok_or("a past without tokens")?;
        let curves: Vec<_> = factors.iter().map(|&factor| layer.scaled(factor)).collect();
        let further = self.slots(ratio) * u32::from(self.spec.nodes) - u32::from(experts);
        let input = Input {
            spare: if ratio > 1.0 { Spare::UpTo(further) } else { Spare::Leave },
            trace: Some(past),
            curves: &curves,
            seed: self.spec.seed,
            ..Input::new(Epoch(1), &shape, &hosts)
        };
        let proposal = placement::place(policy, &input)
            .map_err(|error| format!("study {}: {error}", self.spec.id))?;
        Ok(proposal.plan)
    }
}

/// The hosts of each layer's experts under a plan.
pub(super) fn hosts(plan: &Plan, nodes: u16) -> Result<Vec<Hosts>, String> {
    let table: Vec<Vec<u16>> = plan
        .table()
        .map(|replicas| {
            replicas.iter().map(|node| u16::try_from(node.0).unwrap_or(u16::MAX)).collect()
        })
        .collect();
    table
        .chunks(usize::from(plan.experts()))
        .map(|layer| Hosts::new(usize::from(nodes), layer))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}
