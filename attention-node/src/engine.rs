//! The attention node's loop: receive → admit → pick → run → publish, one stage of one batch per turn.

mod admit;
mod canary;
mod run;
mod traced;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use chassis::{
    Readiness, Shutdown,
    engine::{Engine, Step},
};
use domain::{ClusterView, Guidance, Health, Layer, Load, SequenceRequest};
use grammar::Grammar;
use model::{AttentionHalf, KvCache, Routed, Sampled, SamplingScratch, Scratch};
use node::{Pace, Reports};
use policy::kv_blocks::KvBlocks;
use proto::{
    control::{Beat, Drawn, Report, Work},
    frame::{Frame, Output, Tally, Ticket},
};
use slab::Slab;
use tokio::sync::{mpsc, oneshot, watch};
use transport::{
    link::{LinkEvent, LinkEventKind},
    mailbox::Mailbox,
};

use crate::{
    config::CanaryConfig,
    experts::Experts,
    metrics::Metrics,
    pulse::Pulse,
    ready::{Ready, Turn},
    sequence::{Sequence, Told},
    span::{Merge, Span, TicketParts},
    trace::Trace,
};

/// Pause before choices that no node could take are offered again.
const STALLED_PAUSE: Duration = Duration::from_millis(20);

/// Bounds of one attention node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Sequences that run at once.
    pub(crate) sequences_max: usize,
    /// Sequences that wait.
    pub(crate) waiting_max: usize,
    /// Tokens of one prefill chunk.
    pub(crate) chunk_tokens_max: usize,
    /// Rows that are under way at once, prefill and decode together.
    pub(crate) rows_max: usize,
    /// Longest sequence.
    pub(crate) positions_max: usize,
    /// Rows of one LM head run.
    pub(crate) head_rows_max: usize,
    /// How long nothing may come back.
    pub(crate) canary: CanaryConfig,
}

/// Names a submitted sequence until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SubmissionId(pub(crate) u64);

impl SubmissionId {
    /// Nobody submits canaries; the door counts up from 0.
    const CANARY: Self = Self(u64::MAX);
}

/// What the door asks of the engine.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run this sequence.
    Submit(Box<Submission>),
    /// Nobody listens any more.
    Cancel(SubmissionId),
}

/// A sequence at the door.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) id: SubmissionId,
    pub(crate) request: SequenceRequest,
    /// Has room for all tokens the sequence may get.
    pub(crate) outputs: mpsc::Sender<Told>,
    pub(crate) answer: oneshot::Sender<Result<(), Refusal>>,
    /// Its trace, if it is sampled.
    pub(crate) trace: Option<Box<Trace>>,
    /// What its text is held to.
    pub(crate) grammar: Option<Box<Grammar>>,
}

/// Why a sequence was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// As many wait as may.
    Full,
    /// The node is being stopped.
    Draining,
}

/// What the engine is joined to.
#[derive(Debug)]
pub(crate) struct Joints {
    pub(crate) commands: Mailbox<Command>,
    pub(crate) links: Mailbox<LinkEvent>,
    pub(crate) views: watch::Receiver<Arc<ClusterView>>,
    pub(crate) guidance: watch::Receiver<Arc<Guidance>>,
    pub(crate) beats: watch::Sender<Beat>,
    pub(crate) reports: Reports,
    pub(crate) shutdown: Shutdown,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
}

/// Everything the thread of an attention node owns.
#[derive(Debug)]
pub(crate) struct AttentionEngine {
    joints: Joints,
    bounds: Bounds,
    half: AttentionHalf,
    pace: Pace,
    kv: KvCache,
    blocks: KvBlocks,
    experts: Experts,
    ready: Ready,
    sequences: Slab<Sequence>,
    submissions: HashMap<SubmissionId, usize>,
    waiting: VecDeque<usize>,
    /// Sequences admitted so far, to know the youngest.
    admissions: u64,
    /// Rows of all spans.
    rows: usize,
    spans: Slab<Span>,
    /// Lockstep mode with routing by batch: what was asked of all and is not answered yet.
    asked: Option<Asked>,
    /// Spans with choices nobody was sent.
    stalled: BTreeSet<usize>,
    retry_at: Option<Instant>,
    /// Trips begun so far: their serials.
    trips: u32,
    pulse: Pulse,
    canary: Option<canary::Canary>,
    /// Canaries sent so far.
    canaries: u64,
    buffers: Buffers,
    /// Runs of layers and tokens drawn since the last report.
    work: Work,
    drawn: Drawn,
    began: Instant,
    seen_view: bool,
}

/// A batch that waits to hear what the other attention nodes chose.
#[derive(Debug)]
struct Asked {
    /// What it chose itself.
    own: Tally,
    spans: Vec<usize>,
}

