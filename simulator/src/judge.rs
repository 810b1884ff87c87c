//! Judges a run while it goes on: what may never happen, whatever was decided.

use std::fmt;

use domain::Epoch;
use thiserror::Error;

use crate::spans::Span;

/// Something that may never happen, and when it did.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("at {at_ns} ns: {what}")]
pub struct Violation {
    /// Virtual time.
    pub at_ns: u64,
    /// What was wrong.
    pub what: Wrong,
}

/// What may never happen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "Display says what each means")]
pub enum Wrong {
    TimeWentBack { from_ns: u64, to_ns: u64 },
    ServedTwice { sequence: u64, position: u32, expected: u32 },
    Unasked { span: u32 },
    Lost { span: u32, missing: u32, found: u32 },
    Ownerless { sequence: u64, spans: u32 },
    Astray { span: u32, places: u32 },
    KvBlocks { node: usize, held: usize, free: usize, total: usize },
    Overfull { queue: &'static str, node: usize, found: u64, max: u64 },
    EpochFell { from: Epoch, to: Epoch },
    NotHeld { layer: usize, expert: usize, node: usize },
    BadPlan(String),
    Stuck { sequences: usize },
}

/// The state that is checked at a census.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census {
    /// Spans under way with their numbers.
    pub(crate) spans: Vec<(u32, Span)>,
    /// Every pair anywhere, under way, queued or being computed: its span and its tokens.
    pub(crate) pairs: Vec<(u32, u16)>,
    /// Every span that is ready or runs on an attention node.
    pub(crate) ready: Vec<u32>,
    /// Every running sequence: its number among those of spans, and its serial.
    pub(crate) running: Vec<(u32, u64)>,
}

/// What the judge remembers.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    now_ns: u64,
    epoch: Epoch,
}

// === impl Judge ===

impl Judge {
    /// Time is now this.
    pub(crate) fn time(&mut self, now_ns: u64) -> Result<(), Violation> {
        if now_ns < self.now_ns {
            let wrong = Wrong::TimeWentBack { from_ns: self.now_ns, to_ns: now_ns };
            return Err(self.wrong(wrong));
        }
        self.now_ns = now_ns;
        Ok(())
    }

    /// A plan of this epoch serves from now on.
    pub(crate) fn epoch(&mut self, epoch: Epoch) -> Result<(), Violation> {
        if epoch <= self.epoch {
            return Err(self.wrong(Wrong::EpochFell { from: self.epoch, to: epoch }));
        }
        self.epoch = epoch;
        Ok(())
    }

    /// A sequence's tokens from `position` on have been through all layers; `expected` is the first
    /// that has not.
    pub(crate) fn served(
        &self,
        sequence: u64,
        position: u32,
        expected: u32,
    ) -> Result<(), Violation> {
        if position == expected {
            return Ok(());
        }
        Err(self.wrong(Wrong::ServedTwice { sequence, position, expected }))
    }

    /// A queue has `found` of at most `max` things in it.
    pub(crate) fn bounded(
        &self,
        queue: &'static str,
        node: usize,
        found: u64,
        max: u64,
    ) -> Result<(), Violation> {
        if found <= max {
            return Ok(());
        }
        Err(self.wrong(Wrong::Overfull { queue, node, found, max }))
    }

    /// A node's KV blocks: those that sequences hold and those that are free make up all.
    pub(crate) fn kv(
        &self,
        node: usize,
        held: usize,
        free: usize,
        total: usize,
    ) -> Result<(), Violation> {
        if held + free == total {
            return Ok(());
        }
        Err(self.wrong(Wrong::KvBlocks { node, held, free, total }))
    }

    /// Every output that a span waits for is on its way, every span that waits for none is in one
    /// place, and every running sequence has one span.
    pub(crate) fn census(&self, census: &Census) -> Result<(), Violation> {
        let spans = census.spans.iter().map(|&(at, _)| at);
        let numbers = spans.chain(census.pairs.iter().map(|&(span, _)| span));
        let most =
            numbers.chain(census.ready.iter().copied()).max().map_or(0, |at| at as usize + 1);
        let (mut found, mut places) = (vec![0; most], vec![0; most]);
        for &(span, tokens) in &census.pairs {
            found[span as usize] += u32::from(tokens);
        }
        for &span in &census.ready {
            places[span as usize] += 1;
        }
        let mut owned: Vec<u32> = Vec::new();
        for &(at, span) in &census.spans {
            let found = std::mem::take(&mut found[at as usize]);
            if found != span.missing {
                return Err(self.wrong(Wrong::Lost { span: at, missing: span.missing, found }));
            }
            let places = std::mem::take(&mut places[at as usize]);
            if places != u32::from(span.missing == 0) {
                return Err(self.wrong(Wrong::Astray { span: at, places }));
            }
            let sequence = span.sequence as usize;
            owned.resize(owned.len().max(sequence + 1), 0);
            owned[sequence] += 1;
        }
        // What is left belongs to no span.
        if let Some(span) =
            found.iter().zip(&places).position(|(&found, &places)| found + places > 0)
        {
            let span = u32::try_from(span).unwrap_or(u32::MAX);
            return Err(self.wrong(Wrong::Unasked { span }));
        }
        for &(sequence, serial) in &census.running {
            let spans = owned.get(sequence as usize).copied().unwrap_or(0);
            if spans != 1 {
                return Err(self.wrong(Wrong::Ownerless { sequence: serial, spans }));
            }
        }
        Ok(())
    }

    /// Something that was found elsewhere is wrong.
    pub(crate) fn wrong(&self, what: Wrong) -> Violation {
        Violation { at_ns: self.now_ns, what }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimeWentBack { from_ns, to_ns } => {
                write!(f, "time went back from {from_ns} to {to_ns} ns")
            }
            Self::ServedTwice { sequence, position, expected } => write!(
                f,
                "sequence {sequence} was served position {position}, its next one is {expected}"
            ),
            Self::Unasked { span } => write!(f, "an output came for span {span}, which owes none"),
            Self::Lost { span, missing, found } => write!(
                f,
                "span {span} waits for {missing} outputs, {found} are under way, queued or computed"
            ),
            Self::Ownerless { sequence, spans } => {
                write!(f, "running sequence {sequence} has {spans} spans, expected 1")
            }
            Self::Astray { span, places } => write!(f, "span {span} is ready in {places} places"),
            Self::KvBlocks { node, held, free, total } => write!(
                f,
                "attention node {node}: {held} KV blocks held and {free} free are not {total}"
            ),
            Self::Overfull { queue, node, found, max } => {
                write!(f, "{queue} of node {node} has {found}, at most {max} are allowed")
            }
            Self::EpochFell { from, to } => write!(f, "{to} was to follow {from}"),
            Self::NotHeld { layer, expert, node } => {
                write!(
                    f,
                    "expert {expert} of layer {layer} was sent to node {node}, which has it not"
                )
            }
            Self::BadPlan(why) => write!(f, "a plan was refused by the checker: {why}"),
            Self::Stuck { sequences } => {
                write!(f, "nothing is to happen any more and {sequences} sequences are unfinished")
            }
        }
    }
}

#[cfg(test)]
mod tests;
