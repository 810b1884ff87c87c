//! One attention node: its sequences' KV blocks, the spans that are ready, and in lockstep where its streams stand.

use std::{collections::VecDeque, rc::Rc};

use policy::{
    batching,
    kv_blocks::{KvBlocks, Retention},
};

use crate::{cluster::BLOCK_TOKENS, spans::Pair};

/// A span that is ready for its next stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) span: u32,
    pub(crate) rows: u32,
    pub(crate) since_ns: u64,
}

/// Everything an attention node owns.
#[derive(Debug)]
pub(crate) struct Attention {
    /// The device that it runs on.
    pub(crate) device: usize,
    /// Async: ready spans per stage, the LM head last.
    pub(crate) ready: Vec<Queue>,
    /// Async: rows that experts of a layer have, per layer.
    pub(crate) away: Vec<u32>,
    /// Lockstep: its batch, or the parts of it that go through the layers side by side.
    pub(crate) streams: Vec<Stream>,
    pub(crate) kv: KvBlocks,
    /// Blocks that all sequences here, waiting ones among them, need for their whole length.
    pub(crate) claimed_blocks: u32,
    /// Sequences that wait for admission.
    pub(crate) waiting: VecDeque<u32>,
    /// Sequences that run.
    pub(crate) running: u32,
}

/// Ready spans of one stage, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) spans: VecDeque<Waiting>,
    pub(crate) rows: u32,
}

/// Lockstep: spans that go through the layers side by side.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The running step, or the last one; counted from 1.
    pub(crate) step: u64,
    /// The newest step that any node has begun.
    pub(crate) heard: u64,
    /// Where the batch is; none between steps.
    pub(crate) stage: Option<usize>,
    /// Spans of the batch.
    pub(crate) batch: usize,
    /// Spans of the batch that are back.
    pub(crate) back: Vec<u32>,
    /// Spans for the next step.
    pub(crate) fresh: Vec<u32>,
    /// Pairs that wait for a decision over the batches of all nodes.
    pub(crate) undecided: Vec<Pair>,
    /// Sequences that belong to it.
    pub(crate) sequences: u32,
}

// === impl Attention ===

impl Attention {
    pub(crate) fn new(device: usize, stages: usize, streams: usize, kv_tokens: u32) -> Self {
        let blocks = kv_tokens / u32::try_from(BLOCK_TOKENS).unwrap_or(u32::MAX);
        Self {
            device,
            ready: std::iter::repeat_with(Queue::default).take(stages).collect(),
            away: vec![0; stages - 1],
            streams: std::iter::repeat_with(Stream::default).take(streams).collect(),
            kv: KvBlocks::new(blocks, BLOCK_TOKENS, Retention::Nothing),
            claimed_blocks: 0,
            waiting: VecDeque::new(),
            running: 0,
        }
    }

    /// Async: the rows that come to each layer's experts next, as a node tells with every message: they
    /// are ready for the layer's attention, or away with the experts before.
    pub(crate) fn rows_behind(&self) -> Rc<[u32]> {
        let ready = self.ready.iter().map(|queue| queue.rows).take(self.away.len());
        batching::rows_behind(ready, self.away.iter().copied()).collect()
    }

    /// Rows that are ready, over all stages and streams.
    pub(crate) fn rows_ready(&self) -> u32 {
        let streams = self.streams.iter().map(|stream| stream.back.len() + stream.fresh.len());
        let rows: u32 = self.ready.iter().map(|queue| queue.rows).sum();
        rows + u32::try_from(streams.sum::<usize>()).unwrap_or(u32::MAX)
    }

    /// Every span that is ready.
    pub(crate) fn spans_ready(&self) -> impl Iterator<Item = u32> + '_ {
        let queued = self.ready.iter().flat_map(|queue| queue.spans.iter().map(|entry| entry.span));
        let streams =
            self.streams.iter().flat_map(|stream| stream.back.iter().chain(&stream.fresh));
        queued.chain(streams.copied())
    }
}

// === impl Queue ===

impl Queue {
    pub(crate) fn push(&mut self, span: u32, rows: u32, now_ns: u64) {
        self.spans.push_back(Waiting { span, rows, since_ns: now_ns });
        self.rows += rows;
    }

    /// Moves the oldest spans into `out`, at most `rows_max` rows but at least one span; the rows.
    pub(crate) fn drain(&mut self, rows_max: usize, out: &mut Vec<u32>) -> u32 {
        let mut rows = 0;
        while let Some(entry) = self.spans.front() {
            if rows > 0 && (rows + entry.rows) as usize > rows_max {
                break;
            }
            rows += entry.rows;
            out.push(entry.span);
            self.spans.pop_front();
        }
        self.rows -= rows;
        rows
    }

    /// Since when the oldest span is ready; 0 if there is none.
    pub(crate) fn oldest_ns(&self) -> u64 {
        self.spans.front().map_or(0, |entry| entry.since_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_takes_the_oldest_up_to_the_cap_and_one_span_always_fits() {
        let mut queue = Queue::default();
        queue.push(1, 9, 10);
        queue.push(2, 2, 11);
        queue.push(3, 2, 12);
        queue.push(4, 1, 13);
        let mut out = Vec::new();
        assert_eq!((queue.drain(4, &mut out), out.as_slice()), (9, &[1][..]));
        assert_eq!((queue.rows, queue.oldest_ns()), (5, 11));
        out.clear();
        assert_eq!((queue.drain(4, &mut out), out.as_slice()), (4, &[2, 3][..]));
        assert_eq!(queue.rows, 1);
    }
}
