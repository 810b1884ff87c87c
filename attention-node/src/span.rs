//! A span: consecutive tokens of one sequence on their way through the layers, and what they wait for.

use std::time::Instant;

use bytes::Bytes;
use domain::{Expert, Layer, NodeId};
use proto::frame::Ticket;

/// Rows of one span at most: what a ticket has bits for.
pub(crate) const SPAN_ROWS_MAX: usize = 1 << ROW_BITS;
/// Spans of one node at most: what a ticket has bits for.
pub(crate) const SPANS_MAX: usize = 1 << SPAN_BITS;

const ROW_BITS: u32 = 12;
const SPAN_BITS: u32 = 20;

/// A prefill chunk, or one token that is being decoded.
#[derive(Debug)]
pub(crate) struct Span {
    /// The sequence's key.
    pub(crate) sequence: usize,
    /// Position of the first row.
    pub(crate) first_position: usize,
    /// Tokens.
    pub(crate) rows: usize,
    /// The decoder layer it runs next; the number of layers stands for the LM head.
    pub(crate) stage: usize,
    /// Whether it has begun its way through the layers.
    pub(crate) under_way: bool,
    /// Whether its sequence's trace tells of its layers.
    pub(crate) traced: bool,
    /// `[rows, hidden]`, without the expert outputs that `trip` collects.
    pub(crate) residual: Vec<f32>,
    /// The way to the experts and back that it is on, or has just come back from.
    pub(crate) trip: Trip,
}

/// One dispatch of a span to the experts of one layer, until all outputs are there.
///
/// Every choice is merged exactly once: its place holds one output, and tickets of other trips do
/// not match. The rows are kept, so what a lost node owed can be sent to another.
#[derive(Debug, Default)]
pub(crate) struct Trip {
    /// Tells this trip's tickets from those of every other trip of the same span key.
    serial: u32,
    pub(crate) layer: Layer,
    top_k: usize,
    row_bytes: usize,
    /// The rows in wire form.
    wire: Vec<u8>,
    /// `[rows, top_k]`, ascending by expert within a row.
    choices: Vec<Choice>,
    outputs: Vec<Option<Bytes>>,
    /// Choices whose output is missing.
    left: usize,
    /// Choices nobody was sent.
    unsent: usize,
    /// When it began.
    began: Option<Instant>,
    /// When choices were last sent.
    sent: Option<Instant>,
}

/// One expert of one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    pub(crate) expert: Expert,
    pub(crate) weight: f32,
    /// Who was sent it.
    pub(crate) node: Option<NodeId>,
}

/// A choice that needs a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsent<'a> {
    /// Row of the span.
    pub(crate) row: usize,
    /// Rank among the row's choices.
    pub(crate) rank: usize,
    /// The row in wire form.
    pub(crate) bytes: &'a [u8],
    pub(crate) choice: &'a Choice,
}

/// What became of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merge {
    /// It was the last one: the span goes on.
    Complete,
    /// Others are missing.
    Partial,
    /// Nobody waits for it (any more).
    Stale,
}

/// The parts of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TicketParts {
    pub(crate) serial: u32,
    pub(crate) span: usize,
    pub(crate) row: usize,
}

// === impl Span ===

impl Span {
    /// Makes it a span of `rows` rows. What a long chunk needed does not stay with the token that follows it: all
    /// sequences together would keep more than the largest batch needs.
    pub(crate) fn resize(&mut self, rows: usize, hidden: usize) {
        let shrinks = rows * hidden < self.residual.capacity() / 4;
        self.rows = rows;
        self.residual.resize(rows * hidden, 0.0);
        if shrinks {
            self.residual.shrink_to_fit();
            self.trip = Trip::default();
        }
    }
}

// === impl TicketParts ===

impl TicketParts {
    pub(crate) fn of(ticket: Ticket) -> Self {
        let Ticket(bits) = ticket;
        #[expect(clippy::cast_possible_truncation, reason = "each part is cut out by its mask")]
        Self {
            serial: (bits >> (ROW_BITS + SPAN_BITS)) as u32,
            span: (bits >> ROW_BITS) as usize & (SPANS_MAX - 1),
            row: bits as usize & (SPAN_ROWS_MAX - 1),
        }
    }

    pub(crate) fn ticket(self) -> Ticket {
        debug_assert!(self.span < SPANS_MAX && self.row < SPAN_ROWS_MAX);
        let (span, row) = (self.span as u64, self.row as u64);
        Ticket(u64::from(self.serial) << (ROW_BITS + SPAN_BITS) | span << ROW_BITS | row)
    }
}

