//! The μ-queues: pairs that wait per (layer, expert), and the frames whose rows they point into.

use std::collections::VecDeque;

use bytes::Bytes;
use domain::{Expert, Layer, NodeId};
use proto::frame::{Dispatch, Ticket};
use slab::Slab;
use transport::link::Permit;

/// All queues of one expert node. What came from several attention nodes waits side by side.
#[derive(Debug)]
pub(crate) struct MicroQueues {
    experts: usize,
    /// `[layer][expert]`, flattened.
    queues: Vec<VecDeque<Queued>>,
    /// Pairs per layer.
    pairs: Vec<u32>,
    frames: Slab<Held>,
    /// Where the next drain of a layer begins, so that no expert is always the last one served.
    turn: usize,
}

/// A frame whose rows are still needed. Its permit holds the sender's credit for as long.
#[derive(Debug)]
struct Held {
    peer: NodeId,
    step: u64,
    rows: Bytes,
    arrived_ns: u64,
    pairs_left: u32,
    _permit: Permit,
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    frame: usize,
    row: u32,
    ticket: Ticket,
    weight: f32,
    rank: u8,
    traced: bool,
}

/// One pair that was taken out to run.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    /// Who sent it.
    pub(crate) peer: NodeId,
    /// Lockstep mode's step, 0 otherwise.
    pub(crate) step: u64,
    /// The row, in wire form; shares the frame's memory.
    pub(crate) row: Bytes,
    /// Gate weight.
    pub(crate) weight: f32,
    /// The row's name at its sender.
    pub(crate) ticket: Ticket,
    /// Rank of the expert within the row.
    pub(crate) rank: u8,
    /// When it came, if its sender wants to be told how long it took.
    pub(crate) traced: Option<u64>,
}

// === impl MicroQueues ===

impl MicroQueues {
    pub(crate) fn new(layers: usize, experts: usize) -> Self {
        Self {
            experts,
            queues: std::iter::repeat_with(VecDeque::new).take(layers * experts).collect(),
            pairs: vec![0; layers],
            frames: Slab::new(),
            turn: 0,
        }
    }

    /// Pairs that wait in `layer`.
    pub(crate) fn pairs(&self, layer: usize) -> u32 {
        self.pairs[layer]
    }

    /// Pairs that wait, per layer.
    pub(crate) fn pairs_per_layer(&self) -> &[u32] {
        &self.pairs
    }

    /// Whether pairs wait for an expert.
    pub(crate) fn wait_for(&self, layer: Layer, expert: Expert) -> bool {
        !self.queues[layer.index() * self.experts + expert.index()].is_empty()
    }

    /// Pairs that wait in all.
    pub(crate) fn pairs_total(&self) -> u32 {
        self.pairs.iter().sum()
    }

    /// When the oldest pair of `layer` arrived.
    pub(crate) fn oldest_ns(&self, layer: usize) -> Option<u64> {
        let queues = &self.queues[layer * self.experts..][..self.experts];
        let fronts = queues.iter().filter_map(VecDeque::front);
        fronts.map(|pair| self.frames[pair.frame].arrived_ns).min()
    }

    /// When the oldest frame arrived of which pairs wait.
    pub(crate) fn oldest_ns_of_all(&self) -> Option<u64> {
        self.frames.iter().map(|(_, held)| held.arrived_ns).min()
    }

    /// Appends every pair of a dispatch to its expert's queue.
    ///
    /// The frame was validated on receipt: its experts and rows are within bounds.
    pub(crate) fn push(
        &mut self,
        peer: NodeId,
        dispatch: Dispatch,
        row_bytes: usize,
        permit: Permit,
        now_ns: u64,
    ) {
        let Ok(pairs_left) = u32::try_from(dispatch.pairs.len()) else { return };
        if pairs_left == 0 {
            return;
        }
        debug_assert!(dispatch.rows.len().is_multiple_of(row_bytes));
        let frame = self.frames.insert(Held {
            peer,
            step: dispatch.step,
            rows: dispatch.rows,
            arrived_ns: now_ns,
            pairs_left,
            _permit: permit,
        });
        self.pairs[dispatch.layer.index()] += pairs_left;
        for pair in dispatch.pairs {
            let queue = dispatch.layer.index() * self.experts + pair.expert.index();
            self.queues[queue].push_back(Queued {
                frame,
                row: pair.row,
                ticket: pair.ticket,
                weight: pair.weight,
                rank: pair.rank,
                traced: pair.traced,
            });
        }
    }

    /// Takes at most `pairs_max` pairs of `layer`, oldest first within an expert, and hands them to
    /// `take` expert by expert.
    pub(crate) fn drain(
        &mut self,
        layer: Layer,
        pairs_max: usize,
        row_bytes: usize,
        mut take: impl FnMut(Expert, Taken),
    ) {
        let mut room = pairs_max;
        let first = self.turn;
        for expert in (first..self.experts).chain(0..first) {
            let count = self.queues[layer.index() * self.experts + expert].len().min(room);
            for _ in 0..count {
                let Some(taken) = self.pop(layer.index(), expert, row_bytes) else { break };
                #[expect(clippy::cast_possible_truncation, reason = "experts are counted in u16")]
                take(Expert(expert as u16), taken);
            }
            room -= count;
            if room == 0 {
                self.turn = expert;
                return;
            }
        }
    }

    fn pop(&mut self, layer: usize, expert: usize, row_bytes: usize) -> Option<Taken> {
        let pair = self.queues[layer * self.experts + expert].pop_front()?;
        self.pairs[layer] -= 1;
        let held = &mut self.frames[pair.frame];
        let at = pair.row as usize * row_bytes;
        let taken = Taken {
            peer: held.peer,
            step: held.step,
            row: held.rows.slice(at..at + row_bytes),
            weight: pair.weight,
            ticket: pair.ticket,
            rank: pair.rank,
            traced: pair.traced.then_some(held.arrived_ns),
        };
        self.let_go(pair.frame);
        Some(taken)
    }

    /// Drops what waits for these tickets of `peer`; how many pairs that were.
    pub(crate) fn cancel(&mut self, peer: NodeId, tickets: &[Ticket]) -> u32 {
        self.remove(|held, pair| held.peer == peer && tickets.contains(&pair.ticket))
    }

    /// Drops everything of a peer whose link is gone; how many pairs that were.
    pub(crate) fn forget(&mut self, peer: NodeId) -> u32 {
        self.remove(|held, _| held.peer == peer)
    }

    fn remove(&mut self, drop: impl Fn(&Held, &Queued) -> bool) -> u32 {
        let (experts, frames) = (self.experts, &self.frames);
        let mut removed = Vec::new();
        for (queue, pairs) in self.queues.iter_mut().enumerate() {
            pairs.retain(|pair| {
                let goes = drop(&frames[pair.frame], pair);
                if goes {
                    removed.push((queue / experts, pair.frame));
                }
                !goes
            });
        }
        for &(layer, frame) in &removed {
            self.pairs[layer] -= 1;
            self.let_go(frame);
        }
        u32::try_from(removed.len()).unwrap_or(u32::MAX)
    }

    fn let_go(&mut self, frame: usize) {
        let held = &mut self.frames[frame];
        held.pairs_left -= 1;
        if held.pairs_left == 0 {
            self.frames.remove(frame);
        }
    }
}
