//! The network: every device has a card that sends and receives one message at a time, in order, at its bandwidth.

use crate::spec;

/// What a wire between two devices gives.
#[derive(Clone, Copy, Debug)]
struct Wire {
    latency_ns: u64,
    /// How long a card is busy with a message besides its bytes.
    message_ns: u64,
    ns_per_byte: f64,
}

/// One device's card: when each of its directions is free again.
#[derive(Clone, Copy, Debug, Default)]
struct Card {
    out_free_ns: u64,
    in_free_ns: u64,
}

/// All cards. Devices of one box have a wire of their own, and a second card for what leaves the box.
#[derive(Debug)]
pub(crate) struct Links {
    inside: Wire,
    between: Wire,
    /// The box of each device.
    boxes: Vec<u16>,
    /// Inside the box, and between boxes.
    cards: Vec<[Card; 2]>,
    /// Bytes sent so far.
    bytes: u64,
}

// === impl Wire ===

impl Wire {
    fn new(spec: spec::Wire) -> Self {
        Self {
            latency_ns: spec::ns_of_us(spec.latency_us),
            message_ns: spec::ns_of_us(spec.message_us),
            ns_per_byte: 8.0 / spec.gbps,
        }
    }

    /// How long a message keeps a card busy.
    fn busy_ns(self, bytes: u64) -> u64 {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a message is far below 2^52 bytes"
        )]
        let transfer = (bytes as f64 * self.ns_per_byte).round() as u64;
        self.message_ns + transfer
    }
}

// === impl Links ===

impl Links {
    /// Idle cards for devices in these boxes.
    pub(crate) fn new(spec: &spec::Links, boxes: Vec<u16>) -> Self {
        let inside = Wire::new(spec::Wire {
            latency_us: spec.latency_us,
            gbps: spec.gbps,
            message_us: spec.message_us,
        });
        let between = spec.between.map_or(inside, Wire::new);
        let cards = vec![[Card::default(); 2]; boxes.len()];
        Self { inside, between, boxes, cards, bytes: 0 }
    }

    /// Sends at `now_ns`, after what the sender's card has yet to send; when the first byte is there.
    pub(crate) fn send(&mut self, now_ns: u64, from: usize, to: usize, bytes: u64) -> u64 {
        let (wire, tier) = self.wire(from, to);
        let card = &mut self.cards[from][tier];
        let begin = card.out_free_ns.max(now_ns);
        card.out_free_ns = begin + wire.busy_ns(bytes);
        self.bytes += bytes;
        begin + wire.latency_ns
    }

    /// Takes in a message whose first byte is there at `now_ns`, after what came before it; when its
    /// last byte is in.
    pub(crate) fn receive(&mut self, now_ns: u64, from: usize, to: usize, bytes: u64) -> u64 {
        let (wire, tier) = self.wire(from, to);
        let card = &mut self.cards[to][tier];
        card.in_free_ns = card.in_free_ns.max(now_ns) + wire.busy_ns(bytes);
        card.in_free_ns
    }

    /// Bytes sent so far, over all cards.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn wire(&self, from: usize, to: usize) -> (Wire, usize) {
        if self.boxes[from] == self.boxes[to] { (self.inside, 0) } else { (self.between, 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        let between = spec::Wire { latency_us: 5.0, gbps: 1.0, message_us: 0.0 };
        let spec =
            spec::Links { latency_us: 1.0, gbps: 8.0, message_us: 0.0, between: Some(between) };
        Links::new(&spec, vec![0, 0, 1])
    }

    #[test]
    fn a_message_takes_its_latency_and_its_bytes_once() {
        let mut links = links();
        let reached = links.send(0, 0, 1, 500);
        assert_eq!((reached, links.receive(reached, 0, 1, 500)), (1000, 1500));
        let reached = links.send(0, 0, 2, 500);
        assert_eq!((reached, links.receive(reached, 0, 2, 500)), (5000, 9000), "to another box");
    }

    #[test]
    fn cards_send_and_receive_one_message_at_a_time() {
        let mut links = links();
        assert_eq!(links.send(0, 0, 1, 500), 1000);
        assert_eq!(links.send(0, 0, 1, 500), 1500, "the card sends the first until 500");
        assert_eq!(links.receive(1000, 0, 1, 500), 1500);
        assert_eq!(links.receive(1200, 0, 1, 500), 2000, "the card takes the first in until 1500");
        assert_eq!(links.bytes(), 1000);
    }
}
