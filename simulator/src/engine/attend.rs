//! What attention nodes do: run a stage, dispatch rows to experts, merge what comes back, draw tokens.

use std::rc::Rc;

use super::{Engine, compute::scaled};
use crate::{
    agenda::Event,
    judge::{Violation, Wrong},
    messages::{Load, Message},
    spans::Pair,
};

impl Engine<'_> {
    /// Async: a span is ready for a stage.
    pub(super) fn push_ready(&mut self, home: usize, stage: usize, span: u32, rows: u32) {
        let now_ns = self.agenda.now_ns();
        self.attention[home].ready[stage].push(span, rows, now_ns);
        self.note_ready(home, stage);
    }

    fn note_ready(&mut self, home: usize, stage: usize) {
        let node = &self.attention[home];
        let queue = &node.ready[stage];
        let (rows, oldest_ns) = (queue.rows, queue.oldest_ns());
        self.devices[node.device].note_attention(stage, rows, oldest_ns);
    }

    /// Takes the spans to run; their rows and the time it takes.
    pub(super) fn start_attention(
        &mut self,
        device: usize,
        stage: usize,
        stream: u8,
    ) -> (u32, u64) {
        let part = self.devices[device].part;
        let home = usize::from(part.attention.expect("only attention nodes run attention"));
        let node = &mut self.attention[home];
        let spans = &mut self.devices[device].spans;
        match node.streams.get_mut(usize::from(stream)) {
            Some(stream) => std::mem::swap(&mut stream.back, spans),
            None => {
                node.ready[stage].drain(self.run.batching.attention.drain_max, spans);
                self.note_ready(home, stage);
            }
        }
        let (mut rows, mut context) = (0, 0);
        for &span in &self.devices[device].spans {
            let span = self.spans.get(span);
            rows += span.rows;
            let (start, count) = (u64::from(span.start), u64::from(span.rows));
            context += count * start + count * (count + 1) / 2;
        }
        let costs = &self.cluster.costs;
        let ns = if stage == self.cluster.layers() {
            // Of a chunk only the last row needs the head.
            costs.head(u32::try_from(self.devices[device].spans.len()).unwrap_or(u32::MAX))
        } else {
            costs.attention(rows, context)
        };
        (rows, scaled(ns, part.attention_factor))
    }

    /// Attention of a layer is done: every row goes to its experts.
    pub(super) fn dispatch(&mut self, device: usize, layer: u16, stream: u8) {
        let home = self.devices[device].part.attention.expect("only attention nodes run attention");
        let node = usize::from(home);
        let together = !self.gathers.is_empty() && self.routes.decides_together();
        let mut spans = std::mem::take(&mut self.devices[device].spans);
        let mut rows_all = 0;
        for &at in &spans {
            let rows = self.choose(at, layer);
            rows_all += rows;
            let chosen = std::mem::take(&mut self.scratch.chosen);
            for &(expert, tokens) in &chosen {
                let pair = Pair { since_ns: 0, span: at, expert, tokens };
                if together {
                    self.attention[node].streams[usize::from(stream)].undecided.push(pair);
                } else {
                    self.route(layer, pair, rows);
                }
            }
            self.scratch.chosen = chosen;
        }
        spans.clear();
        self.devices[device].spans = spans;
        if self.gathers.is_empty() {
            self.leave(node, layer.into(), rows_all);
            self.send_touched(home, layer);
        } else {
            self.end_turn(node, usize::from(stream), together);
        }
    }

    /// Adds a pair to what goes to the node, or for even split the nodes, that run its expert.
    fn route(&mut self, layer: u16, pair: Pair, rows: u32) {
        let Self { routes, scratch, .. } = self;
        routes.split(layer, pair.expert, pair.tokens, |node, tokens| {
            let outgoing = &mut scratch.outgoing[node];
            if outgoing.pairs.is_empty() {
                scratch.touched.push(node);
            }
            outgoing.add(Pair { tokens, ..pair }, rows);
        });
    }

    /// Fills `scratch.chosen` with the experts of a span; its rows.
    fn choose(&mut self, at: u32, layer: u16) -> u32 {
        let span = self.spans.get_mut(at);
        span.layer = layer;
        span.missing = span.rows * u32::from(self.cluster.costs.top_k);
        let (start, rows) = (span.start, span.rows);
        let serial = self.sequences.get(span.sequence).serial;
        let row = self.cluster.experts_per_layer() * usize::from(layer);
        let scratch = &mut self.scratch;
        scratch.chosen.clear();
        for position in start..start + rows {
            self.chooser.choose(layer, serial, position, &mut scratch.row);
            for &expert in &scratch.row {
                self.activations[row + usize::from(expert)] += 1;
                if rows == 1 {
                    scratch.chosen.push((expert, 1));
                } else {
                    scratch.tokens[usize::from(expert)] += 1;
                }
            }
        }
        if rows > 1 {
            for (expert, tokens) in (0..).zip(&mut scratch.tokens) {
                let tokens = std::mem::take(tokens);
                if tokens > 0 {
                    let tokens = u16::try_from(tokens).expect("a chunk has at most 2^16 rows");
                    scratch.chosen.push((expert, tokens));
                }
            }
        }
        rows
    }

    /// Async: rows are away with a layer's experts.
    fn leave(&mut self, home: usize, layer: usize, rows: u32) {
        self.attention[home].away[layer] += rows;
        self.follow_away(home, layer);
    }

    /// Async: rows have all their outputs of a layer.
    fn come_back(&mut self, home: usize, layer: usize, rows: u32) {
        self.attention[home].away[layer] -= rows;
        self.follow_away(home, layer);
    }

    fn follow_away(&mut self, home: usize, layer: usize) {
        let node = &self.attention[home];
        self.devices[node.device].follow_attention(layer + 1, node.away[layer].into());
    }

    /// Async: sends what was added for the nodes that got any.
    fn send_touched(&mut self, home: u16, layer: u16) {
        let mut touched = std::mem::take(&mut self.scratch.touched);
        touched.sort_unstable();
        // Every sender begins elsewhere, so that not all send to the first node first.
        let first = touched.partition_point(|&node| node < usize::from(home));
        let load = Load::Dispatch { layer, home, turn: 0, stream: 0 };
        let behind = self.attention[usize::from(home)].rows_behind();
        for &node in touched[first..].iter().chain(&touched[..first]) {
            self.send_outgoing(home, node, load, Some(Rc::clone(&behind)));
        }
        touched.clear();
        self.scratch.touched = touched;
    }

    /// Sends what was added for an expert node.
    pub(super) fn send_outgoing(
        &mut self,
        home: u16,
        node: usize,
        load: Load,
        behind: Option<Rc<[u32]>>,
    ) {
        let empty = self.messages.buffer();
        let row_bytes = self.cluster.costs.row_bytes;
        let (pairs, bytes) = self.scratch.outgoing[node].take(empty, row_bytes);
        let from = self.attention[usize::from(home)].device;
        let (from, to) = (device_number(from), device_number(self.experts[node].device));
        self.send(Message { from, to, bytes, load, behind, pairs });
    }

    /// Puts a message on its way. What stays on a device is there at once.
    pub(super) fn send(&mut self, message: Message) {
        let now_ns = self.agenda.now_ns();
        let (from, to, bytes) = (message.from.into(), message.to.into(), message.bytes);
        let message = self.messages.insert(message);
        if from == to {
            self.agenda.note(now_ns, Event::Received(message));
        } else {
            let reached_ns = self.links.send(now_ns, from, to, bytes);
            self.agenda.note(reached_ns, Event::Reached(message));
        }
    }

    /// A message is there.
    pub(super) fn receive(&mut self, message: Message) -> Result<(), Violation> {
        let device = usize::from(message.to);
        self.scratch.awake.push(device);
        match message.load {
            Load::Dispatch { home, .. } => {
                self.heed(device, home, message.behind);
                self.enqueue(device, message.load, &message.pairs)?;
            }
            Load::Outputs => self.merge(&message.pairs)?,
        }
        self.messages.recycle(message.pairs);
        Ok(())
    }

    /// Merges outputs; spans whose last ones these were go on.
    fn merge(&mut self, pairs: &[Pair]) -> Result<(), Violation> {
        for pair in pairs {
            let merged = self.spans.merge(pair.span, pair.tokens.into());
            match merged {
                Ok(true) => self.go_on(pair.span)?,
                Ok(false) => {}
                Err(_) => return Err(self.judge.wrong(Wrong::Unasked { span: pair.span })),
            }
        }
        Ok(())
    }

    /// A span has all its outputs of a layer.
    fn go_on(&mut self, at: u32) -> Result<(), Violation> {
        let span = *self.spans.get(at);
        let home = usize::from(span.home);
        let stream = usize::from(self.sequences.get(span.sequence).stream);
        if let Some(stream_) = self.attention[home].streams.get_mut(stream) {
            stream_.back.push(at);
            if stream_.back.len() == stream_.batch {
                self.advance(home, stream)?;
            }
            return Ok(());
        }
        let next = usize::from(span.layer) + 1;
        self.come_back(home, next - 1, span.rows);
        if next == self.cluster.layers() && !self.needs_head(at) {
            return self.end_chunk(at);
        }
        self.push_ready(home, next, at, span.rows);
        Ok(())
    }

    /// Whether a token is drawn from a span: all but the chunks of a prompt that are not its last.
    pub(super) fn needs_head(&self, at: u32) -> bool {
        let span = self.spans.get(at);
        span.start + span.rows >= self.sequences.get(span.sequence).prompt
    }

    /// A chunk of a prompt has been through all layers, and there is more of the prompt.
    pub(super) fn end_chunk(&mut self, at: u32) -> Result<(), Violation> {
        let sequence = self.served(at)?;
        self.begin_span(sequence);
        Ok(())
    }

    /// A span has been through all layers; its sequence.
    fn served(&mut self, at: u32) -> Result<u32, Violation> {
        let span = self.spans.remove(at);
        let sequence = self.sequences.get_mut(span.sequence);
        self.judge.served(sequence.serial, span.start, sequence.next)?;
        if span.start < sequence.prompt {
            self.meter.prefilled(self.agenda.now_ns(), span.rows);
        }
        sequence.next += span.rows;
        Ok(span.sequence)
    }

    /// The head is done: every span gives its sequence a token.
    pub(super) fn draw(&mut self, device: usize, stream: usize) -> Result<(), Violation> {
        let now_ns = self.agenda.now_ns();
        let mut spans = std::mem::take(&mut self.devices[device].spans);
        for &span in &spans {
            let at = self.served(span)?;
            let sequence = self.sequences.get_mut(at);
            self.meter.token(now_ns, sequence);
            if sequence.generated == 0 {
                sequence.first_ns = now_ns;
            }
            sequence.latest_ns = now_ns;
            sequence.generated += 1;
            if sequence.generated == sequence.output {
                self.end(at);
            } else {
                self.begin_span(at);
            }
        }
        spans.clear();
        self.devices[device].spans = spans;
        if let Some(node) = self.devices[device].part.attention {
            self.end_step(usize::from(node), stream);
        }
        Ok(())
    }
}

/// A device's number as messages name it.
pub(super) fn device_number(device: usize) -> u16 {
    u16::try_from(device).expect("devices are counted in u16")
}
