//! One expert node: its μ-queues, and in lockstep the barrier of each stream and the pairs of turns to come.

use policy::batching::Behind;

use crate::{barrier::Barrier, queues::MicroQueues, spans::Pair};

/// Everything an expert node owns.
#[derive(Debug)]
pub(crate) struct Experts {
    /// The device that it runs on.
    pub(crate) device: usize,
    /// Async.
    pub(crate) queues: MicroQueues,
    /// Async.
    pub(crate) behind: Behind,
    /// Lockstep, per stream.
    pub(crate) streams: Vec<Stream>,
    /// Tokens per expert of the launch that is put together; zeros between launches.
    counts: Vec<u32>,
    /// Experts with tokens in `counts`.
    activated: Vec<u16>,
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
    pub(crate) fn new(
        device: usize,
        queues: MicroQueues,
        streams: Vec<Stream>,
        layers: usize,
        experts: usize,
    ) -> Self {
        let behind = Behind::new(layers);
        Self { device, queues, behind, streams, counts: vec![0; experts], activated: Vec::new() }
    }

    /// Tokens that wait, each counted once per expert.
    pub(crate) fn tokens_waiting(&self) -> u32 {
        let turns = self.turns().map(|pair| u32::from(pair.tokens));
        self.queues.tokens() + turns.sum::<u32>()
    }

    /// Every pair that waits.
    pub(crate) fn pairs_waiting(&self) -> impl Iterator<Item = &Pair> {
        self.queues.pairs().chain(self.turns())
    }

    fn turns(&self) -> impl Iterator<Item = &Pair> {
        let turns =
            self.streams.iter().flat_map(|stream| stream.pending.iter().chain(&stream.passed));
        turns.flat_map(|(_, pairs)| pairs)
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
