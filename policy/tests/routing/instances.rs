//! Layers and batches like those of a serving cluster: skewed experts, replicated and packed by EPLB.

#[path = "../dice/mod.rs"]
mod dice;

use domain::{Epoch, Layer, ModelShape, NodeId, Trace};
use policy::{
    placement::{self, Host, Input, Spare},
    routing::Hosts,
};

pub(crate) use dice::Dice;

/// A layer to serve and what it is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Serving {
    pub(crate) experts: u16,
    pub(crate) nodes: u32,
    /// Replicas per expert on average.
    pub(crate) replication: f64,
    /// Exponent of the experts' popularity.
    pub(crate) zipf: f64,
    /// Tokens of a batch, all nodes together.
    pub(crate) tokens: usize,
    pub(crate) top_k: usize,
}

impl Serving {
    /// The hosts that EPLB gives the experts from what they got in the past, and tokens per expert of
    /// `batches` batches after that.
    pub(crate) fn draw(&self, dice: &mut Dice, batches: usize) -> (Hosts, Vec<Vec<u32>>) {
        let popularity = self.popularity(dice);
        let past = self.batch(dice, &popularity, 2048);
        let batches = (0..batches).map(|_| self.batch(dice, &popularity, self.tokens)).collect();
        (self.place(&past), batches)
    }

    /// Zipf over the experts in random order.
    fn popularity(&self, dice: &mut Dice) -> Vec<f64> {
        let weight = |rank: u16| f64::from(rank).powf(-self.zipf);
        let mut weights: Vec<f64> = (1..=self.experts).map(weight).collect();
        for at in (1..weights.len()).rev() {
            weights.swap(at, dice.below(at + 1));
        }
        weights
    }

    /// Each token goes to `top_k` different experts, drawn by popularity: to those with the largest
    /// logits if these have Gumbel noise.
    fn batch(&self, dice: &mut Dice, popularity: &[f64], tokens: usize) -> Vec<u32> {
        let mut counts = vec![0; popularity.len()];
        for _ in 0..tokens {
            let mut noisy = |(expert, weight): (usize, &f64)| {
                let noise = -(-(1.0 - dice.unit()).ln()).ln();
                (weight.ln() + noise, expert)
            };
            let mut logits: Vec<_> = popularity.iter().enumerate().map(&mut noisy).collect();
            logits.select_nth_unstable_by(self.top_k - 1, |a, b| b.0.total_cmp(&a.0));
            for &(_, expert) in &logits[..self.top_k] {
                counts[expert] += 1;
            }
        }
        counts
    }

    fn place(&self, past: &[u32]) -> Hosts {
        let shape = ModelShape {
            layers: 1,
            moe_layers: vec![Layer(0)],
            experts: self.experts,
            top_k: 1,
            hidden: 1,
            expert_bytes: 1,
            vocab: 1,
            positions_max: 1,
        };
        let replicas = (f64::from(self.experts) * self.replication).round() as u32;
        let slots = replicas.div_ceil(self.nodes);
        let hosts: Vec<Host> = (0..self.nodes).map(|id| Host { id: NodeId(id), slots }).collect();
        let mut trace = Trace::new(1, past.len());
        trace.push(past).expect("one count per expert");
        let input = Input {
            spare: Spare::UpTo(replicas - u32::from(self.experts)),
            trace: Some(&trace),
            ..Input::new(Epoch(1), &shape, &hosts)
        };
        let plan = placement::place(placement::Policy::Eplb, &input).expect("slots enough").plan;
        let lists = plan.table().map(|nodes| nodes.iter().map(|node| node.0 as u16).collect());
        Hosts::new(self.nodes as usize, lists.collect::<Vec<Vec<u16>>>()).expect("nodes in range")
    }
}
