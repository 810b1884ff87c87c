//! Counts what happens in a run's window, for its outcome and its timeline.

use std::collections::BTreeMap;

use crate::{
    histogram::Histogram,
    outcome::{Counts, Outcome, Side},
    sequences::Sequence,
};

/// Runs that a timeline holds at most.
const TIMELINE_MAX: usize = 6000;

/// A kind of work on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Attention,
    Expert,
}

/// One run of a device, for pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) device: usize,
    pub(crate) kind: Kind,
    pub(crate) layer: usize,
    pub(crate) begin_ns: u64,
    pub(crate) end_ns: u64,
}

/// One run of a device, as it is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ran {
    pub(crate) device: usize,
    pub(crate) kind: Kind,
    pub(crate) layer: usize,
    /// Rows or tokens.
    pub(crate) batch: u32,
    /// What waited when it began, itself included.
    pub(crate) queue: u32,
    pub(crate) begin_ns: u64,
    pub(crate) end_ns: u64,
}

#[derive(Debug, Default)]
struct Tally {
    /// Per device: time of this kind of work in the window.
    busy_ns: Vec<u64>,
    runs: u64,
    batch: u64,
    queue: u64,
    queue_max: u32,
}

/// All counters of a run.
#[derive(Debug)]
pub(crate) struct Meter {
    from_ns: u64,
    to_ns: u64,
    bin_ns: u64,
    bins: Vec<u64>,
    prefilled: u64,
    offered: u64,
    itl: Histogram,
    ttft: Histogram,
    tpot: Histogram,
    e2e: Histogram,
    attention: Tally,
    expert: Tally,
    launches: u64,
    activated: u64,
    activated_tokens: u64,
    /// Turns that have not passed everywhere: the most experts activated on a node, and the nodes
    /// that are through.
    turns: BTreeMap<(u8, u64), (u32, usize)>,
    turns_done: u64,
    turns_activated: u64,
    /// Since when sequences are in the cluster; none while it is empty.
    occupied_since: Option<u64>,
    occupied_ns: u64,
    pub(crate) counts: Counts,
    pub(crate) tokens: u64,
    pub(crate) plans: u64,
    pub(crate) moved: u64,
    timeline: Vec<Stretch>,
}

// === impl Meter ===

impl Meter {
    /// Counts from `from_ns` to `to_ns`, throughput in bins.
    pub(crate) fn new(from_ns: u64, to_ns: u64, bin_ns: u64, devices: usize) -> Self {
        let tally = || Tally { busy_ns: vec![0; devices], ..Tally::default() };
        // What does not fill a bin is left out, unless it is all there is.
        let bins = usize::try_from((to_ns - from_ns) / bin_ns).unwrap_or(usize::MAX).max(1);
        Self {
            from_ns,
            to_ns,
            bin_ns: bin_ns.min(to_ns - from_ns),
            bins: vec![0; bins],
            prefilled: 0,
            offered: 0,
            itl: Histogram::default(),
            ttft: Histogram::default(),
            tpot: Histogram::default(),
            e2e: Histogram::default(),
            attention: tally(),
            expert: tally(),
            launches: 0,
            activated: 0,
            activated_tokens: 0,
            turns: BTreeMap::new(),
            turns_done: 0,
            turns_activated: 0,
            occupied_since: None,
            occupied_ns: 0,
            counts: Counts::default(),
            tokens: 0,
            plans: 0,
            moved: 0,
            timeline: Vec::new(),
        }
    }

    fn in_window(&self, now_ns: u64) -> bool {
        (self.from_ns..self.to_ns).contains(&now_ns)
    }

    /// How much of a stretch of time lies in the window.
    fn overlap(&self, begin_ns: u64, end_ns: u64) -> u64 {
        end_ns.min(self.to_ns).saturating_sub(begin_ns.max(self.from_ns))
    }

    /// A sequence came that wants `output` tokens.
    pub(crate) fn arrived(&mut self, now_ns: u64, output: u32) {
        self.counts.arrived += 1;
        if self.in_window(now_ns) {
            self.offered += u64::from(output);
        }
        self.occupied_since.get_or_insert(now_ns);
    }

    /// The cluster is empty.
    pub(crate) fn emptied(&mut self, now_ns: u64) {
        if let Some(since) = self.occupied_since.take() {
            self.occupied_ns += self.overlap(since, now_ns);
        }
    }

    /// Tokens of a prompt have been through all layers.
    pub(crate) fn prefilled(&mut self, now_ns: u64, tokens: u32) {
        if self.in_window(now_ns) {
            self.prefilled += u64::from(tokens);
        }
    }

    /// A sequence got a token; its times are those before it.
    pub(crate) fn token(&mut self, now_ns: u64, sequence: &Sequence) {
        self.tokens += 1;
        if !self.in_window(now_ns) {
            return;
        }
        let bin = usize::try_from((now_ns - self.from_ns) / self.bin_ns).unwrap_or(usize::MAX);
        if let Some(bin) = self.bins.get_mut(bin) {
            *bin += 1;
        }
        if sequence.generated == 0 {
            self.ttft.add(now_ns - sequence.arrived_ns);
        } else {
            self.itl.add(now_ns - sequence.latest_ns);
        }
    }

