//! What expert nodes do: queue pairs, run them, send the outputs back.

use std::rc::Rc;

use domain::NodeId;

use super::{Engine, attend::device_number, compute::scaled};
use crate::{
    device::Job,
    judge::Violation,
    messages::{Load, Message, output_bytes},
    spans::Pair,
    spec::Queues,
};

impl Engine<'_> {
    /// Pairs have come to an expert node.
    pub(super) fn enqueue(
        &mut self,
        device: usize,
        load: Load,
        pairs: &[Pair],
    ) -> Result<(), Violation> {
        let Load::Dispatch { layer, home, turn, stream } = load else { return Ok(()) };
        let node = usize::from(self.devices[device].part.expert.expect("rows go to expert nodes"));
        if self.gathers.is_empty() {
            self.queue(node, usize::from(layer), pairs);
            return Ok(());
        }
        let messages = &mut self.messages;
        let waiting = &mut self.experts[node].streams[usize::from(stream)];
        waiting.pending(turn, || messages.buffer()).extend_from_slice(pairs);
        waiting.barrier.arrive(home.into(), turn);
        self.pass(node, usize::from(stream));
        Ok(())
    }

    /// Async: an attention node tells where its rows are.
    pub(super) fn heed(&mut self, device: usize, home: u16, behind: Option<Rc<[u32]>>) {
        let (Some(node), Some(behind)) = (self.devices[device].part.expert, behind) else { return };
        let nodes = u32::try_from(self.experts.len()).unwrap_or(u32::MAX);
        let all = &mut self.experts[usize::from(node)].behind;
        all.hear(NodeId(u32::from(home)), &behind);
        // Beside attention's rows, tokens count once and not once per expert.
        let device = &mut self.devices[device];
        let top_k =
            if device.part.attention.is_some() { 1 } else { self.cluster.costs.top_k.into() };
        for (layer, pairs) in all.pairs(nodes, top_k).enumerate() {
            device.follow_experts(layer, pairs);
        }
    }

    /// Async: appends pairs to the queues of their layer.
    fn queue(&mut self, node: usize, layer: usize, pairs: &[Pair]) {
        let since_ns = self.agenda.now_ns();
        for &pair in pairs {
            let slot = self.experts[node].queues.push(layer, Pair { since_ns, ..pair });
            if self.run.batching.queues == Queues::Expert {
                self.note_queue(node, layer, slot);
            }
        }
        if self.run.batching.queues == Queues::Layer {
            self.note_queue(node, layer, 0);
        }
    }

    /// Tells a device how one of its queues stands: a layer, or an expert of it.
    fn note_queue(&mut self, node: usize, layer: usize, group: usize) {
        let experts = &self.experts[node];
        let waiting = match self.run.batching.queues {
            Queues::Layer => experts.queues.layer(layer),
            Queues::Expert => experts.queues.slot(layer, group),
        };
        let top_k = self.cluster.costs.top_k;
        self.devices[experts.device].note_experts(layer, group, waiting, top_k);
    }

    /// Lockstep: takes the turns that every attention node has come to.
    pub(super) fn pass(&mut self, node: usize, stream: usize) {
        let (layers, nodes) = (self.cluster.layers() as u64, self.experts.len());
        let experts = &mut self.experts[node];
        while let Some(turn) = experts.streams[stream].barrier.pass() {
            let waiting = &mut experts.streams[stream];
            let pairs = waiting.pending.iter().position(|&(pending, _)| pending == turn);
            let pairs = pairs.map(|at| waiting.pending.swap_remove(at).1).unwrap_or_default();
            experts.count(&pairs);
            let mut activated = 0;
            experts.take_counts(|_| activated += 1);
            let number = u8::try_from(stream).expect("there are two streams at most");
            self.meter.passed(self.agenda.now_ns(), (number, turn), activated, nodes);
            if pairs.is_empty() {
                self.messages.recycle(pairs);
                continue;
            }
            experts.streams[stream].passed.push((turn, pairs));
            let layer = u16::try_from(turn % layers).expect("layers are counted in u16");
            let job = Job::Experts { layer, stream: number, turn, group: 0 };
            self.devices[experts.device].line_up(job);
            self.scratch.awake.push(experts.device);
        }
    }

    /// Async: takes what is to be run of a queue; its tokens and the time it takes.
    pub(super) fn start_group(&mut self, device: usize, layer: usize, group: usize) -> (u32, u64) {
        let node = usize::from(self.devices[device].part.expert.expect("only expert nodes do"));
        let tokens_max = u32::try_from(self.run.batching.expert.drain_max).unwrap_or(u32::MAX);
        let (queues, pairs) = (&mut self.experts[node].queues, &mut self.devices[device].pairs);
        match self.run.batching.queues {
            Queues::Layer => queues.drain(layer, tokens_max, pairs),
            Queues::Expert => queues.drain_slot(layer, group, tokens_max, pairs),
        }
        self.experts[node].count(pairs);
        self.note_queue(node, layer, group);
        self.launch(node)
    }

    /// Lockstep: takes the pairs of a turn; their tokens and the time they take.
    pub(super) fn start_turn(&mut self, device: usize, stream: usize, turn: u64) -> (u32, u64) {
        let node = usize::from(self.devices[device].part.expert.expect("only expert nodes do"));
        let passed = &mut self.experts[node].streams[stream].passed;
        let at = passed.iter().position(|&(passed, _)| passed == turn);
        let (_, pairs) = passed.swap_remove(at.expect("a turn is run once"));
        self.experts[node].count(&pairs);
        let before = std::mem::replace(&mut self.devices[device].pairs, pairs);
        self.messages.recycle(before);
        self.launch(node)
    }

    /// The tokens and the time of the launch that was counted.
    fn launch(&mut self, node: usize) -> (u32, u64) {
        let curve = &self.cluster.curves[node];
        let (mut tokens, mut experts, mut ns) = (0, 0, 0);
        self.experts[node].take_counts(|count| {
            tokens += count;
            experts += 1;
            ns += curve.ns(count);
        });
        let device = self.experts[node].device;
        let launch = scaled(self.cluster.costs.launch_ns, self.devices[device].part.expert_factor);
        self.launches += 1;
        self.meter.launched(self.agenda.now_ns(), experts, tokens);
        (tokens, launch + ns)
    }

    /// Experts have run: every output goes back to the node that owns its row.
    pub(super) fn reply(&mut self, device: usize) -> Result<(), Violation> {
        let mut pairs = std::mem::take(&mut self.devices[device].pairs);
        let mut homes = std::mem::take(&mut self.scratch.touched);
        for &pair in &pairs {
            let home = usize::from(self.spans.get(pair.span).home);
            let replies = &mut self.scratch.replies[home];
            if replies.is_empty() {
                homes.push(home);
            }
            replies.push(pair);
        }
        homes.sort_unstable();
        let first = homes.partition_point(|&home| self.attention[home].device < device);
        for &home in homes[first..].iter().chain(&homes[..first]) {
            let empty = self.messages.buffer();
            let replies = std::mem::replace(&mut self.scratch.replies[home], empty);
            let bytes = output_bytes(&replies, self.cluster.costs.row_bytes);
            self.send(Message {
                from: device_number(device),
                to: device_number(self.attention[home].device),
                bytes,
                load: Load::Outputs,
                behind: None,
                pairs: replies,
            });
        }
        homes.clear();
        self.scratch.touched = homes;
        pairs.clear();
        self.devices[device].pairs = pairs;
        Ok(())
    }
}
