//! One device: computes one thing at a time, picked by score or in the order in which things became possible.

use std::collections::VecDeque;

use policy::batching::{Batcher, Decision, Tuning};

use crate::{cluster::Part, queues::Waiting, spans::Pair, spec};

/// Something that a device can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// A layer's attention.
    Attend { layer: u16, stream: u8 },
    /// The LM head and the sampler.
    Head { stream: u8 },
    /// A layer's experts; in lockstep those of one turn, async those of one group.
    Experts { layer: u16, stream: u8, turn: u64, group: u16 },
}

/// What a device does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Run this; how much waited.
    Run { job: Job, waiting: u32 },
    /// Wait for more until then.
    Hold { until_ns: u64 },
    /// Nothing can run.
    Rest,
}

/// How it picks.
#[derive(Debug)]
pub(crate) enum Work {
    /// By score.
    Async(Box<Batcher>),
    /// First come, first served: the barriers leave nothing to choose.
    Lockstep(VecDeque<Job>),
}

/// One device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) part: Part,
    pub(crate) work: Work,
    pub(crate) running: Option<Job>,
    /// Whether it waits for tokens that are right behind its queues.
    pub(crate) holds: bool,
    /// The spans of a running attention or head.
    pub(crate) spans: Vec<u32>,
    /// The pairs of running experts.
    pub(crate) pairs: Vec<Pair>,
    layers: usize,
}

// === impl Device ===

impl Device {
    /// A device that picks by score among the queues of its part; `groups` per layer on an expert
    /// node.
    pub(crate) fn asynchronous(
        part: Part,
        layers: usize,
        groups: usize,
        batching: &spec::Batching,
    ) -> Self {
        let batcher = |stages, groups, tuning: Tuning| Batcher::new(stages, groups, tuning);
        let batcher = match (part.attention, part.expert) {
            (None, _) => batcher(layers, groups, batching.expert),
            (Some(_), None) => batcher(layers + 1, 1, batching.attention),
            // The circular order of a colocated device: A0, E0, A1, E1, …, head.
            (Some(_), Some(_)) => batcher(2 * layers + 1, 1, batching.attention),
        };
        Self::new(part, layers, Work::Async(Box::new(batcher)))
    }

    /// A device of a lockstep run.
    pub(crate) fn lockstep(part: Part, layers: usize) -> Self {
        Self::new(part, layers, Work::Lockstep(VecDeque::new()))
    }

    fn new(part: Part, layers: usize, work: Work) -> Self {
        Self {
            part,
            work,
            running: None,
            holds: false,
            spans: Vec::new(),
            pairs: Vec::new(),
            layers,
        }
    }

    fn is_colocated(&self) -> bool {
        self.part.attention.is_some() && self.part.expert.is_some()
    }

    /// Async: the batcher's stage of attention in `layer`; of the head for the last one.
    fn attention_stage(&self, layer: usize) -> usize {
        if self.is_colocated() { 2 * layer } else { layer }
    }

    fn expert_stage(&self, layer: usize) -> usize {
        if self.is_colocated() { 2 * layer + 1 } else { layer }
    }

    /// Async: tells how the ready rows of a stage of attention stand.
    pub(crate) fn note_attention(&mut self, layer: usize, rows: u32, oldest_ns: u64) {
        let stage = self.attention_stage(layer);
        if let Work::Async(batcher) = &mut self.work {
            batcher.set(stage, 0, rows, oldest_ns);
        }
    }

    /// Async: tells how a queue of experts stands. Beside attention's rows, tokens count once and not
    /// once per expert.
    pub(crate) fn note_experts(&mut self, layer: usize, group: usize, waiting: Waiting, top_k: u8) {
        let stage = self.expert_stage(layer);
        let Waiting { tokens, oldest_ns } = waiting;
        let tokens = if self.is_colocated() { tokens.div_ceil(top_k.into()) } else { tokens };
        if let Work::Async(batcher) = &mut self.work {
            batcher.set(stage, group, tokens, oldest_ns);
        }
    }

    /// Async: what is on its way to each layer's experts; of a device that holds nothing else.
    pub(crate) fn hear(&mut self, coming: impl IntoIterator<Item = u32>, now_ns: u64) {
        if let (false, Work::Async(batcher)) = (self.is_colocated(), &mut self.work) {
            batcher.hear(coming, now_ns);
        }
    }

    /// Async: how many rows come to a stage of attention next.
    pub(crate) fn follow_attention(&mut self, layer: usize, behind: u64) {
        let stage = self.attention_stage(layer);
        if let Work::Async(batcher) = &mut self.work {
            batcher.follow(stage, behind);
        }
    }

    /// Async: how many rows come to a layer's experts next, here or elsewhere.
    pub(crate) fn follow_experts(&mut self, layer: usize, behind: u64) {
        let stage = self.expert_stage(layer);
        if let Work::Async(batcher) = &mut self.work {
            batcher.follow(stage, behind);
        }
    }

    /// What it ran took so long.
    pub(crate) fn ran(&mut self, ns: u64) {
        if let Work::Async(batcher) = &mut self.work {
            batcher.ran(ns);
        }
    }

    /// Lockstep: something has become possible.
    pub(crate) fn line_up(&mut self, job: Job) {
        if let Work::Lockstep(jobs) = &mut self.work {
            jobs.push_back(job);
        }
    }

    /// What to do now.
    pub(crate) fn decide(&mut self, now_ns: u64) -> Next {
        let (colocated, layers) = (self.is_colocated(), self.layers);
        let narrow = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        match &mut self.work {
            Work::Lockstep(jobs) => {
                jobs.pop_front().map_or(Next::Rest, |job| Next::Run { job, waiting: 0 })
            }
            Work::Async(batcher) => {
                let waiting = batcher.tokens();
                let pick = match batcher.decide(now_ns) {
                    Decision::Run(pick) => pick,
                    Decision::Hold { until_ns } => return Next::Hold { until_ns },
                    Decision::Rest => return Next::Rest,
                };
                let experts =
                    if colocated { pick.stage % 2 == 1 } else { self.part.expert.is_some() };
                let layer = if colocated { pick.stage / 2 } else { pick.stage };
                let job = if experts {
                    let group = narrow(pick.group);
                    Job::Experts { layer: narrow(layer), stream: 0, turn: 0, group }
                } else if layer == layers {
                    Job::Head { stream: 0 }
                } else {
                    Job::Attend { layer: narrow(layer), stream: 0 }
                };
                Next::Run { job, waiting }
            }
        }
    }
}
