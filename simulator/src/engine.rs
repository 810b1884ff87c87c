//! The run itself: takes one event after the other and lets nodes receive, pick, run and publish.

mod admit;
mod attend;
mod compute;
mod experts;
mod plan;
mod steps;

use std::{path::Path, sync::Arc};

use domain::{Plan, Trace};
use policy::{assignment::Candidate, placement::Basis};

use crate::{
    agenda::{Agenda, Event},
    attention::Attention,
    barrier::Barrier,
    cluster::{Cluster, Part},
    device::Device,
    experts::{Experts, Stream},
    judge::{Census, Judge, Violation, Wrong},
    links::Links,
    messages::{Messages, Outgoing},
    meter::{Meter, Stretch},
    outcome::Outcome,
    queues::MicroQueues,
    routes::Routes,
    sequences::Sequences,
    skew::Chooser,
    spans::Spans,
    spec::{Queues, Run, Schedule, ns_of_us},
    workload::{Arrivals, Request},
};

/// How often the whole state is checked in a run.
const CENSUSES: u64 = 16;

/// Everything of one run.
#[derive(Debug)]
pub(crate) struct Engine<'a> {
    run: &'a Run,
    cluster: Cluster,
    agenda: Agenda,
    links: Links,
    devices: Vec<Device>,
    attention: Vec<Attention>,
    experts: Vec<Experts>,
    /// Lockstep: per stream, whose batches a decision over all nodes waits for.
    gathers: Vec<Gather>,
    spans: Spans,
    sequences: Sequences,
    messages: Messages,
    routes: Routes,
    chooser: Chooser,
    arrivals: Arrivals,
    next: Option<Request>,
    judge: Judge,
    meter: Meter,
    /// Tokens per `[layer][expert]` since the lease was renewed.
    activations: Vec<u32>,
    /// Launches of experts since then.
    launches: u64,
    /// What the serving plan was made for.
    basis: Basis,
    /// What online placement looks at.
    recent: Trace,
    /// The plan that is being loaded.
    loading: Option<Arc<Plan>>,
    end_ns: u64,
    scratch: Scratch,
}

/// A decision over the batches of all attention nodes.
#[derive(Debug)]
struct Gather {
    barrier: Barrier,
    /// The turn that is being decided.
    deciding: Option<u64>,
}

/// Kept from event to event.
#[derive(Debug, Default)]
struct Scratch {
    /// Devices that may have become able to run something.
    awake: Vec<usize>,
    /// The experts of one row.
    row: Vec<u16>,
    /// The experts of one span with their tokens.
    chosen: Vec<(u16, u16)>,
    /// Per expert node.
    outgoing: Vec<Outgoing>,
    /// Nodes with something in `outgoing`.
    touched: Vec<usize>,
    /// Per attention node.
    replies: Vec<Vec<crate::spans::Pair>>,
    tokens: Vec<u32>,
    candidates: Vec<Candidate>,
}

// === impl Engine ===

impl<'a> Engine<'a> {
    /// Sets a checked run up; its files are looked up from `folder`.
    pub(crate) fn new(run: &'a Run, folder: &Path) -> Result<Self, String> {
        let cluster = Cluster::new(run, folder)?;
        let (layers, experts) = (cluster.layers(), cluster.experts_per_layer());
        let (shape, nodes) = (&cluster.shape, cluster.attention);
        let mut chooser = Chooser::new(&run.skew, shape.layers, shape.experts, run.seed, folder)?;
        let (plan, basis) = plan::first(run, &cluster, &mut chooser)?;
        let slots = Slots::new(run, &cluster, &plan);
        let streams = streams(run.schedule);
        let gather = || Gather { barrier: Barrier::new(nodes, layers as u64), deciding: None };
        let ns_of_s = |seconds: f64| ns_of_us(seconds * 1e6);
        let [from, to] = run.window.map(|share| ns_of_s(run.duration_s * share));
        let bin_ns = ns_of_s(run.bin_s).max(1);
        Ok(Self {
            devices: devices(run, &cluster, &slots),
            attention: attention(run, &cluster),
            experts: expert_nodes(run, &cluster, slots),
            gathers: std::iter::repeat_with(gather).take(streams).collect(),
            agenda: Agenda::default(),
            links: Links::new(&run.links, cluster.parts.iter().map(|part| part.in_box).collect()),
            spans: Spans::default(),
            sequences: Sequences::default(),
            messages: Messages::default(),
            routes: Routes::new(run.routing.policy, &cluster, plan),
            chooser,
            arrivals: run.workload.arrivals(folder, run.seed)?,
            next: None,
            judge: Judge::default(),
            meter: Meter::new(from, to, bin_ns, cluster.parts.len()),
            activations: vec![0; layers * experts],
            recent: Trace::new(layers, experts),
            launches: 0,
            basis,
            loading: None,
            end_ns: ns_of_s(run.duration_s),
            scratch: Scratch {
                row: vec![0; shape.top_k.into()],
                outgoing: std::iter::repeat_with(Outgoing::default).take(cluster.experts).collect(),
                replies: vec![Vec::new(); nodes],
                tokens: vec![0; experts],
                ..Scratch::default()
            },
            run,
            cluster,
        })
    }