/// Kept from turn to turn.
#[derive(Debug, Default)]
struct Buffers {
    picked: Vec<usize>,
    /// The span and the row within it of every row of a batch.
    rows: Vec<(usize, usize)>,
    /// Rows that come to each layer's experts next.
    behind: Vec<u32>,
    residual: Vec<f32>,
    routed: Routed,
    scratch: Scratch,
    sampling: SamplingScratch,
    sampled: Vec<Sampled>,
}

// === impl AttentionEngine ===

impl Engine for AttentionEngine {
    fn step(&mut self) -> Step {
        let received = self.receive();
        self.experts.empty_outboxes();
        self.retry_stalled();
        self.tend_canary();
        self.admit();
        let turn = match self.run() {
            Ok(turn) => turn,
            Err(error) => return Step::Failed(error.to_string()),
        };
        self.feel_pulse();
        self.report();
        let (ran, held) = match turn {
            Turn::Run(_) | Turn::Empty(_) => (true, None),
            Turn::Hold { until_ns } => (false, Some(self.began + Duration::from_nanos(until_ns))),
            Turn::Rest => (false, None),
        };
        if ran || received {
            Step::Worked
        } else if self.joints.shutdown.is_requested() && self.sequences.is_empty() {
            Step::Finished
        } else {
            let pulse = Some(self.pulse.wake_at());
            Step::Idle { wake_at: [self.retry_at, held, pulse].into_iter().flatten().min() }
        }
    }
}

