//! Lockstep: steps begin and end, layers follow one another, and batches of all nodes are routed together.

use policy::routing::Instance;

use super::Engine;
use crate::{
    agenda::Event,
    device::Job,
    judge::{Violation, Wrong},
    messages::Load,
    spec::ns_of_us,
};

impl Engine<'_> {
    /// Begins the next step of every stream that is between steps and has something for it, and
    /// takes part in the steps of others without anything.
    pub(super) fn begin_steps(&mut self, node: usize) {
        for stream in 0..self.attention[node].streams.len() {
            let state = &mut self.attention[node].streams[stream];
            if state.stage.is_some() {
                continue;
            }
            if state.fresh.is_empty() {
                if state.heard > state.step {
                    self.sit_out(node, stream);
                }
                continue;
            }
            // A node that joins late takes part in the step that the others are in.
            let next = state.step + 1;
            let step = state.heard.max(next);
            state.step = step;
            std::mem::swap(&mut state.fresh, &mut state.back);
            state.batch = state.back.len();
            state.stage = Some(0);
            if step > next {
                self.pass_by(node, stream, step * self.cluster.layers() as u64 - 1);
            }
            let device = self.attention[node].device;
            self.devices[device].line_up(Job::Attend { layer: 0, stream: narrow(stream) });
            for other in 0..self.attention.len() {
                let state = &mut self.attention[other].streams[stream];
                if state.heard < step {
                    state.heard = step;
                    self.scratch.awake.push(self.attention[other].device);
                }
                // A device that computes is not asked what it would begin, so it is said here.
                let state = &self.attention[other].streams[stream];
                if state.stage.is_none() && state.fresh.is_empty() && state.step < step {
                    self.sit_out(other, stream);
                }
            }
        }
    }

    /// A node has nothing for the newest step.
    fn sit_out(&mut self, node: usize, stream: usize) {
        let layers = self.cluster.layers() as u64;
        let state = &mut self.attention[node].streams[stream];
        state.step = state.heard;
        let last = state.step * layers + layers - 1;
        self.pass_by(node, stream, last);
    }

    /// Nobody waits for a node up to this turn: it has nothing for it, nor for any before.
    fn pass_by(&mut self, node: usize, stream: usize, last: u64) {
        if self.routes.decides_together() {
            self.gathers[stream].barrier.arrive(node, last);
            self.decide(stream);
        }
        for expert in 0..self.experts.len() {
            self.experts[expert].streams[stream].barrier.arrive(node, last);
            self.pass(expert, stream);
        }
    }

    /// A node has computed a layer's attention: its rows go to their experts, at once or when all
    /// nodes' rows have been routed together.
    pub(super) fn end_turn(&mut self, node: usize, stream: usize, together: bool) {
        let turn = self.turn(node, stream);
        if together {
            self.gathers[stream].barrier.arrive(node, turn);
            self.decide(stream);
        } else {
            self.send_turn(node, stream, turn);
        }
    }

    /// The turn that a node is in.
    fn turn(&self, node: usize, stream: usize) -> u64 {
        let state = &self.attention[node].streams[stream];
        state.step * self.cluster.layers() as u64 + state.stage.unwrap_or(0) as u64
    }

    /// Sends a node's frames of a turn: one to every expert node, be it empty.
    fn send_turn(&mut self, node: usize, stream: usize, turn: u64) {
        let layers = self.cluster.layers() as u64;
        let layer = u16::try_from(turn % layers).expect("layers are counted in u16");
        let home = u16::try_from(node).expect("nodes are counted in u16");
        let load = Load::Dispatch { layer, home, turn, stream: narrow(stream) };
        let count = self.experts.len();
        // Every sender begins elsewhere, so that not all send to the first node first.
        for step in 0..count {
            self.send_outgoing(home, (node + step) % count, load, None);
        }
        self.scratch.touched.clear();
    }

    /// Begins to route a turn over all nodes, once all have come to it.
    fn decide(&mut self, stream: usize) {
        let gather = &mut self.gathers[stream];
        if gather.deciding.is_some() {
            return;
        }
        gather.deciding = gather.barrier.pass();
        if gather.deciding.is_some() {
            let at_ns = self.agenda.now_ns() + ns_of_us(self.run.routing.gather_us);
            self.agenda.note(at_ns, Event::Decided(narrow(stream)));
        }
    }

    /// A turn has been routed: every node sends its rows.
    pub(super) fn on_decided(&mut self, stream: usize) -> Result<(), Violation> {
        let Some(turn) = self.gathers[stream].deciding.take() else { return Ok(()) };
        let layer = usize::try_from(turn % self.cluster.layers() as u64).unwrap_or(0);
        let nodes: Vec<usize> = (0..self.attention.len())
            .filter(|&node| self.attention[node].streams[stream].stage.is_some())
            .filter(|&node| self.turn(node, stream) == turn)
            .collect();
        let mut left = self.route_together(layer, stream, &nodes)?;
        for &node in &nodes {
            let mut undecided = std::mem::take(&mut self.attention[node].streams[stream].undecided);
            for pair in &undecided {
                let rows = self.spans.get(pair.span).rows;
                let mut tokens = pair.tokens;
                while let Some(share) =
                    left[usize::from(pair.expert)].last_mut().filter(|_| tokens > 0)
                {
                    let taken = share.1.min(tokens.into());
                    share.1 -= taken;
                    let taken = u16::try_from(taken).unwrap_or(u16::MAX);
                    tokens -= taken;
                    let to = usize::from(share.0);
                    self.scratch.outgoing[to]
                        .add(crate::spans::Pair { tokens: taken, ..*pair }, rows);
                    if share.1 == 0 {
                        left[usize::from(pair.expert)].pop();
                    }
                }
            }
            undecided.clear();
            self.attention[node].streams[stream].undecided = undecided;
            self.send_turn(node, stream, turn);
        }
        self.decide(stream);
        Ok(())
    }

    /// Routes the rows of these nodes; per expert, the nodes that run it with their tokens.
    fn route_together(
        &mut self,
        layer: usize,
        stream: usize,
        nodes: &[usize],
    ) -> Result<Vec<Vec<(u16, u32)>>, Violation> {
        let tokens = &mut self.scratch.tokens;
        for &node in nodes {
            for pair in &self.attention[node].streams[stream].undecided {
                tokens[usize::from(pair.expert)] += u32::from(pair.tokens);
            }
        }
        let (hosts, router) = self.routes.layer(layer);
        let instance = Instance { hosts, tokens, curves: &self.cluster.curves, backlog_ns: &[] };
        let assignment =
            router.route(&instance).expect("every expert of a checked plan has a host");
        let shares: Vec<Vec<(u16, u32)>> = (0..tokens.len())
            .map(|expert| {
                assignment.shares(expert).iter().map(|share| (share.node, share.tokens)).collect()
            })
            .collect();
        tokens.fill(0);
        for (expert, shares) in shares.iter().enumerate() {
            for &(node, _) in shares {
                if !hosts.of(expert).contains(&node) {
                    let node = usize::from(node);
                    return Err(self.judge.wrong(Wrong::NotHeld { layer, expert, node }));
                }
            }
        }
        Ok(shares)
    }

    /// A node's whole batch is back from a layer.
    pub(super) fn advance(&mut self, node: usize, stream: usize) -> Result<(), Violation> {
        let state = &mut self.attention[node].streams[stream];
        let next = state.stage.map_or(0, |stage| stage + 1);
        state.stage = Some(next);
        let device = self.attention[node].device;
        self.scratch.awake.push(device);
        if next < self.cluster.layers() {
            let layer = u16::try_from(next).expect("layers are counted in u16");
            self.devices[device].line_up(Job::Attend { layer, stream: narrow(stream) });
            return Ok(());
        }
        let back = std::mem::take(&mut self.attention[node].streams[stream].back);
        let (drawn, chunks): (Vec<u32>, Vec<u32>) =
            back.into_iter().partition(|&span| self.needs_head(span));
        for span in chunks {
            self.end_chunk(span)?;
        }
        let state = &mut self.attention[node].streams[stream];
        state.batch = drawn.len();
        state.back = drawn;
        if state.batch == 0 {
            self.end_step(node, stream);
        } else {
            self.devices[device].line_up(Job::Head { stream: narrow(stream) });
        }
        Ok(())
    }

    /// A node is through with a step.
    pub(super) fn end_step(&mut self, node: usize, stream: usize) {
        if let Some(state) = self.attention[node].streams.get_mut(stream) {
            (state.stage, state.batch) = (None, 0);
        }
    }
}

fn narrow(stream: usize) -> u8 {
    u8::try_from(stream).expect("there are two streams at most")
}
