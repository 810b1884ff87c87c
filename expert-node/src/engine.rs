//! The expert node's loop: receive → load → pick → run → publish, one launch per turn.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chassis::{
    Readiness, Shutdown,
    engine::{Engine, Step},
};
use domain::{ClusterView, CostCurve, Digest, Epoch, Guidance, Health, Layer, Load, NodeId, Role};
use model::ModelError;
use node::{Outbox, Pace, Reports};
use policy::batching::{self, Batcher, Behind, Decision, Tuning};
use proto::{
    control::{Beat, Report, Work},
    frame::{Dispatch, Frame, Tally, Ticket},
};
use tokio::sync::watch;
use transport::{
    link::{LinkEvent, LinkEventKind, LinkSender, Permit},
    mailbox::Mailbox,
};

use crate::{
    barrier::Barrier, launch::Launch, metrics::Metrics, queues::MicroQueues, shard::Shard,
    tallies::Tallies,
};

/// When a layer may run.
#[derive(Debug)]
pub(crate) enum Schedule {
    /// As soon as it is worth most.
    Async(Batcher),
    /// When every attention node's frame for it is there.
    Lockstep(Barrier, Tallies),
}

/// What the engine is joined to.
#[derive(Debug)]
pub(crate) struct Joints {
    pub(crate) inbox: Mailbox<LinkEvent>,
    pub(crate) views: watch::Receiver<Arc<ClusterView>>,
    pub(crate) guidance: watch::Receiver<Arc<Guidance>>,
    pub(crate) beats: watch::Sender<Beat>,
    pub(crate) reports: Reports,
    /// What one activated expert's share of a launch should take, if it was measured.
    pub(crate) curve: Option<CostCurve>,
    pub(crate) shutdown: Shutdown,
    pub(crate) pace: Pace,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
}

/// Everything the thread of an expert node owns.
#[derive(Debug)]
pub(crate) struct ExpertEngine {
    joints: Joints,
    shard: Shard,
    queues: MicroQueues,
    schedule: Schedule,
    behind: Behind,
    /// Until when all that waits is held.
    held_until: Option<Instant>,
    launch: Launch,
    /// The attention nodes that are linked, with the frames their links had no credit for.
    peers: BTreeMap<NodeId, Peer>,
    row_bytes: usize,
    drain_max: usize,
    /// Runs since the last report.
    work: Work,
    /// Members that hold experts, this one among them.
    expert_nodes: u32,
    began: Instant,
    seen_view: bool,
}

#[derive(Debug)]
struct Peer {
    link: LinkSender,
    outbox: Outbox,
}

// === impl Schedule ===

impl Schedule {
    pub(crate) fn asynchronous(layers: u16, tuning: Tuning) -> Self {
        Self::Async(Batcher::new(usize::from(layers), 1, tuning))
    }

    pub(crate) fn lockstep() -> Self {
        Self::Lockstep(Barrier::default(), Tallies::default())
    }
}

// === impl ExpertEngine ===

impl Engine for ExpertEngine {
    fn step(&mut self) -> Step {
        let received = self.receive();
        self.empty_outboxes();
        let worked = match self.load().and_then(|loaded| Ok(self.run()? || loaded)) {
            Ok(worked) => worked,
            Err(error) => return Step::Failed(error.to_string()),
        };
        self.report();
        if worked || received {
            Step::Worked
        } else if self.is_drained() {
            Step::Finished
        } else {
            let wake_at = [self.shard.wake_at(), self.held_until].into_iter().flatten().min();
            Step::Idle { wake_at }
        }
    }
}