    /// Runs to the end; the outcome, and the first things that devices did in the window.
    pub(crate) fn run(mut self) -> Result<(Outcome, Vec<Stretch>), Violation> {
        self.judge.epoch(self.routes.epoch())?;
        self.meter.plans = 1;
        self.begin();
        while let Some((now_ns, event)) = self.agenda.take() {
            self.judge.time(now_ns)?;
            if now_ns >= self.end_ns {
                break;
            }
            self.on(event)?;
            self.wake();
        }
        self.census()?;
        let devices = |nodes: &mut dyn Iterator<Item = usize>| nodes.collect::<Vec<_>>();
        let attention = devices(&mut self.attention.iter().map(|node| node.device));
        let experts = devices(&mut self.experts.iter().map(|node| node.device));
        self.meter.counts.unfinished = self.sequences.len() as u64;
        let events = self.agenda.noted();
        let bytes = self.links.bytes();
        let outcome = self.meter.outcome(self.end_ns, (&attention, &experts), bytes, events);
        Ok((outcome, self.meter.timeline()))
    }

    fn begin(&mut self) {
        self.renew_at(0);
        self.digest_at(0);
        self.agenda.note(self.end_ns, Event::Census);
        let census_ns = (self.end_ns / CENSUSES).max(1);
        (1..CENSUSES).for_each(|at| self.agenda.note(at * census_ns, Event::Census));
        if let Some(online) = self.run.placement.online {
            self.agenda.note(ns_of_us(online.every_ms * 1e3), Event::Replan);
        }
        match self.run.workload.in_flight() {
            Some(count) => (0..count).for_each(|_| self.follow_up()),
            None => self.expect_next(),
        }
        self.wake();
    }

    fn on(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Arrive => self.on_arrive(),
            Event::Waited(device) => self.scratch.awake.push(device.into()),
            Event::Finished(device) => self.finish(usize::from(device))?,
            Event::Reached(message) => {
                let (from, to, bytes) = self.messages.route(message);
                let in_ns = self.links.receive(self.agenda.now_ns(), from, to, bytes);
                self.agenda.note(in_ns, Event::Received(message));
            }
            Event::Received(message) => {
                let message = self.messages.remove(message);
                self.receive(message)?;
            }
            Event::Decided(stream) => self.on_decided(usize::from(stream))?,
            Event::Renew => self.on_renew()?,
            Event::Digest => self.on_digest(),
            Event::Replan => self.on_replan()?,
            Event::Loaded => self.on_loaded()?,
            Event::Census => self.census()?,
        }
        Ok(())
    }

    /// Lets every device run that something has happened to.
    fn wake(&mut self) {
        let mut at = 0;
        while let Some(&device) = self.scratch.awake.get(at) {
            self.start(device);
            at += 1;
        }
        self.scratch.awake.clear();
    }

    /// Checks the state of the whole cluster.
    fn census(&mut self) -> Result<(), Violation> {
        let sent = self.messages.iter().flat_map(|message| &message.pairs);
        let queued = self.experts.iter().flat_map(Experts::pairs_waiting);
        let computed = self.devices.iter().flat_map(|device| &device.pairs);
        let streams = self.attention.iter().flat_map(|node| &node.streams);
        let undecided = streams.flat_map(|stream| &stream.undecided);
        let pairs = sent.chain(queued).chain(computed).chain(undecided);
        let ready = self.attention.iter().flat_map(Attention::spans_ready);
        let attended = self.devices.iter().flat_map(|device| device.spans.iter().copied());
        let running = self.sequences.iter().filter(|(_, sequence)| sequence.running);
        self.judge.census(&Census {
            spans: self.spans.iter().map(|(at, span)| (at, *span)).collect(),
            pairs: pairs.map(|pair| (pair.span, pair.tokens)).collect(),
            ready: ready.chain(attended).collect(),
            running: running.map(|(at, sequence)| (at, sequence.serial)).collect(),
        })?;
        self.check_bounds()?;
        let idle = self.devices.iter().all(|device| device.running.is_none());
        let sequences = self.sequences.len();
        if idle && sequences > 0 && self.messages.iter().next().is_none() && self.is_stuck() {
            return Err(self.judge.wrong(Wrong::Stuck { sequences }));
        }
        Ok(())
    }

    /// Whether no decision is on its way either, and nobody waits for a while only.
    fn is_stuck(&self) -> bool {
        self.gathers.iter().all(|gather| gather.deciding.is_none())
            && self.devices.iter().all(|device| !device.holds)
    }

    fn check_bounds(&self) -> Result<(), Violation> {
        let rows =
            u64::from(self.run.bounds.sequences_max) * u64::from(self.run.prefill.chunk.max(1));
        let tokens = rows * self.attention.len() as u64 * u64::from(self.cluster.costs.top_k);
        let mut held = vec![0; self.attention.len()];
        for (_, sequence) in self.sequences.iter() {
            held[usize::from(sequence.home)] += sequence.blocks.len();
        }
        for (at, node) in self.attention.iter().enumerate() {
            self.judge.bounded("ready rows", at, node.rows_ready().into(), rows)?;
            let waiting = node.waiting.len() as u64;
            let waiting_max = self.run.bounds.waiting_max.into();
            self.judge.bounded("waiting sequences", at, waiting, waiting_max)?;
            self.judge.kv(at, held[at], node.kv.free_count(), node.kv.total() as usize)?;
        }
        for (at, node) in self.experts.iter().enumerate() {
            self.judge.bounded("queued tokens", at, node.tokens_waiting().into(), tokens)?;
        }
        Ok(())
    }
}

