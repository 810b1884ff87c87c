//! The expert nodes as this node sees them: links, the lease of replicas, and the frames on their way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use domain::{ClusterView, Epoch, Guidance, Layer, Leased, ModelShape, NodeId, Plan};
use node::{Followed, Outbox, Plans};
use policy::routing::{self, Lease};
use proto::{
    control::Response,
    frame::{Dispatch, Frame, Pair, Tally, Ticket},
};
use tokio::runtime::Handle;
use transport::link::{Connection, LinkSender, Links};

use crate::{
    batch_routes::BatchRoutes,
    span::{Span, TicketParts},
};

/// Links to the nodes of the serving and the target plan, and who runs which expert.
#[derive(Debug)]
pub(crate) struct Experts {
    links: Links,
    /// Links are kept up by tasks of this runtime.
    runtime: Handle,
    plans: Plans,
    /// The nodes that hold anything under these plans.
    holders: BTreeSet<NodeId>,
    /// What the coordinator last advised.
    advice: Option<Arc<Leased>>,
    lease: Option<Lease>,
    /// Lockstep mode with routing by batch.
    batch: Option<BatchRoutes>,
    nodes: BTreeMap<NodeId, Node>,
    experts: usize,
    /// Pairs sent since the last report, `[layer][expert]`, flattened; dense layers have their
    /// empty places too.
    routed: Vec<u32>,
    /// Whether every expert of the serving plan can be reached.
    reachable: bool,
    /// The newest plan all of whose nodes are linked.
    ready: Epoch,
}

#[derive(Debug)]
struct Node {
    address: String,
    /// Keeps dialling for as long as it lives.
    _connection: Connection,
    link: Option<LinkSender>,
    outbox: Outbox,
    outgoing: Outgoing,
    /// Answers since the last report, and their times.
    answers: u32,
    answered_in: Duration,
}

/// The dispatch that is being put together for one node.
#[derive(Debug, Default)]
struct Outgoing {
    pairs: Vec<Pair>,
    rows: BytesMut,
    /// Rows in it, and the span and row of the last one: a row travels once per node.
    rows_count: u32,
    last: Option<(usize, usize)>,
}

// === impl Experts ===

impl Experts {
    /// With `by_batch` replicas are chosen by it for each batch, which is for lockstep mode, and
    /// otherwise by lease.
    pub(crate) fn new(
        links: Links,
        runtime: Handle,
        shape: &ModelShape,
        by_batch: Option<routing::Policy>,
    ) -> Self {
        let experts = usize::from(shape.experts);
        Self {
            links,
            runtime,
            plans: Plans::default(),
            holders: BTreeSet::new(),
            advice: None,
            lease: None,
            batch: by_batch.map(BatchRoutes::new),
            nodes: BTreeMap::new(),
            experts,
            routed: vec![0; usize::from(shape.layers) * experts],
            reachable: false,
            ready: Epoch::default(),
        }
    }

    /// The newest plan all of whose nodes are linked.
    pub(crate) fn ready(&self) -> Epoch {
        self.ready
    }

    /// Whether every expert of the serving plan can be reached.
    pub(crate) fn all_reachable(&self) -> bool {
        self.reachable
    }

    /// Takes over the plans of a view, unless they are older than those known.
    pub(crate) fn follow(&mut self, view: &ClusterView) {
        let followed = self.plans.follow(view);
        if followed == Followed::Refused {
            return;
        }
        let mut relinked = followed == Followed::Changed;
        if relinked {
            self.holders = self.plans.iter().flat_map(holders).collect();
            let holders = &self.holders;
            self.nodes.retain(|node, _| holders.contains(node));
        }
        for node in self.holders.clone() {
            if let Some(member) = view.member(node) {
                relinked |= self.link_to(node, &member.address);
            }
        }
        if relinked {
            self.renew();
        }
    }

    /// Takes over the coordinator's advice on which replica to use; without any the last one stands.
    pub(crate) fn heed(&mut self, guidance: &Guidance) {
        if guidance.lease.is_some() && self.advice != guidance.lease {
            self.advice.clone_from(&guidance.lease);
            self.renew_lease();
        }
    }

    /// Pairs sent since this was last asked, `[moe layer][expert]`; empty if there were none.
    pub(crate) fn take_routed(&mut self, shape: &ModelShape) -> Vec<u32> {
        if self.routed.iter().all(|&pairs| pairs == 0) {
            return Vec::new();
        }
        let rows = shape.moe_layers.iter().map(|layer| layer.index() * self.experts);
        let routed = rows.flat_map(|row| &self.routed[row..row + self.experts]).copied().collect();
        self.routed.fill(0);
        routed
    }

