//! Virtual time: what happens next, in order of time and, at one instant, in order of being noted.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Something that happens at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The next request is at the door.
    Arrive,
    /// A device has finished what it ran.
    Finished(u16),
    /// A device has waited long enough for tokens that are right behind its queues.
    Waited(u16),
    /// The first byte of a message is at its receiver's card.
    Reached(u32),
    /// The last byte of a message is in.
    Received(u32),
    /// Lockstep: the routing of a stream's turn has been decided.
    Decided(u8),
    /// The lease of replicas is due to be renewed.
    Renew,
    /// News of what waits are due.
    Digest,
    /// Placement is due to be thought over.
    Replan,
    /// The next plan's experts are loaded.
    Loaded,
    /// The state of the whole cluster is due to be checked.
    Census,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    at_ns: u64,
    order: u64,
    event: Event,
}

/// All that is to happen.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    heap: BinaryHeap<Reverse<Entry>>,
    now_ns: u64,
    noted: u64,
}

// === impl Entry ===

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.order).cmp(&(other.at_ns, other.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

// === impl Agenda ===

impl Agenda {
    /// The instant of the event taken last.
    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Events noted so far.
    pub(crate) fn noted(&self) -> u64 {
        self.noted
    }

    /// Notes that `event` happens at `at_ns`.
    pub(crate) fn note(&mut self, at_ns: u64, event: Event) {
        self.heap.push(Reverse(Entry { at_ns, order: self.noted, event }));
        self.noted += 1;
    }

    /// Takes what happens next, with the instant; the caller judges whether time goes forward.
    pub(crate) fn take(&mut self) -> Option<(u64, Event)> {
        let Reverse(entry) = self.heap.pop()?;
        self.now_ns = entry.at_ns;
        Some((entry.at_ns, entry.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_noting() {
        let mut agenda = Agenda::default();
        agenda.note(7, Event::Census);
        agenda.note(3, Event::Finished(1));
        agenda.note(3, Event::Finished(0));
        let order: Vec<_> = std::iter::from_fn(|| agenda.take()).collect();
        assert_eq!(order, [(3, Event::Finished(1)), (3, Event::Finished(0)), (7, Event::Census)]);
        assert_eq!(agenda.now_ns(), 7);
    }
}