/// Streams of a node's batch that go through the layers side by side; none without lockstep.
fn streams(schedule: Schedule) -> usize {
    match schedule {
        Schedule::Async => 0,
        Schedule::Lockstep => 1,
        Schedule::LockstepOverlap => 2,
    }
}

fn devices(run: &Run, cluster: &Cluster, slots: &Slots) -> Vec<Device> {
    let layers = cluster.layers();
    let groups = if run.batching.queues == Queues::Expert { slots.max } else { 1 };
    let device = |&part: &Part| match run.schedule {
        Schedule::Async => Device::asynchronous(part, layers, groups, &run.batching),
        Schedule::Lockstep | Schedule::LockstepOverlap => Device::lockstep(part, layers),
    };
    cluster.parts.iter().map(device).collect()
}

fn attention(run: &Run, cluster: &Cluster) -> Vec<Attention> {
    let (stages, streams) = (cluster.layers() + 1, streams(run.schedule));
    let parts = cluster.parts.iter().enumerate();
    parts
        .filter(|(_, part)| part.attention.is_some())
        .map(|(device, _)| Attention::new(device, stages, streams, run.bounds.kv_tokens))
        .collect()
}

fn expert_nodes(run: &Run, cluster: &Cluster, slots: Slots) -> Vec<Experts> {
    let (layers, experts) = (cluster.layers(), cluster.experts_per_layer());
    let streams = || (0..streams(run.schedule)).map(|_| Stream::new(cluster.attention, layers));
    let nodes = cluster.parts.iter().enumerate().filter(|(_, part)| part.expert.is_some());
    nodes
        .zip(slots.of)
        .map(|((device, _), slot_of)| {
            let queues = MicroQueues::new(layers, experts, slots.max, slot_of);
            Experts::new(device, queues, streams().collect(), layers, experts)
        })
        .collect()
}

/// Where each expert's queue is.
#[derive(Debug)]
struct Slots {
    /// Per expert node, `[layer][expert]`, flattened.
    of: Vec<Vec<u16>>,
    /// Slots of a layer.
    max: usize,
}

impl Slots {
    /// A slot for each expert that a node holds, or for every expert if it may get others later.
    /// Lockstep has no queues.
    fn new(run: &Run, cluster: &Cluster, plan: &Plan) -> Self {
        let (layers, experts) = (cluster.layers(), cluster.experts_per_layer());
        if run.schedule != Schedule::Async {
            return Self { of: vec![Vec::new(); cluster.experts], max: 0 };
        }
        if run.placement.online.is_some() {
            let all: Vec<u16> = (0..layers).flat_map(|_| 0..cluster.costs.experts).collect();
            return Self { of: vec![all; cluster.experts], max: experts };
        }
        let mut of = vec![vec![0; layers * experts]; cluster.experts];
        let mut used = vec![0_u16; cluster.experts * layers];
        for (slot, replicas) in plan.table().enumerate() {
            for id in replicas {
                let node = id.0 as usize;
                let used = &mut used[node * layers + slot / experts];
                of[node][slot] = *used;
                *used += 1;
            }
        }
        Self { of, max: used.into_iter().max().unwrap_or(0).into() }
    }
}

#[cfg(test)]
mod tests;