impl ExpertEngine {
    pub(crate) fn new(shard: Shard, schedule: Schedule, drain_max: usize, joints: Joints) -> Self {
        let spec = shard.half().spec();
        let (layers, experts) = (spec.layers.len(), spec.moe.experts);
        let row_bytes = shard.half().row_bytes();
        Self {
            joints,
            shard,
            queues: MicroQueues::new(layers, experts),
            schedule,
            behind: Behind::new(layers),
            held_until: None,
            launch: Launch::default(),
            peers: BTreeMap::new(),
            row_bytes,
            drain_max,
            work: Work::default(),
            expert_nodes: 1,
            began: Instant::now(),
            seen_view: false,
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    // --- receive ---

    fn receive(&mut self) -> bool {
        let mut received = false;
        if !self.seen_view || self.joints.views.has_changed().unwrap_or(false) {
            self.seen_view = true;
            received = true;
            let view = Arc::clone(&self.joints.views.borrow_and_update());
            self.shard.follow(&view);
            self.expert_nodes = u32::try_from(view.role(Role::Expert).count()).unwrap_or(u32::MAX);
        }
        if self.joints.guidance.has_changed().unwrap_or(false) {
            self.heed();
        }
        while let Some(event) = self.joints.inbox.try_recv() {
            received = true;
            self.on_link_event(event);
        }
        received
    }

    /// Tells the batcher what the coordinator says is on its way here.
    fn heed(&mut self) {
        let now = self.now_ns();
        let guidance = Arc::clone(&self.joints.guidance.borrow_and_update());
        let spec = self.shard.half().spec();
        let fits = |digest: &&Digest| digest.pairs.len() == spec.layers.len();
        let digest = guidance.digest.as_ref().filter(fits);
        if let (Schedule::Async(batcher), Some(digest)) = (&mut self.schedule, digest) {
            let (own, top_k) = (|layer| self.queues.pairs(layer), u32::from(spec.shape().top_k));
            batcher.hear(batching::pairs_coming(digest, own, self.expert_nodes, top_k), now);
        }
    }

    fn on_link_event(&mut self, event: LinkEvent) {
        let peer = event.peer;
        match event.kind {
            LinkEventKind::Up(link) => self.on_up(peer, link),
            LinkEventKind::Down(down) => {
                tracing::info!(%peer, reason = down.reason(), "link to attention node is down");
                self.on_down(peer);
            }
            LinkEventKind::Frame(Frame::Dispatch(dispatch), permit) => {
                self.on_dispatch(peer, dispatch, permit);
            }
            LinkEventKind::Frame(Frame::Tally(tally), _) => self.on_tally(peer, tally),
            LinkEventKind::Frame(Frame::Cancel(tickets), _) => {
                let cancelled = self.queues.cancel(peer, &tickets);
                self.joints.metrics.pairs_cancelled.inc_by(u64::from(cancelled));
                self.note_all_layers();
            }
            LinkEventKind::Frame(frame, _) => {
                tracing::warn!(%peer, ?frame, "an attention node sent what only expert nodes send");
            }
        }
    }

    fn on_up(&mut self, peer: NodeId, link: LinkSender) {
        tracing::info!(%peer, "link to attention node is up");
        self.peers.insert(peer, Peer { link, outbox: Outbox::default() });
        if let Schedule::Lockstep(barrier, _) = &mut self.schedule
            && let Some(step) = barrier.join(peer)
        {
            self.send(peer, Frame::Barrier { step });
        }
    }

    fn on_down(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
        self.behind.forget(peer);
        self.follow();
        let forgotten = self.queues.forget(peer);
        self.joints.metrics.pairs_cancelled.inc_by(u64::from(forgotten));
        if let Schedule::Lockstep(barrier, tallies) = &mut self.schedule {
            barrier.leave(peer);
            tallies.leave(peer);
            self.answer_tallies();
        }
        self.note_all_layers();
    }

    /// Lockstep mode: a node asks what all together chose in a layer.
    fn on_tally(&mut self, peer: NodeId, tally: Tally) {
        let Schedule::Lockstep(barrier, tallies) = &mut self.schedule else { return };
        let step = tally.step;
        barrier.reach(peer, step, tally.layer);
        if let Some(alone) = tallies.add(peer, tally) {
            self.send(peer, Frame::Tally(alone));
        }
        self.announce(peer, step);
        self.answer_tallies();
    }

    fn answer_tallies(&mut self) {
        while let Schedule::Lockstep(barrier, tallies) = &mut self.schedule
            && let Some((asked, tally)) = tallies.complete(|turn| barrier.all_reached(turn))
        {
            for peer in asked {
                self.send(peer, Frame::Tally(tally.clone()));
            }
        }
    }

    /// Lockstep mode: tells the nodes that may be idle of a step that `peer` has begun.
    fn announce(&mut self, peer: NodeId, step: u64) {
        let Schedule::Lockstep(barrier, _) = &mut self.schedule else { return };
        for idle in barrier.announce(peer, step) {
            self.send(idle, Frame::Barrier { step });
        }
    }

    fn on_dispatch(&mut self, peer: NodeId, mut dispatch: Dispatch, permit: Permit) {
        let (step, layer) = (dispatch.step, dispatch.layer);
        if !dispatch.behind.is_empty() {
            self.behind.hear(peer, &dispatch.behind);
            self.follow();
        }
        self.reject_absent(peer, &mut dispatch);
        let now = self.now_ns();
        self.queues.push(peer, dispatch, self.row_bytes, permit, now);
        self.note(layer);
        if let Schedule::Lockstep(barrier, _) = &mut self.schedule {
            barrier.arrive(peer, step, layer);
            self.announce(peer, step);
            self.answer_tallies();
        }
    }

    /// Tells the batcher what comes to each layer next.
    fn follow(&mut self) {
        let top_k = u32::try_from(self.shard.half().spec().moe.top_k).unwrap_or(u32::MAX);
        if let Schedule::Async(batcher) = &mut self.schedule {
            let pairs = self.behind.pairs(self.expert_nodes, top_k);
            pairs.enumerate().for_each(|(layer, pairs)| batcher.follow(layer, pairs));
        }
    }

    /// Takes out the pairs that cannot be run here and tells their sender.
    fn reject_absent(&mut self, peer: NodeId, dispatch: &mut Dispatch) {
        let served = self.shard.serves(dispatch.epoch);
        let (layer, half) = (dispatch.layer, self.shard.half());
        let mut rejected: Vec<Ticket> = Vec::new();
        dispatch.pairs.retain(|pair| {
            let runs = served && half.holds(layer, pair.expert);
            if !runs {
                rejected.push(pair.ticket);
            }
            runs
        });
        if rejected.is_empty() {
            return;
        }
        let (pairs, epoch) = (rejected.len(), dispatch.epoch);
        tracing::debug!(%peer, %layer, %epoch, pairs, "rejected pairs of experts not held here");
        self.joints.metrics.pairs_rejected.inc_by(pairs as u64);
        rejected.dedup();
        self.send(peer, Frame::Reject(rejected));
    }

    // --- load ---

    /// Goes on loading, and says whether there was something to do. What the checkpoint cannot give is tried again
    /// with the next view; without its device the node can do nothing.
    fn load(&mut self) -> Result<bool, ModelError> {
        let queues = &self.queues;
        self.shard.free(|layer, expert| queues.wait_for(layer, expert));
        match self.shard.load() {
            Err(error @ ModelError::Gpu(_)) => Err(error),
            Err(error) => {
                tracing::error!(%error, "an expert cannot be loaded");
                Ok(true)
            }
            Ok(loaded) => Ok(loaded),
        }
    }

    // --- pick and run ---

    /// Runs a layer if one is worth it. After an error the pairs it was for are gone: the node must not stay, so that
    /// their senders dispatch them again.
    fn run(&mut self) -> Result<bool, ModelError> {
        let Some(layer) = self.pick() else { return Ok(false) };
        let lockstep = matches!(self.schedule, Schedule::Lockstep(..));
        let pairs_max = if lockstep { usize::MAX } else { self.drain_max };
        let began = Instant::now();
        let launch = &mut self.launch;
        self.queues
            .drain(layer, pairs_max, self.row_bytes, |expert, pair| launch.add(expert, pair));
        let (pairs, experts) = (launch.pairs(), launch.experts());
        if pairs > 0 {
            let predicted_ns = self.predict();
            let due = began + self.joints.pace.launch(self.launch.tokens());
            self.compute(layer, began, due)?;
            let took = began.elapsed();
            if let Schedule::Async(batcher) = &mut self.schedule {
                batcher.ran(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            }
            self.joints.metrics.ran(pairs, experts, took);
            self.work.add(pairs, experts, took, predicted_ns);
        }
        self.note(layer);
        Ok(true)
    }

    /// What the run that was put together should take; 0 if nobody knows.
    fn predict(&self) -> u64 {
        let Some(curve) = &self.joints.curve else { return 0 };
        self.launch.tokens().map(|tokens| curve.ns(u32::try_from(tokens).unwrap_or(u32::MAX))).sum()
    }

    fn pick(&mut self) -> Option<Layer> {
        let now = self.now_ns();
        self.held_until = None;
        match &mut self.schedule {
            Schedule::Async(batcher) => match batcher.decide(now) {
                Decision::Run(pick) => Some(Layer(u16::try_from(pick.stage).ok()?)),
                Decision::Hold { until_ns } => {
                    self.held_until = Some(self.began + Duration::from_nanos(until_ns));
                    None
                }
                Decision::Rest => None,
            },
            Schedule::Lockstep(barrier, _) => barrier.pass(),
        }
    }

    /// Computes the run that began at `began` and sends the results, not before `due`.
    fn compute(&mut self, layer: Layer, began: Instant, due: Instant) -> Result<(), ModelError> {
        let mut frames = Vec::with_capacity(self.peers.len());
        let publish = |peer, output| frames.push((peer, output));
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let began_ns = ns(began.saturating_duration_since(self.began));
        self.launch.run(layer, self.shard.half_mut(), began_ns, publish)?;
        Pace::hold(due);
        let ran_ns = ns(began.elapsed());
        for (peer, mut output) in frames {
            output.timings.iter_mut().for_each(|timing| timing.ran_ns = ran_ns);
            self.send(peer, Frame::Output(output));
        }
        Ok(())
    }

    // --- publish ---

    fn send(&mut self, peer: NodeId, frame: Frame) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        peer.outbox.push(frame);
        peer.outbox.send(&peer.link);
    }

    fn empty_outboxes(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.outbox.send(&peer.link));
    }

    /// Tells the batcher how a layer stands.
    fn note(&mut self, layer: Layer) {
        if let Schedule::Async(batcher) = &mut self.schedule {
            let pairs = self.queues.pairs(layer.index());
            let oldest = self.queues.oldest_ns(layer.index()).unwrap_or_default();
            batcher.set(layer.index(), 0, pairs, oldest);
        }
    }

    fn note_all_layers(&mut self) {
        for layer in 0..self.shard.half().spec().shape().layers {
            self.note(Layer(layer));
        }
    }

    fn report(&mut self) {
        let ready = self.shard.ready();
        let health = if self.joints.shutdown.is_requested() {
            Health::Draining
        } else if ready == Epoch(0) {
            Health::Joining
        } else {
            Health::Ready
        };
        self.joints.readiness.set(crate::EXPERTS_LOADED, health == Health::Ready);
        let queued_pairs = self.queues.pairs_total();
        let oldest = self.queues.oldest_ns_of_all().map_or(0, |oldest| self.now_ns() - oldest);
        self.joints.metrics.stands(queued_pairs, Duration::from_nanos(oldest), &self.shard);
        self.joints.beats.send_if_modified(|beat| {
            let load = Load { queued_pairs, ..Load::default() };
            let changed = beat.health != health || beat.epoch_ready != ready;
            *beat = Beat { health, load, epoch_ready: ready };
            changed
        });
        if self.joints.reports.are_wanted() {
            let (queued, work) = (self.queues.pairs_per_layer().to_vec(), self.work);
            self.joints.reports.send(Report { queued, work, ..Report::default() });
            self.work = Work::default();
        }
    }

    /// After a stop was asked for: nothing waits here, and no attention node needs this one.
    fn is_drained(&self) -> bool {
        self.joints.shutdown.is_requested() && self.peers.is_empty()
    }
}
