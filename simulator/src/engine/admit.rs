//! Sequences come, wait, are admitted and end.

use std::cmp::Ordering;

use domain::NodeId;
use policy::assignment::{Candidate, assign};

use super::Engine;
use crate::{agenda::Event, sequences::Sequence, spans::Span, workload::Request};

impl Engine<'_> {
    /// Looks who comes next, and notes when.
    pub(super) fn expect_next(&mut self) {
        self.next = self.arrivals.next();
        if let Some(request) = self.next {
            self.agenda.note(request.at_ns.max(self.agenda.now_ns()), Event::Arrive);
        }
    }

    pub(super) fn on_arrive(&mut self) {
        if let Some(request) = self.next {
            self.arrive(request);
        }
        self.expect_next();
    }

    /// A fixed number is in flight: the next one follows whoever has ended.
    pub(super) fn follow_up(&mut self) {
        if let Some(request) = self.arrivals.next() {
            self.arrive(request);
        }
    }

    fn arrive(&mut self, request: Request) {
        let now_ns = self.agenda.now_ns();
        self.meter.arrived(now_ns, request.output);
        let mut candidates = std::mem::take(&mut self.scratch.candidates);
        candidates.clear();
        candidates.extend(self.attention.iter().zip(0..).map(|(node, id)| {
            let waiting = u32::try_from(node.waiting.len()).unwrap_or(u32::MAX);
            Candidate {
                node: NodeId(id),
                kv_blocks: node.kv.total(),
                kv_blocks_free: u32::try_from(node.kv.free_count()).unwrap_or(u32::MAX),
                sequences: node.running + waiting,
                own_blocks: node.claimed_blocks,
                own_sequences: node.running + waiting,
                cached_tokens: 0,
            }
        }));
        let home =
            assign(&candidates, &[], request.prompt).map(|assignment| assignment.node.0 as usize);
        self.scratch.candidates = candidates;
        let home = home.expect("there is an attention node");
        let tokens = request.prompt.saturating_add(request.output);
        let node = &mut self.attention[home];
        let blocks = u32::try_from(node.kv.needed(tokens as usize)).unwrap_or(u32::MAX);
        let full = node.waiting.len() >= self.run.bounds.waiting_max as usize;
        if full || blocks > node.kv.total() {
            self.meter.counts.refused += 1;
            return;
        }
        node.claimed_blocks += blocks;
        let sequence = self.sequences.insert(Sequence {
            home: u16::try_from(home).expect("nodes are counted in u16"),
            prompt: request.prompt,
            output: request.output,
            next: if self.run.prefill.chunk == 0 { request.prompt } else { 0 },
            arrived_ns: now_ns,
            ..Sequence::default()
        });
        node.waiting.push_back(sequence);
        self.admit(home);
    }

    /// Admits who waits on a node, for as long as there is room.
    fn admit(&mut self, home: usize) {
        while let Some(&at) = self.attention[home].waiting.front() {
            let node = &mut self.attention[home];
            let sequence = self.sequences.get_mut(at);
            let tokens = (sequence.prompt + sequence.output) as usize;
            if node.running >= self.run.bounds.sequences_max
                || !node.kv.grow(&mut sequence.blocks, tokens)
            {
                return;
            }
            node.waiting.pop_front();
            node.running += 1;
            sequence.running = true;
            let emptiest = (0_u8..).zip(&node.streams).min_by_key(|(_, stream)| stream.sequences);
            if let Some((stream, _)) = emptiest {
                sequence.stream = stream;
                node.streams[usize::from(stream)].sequences += 1;
            }
            self.begin_span(at);
        }
    }

    /// The next tokens of a sequence are ready for the first layer: one, or a chunk of its prompt.
    pub(super) fn begin_span(&mut self, at: u32) {
        let sequence = self.sequences.get(at);
        let rows = match sequence.next.cmp(&sequence.prompt) {
            Ordering::Less => (sequence.prompt - sequence.next).min(self.run.prefill.chunk.into()),
            Ordering::Equal | Ordering::Greater => 1,
        };
        let (home, stream) = (usize::from(sequence.home), usize::from(sequence.stream));
        let span = self.spans.insert(Span {
            sequence: at,
            start: sequence.next,
            rows,
            missing: 0,
            layer: 0,
            home: sequence.home,
        });
        match self.attention[home].streams.get_mut(stream) {
            Some(stream) => stream.fresh.push(span),
            None => self.push_ready(home, 0, span, rows),
        }
        self.scratch.awake.push(self.attention[home].device);
    }

    /// A sequence has got its last token.
    pub(super) fn end(&mut self, at: u32) {
        let mut sequence = self.sequences.remove(at);
        let home = usize::from(sequence.home);
        let node = &mut self.attention[home];
        node.claimed_blocks -= u32::try_from(sequence.blocks.len()).unwrap_or(u32::MAX);
        node.kv.release(&mut sequence.blocks);
        node.running -= 1;
        if let Some(stream) = node.streams.get_mut(usize::from(sequence.stream)) {
            stream.sequences -= 1;
        }
        let now_ns = self.agenda.now_ns();
        self.meter.ended(now_ns, &sequence);
        if self.run.workload.in_flight().is_some() {
            self.follow_up();
        }
        self.admit(home);
        if self.sequences.len() == 0 {
            self.meter.emptied(now_ns);
        }
    }
}
