//! What a run is: nodes, links, schedule, decisions and bounds, as a scenario file writes them.

use policy::{batching::Tuning, placement, routing};
use serde::{Deserialize, Serialize};

use crate::{hardware, skew, workload};

/// One run. Every table and key has a default except hardware, workload and skew.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// When a layer may run.
    #[serde(default)]
    pub schedule: Schedule,
    /// Which devices do attention and which hold experts.
    #[serde(default)]
    pub layout: Layout,
    /// Equal files and seeds give equal results.
    #[serde(default = "one")]
    pub seed: u64,
    /// Virtual seconds.
    #[serde(default = "eighty")]
    pub duration_s: f64,
    /// The part of the run that is measured: from and to, as shares of it.
    #[serde(default = "middle")]
    pub window: [f64; 2],
    /// Seconds of one bin of throughput.
    #[serde(default = "five")]
    pub bin_s: f64,
    /// How many nodes.
    #[serde(default)]
    pub nodes: Nodes,
    /// What work costs.
    pub hardware: hardware::Spec,
    /// What comes in.
    pub workload: workload::Spec,
    /// Which experts tokens choose.
    pub skew: skew::Spec,
    /// The network.
    #[serde(default)]
    pub links: Links,
    /// How nodes differ in speed.
    #[serde(default)]
    pub speed: Speed,
    /// Re-batching.
    #[serde(default)]
    pub batching: Batching,
    /// Routing.
    #[serde(default)]
    pub routing: Routing,
    /// Placement.
    #[serde(default)]
    pub placement: Placement,
    /// Bounds of attention nodes.
    #[serde(default)]
    pub bounds: Bounds,
    /// Prompts.
    #[serde(default)]
    pub prefill: Prefill,
}

/// When a layer may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Whenever it is worth most: μ-queues, no barrier.
    #[default]
    Async,
    /// All nodes layer by layer: ordinary expert parallelism.
    Lockstep,
    /// The same with every node's batch in two halves, so that one computes while the other travels.
    LockstepOverlap,
}

/// Which devices do what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// A device does attention or holds experts.
    #[default]
    Split,
    /// Every device does both, one after the other.
    Colocated,
}

/// How many nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nodes {
    /// Split: attention nodes.
    pub attention: u16,
    /// Split: expert nodes.
    pub expert: u16,
    /// Colocated: devices.
    pub both: u16,
    /// Devices that share a box; devices are counted attention first, then experts. In a split
    /// layout every box gets its part of both.
    pub per_box: u16,
}

/// The network. The rates hold for each direction of each device's card.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Links {
    /// Time from a message's first byte to its arrival, inside a box.
    pub latency_us: f64,
    /// Gigabits a second, inside a box.
    pub gbps: f64,
    /// Time that a message keeps a card busy besides its bytes, inside a box.
    pub message_us: f64,
    /// Between boxes; as inside when absent.
    pub between: Option<Wire>,
}

/// A wire between boxes.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wire {
    /// Time from a message's first byte to its arrival.
    pub latency_us: f64,
    /// Gigabits a second.
    pub gbps: f64,
    /// Time that a message keeps a card busy besides its bytes.
    #[serde(default)]
    pub message_us: f64,
}

/// How nodes differ in speed. Times are multiplied by a device's factor.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Speed {
    /// The slowest device takes 1 + spread times as long as the fastest; the others lie evenly in
    /// between, in an order drawn from the seed. The mean speed stays that of the hardware.
    pub spread: f64,
    /// Whose factors are spread.
    pub on: SpeedOn,
    /// The factors themselves instead, per device from the first one; devices beyond the last have 1.
    pub factors: Vec<f64>,
}

/// Whose speed differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpeedOn {
    /// Every device's.
    #[default]
    All,
    /// That of expert work only.
    Experts,
}

/// Re-batching.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batching {
    /// On attention nodes. A colocated device follows this one, with the expert side's drain cap
    /// for experts.
    pub attention: Tuning,
    /// On expert nodes.
    pub expert: Tuning,
    /// What one queue of an expert node is.
    pub queues: Queues,
    /// How often expert nodes of a split layout hear what waits in the cluster; absent for never.
    pub digest_every_ms: Option<f64>,
}

/// What one queue of an expert node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Queues {
    /// A layer: one grouped launch runs all of its activated experts, as amoe's nodes do.
    #[default]
    Layer,
    /// An expert of a layer: one launch each, as in the AMoE paper.
    Expert,
}

/// Routing.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Routing {
    /// Which replica runs an expert: per batch in lockstep, by lease otherwise.
    pub policy: routing::Policy,
    /// Async: how long a lease lasts.
    pub lease_ms: f64,
    /// Lockstep: what it takes per layer to gather and decide for the global batch. Even split
    /// needs no gathering.
    pub gather_us: f64,
}

/// Placement.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// How experts are placed at the start, from a trace drawn from the skew.
    pub policy: placement::Policy,
    /// Replicas per expert, on average: 1 for none but the first.
    pub replicas: f64,
    /// Steps of that trace.
    pub trace_steps: u32,
    /// Tokens of a step of that trace.
    pub trace_tokens: u32,
    /// Re-placement while serving; absent for none.
    pub online: Option<Online>,
}