// === impl Trip ===

impl Trip {
    /// Begins a trip: nothing was sent yet. `rows` are the span's rows in wire form.
    pub(crate) fn begin(
        &mut self,
        now: Instant,
        serial: u32,
        layer: Layer,
        top_k: usize,
        rows: &[u8],
        choices: impl Iterator<Item = (Expert, f32)>,
    ) {
        self.began = Some(now);
        self.serial = serial;
        self.layer = layer;
        self.top_k = top_k;
        self.wire.clear();
        self.wire.extend_from_slice(rows);
        self.choices.clear();
        self.choices.extend(choices.map(|(expert, weight)| Choice { expert, weight, node: None }));
        self.outputs.clear();
        self.outputs.resize(self.choices.len(), None);
        self.left = self.choices.len();
        self.unsent = self.left;
        self.row_bytes = rows.len() * top_k / self.left.max(1);
    }

    /// Ends the trip; its outputs were absorbed, or nobody wants them.
    pub(crate) fn end(&mut self) {
        self.choices.clear();
        self.outputs.clear();
        self.left = 0;
        self.unsent = 0;
    }

    /// Its choices are being sent.
    pub(crate) fn note_sent(&mut self, now: Instant) {
        self.sent = Some(now);
    }

    /// Since when it has been under way, if an output is missing.
    pub(crate) fn away_since(&self) -> Option<Instant> {
        self.began.filter(|_| self.left > 0)
    }

    /// When this ticket's choices were sent, if it is one of this trip.
    pub(crate) fn sent(&self, parts: TicketParts) -> Option<Instant> {
        self.sent.filter(|_| parts.serial == self.serial)
    }

    /// Whether choices wait for a node to be sent to.
    pub(crate) fn has_unsent(&self) -> bool {
        self.unsent > 0
    }

    pub(crate) fn serial(&self) -> u32 {
        self.serial
    }

    /// The outputs of a row, ascending by expert; only for a trip that is complete.
    pub(crate) fn outputs(&self, row: usize) -> impl Iterator<Item = &[u8]> + Clone {
        let outputs = &self.outputs[row * self.top_k..][..self.top_k];
        outputs.iter().flatten().map(|output| &output[..])
    }

    /// Whether experts have anything to add to the residual.
    pub(crate) fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// Offers every unsent choice to `send`, which answers whom it went to.
    pub(crate) fn send_unsent(&mut self, mut send: impl FnMut(Unsent<'_>) -> Option<NodeId>) {
        for (at, choice) in self.choices.iter_mut().enumerate() {
            if choice.node.is_some() || self.outputs[at].is_some() {
                continue;
            }
            let (row, rank) = (at / self.top_k, at % self.top_k);
            let bytes = &self.wire[row * self.row_bytes..][..self.row_bytes];
            choice.node = send(Unsent { row, rank, bytes, choice });
            self.unsent -= usize::from(choice.node.is_some());
        }
    }

    /// Merges an output of this trip.
    pub(crate) fn merge(&mut self, parts: TicketParts, rank: u8, output: Bytes) -> Merge {
        let at = parts.row * self.top_k + usize::from(rank);
        if parts.serial != self.serial || usize::from(rank) >= self.top_k {
            return Merge::Stale;
        }
        let Some(place @ None) = self.outputs.get_mut(at) else { return Merge::Stale };
        *place = Some(output);
        // A choice that was given up as lost may still be answered.
        self.unsent -= usize::from(self.choices[at].node.is_none());
        self.left -= 1;
        if self.left == 0 { Merge::Complete } else { Merge::Partial }
    }

    /// Takes back what `node` was sent and has not answered: all of it, or one row's.
    pub(crate) fn take_back(&mut self, node: NodeId, row: Option<usize>) {
        for (at, choice) in self.choices.iter_mut().enumerate() {
            let concerned = row.is_none_or(|row| at / self.top_k == row);
            if concerned && choice.node == Some(node) && self.outputs[at].is_none() {
                choice.node = None;
                self.unsent += 1;
            }
        }
    }

    /// The experts that its rows chose.
    pub(crate) fn experts(&self) -> impl Iterator<Item = Expert> + '_ {
        self.choices.iter().map(|choice| choice.expert)
    }