impl AttentionEngine {
    pub(crate) fn new(
        half: AttentionHalf,
        pace: Pace,
        (kv, blocks, scratch): (KvCache, KvBlocks, Scratch),
        bounds: Bounds,
        ready: Ready,
        experts: Experts,
        joints: Joints,
    ) -> Self {
        Self {
            joints,
            bounds,
            half,
            pace,
            kv,
            blocks,
            experts,
            ready,
            sequences: Slab::new(),
            submissions: HashMap::new(),
            waiting: VecDeque::new(),
            admissions: 0,
            rows: 0,
            spans: Slab::new(),
            asked: None,
            stalled: BTreeSet::new(),
            retry_at: None,
            trips: 0,
            pulse: Pulse::new(bounds.canary, Instant::now()),
            canary: None,
            canaries: 0,
            buffers: Buffers { scratch, ..Buffers::default() },
            work: Work::default(),
            drawn: Drawn::default(),
            began: Instant::now(),
            seen_view: false,
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The stage after the last decoder layer.
    fn head(&self) -> usize {
        self.half.spec().layers.len()
    }

    // --- receive ---

    fn receive(&mut self) -> bool {
        let mut received = false;
        if !self.seen_view || self.joints.views.has_changed().unwrap_or(false) {
            self.seen_view = true;
            received = true;
            let view = Arc::clone(&self.joints.views.borrow_and_update());
            self.experts.follow(&view);
            self.retry_at = self.retry_at.map(|_| Instant::now());
        }
        if self.joints.guidance.has_changed().unwrap_or(false) {
            let guidance = Arc::clone(&self.joints.guidance.borrow_and_update());
            self.experts.heed(&guidance);
        }
        while let Some(event) = self.joints.links.try_recv() {
            received = true;
            self.on_link_event(event);
        }
        while let Some(command) = self.joints.commands.try_recv() {
            received = true;
            match command {
                Command::Submit(submission) => self.submit(*submission),
                Command::Cancel(id) => self.cancel(id),
            }
        }
        received
    }

    fn on_link_event(&mut self, event: LinkEvent) {
        let node = event.peer;
        match event.kind {
            LinkEventKind::Up(link) => {
                tracing::info!(%node, "link to expert node is up");
                self.experts.on_up(node, link);
                self.tell_position(node);
                self.retry_at = self.retry_at.map(|_| Instant::now());
            }
            LinkEventKind::Down(down) => {
                tracing::warn!(%node, reason = down.reason(), "link to expert node is down");
                self.experts.on_down(node);
                for (key, span) in &mut self.spans {
                    span.trip.take_back(node, None);
                    if span.trip.has_unsent() {
                        self.stalled.insert(key);
                    }
                }
                self.retry_at = Some(Instant::now());
            }
            LinkEventKind::Frame(Frame::Output(output), _) => self.combine(node, output),
            LinkEventKind::Frame(Frame::Reject(tickets), _) => self.on_reject(node, &tickets),
            LinkEventKind::Frame(Frame::Barrier { step }, _) => self.ready.hear(step),
            LinkEventKind::Frame(Frame::Tally(all), _) => self.on_tally(&all),
            LinkEventKind::Frame(frame, _) => {
                tracing::warn!(%node, ?frame, "an expert node sent what only attention nodes send");
            }
        }
    }

    /// Lockstep mode: tells an expert node that has just come what this one has nothing more for. It
    /// would wait for frames that went to others before it was there.
    fn tell_position(&mut self, node: domain::NodeId) {
        let Some((step, stage)) = self.ready.position() else { return };
        let last = self.head() - 1;
        let layer = Self::layer(stage.map_or(last, |stage| stage.min(last)));
        let asked = self.asked.as_ref().map(|asked| &asked.own);
        match asked.filter(|own| stage.is_some() && (own.step, own.layer) == (step, layer)) {
            Some(own) => self.experts.ask_tally_of(node, own),
            None => self.experts.send_nothing(node, layer, step),
        }
    }

    fn on_reject(&mut self, node: domain::NodeId, tickets: &[Ticket]) {
        for &ticket in tickets {
            let parts = TicketParts::of(ticket);
            let Some(span) = self.spans.get_mut(parts.span) else { continue };
            if span.trip.serial() == parts.serial {
                span.trip.take_back(node, Some(parts.row));
                self.stalled.insert(parts.span);
            }
        }
        self.joints.metrics.rejected.inc_by(tickets.len() as u64);
        self.retry_at.get_or_insert_with(|| Instant::now() + STALLED_PAUSE);
    }

    /// Merges results; spans whose last one this was are ready for their next layer.
    fn combine(&mut self, node: domain::NodeId, mut output: Output) {
        let Some(row_bytes) = output.rows.len().checked_div(output.results.len()) else { return };
        let now = self.now_ns();
        let first = output.results.first().map(|done| TicketParts::of(done.ticket));
        let sent = first.and_then(|parts| self.spans.get(parts.span)?.trip.sent(parts));
        if let Some(sent) = sent {
            self.experts.answered(node, sent.elapsed());
        }
        if !output.timings.is_empty() {
            self.trace_answers(node, &output);
        }
        for done in output.results {
            let parts = TicketParts::of(done.ticket);
            let row = output.rows.split_to(row_bytes);
            let Some(span) = self.spans.get_mut(parts.span) else { continue };
            if span.trip.merge(parts, done.rank, row) == Merge::Complete {
                self.ready.come_back(span.trip.layer.index(), span.rows);
                self.stalled.remove(&parts.span);
                self.advance(parts.span, now);
            }
        }
    }

    /// Offers the choices that nobody was sent once more.
    fn retry_stalled(&mut self) {
        if self.retry_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.retry_at = None;
        let mut by_layer: Vec<(Layer, usize)> = self
            .stalled
            .iter()
            .filter_map(|&key| Some((self.spans.get(key)?.trip.layer, key)))
            .collect();
        by_layer.sort_unstable();
        self.stalled.clear();
        for layer in by_layer.chunk_by(|a, b| a.0 == b.0) {
            self.add(layer.iter().map(|&(_, key)| key));
            // What is sent again has missed its step: it is run at once.
            self.flush(layer[0].0, 0);
        }
    }

    /// Adds what is unsent of these spans to the next frames; what finds no node waits.
    fn add(&mut self, keys: impl Iterator<Item = usize>) {
        for key in keys {
            let counted = !self.is_canary(self.spans[key].sequence);
            let span = &mut self.spans[key];
            self.experts.add(key, span, counted);
            if span.trip.has_unsent() {
                self.stalled.insert(key);
                self.retry_at.get_or_insert_with(|| Instant::now() + STALLED_PAUSE);
            }
        }
    }

    /// Sends what was added for a layer, with where the other rows are.
    fn flush(&mut self, layer: Layer, step: u64) {
        self.ready.behind(&mut self.buffers.behind);
        self.experts.flush(layer, step, &self.buffers.behind);
    }

    // --- publish ---

    fn report(&mut self) {
        let reachable = self.experts.all_reachable();
        let health = if self.joints.shutdown.is_requested() {
            Health::Draining
        } else if reachable && self.pulse.is_well() {
            Health::Ready
        } else {
            Health::Joining
        };
        self.joints.readiness.set(crate::EXPERTS_LINKED, reachable);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let load = Load {
            running: count(self.running()),
            waiting: count(self.waiting.len()),
            kv_blocks_free: count(self.blocks.free_count()),
            kv_blocks: self.blocks.total(),
            queued_pairs: 0,
        };
        let epoch_ready = self.experts.ready();
        let idle = self.blocks.idle_count();
        self.joints.metrics.stands(&load, idle, self.ready.rows(), epoch_ready);
        self.joints.beats.send_if_modified(|beat| {
            let changed = beat.health != health || beat.epoch_ready != epoch_ready;
            *beat = Beat { health, load, epoch_ready };
            changed
        });
        if self.joints.reports.are_wanted() {
            let routed = self.experts.take_routed(&self.half.spec().shape());
            let (queued, work) = (self.ready.rows_per_stage().to_vec(), self.work);
            let responses = self.experts.take_responses();
            let drawn = std::mem::take(&mut self.drawn);
            self.joints.reports.send(Report { queued, routed, work, responses, drawn });
            self.work = Work::default();
        }
    }
}
