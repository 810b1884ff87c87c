//! What a run came to: throughput, latencies, how busy nodes were and how well they batched.

use serde::Serialize;

pub use crate::histogram::Durations;

/// The measurements of one run, over its window unless said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Tokens generated per second.
    pub throughput: f64,
    /// The same per bin.
    pub bins: Vec<f64>,
    /// Tokens per second that would be generated if every sequence that arrived were served at once.
    pub offered: f64,
    /// Prompt tokens computed per second.
    pub prefill_throughput: f64,
    /// From one token of a sequence to its next, in ms.
    pub itl_ms: Durations,
    /// From arrival to the first token, in ms.
    pub ttft_ms: Durations,
    /// Mean time per token after the first, one value per sequence that ended, in ms.
    pub tpot_ms: Durations,
    /// From arrival to the last token, one value per sequence that ended, in ms.
    pub e2e_ms: Durations,
    /// What attention nodes did.
    pub attention: Side,
    /// What expert nodes did.
    pub expert: Side,
    /// Experts activated per launch, on average.
    pub activated: f64,
    /// Lockstep: experts activated on the node with the most, on average over layers and steps; 0 otherwise.
    pub activated_max: f64,
    /// Tokens per activated expert, on average.
    pub tokens_per_expert: f64,
    /// Gigabits per second that each card sent, on average over all devices.
    pub card_gbps: f64,
    /// Devices.
    pub devices: usize,
    /// Sequences, over the whole run.
    pub sequences: Counts,
    /// Plans that served, over the whole run.
    pub plans: u64,
    /// Replicas that moved, over the whole run.
    pub replicas_moved: u64,
    /// Tokens generated, over the whole run.
    pub tokens_total: u64,
    /// Events of the whole run.
    pub events: u64,
}

/// What the nodes of one kind did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// Share of the time that they computed, per node.
    pub busy_by_node: Vec<f64>,
    /// Its mean.
    pub busy: f64,
    /// Share of the time that they stood still while sequences were in the cluster, mean.
    pub stall: f64,
    /// Runs per second, over all nodes.
    pub runs: f64,
    /// Rows (attention) or tokens (experts, counted once per expert) per run, on average.
    pub batch: f64,
    /// What waited when a run began, on average: rows or tokens.
    pub queue: f64,
    /// The most that waited.
    pub queue_max: u32,
}

/// Sequences by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// That came.
    pub arrived: u64,
    /// That got all of their tokens.
    pub ended: u64,
    /// That found the waiting line full, or would never fit.
    pub refused: u64,
    /// That were in the cluster at the end.
    pub unfinished: u64,
}
