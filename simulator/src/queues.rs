//! The μ-queues of an asynchronous expert node: pairs that wait per layer and expert.

use crate::spans::Pair;

/// All queues of one node. Experts are numbered by slot within each layer.
#[derive(Debug)]
pub(crate) struct MicroQueues {
    experts: usize,
    /// `[layer][expert]`, flattened: the expert's slot.
    slot_of: Vec<u16>,
    slots: usize,
    /// `[layer][slot]`, flattened.
    queues: Vec<Queue>,
    /// Per layer.
    totals: Vec<Waiting>,
    /// The slot that the next drain begins with that cannot take all, so that none is always the last.
    turn: usize,
}

/// How much waits, and since when the oldest does; 0 if nothing does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) tokens: u32,
    pub(crate) oldest_ns: u64,
}

/// Pairs of one expert, in order of arrival.
#[derive(Debug, Default)]
struct Queue {
    pairs: Vec<Pair>,
    tokens: u32,
}

// === impl MicroQueues ===

impl MicroQueues {
    /// Empty queues for `layers` layers of `experts` experts, `slots` of which are held here at most.
    pub(crate) fn new(layers: usize, experts: usize, slots: usize, slot_of: Vec<u16>) -> Self {
        Self {
            experts,
            slot_of,
            slots,
            queues: std::iter::repeat_with(Queue::default).take(layers * slots).collect(),
            totals: vec![Waiting::default(); layers],
            turn: 0,
        }
    }

    /// Appends a pair to its expert's queue; the slot.
    pub(crate) fn push(&mut self, layer: usize, pair: Pair) -> usize {
        let slot = usize::from(self.slot_of[layer * self.experts + usize::from(pair.expert)]);
        let total = &mut self.totals[layer];
        if total.tokens == 0 {
            total.oldest_ns = pair.since_ns;
        }
        total.tokens += u32::from(pair.tokens);
        let queue = &mut self.queues[layer * self.slots + slot];
        queue.tokens += u32::from(pair.tokens);
        queue.pairs.push(pair);
        slot
    }

    /// What waits in a layer.
    pub(crate) fn layer(&self, layer: usize) -> Waiting {
        self.totals[layer]
    }

    /// What waits for one expert.
    pub(crate) fn slot(&self, layer: usize, slot: usize) -> Waiting {
        let queue = &self.queues[layer * self.slots + slot];
        Waiting { tokens: queue.tokens, oldest_ns: queue.oldest_ns().unwrap_or(0) }
    }

    /// What waits in each expert's queue.
    pub(crate) fn tokens_by_queue(&self) -> impl Iterator<Item = u32> + '_ {
        self.queues.iter().map(|queue| queue.tokens)
    }

    /// What waits in all.
    pub(crate) fn tokens(&self) -> u32 {
        self.totals.iter().map(|total| total.tokens).sum()
    }

    /// Every pair that waits.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.queues.iter().flat_map(|queue| &queue.pairs)
    }

    /// Moves at most `tokens_max` tokens of a layer into `out`: oldest first within an expert, experts
    /// in turn, as the live nodes drain.
    pub(crate) fn drain(&mut self, layer: usize, tokens_max: u32, out: &mut Vec<Pair>) {
        let mut room = tokens_max;
        let first = if self.totals[layer].tokens > room { self.turn } else { 0 };
        for slot in (first..self.slots).chain(0..first) {
            let taken = self.queues[layer * self.slots + slot].drain(room, out);
            room -= taken;
            self.totals[layer].tokens -= taken;
            if room == 0 {
                self.turn = slot;
                break;
            }
        }
        self.find_oldest(layer);
    }

    /// The same for one expert.
    pub(crate) fn drain_slot(
        &mut self,
        layer: usize,
        slot: usize,
        tokens_max: u32,
        out: &mut Vec<Pair>,
    ) {
        self.totals[layer].tokens -= self.queues[layer * self.slots + slot].drain(tokens_max, out);
        self.find_oldest(layer);
    }

    fn find_oldest(&mut self, layer: usize) {
        let total = &mut self.totals[layer];
        let queues = &self.queues[layer * self.slots..][..self.slots];
        let oldest =
            if total.tokens == 0 { None } else { queues.iter().filter_map(Queue::oldest_ns).min() };
        total.oldest_ns = oldest.unwrap_or(0);
    }
}

// === impl Queue ===

impl Queue {
    fn oldest_ns(&self) -> Option<u64> {
        self.pairs.first().map(|pair| pair.since_ns)
    }

    /// Moves at most `tokens_max` tokens into `out`; how many.
    fn drain(&mut self, tokens_max: u32, out: &mut Vec<Pair>) -> u32 {
        if self.tokens <= tokens_max {
            out.append(&mut self.pairs);
            return std::mem::take(&mut self.tokens);
        }
        let (mut whole, mut room) = (0, tokens_max);
        while u32::from(self.pairs[whole].tokens) <= room {
            room -= u32::from(self.pairs[whole].tokens);
            whole += 1;
        }
        out.extend(self.pairs.drain(..whole));
        // Of a chunk's tokens some may fit.
        let room = u16::try_from(room).unwrap_or(u16::MAX);
        if room > 0 {
            out.push(Pair { tokens: room, ..self.pairs[0] });
            self.pairs[0].tokens -= room;
        }
        self.tokens -= tokens_max;
        tokens_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(span: u32, expert: u16, tokens: u16) -> Pair {
        Pair { since_ns: u64::from(span), span, expert, tokens }
    }

    /// One layer of three experts, all of them here.
    fn filled() -> MicroQueues {
        let mut queues = MicroQueues::new(1, 3, 3, vec![0, 1, 2]);
        for pair in [pair(1, 0, 1), pair(2, 2, 1), pair(3, 0, 1), pair(4, 1, 4), pair(5, 2, 1)] {
            queues.push(0, pair);
        }
        queues
    }

    #[test]
    fn a_drain_that_cannot_take_all_serves_experts_in_turn() {
        let mut queues = filled();
        assert_eq!(queues.layer(0), Waiting { tokens: 8, oldest_ns: 1 });
        let mut out = Vec::new();
        queues.drain(0, 4, &mut out);
        assert_eq!(out, [pair(1, 0, 1), pair(3, 0, 1), pair(4, 1, 2)], "expert 1 is cut short");
        assert_eq!(queues.layer(0), Waiting { tokens: 4, oldest_ns: 2 });
        out.clear();
        queues.drain(0, 3, &mut out);
        assert_eq!(out, [pair(4, 1, 2), pair(2, 2, 1)], "expert 1 comes first, then expert 2");
        out.clear();
        queues.drain(0, 3, &mut out);
        assert_eq!(out, [pair(5, 2, 1)]);
        assert_eq!(queues.layer(0), Waiting::default());
        assert_eq!((queues.tokens(), queues.pairs().count()), (0, 0));
    }

    #[test]
    fn one_expert_can_be_drained_alone() {
        let mut queues = filled();
        let mut out = Vec::new();
        queues.drain_slot(0, 0, 9, &mut out);
        assert_eq!(out, [pair(1, 0, 1), pair(3, 0, 1)]);
        assert_eq!(queues.layer(0), Waiting { tokens: 6, oldest_ns: 2 });
        assert_eq!(queues.slot(0, 1), Waiting { tokens: 4, oldest_ns: 4 });
        assert_eq!(queues.tokens_by_queue().collect::<Vec<_>>(), [0, 4, 2]);
    }
}
