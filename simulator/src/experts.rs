//! One expert node: its μ-queues, and in lockstep the barrier of each stream and the pairs of turns to come.

use crate::{barrier::Barrier, spans::Pair};

/// Everything an expert node owns.
#[derive(Debug)]
pub(crate) struct Experts {
    /// The device that it runs on.
    pub(crate) device: usize,
    /// Async: `[layer][group]`, flattened.
    pub(crate) queues: Vec<Queue>,
    /// Lockstep, per stream.
    pub(crate) streams: Vec<Stream>,
    /// Where the next drain that cannot take all begins, so that no expert is always the last.
    turn: usize,
    /// Tokens per expert of the launch that is put together; zeros between launches.
    counts: Vec<u32>,
    /// Experts with tokens in `counts`.
    activated: Vec<u16>,
}

/// Pairs that wait, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) pairs: Vec<Pair>,
    pub(crate) tokens: u32,
}

/// Lockstep: one stream as an expert node sees it.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) barrier: Barrier,
    /// Pairs of turns that have not passed.
    pub(crate) pending: Vec<(u64, Vec<Pair>)>,
    /// Pairs of turns that have passed and wait for the device.
    pub(crate) passed: Vec<(u64, Vec<Pair>)>,
}

// === impl Experts ===

impl Experts {
    pub(crate) fn new(device: usize, queues: usize, streams: Vec<Stream>, experts: usize) -> Self {
        Self {
            device,
            queues: std::iter::repeat_with(Queue::default).take(queues).collect(),
            streams,
            turn: 0,
            counts: vec![0; experts],
            activated: Vec::new(),
        }
    }

    /// Tokens that wait, each counted once per expert.
    pub(crate) fn tokens_waiting(&self) -> u32 {
        let streams =
            self.streams.iter().flat_map(|stream| stream.pending.iter().chain(&stream.passed));
        let pairs = streams.flat_map(|(_, pairs)| pairs).map(|pair| u32::from(pair.tokens));
        self.queues.iter().map(|queue| queue.tokens).sum::<u32>() + pairs.sum::<u32>()
    }

    /// Every pair that waits.
    pub(crate) fn pairs_waiting(&self) -> impl Iterator<Item = &Pair> {
        let streams =
            self.streams.iter().flat_map(|stream| stream.pending.iter().chain(&stream.passed));
        let queues = self.queues.iter().map(|queue| &queue.pairs);
        queues.chain(streams.map(|(_, pairs)| pairs)).flatten()
    }

    /// Moves at most `tokens_max` tokens of a queue into `out`: oldest first within an expert, experts
    /// in turn, as the live nodes drain. Counts them per expert.
    pub(crate) fn drain(&mut self, queue: usize, tokens_max: u32, out: &mut Vec<Pair>) {
        let queue = &mut self.queues[queue];
        if queue.tokens <= tokens_max {
            queue.tokens = 0;
            out.append(&mut queue.pairs);
            self.count(out);
            return;
        }
        let quotas = quotas(&queue.pairs, self.counts.len(), tokens_max, &mut self.turn);
        self.counts.copy_from_slice(&quotas);
        let left = &mut self.counts;
        queue.pairs.retain_mut(|pair| {
            let left = &mut left[usize::from(pair.expert)];
            let taken = u32::from(pair.tokens).min(*left);
            *left -= taken;
            let taken = u16::try_from(taken).unwrap_or(u16::MAX);
            if taken > 0 {
                out.push(Pair { tokens: taken, ..*pair });
            }
            pair.tokens -= taken;
            pair.tokens > 0
        });
        queue.tokens -= tokens_max;
        self.counts.copy_from_slice(&quotas);
        self.activated
            .extend((0..).zip(quotas).filter(|&(_, quota)| quota > 0).map(|(expert, _)| expert));
    }

    /// Counts the tokens per expert of a launch.
    pub(crate) fn count(&mut self, pairs: &[Pair]) {
        for pair in pairs {
            let count = &mut self.counts[usize::from(pair.expert)];
            if *count == 0 {
                self.activated.push(pair.expert);
            }
            *count += u32::from(pair.tokens);
        }
    }

    /// Takes the counts of the launch: the tokens of every activated expert go to `each`.
    pub(crate) fn take_counts(&mut self, mut each: impl FnMut(u32)) {
        for expert in self.activated.drain(..) {
            each(std::mem::take(&mut self.counts[usize::from(expert)]));
        }
    }
}

/// How many tokens of each expert a launch takes that cannot take all; `turn` moves to the expert
/// that was cut short.
fn quotas(pairs: &[Pair], experts: usize, tokens_max: u32, turn: &mut usize) -> Vec<u32> {
    let mut counts = vec![0; experts];
    for pair in pairs {
        counts[usize::from(pair.expert)] += u32::from(pair.tokens);
    }
    let mut room = tokens_max;
    let first = *turn;
    for expert in (first..experts).chain(0..first) {
        counts[expert] = counts[expert].min(room);
        if room > 0 && counts[expert] == room {
            *turn = expert;
        }
        room -= counts[expert];
    }
    counts
}

// === impl Queue ===

impl Queue {
    /// Since when the oldest pair waits; 0 if there is none.
    pub(crate) fn oldest_ns(&self) -> u64 {
        self.pairs.first().map_or(0, |pair| pair.since_ns)
    }
}

// === impl Stream ===

impl Stream {
    pub(crate) fn new(attention: usize, layers: usize) -> Self {
        // Steps are counted from 1, so the first turn is that of its first layer.
        let barrier = Barrier::new(attention, layers as u64);
        Self { barrier, pending: Vec::new(), passed: Vec::new() }
    }

    /// The pairs of a turn that has not passed.
    pub(crate) fn pending(
        &mut self,
        turn: u64,
        empty: impl FnOnce() -> Vec<Pair>,
    ) -> &mut Vec<Pair> {
        let at = self.pending.iter().position(|&(pending, _)| pending == turn);
        let at = at.unwrap_or_else(|| {
            self.pending.push((turn, empty()));
            self.pending.len() - 1
        });
        &mut self.pending[at].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(span: u32, expert: u16, tokens: u16) -> Pair {
        Pair { since_ns: u64::from(span), span, expert, tokens }
    }

    fn counts(experts: &mut Experts) -> Vec<u32> {
        let mut counts = Vec::new();
        experts.take_counts(|tokens| counts.push(tokens));
        counts
    }

    #[test]
    fn a_drain_that_cannot_take_all_serves_experts_in_turn() {
        let mut experts = Experts::new(0, 1, Vec::new(), 3);
        let pairs = vec![pair(1, 0, 1), pair(2, 2, 1), pair(3, 0, 1), pair(4, 1, 4), pair(5, 2, 1)];
        experts.queues[0] = Queue { tokens: 8, pairs };
        let mut out = Vec::new();
        experts.drain(0, 4, &mut out);
        assert_eq!(out, [pair(1, 0, 1), pair(3, 0, 1), pair(4, 1, 2)], "expert 1 is cut short");
        assert_eq!(counts(&mut experts), [2, 2]);
        assert_eq!((experts.queues[0].tokens, experts.queues[0].oldest_ns()), (4, 2));
        out.clear();
        experts.drain(0, 3, &mut out);
        assert_eq!(out, [pair(2, 2, 1), pair(4, 1, 2)], "expert 1 comes first, then expert 2");
        out.clear();
        experts.drain(0, 3, &mut out);
        assert_eq!(out, [pair(5, 2, 1)]);
        assert_eq!(experts.tokens_waiting(), 0);
    }
}
