//! Messages under way between devices, and the buffers that their pairs travel in.

use std::rc::Rc;

use crate::spans::Pair;

/// Bytes of a frame besides rows and pairs, and of a pair besides its row: as the live frames have them.
const FRAME_BYTES: u64 = 64;
const PAIR_BYTES: u64 = 19;

/// What a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Rows for the experts of a layer, from an attention node. In lockstep every expert node gets
    /// one for each of a sender's turns, be it empty.
    Dispatch {
        /// The layer.
        layer: u16,
        /// The attention node.
        home: u16,
        /// Lockstep: the turn (see [`crate::barrier`]) and the stream.
        turn: u64,
        /// Lockstep: the stream.
        stream: u8,
    },
    /// Outputs of experts for spans of one attention node.
    Outputs,
}

/// One message.
#[derive(Debug)]
pub(crate) struct Message {
    /// The sending device.
    pub(crate) from: u16,
    /// The receiving device.
    pub(crate) to: u16,
    /// Its size.
    pub(crate) bytes: u64,
    /// What it is.
    pub(crate) load: Load,
    /// Async: of an attention node, its [`rows_behind`](crate::attention::Attention::rows_behind).
    pub(crate) behind: Option<Rc<[u32]>>,
    /// What it carries.
    pub(crate) pairs: Vec<Pair>,
}

/// All messages under way, by number, and empty buffers for the next ones.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    messages: Vec<Option<Message>>,
    free: Vec<u32>,
    buffers: Vec<Vec<Pair>>,
}

/// What an attention node has for one expert node.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) pairs: Vec<Pair>,
    /// Tokens of all pairs.
    tokens: u64,
    /// Rows: a row travels once, however many of its experts are there.
    rows: u64,
    /// The last span that was added, its rows, and the tokens of its pairs.
    last: Option<(u32, u64, u64)>,
}

// === impl Messages ===

impl Messages {
    /// Adds a message and numbers it.
    pub(crate) fn insert(&mut self, message: Message) -> u32 {
        if let Some(at) = self.free.pop() {
            self.messages[at as usize] = Some(message);
            return at;
        }
        self.messages.push(Some(message));
        u32::try_from(self.messages.len() - 1).expect("messages are bounded by rows under way")
    }

    /// Sender, receiver and size.
    pub(crate) fn route(&self, at: u32) -> (usize, usize, u64) {
        let message =
            self.messages[at as usize].as_ref().expect("only messages under way are named");
        (usize::from(message.from), usize::from(message.to), message.bytes)
    }

    /// Takes a message out.
    pub(crate) fn remove(&mut self, at: u32) -> Message {
        self.free.push(at);
        self.messages[at as usize].take().expect("a message arrives once")
    }

    /// Every message under way.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().flatten()
    }

    /// An empty buffer.
    pub(crate) fn buffer(&mut self) -> Vec<Pair> {
        self.buffers.pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub(crate) fn recycle(&mut self, mut buffer: Vec<Pair>) {
        buffer.clear();
        self.buffers.push(buffer);
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// Adds a pair of a span with `rows` rows. Pairs of one span follow each other.
    pub(crate) fn add(&mut self, pair: Pair, rows: u32) {
        let tokens = u64::from(pair.tokens);
        let (before, sum) = match self.last {
            Some((span, before, sum)) if span == pair.span => (before, sum + tokens),
            _ => (0, tokens),
        };
        // Of a chunk's rows at most as many go to a node as have an expert there.
        let now = sum.min(u64::from(rows));
        self.rows += now - before;
        self.last = Some((pair.span, now, sum));
        self.tokens += tokens;
        self.pairs.push(pair);
    }

    /// Takes what was added, leaving `empty` for the next pairs: the pairs, and their bytes.
    pub(crate) fn take(&mut self, empty: Vec<Pair>, row_bytes: u32) -> (Vec<Pair>, u64) {
        let bytes = FRAME_BYTES + self.tokens * PAIR_BYTES + self.rows * u64::from(row_bytes);
        (self.tokens, self.rows, self.last) = (0, 0, None);
        (std::mem::replace(&mut self.pairs, empty), bytes)
    }
}

/// Bytes of the outputs of these pairs: each token's output travels by itself, as expert nodes send
/// them as soon as they are done and attention nodes add them up in a fixed order.
pub(crate) fn output_bytes(pairs: &[Pair], row_bytes: u32) -> u64 {
    let tokens: u64 = pairs.iter().map(|pair| u64::from(pair.tokens)).sum();
    FRAME_BYTES + tokens * (PAIR_BYTES + u64::from(row_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_travels_once_per_node() {
        let pair = |span, tokens| Pair { since_ns: 0, span, expert: 0, tokens };
        let mut outgoing = Outgoing::default();
        outgoing.add(pair(1, 1), 1);
        outgoing.add(pair(1, 1), 1);
        outgoing.add(pair(2, 1), 1);
        outgoing.add(pair(3, 6), 8);
        outgoing.add(pair(3, 6), 8);
        let (pairs, bytes) = outgoing.take(Vec::new(), 1000);
        assert_eq!(pairs.len(), 5);
        assert_eq!(bytes, 64 + 15 * 19 + (1 + 1 + 8) * 1000);
        assert_eq!(outgoing.take(Vec::new(), 1000), (vec![], 64));
        assert_eq!(output_bytes(&pairs, 1000), 64 + 15 * 1019);
    }
}