/// Re-placement while serving.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Online {
    /// How plans are made anew.
    pub policy: placement::Policy,
    /// How often it is thought over.
    pub every_ms: f64,
    /// Bytes of weights a second that a node takes in.
    pub bytes_per_s: f64,
}

/// Bounds of attention nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Sequences that run at once on a node.
    pub sequences_max: u32,
    /// Sequences that wait on a node; more are refused.
    pub waiting_max: u32,
    /// Tokens that a node's KV cache holds.
    pub kv_tokens: u32,
}

/// Prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefill {
    /// Tokens of a prompt that go through the layers together. 0: prompts are taken as computed
    /// elsewhere, as the AMoE paper does.
    pub chunk: u16,
}

// === impl defaults ===

fn one() -> u64 {
    1
}

fn five() -> f64 {
    5.0
}

fn eighty() -> f64 {
    80.0
}

/// The middle three quarters: 60 s of 80, as the AMoE paper measures.
fn middle() -> [f64; 2] {
    [0.125, 0.875]
}

impl Default for Nodes {
    fn default() -> Self {
        Self { attention: 4, expert: 4, both: 8, per_box: 8 }
    }
}

impl Default for Links {
    /// An NVSwitch: 300 GB/s each way, and 10 µs from a finished kernel to the next one's data.
    fn default() -> Self {
        Self { latency_us: 10.0, gbps: 2400.0, message_us: 0.0, between: None }
    }
}

impl Default for Routing {
    fn default() -> Self {
        Self { policy: routing::Policy::default(), lease_ms: 200.0, gather_us: 0.0 }
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            policy: placement::Policy::default(),
            replicas: 1.0,
            trace_steps: 16,
            trace_tokens: 256,
            online: None,
        }
    }
}

impl Default for Bounds {
    /// The AMoE paper's 160 sequences, and KV room for any of them.
    fn default() -> Self {
        Self { sequences_max: 160, waiting_max: 65_536, kv_tokens: 1 << 20 }
    }
}

// === impl Run ===

impl Run {
    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// One sentence naming the key and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let [from, to] = self.window;
        let Nodes { attention, expert, both, per_box } = self.nodes;
        let split = self.layout == Layout::Split;
        let wires = [Some((self.links.latency_us, self.links.gbps, self.links.message_us))]
            .into_iter()
            .chain([self.links.between.map(|wire| (wire.latency_us, wire.gbps, wire.message_us))])
            .flatten();
        for (latency, gbps, message) in wires {
            expect(
                latency >= 0.0 && message >= 0.0,
                "links: latency_us and message_us",
                "at least 0",
            )?;
            expect(gbps > 0.0, "links: gbps", "above 0")?;
        }
        expect(
            self.duration_s > 0.0 && self.duration_s <= 1e6,
            "duration_s",
            "above 0, at most 10^6",
        )?;
        expect(
            0.0 <= from && from < to && to <= 1.0,
            "window",
            "two ascending shares of the run, 0 to 1",
        )?;
        expect(self.bin_s > 0.0, "bin_s", "above 0")?;
        expect(
            !split || (attention > 0 && expert > 0),
            "nodes",
            "at least one attention and one expert",
        )?;
        expect(split || both > 0, "nodes: both", "at least 1")?;
        expect(
            u32::from(attention) + u32::from(expert) <= 4096 && both <= 4096,
            "nodes",
            "at most 4096",
        )?;
        expect(per_box > 0, "nodes: per_box", "at least 1")?;
        expect((0.0..=10.0).contains(&self.speed.spread), "speed: spread", "0 to 10")?;
        expect(self.speed.factors.iter().all(|&factor| factor > 0.0), "speed: factors", "above 0")?;
        expect(self.routing.lease_ms > 0.0, "routing: lease_ms", "above 0")?;
        expect(self.routing.gather_us >= 0.0, "routing: gather_us", "at least 0")?;
        expect(self.placement.replicas >= 1.0, "placement: replicas", "at least 1")?;
        expect(self.placement.trace_steps > 0, "placement: trace_steps", "at least 1")?;
        if let Some(online) = self.placement.online {
            expect(online.every_ms > 0.0, "placement.online: every_ms", "above 0")?;
            expect(online.bytes_per_s > 0.0, "placement.online: bytes_per_s", "above 0")?;
        }
        let Bounds { sequences_max, waiting_max, kv_tokens } = self.bounds;
        expect(sequences_max > 0 && waiting_max > 0 && kv_tokens > 0, "bounds", "all at least 1")?;
        expect(
            self.batching.digest_every_ms.is_none_or(|every| every > 0.0),
            "batching: digest_every_ms",
            "above 0",
        )?;
        let queues = self.batching.queues == Queues::Expert && !split;
        expect(!queues, "batching: queues", "layer, the only one there is in a colocated layout")?;
        self.batching.attention.check().map_err(|error| format!("batching.attention: {error}"))?;
        self.batching.expert.check().map_err(|error| format!("batching.expert: {error}"))
    }
}

fn expect(holds: bool, key: &str, expected: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{key}: expected {expected}")) }
}

/// Microseconds as a scenario writes them, in whole nanoseconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked: not negative"
)]
pub(crate) fn ns_of_us(us: f64) -> u64 {
    (us * 1e3).round() as u64
}