    /// Links up with a node; whether anything changed.
    fn link_to(&mut self, node: NodeId, address: &str) -> bool {
        if self.nodes.get(&node).is_some_and(|known| known.address == address) {
            return false;
        }
        // A node that moved loses its old link first.
        self.nodes.remove(&node);
        let entered = self.runtime.enter();
        match self.links.connect(node, address) {
            Ok(connection) => {
                let node_state = Node {
                    address: address.to_owned(),
                    _connection: connection,
                    link: None,
                    outbox: Outbox::default(),
                    outgoing: Outgoing::default(),
                    answers: 0,
                    answered_in: Duration::ZERO,
                };
                self.nodes.insert(node, node_state);
            }
            Err(error) => tracing::error!(%node, %error, "an expert node has no usable address"),
        }
        drop(entered);
        true
    }

    /// A link came up.
    pub(crate) fn on_up(&mut self, node: NodeId, link: LinkSender) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.link = Some(link);
            self.renew();
        }
    }

    /// A link went down with everything that was in flight on it.
    pub(crate) fn on_down(&mut self, node: NodeId) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.link = None;
            known.outbox.clear();
            self.renew();
        }
    }

    /// Leases anew after the plan or the links changed.
    fn renew(&mut self) {
        self.renew_lease();
        self.reachable = self.plans.serving().is_some_and(|plan| self.reaches(plan));
        let newest = self.plans.newest();
        if let Some(plan) = newest.filter(|plan| self.reaches(plan)) {
            self.ready = self.ready.max(plan.epoch());
        }
    }

    fn renew_lease(&mut self) {
        let linked = |node: NodeId| self.nodes.get(&node).is_some_and(|node| node.link.is_some());
        self.lease = self.plans.serving().map(|plan| match &self.advice {
            Some(advice) => Lease::advised(plan, advice, linked),
            None => Lease::first_live(plan, linked),
        });
        if let Some(batch) = &mut self.batch {
            batch.renew(self.nodes.keys().copied().filter(|&node| linked(node)));
        }
    }

    /// Whether replicas are chosen by batch, for which all attention nodes' choices have to be known.
    pub(crate) fn routes_by_batch(&self) -> bool {
        self.batch.is_some()
    }

    /// Asks all expert nodes what the whole batch chose: the first answer counts.
    pub(crate) fn ask_tally(&mut self, tally: &Tally) {
        for node in self.nodes.values_mut() {
            node.ask(tally);
        }
    }

    /// Asks one that has just come.
    pub(crate) fn ask_tally_of(&mut self, node: NodeId, tally: &Tally) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.ask(tally);
        }
    }

    /// Until the next [`flush`](Self::flush) rows go where the whole batch's tokens are best run.
    pub(crate) fn route_batch(&mut self, own: &Tally, all: &Tally) {
        if let (Some(batch), Some(plan)) = (&mut self.batch, self.plans.serving())
            && let Err(error) = batch.begin(plan, own.layer, &all.tokens, &own.tokens)
        {
            tracing::debug!(%error, layer = %own.layer, "a batch goes by the lease");
        }
    }

    /// A node has answered what it was sent so long ago.
    pub(crate) fn answered(&mut self, node: NodeId, time: Duration) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.answers += 1;
            node.answered_in += time;
        }
    }

    /// How nodes answered since this was last asked.
    pub(crate) fn take_responses(&mut self) -> Vec<Response> {
        let answered = self.nodes.iter_mut().filter(|(_, node)| node.answers > 0);
        let response = |(&id, node): (&NodeId, &mut Node)| Response {
            node: id,
            answers: std::mem::take(&mut node.answers),
            ns: u64::try_from(std::mem::take(&mut node.answered_in).as_nanos()).unwrap_or(u64::MAX),
        };
        answered.map(response).collect()
    }

    /// Whether at least one replica of every expert is linked.
    fn reaches(&self, plan: &Plan) -> bool {
        let linked = |node: &NodeId| self.nodes.get(node).is_some_and(|node| node.link.is_some());
        plan.table().all(|replicas| replicas.iter().any(linked))
    }

    /// Adds a span's unsent choices to the dispatches of the nodes that lease their experts; the next report tells
    /// of them if they are `counted`.
    pub(crate) fn add(&mut self, key: usize, span: &mut Span, counted: bool) {
        let Some(lease) = &mut self.lease else { return };
        span.trip.note_sent(Instant::now());
        let (layer, serial) = (span.trip.layer, span.trip.serial());
        let (nodes, routed, batch) = (&mut self.nodes, &mut self.routed, &mut self.batch);
        let row = layer.index() * self.experts;
        // The last row stands for all.
        let traced = span.traced.then(|| span.rows - 1);
        span.trip.send_unsent(|unsent| {
            let expert = unsent.choice.expert;
            let decided = batch.as_mut().and_then(|batch| batch.next(expert));
            let node = decided.or_else(|| lease.next(layer, expert))?;
            let outgoing = &mut nodes.get_mut(&node)?.outgoing;
            routed[row + unsent.choice.expert.index()] += u32::from(counted);
            let row = outgoing.row(key, unsent.row, unsent.bytes);
            #[expect(clippy::cast_possible_truncation, reason = "top-k is a u8")]
            outgoing.pairs.push(Pair {
                ticket: TicketParts { serial, span: key, row: unsent.row }.ticket(),
                row,
                weight: unsent.choice.weight,
                expert: unsent.choice.expert,
                rank: unsent.rank as u8,
                traced: traced == Some(unsent.row),
            });
            Some(node)
        });
    }

    /// Sends what was added for `layer`, and what is `behind`; in lockstep mode (`step` > 0) an empty
    /// frame to the others.
    pub(crate) fn flush(&mut self, layer: Layer, step: u64, behind: &[u32]) {
        let epoch = self.plans.epoch();
        for node in self.nodes.values_mut() {
            if node.outgoing.pairs.is_empty() && (step == 0 || node.link.is_none()) {
                continue;
            }
            let (pairs, rows) = node.outgoing.take();
            let rows = rows.freeze();
            let behind = behind.to_vec();
            node.send(Frame::Dispatch(Dispatch { epoch, step, layer, pairs, rows, behind }));
        }
        if let Some(batch) = &mut self.batch {
            batch.end();
        }
    }

    /// Sends one node an empty frame.
    pub(crate) fn send_nothing(&mut self, node: NodeId, layer: Layer, step: u64) {
        let epoch = self.plans.epoch();
        if let Some(node) = self.nodes.get_mut(&node) {
            let (pairs, rows, behind) = (Vec::new(), Bytes::new(), Vec::new());
            node.send(Frame::Dispatch(Dispatch { epoch, step, layer, pairs, rows, behind }));
        }
    }

    /// Tells the nodes that still owe a span outputs that nobody wants them any more.
    pub(crate) fn cancel(&mut self, key: usize, span: &Span) {
        let serial = span.trip.serial();
        let mut tickets: BTreeMap<NodeId, Vec<Ticket>> = BTreeMap::new();
        for (row, node) in span.trip.owed() {
            let ticket = TicketParts { serial, span: key, row }.ticket();
            let tickets = tickets.entry(node).or_default();
            if tickets.last() != Some(&ticket) {
                tickets.push(ticket);
            }
        }
        for (node, tickets) in tickets {
            if let Some(node) = self.nodes.get_mut(&node) {
                node.send(Frame::Cancel(tickets));
            }
        }
    }

    /// Tries again what links had no credit for.
    pub(crate) fn empty_outboxes(&mut self) {
        self.nodes.values_mut().for_each(Node::empty_outbox);
    }
}

/// The nodes that hold anything under a plan.
fn holders(plan: &Plan) -> impl Iterator<Item = NodeId> + '_ {
    plan.table().flatten().copied()
}

// === impl Node ===

impl Node {
    fn ask(&mut self, tally: &Tally) {
        if self.link.is_some() {
            self.send(Frame::Tally(tally.clone()));
        }
    }

    /// Sends a frame, or keeps it until its link has credit.
    fn send(&mut self, frame: Frame) {
        self.outbox.push(frame);
        self.empty_outbox();
    }

    fn empty_outbox(&mut self) {
        if let Some(link) = &self.link {
            self.outbox.send(link);
        }
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// The index of a row in the frame; it is added if it is not the last one.
    fn row(&mut self, span: usize, row: usize, bytes: &[u8]) -> u32 {
        if self.last != Some((span, row)) {
            self.last = Some((span, row));
            self.rows.extend_from_slice(bytes);
            self.rows_count += 1;
        }
        self.rows_count - 1
    }

    fn take(&mut self) -> (Vec<Pair>, BytesMut) {
        self.last = None;
        self.rows_count = 0;
        (std::mem::take(&mut self.pairs), self.rows.split())
    }
}