    /// A sequence got its last token.
    pub(crate) fn ended(&mut self, now_ns: u64, sequence: &Sequence) {
        self.counts.ended += 1;
        if !self.in_window(now_ns) {
            return;
        }
        self.e2e.add(now_ns - sequence.arrived_ns);
        if sequence.generated > 1 {
            self.tpot.add((now_ns - sequence.first_ns) / u64::from(sequence.generated - 1));
        }
    }

    /// A device runs something.
    pub(crate) fn ran(&mut self, ran: Ran) {
        let overlap = self.overlap(ran.begin_ns, ran.end_ns);
        let inside = self.in_window(ran.begin_ns);
        let tally = match ran.kind {
            Kind::Attention => &mut self.attention,
            Kind::Expert => &mut self.expert,
        };
        tally.busy_ns[ran.device] += overlap;
        if !inside {
            return;
        }
        tally.runs += 1;
        tally.batch += u64::from(ran.batch);
        tally.queue += u64::from(ran.queue);
        tally.queue_max = tally.queue_max.max(ran.queue);
        if self.timeline.len() < TIMELINE_MAX {
            let Ran { device, kind, layer, begin_ns, end_ns, .. } = ran;
            self.timeline.push(Stretch { device, kind, layer, begin_ns, end_ns });
        }
    }

    /// A launch activated so many experts with so many tokens altogether.
    pub(crate) fn launched(&mut self, now_ns: u64, experts: u32, tokens: u32) {
        if self.in_window(now_ns) {
            self.launches += 1;
            self.activated += u64::from(experts);
            self.activated_tokens += u64::from(tokens);
        }
    }

    /// Lockstep: a turn has passed on one of `nodes` expert nodes with so many experts activated.
    pub(crate) fn passed(&mut self, now_ns: u64, turn: (u8, u64), experts: u32, nodes: usize) {
        let entry = self.turns.entry(turn).or_default();
        *entry = (entry.0.max(experts), entry.1 + 1);
        if entry.1 == nodes {
            let (most, _) = *entry;
            self.turns.remove(&turn);
            if self.in_window(now_ns) && most > 0 {
                self.turns_done += 1;
                self.turns_activated += u64::from(most);
            }
        }
    }

    /// The first runs of the window.
    pub(crate) fn timeline(&mut self) -> Vec<Stretch> {
        std::mem::take(&mut self.timeline)
    }

    /// The outcome at the end of the run. `attention` and `expert` are the devices of each kind.
    #[expect(clippy::cast_precision_loss, reason = "a report, not a decision")]
    pub(crate) fn outcome(
        &mut self,
        now_ns: u64,
        devices: (&[usize], &[usize]),
        bytes: u64,
        events: u64,
    ) -> Outcome {
        self.emptied(now_ns);
        let seconds = (self.to_ns - self.from_ns) as f64 / 1e9;
        let bin_s = self.bin_ns as f64 / 1e9;
        let bins: Vec<f64> = self.bins.iter().map(|&tokens| tokens as f64 / bin_s).collect();
        let occupied = self.occupied_ns as f64 / 1e9 / seconds;
        // A colocated device stands still when it does neither.
        let all: Vec<u64> =
            self.attention.busy_ns.iter().zip(&self.expert.busy_ns).map(|(a, e)| a + e).collect();
        let side = |tally: &Tally, devices: &[usize]| {
            let share = |ns: u64| ns as f64 / 1e9 / seconds;
            let busy_by_node: Vec<f64> =
                devices.iter().map(|&device| share(tally.busy_ns[device])).collect();
            let computing = mean(devices.iter().map(|&device| share(all[device])));
            Side {
                busy: mean(busy_by_node.iter().copied()),
                busy_by_node,
                stall: (occupied - computing).max(0.0),
                runs: tally.runs as f64 / seconds,
                batch: ratio(tally.batch, tally.runs),
                queue: ratio(tally.queue, tally.runs),
                queue_max: tally.queue_max,
            }
        };
        Outcome {
            throughput: mean(bins.iter().copied()),
            bins,
            offered: self.offered as f64 / seconds,
            prefill_throughput: self.prefilled as f64 / seconds,
            itl_ms: self.itl.durations(),
            ttft_ms: self.ttft.durations(),
            tpot_ms: self.tpot.durations(),
            e2e_ms: self.e2e.durations(),
            attention: side(&self.attention, devices.0),
            expert: side(&self.expert, devices.1),
            activated: ratio(self.activated, self.launches),
            activated_max: ratio(self.turns_activated, self.turns_done),
            tokens_per_expert: ratio(self.activated_tokens, self.activated),
            card_gbps: bytes as f64 * 8.0 / all.len() as f64 / now_ns.max(1) as f64,
            devices: all.len(),
            sequences: self.counts,
            plans: self.plans,
            replicas_moved: self.moved,
            tokens_total: self.tokens,
            events,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a report, not a decision")]
fn ratio(sum: u64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum as f64 / count as f64 }
}

#[expect(clippy::cast_precision_loss, reason = "a report, not a decision")]
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}
