//! One run of the experts: takes pairs from the queues, computes them, and sorts the results by sender.

use bytes::Bytes;
use domain::{Expert, Layer, NodeId};
use model::{ExpertHalf, ExpertWork, FfnRow, ModelError};
use proto::frame::{Done, Output, Timing};

use crate::queues::Taken;

/// The pairs of one run, in the order they were taken: expert by expert.
///
/// Kept from run to run, so that a warm engine allocates per run and not per pair.
#[derive(Debug, Default)]
pub(crate) struct Launch {
    pairs: Vec<Taken>,
    /// Each expert with the end of its pairs.
    experts: Vec<(Expert, usize)>,
    /// Output row of each pair: results of one sender lie together.
    outputs: Vec<usize>,
    /// Each sender with the end of its output rows, ascending.
    senders: Vec<(NodeId, usize)>,
}

// === impl Launch ===

impl Launch {
    /// Adds a pair; pairs of one expert must follow each other.
    pub(crate) fn add(&mut self, expert: Expert, pair: Taken) {
        self.pairs.push(pair);
        let end = self.pairs.len();
        match self.experts.last_mut() {
            Some(last) if last.0 == expert => last.1 = end,
            _ => self.experts.push((expert, end)),
        }
    }

    /// Pairs in the run.
    pub(crate) fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// Experts in the run.
    pub(crate) fn experts(&self) -> usize {
        self.experts.len()
    }

    /// Tokens of each expert in the run.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = usize> + '_ {
        let begins = std::iter::once(0).chain(self.experts.iter().map(|&(_, end)| end));
        self.experts.iter().zip(begins).map(|(&(_, end), begin)| end - begin)
    }

    /// Computes the run, which began at `now_ns`, and gives one frame per sender to `publish`. The launch is empty
    /// afterwards. Timings of traced pairs say how long they were queued.
    ///
    /// # Errors
    /// An expert is not resident, or the device failed; nothing was computed.
    pub(crate) fn run(
        &mut self,
        layer: Layer,
        half: &mut ExpertHalf,
        now_ns: u64,
        publish: impl FnMut(NodeId, Output),
    ) -> Result<(), ModelError> {
        self.place();
        let mut out = Vec::new();
        let outcome = self.compute(layer, half, &mut out);
        if outcome.is_ok() {
            self.sort(layer, out.into(), now_ns, publish);
        }
        self.pairs.clear();
        self.experts.clear();
        outcome
    }

    /// Gives every pair its output row: senders ascending, pairs of a sender in order.
    fn place(&mut self) {
        self.senders.clear();
        for pair in &self.pairs {
            match self.senders.binary_search_by_key(&pair.peer, |&(peer, _)| peer) {
                Ok(at) => self.senders[at].1 += 1,
                Err(at) => self.senders.insert(at, (pair.peer, 1)),
            }
        }
        let mut begin = 0;
        for (_, count) in &mut self.senders {
            let end = begin + *count;
            *count = begin;
            begin = end;
        }
        self.outputs.clear();
        for pair in &self.pairs {
            if let Ok(at) = self.senders.binary_search_by_key(&pair.peer, |&(peer, _)| peer) {
                self.outputs.push(self.senders[at].1);
                self.senders[at].1 += 1;
            }
        }
    }

    fn compute(
        &self,
        layer: Layer,
        half: &mut ExpertHalf,
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let rows: Vec<FfnRow<'_>> = self
            .pairs
            .iter()
            .zip(&self.outputs)
            .map(|(pair, &output)| FfnRow { input: &pair.row, weight: pair.weight, output })
            .collect();
        let mut begin = 0;
        let mut work = Vec::with_capacity(self.experts.len());
        for &(expert, end) in &self.experts {
            work.push(ExpertWork { expert, rows: &rows[begin..end] });
            begin = end;
        }
        half.run(layer, &work, out)
    }

    fn sort(
        &self,
        layer: Layer,
        mut rows: Bytes,
        now_ns: u64,
        mut publish: impl FnMut(NodeId, Output),
    ) {
        let Some(row_bytes) = rows.len().checked_div(self.pairs.len()) else { return };
        let mut order: Vec<usize> = vec![0; self.pairs.len()];
        for (pair, &output) in self.outputs.iter().enumerate() {
            order[output] = pair;
        }
        let mut begin = 0;
        for &(peer, end) in &self.senders {
            let results = order[begin..end]
                .iter()
                .map(|&pair| Done { ticket: self.pairs[pair].ticket, rank: self.pairs[pair].rank });
            let output = Output {
                step: self.pairs[order[begin]].step,
                layer,
                results: results.collect(),
                rows: rows.split_to((end - begin) * row_bytes),
                timings: self.timings(&order[begin..end], now_ns),
            };
            publish(peer, output);
            begin = end;
        }
    }

    /// How long the traced ones of a frame's pairs were queued.
    fn timings(&self, pairs: &[usize], now_ns: u64) -> Vec<Timing> {
        let traced = (0..).zip(pairs).filter_map(|(result, &pair)| {
            let queued_ns = now_ns.saturating_sub(self.pairs[pair].traced?);
            Some(Timing { result, queued_ns, ran_ns: 0 })
        });
        traced.collect()
    }
}