    /// Who still owes outputs, each row's choices in turn: (row, node).
    pub(crate) fn owed(&self) -> impl Iterator<Item = (usize, NodeId)> + '_ {
        self.choices.iter().enumerate().filter_map(|(at, choice)| {
            let missing = self.outputs[at].is_none();
            choice.node.filter(|_| missing).map(|node| (at / self.top_k, node))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    /// Two rows of 4 bytes, top-2; experts 0 and 1 of row 0, 1 and 3 of row 1.
    fn trip() -> Trip {
        let mut trip = Trip::default();
        let choices = [(0, 0.5), (1, 0.25), (1, 1.0), (3, 2.0)];
        let choices = choices.map(|(expert, weight)| (Expert(expert), weight));
        trip.begin(Instant::now(), 7, Layer(3), 2, b"row0row1", choices.into_iter());
        trip
    }

    fn parts(row: usize) -> TicketParts {
        TicketParts { serial: 7, span: 5, row }
    }

    #[test]
    fn tickets_keep_their_parts() {
        let parts = TicketParts { serial: u32::MAX, span: SPANS_MAX - 1, row: SPAN_ROWS_MAX - 1 };
        assert_eq!(TicketParts::of(parts.ticket()), parts);
        let parts = TicketParts { serial: 1, span: 2, row: 3 };
        assert_eq!(TicketParts::of(parts.ticket()), parts);
    }

    #[test]
    fn a_token_keeps_no_memory_of_the_chunk_before_it() {
        let (sequence, first_position, rows, stage) = (0, 0, 0, 0);
        let (residual, trip, under_way, traced) = (Vec::new(), trip(), false, false);
        let mut span =
            Span { sequence, first_position, rows, stage, under_way, traced, residual, trip };
        span.resize(128, 16);
        assert_eq!((span.rows, span.residual.len()), (128, 128 * 16));
        span.resize(1, 16);
        assert_eq!((span.rows, span.residual.len()), (1, 16));
        assert!(span.residual.capacity() < 32 && span.trip.wire.capacity() == 0);
    }

    #[test]
    fn outputs_merge_once_and_in_any_order() {
        let mut trip = trip();
        trip.send_unsent(|_| Some(A));
        assert!(!trip.has_unsent());
        let output = |text: &'static str| Bytes::from_static(text.as_bytes());
        assert_eq!(trip.merge(parts(1), 1, output("r1k1")), Merge::Partial);
        assert_eq!(trip.merge(parts(1), 1, output("copy")), Merge::Stale);
        assert_eq!(trip.merge(parts(1), 2, output("rank")), Merge::Stale);
        assert_eq!(trip.merge(parts(9), 0, output("row?")), Merge::Stale);
        let old = TicketParts { serial: 6, ..parts(0) };
        assert_eq!(trip.merge(old, 0, output("late")), Merge::Stale);
        assert_eq!(trip.merge(parts(0), 1, output("r0k1")), Merge::Partial);
        assert_eq!(trip.merge(parts(0), 0, output("r0k0")), Merge::Partial);
        assert_eq!(trip.merge(parts(1), 0, output("r1k0")), Merge::Complete);
        assert_eq!(trip.outputs(0).collect::<Vec<_>>(), [b"r0k0", b"r0k1"]);
        assert_eq!(trip.outputs(1).collect::<Vec<_>>(), [b"r1k0", b"r1k1"]);
    }

    #[test]
    fn what_a_lost_node_owes_is_sent_again_and_nothing_else() {
        let mut trip = trip();
        trip.send_unsent(|unsent| Some(if unsent.choice.expert == Expert(1) { B } else { A }));
        trip.merge(parts(0), 1, Bytes::from_static(b"done"));
        assert_eq!(trip.owed().collect::<Vec<_>>(), [(0, A), (1, B), (1, A)]);
        trip.take_back(B, None);
        assert!(trip.has_unsent());
        let mut again = Vec::new();
        trip.send_unsent(|unsent| {
            again.push((unsent.row, unsent.rank, unsent.choice.expert.0, unsent.bytes.to_vec()));
            None
        });
        assert_eq!(again, [(1, 0, 1, b"row1".to_vec())]);
        assert!(trip.has_unsent(), "nobody took it");
        // The lost node was only slow: its answer counts, once.
        assert_eq!(trip.merge(parts(1), 0, Bytes::from_static(b"late")), Merge::Partial);
        assert!(!trip.has_unsent());
    }
}
