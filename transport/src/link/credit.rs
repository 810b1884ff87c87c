//! Byte credits: the sender's count of what is in flight and the receiver's permits that give it back.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{Seat, wire::Ledger};
use crate::Doorbell;

/// What the smallest frame costs, in bytes. It bounds how many frames a window lets in flight.
pub const FRAME_COST_MIN: u64 = 4096;

/// What a frame with this many bytes of rows costs.
pub(super) fn cost(payload_bytes: usize) -> u64 {
    (payload_bytes as u64).max(FRAME_COST_MIN)
}

/// Frames that a window lets in flight at most.
pub(super) fn frames_max(window: u64) -> usize {
    usize::try_from(window / FRAME_COST_MIN).unwrap_or(usize::MAX >> 16).max(1)
}

/// The sender's side: how much of the receiver's window is in use.
#[derive(Debug)]
pub(super) struct Credit {
    window: u64,
    in_flight: AtomicU64,
    /// The sender was refused and wants its bell rung. See [`Credit::take`].
    starved: AtomicBool,
    bell: Doorbell,
}

/// The receiver gave back more than it was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overpaid;

/// Stands for the room a received frame takes up; dropping it gives its cost back to the sender.
#[derive(Debug)]
pub struct Permit {
    cost: u64,
    source: Source,
    _seat: Arc<Seat>,
}

#[derive(Debug)]
pub(super) enum Source {
    /// The sender lives in this process: its own count.
    Memory(Arc<Credit>),
    /// The sender is told by a frame.
    Wire(Arc<Ledger>),
}

// === impl Credit ===

impl Credit {
    pub(super) fn new(window: u64, bell: Doorbell) -> Self {
        Self { window, in_flight: AtomicU64::new(0), starved: AtomicBool::new(false), bell }
    }

    /// Takes `cost` out of the window if there is room.
    ///
    /// After a refusal the next [`Credit::give_back`] rings. The flag goes up before the second
    /// look, and `give_back` lowers the count before it looks at the flag, all sequentially
    /// consistent: either the second look sees the room, or `give_back` sees the flag.
    pub(super) fn take(&self, cost: u64) -> bool {
        if self.try_take(cost) {
            return true;
        }
        self.starved.store(true, Ordering::SeqCst);
        self.try_take(cost)
    }

    fn try_take(&self, cost: u64) -> bool {
        self.in_flight
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |in_flight| {
                let after = in_flight.saturating_add(cost);
                (in_flight == 0 || after <= self.window).then_some(after)
            })
            .is_ok()
    }

    pub(super) fn give_back(&self, bytes: u64) -> Result<(), Overpaid> {
        self.in_flight
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |in_flight| {
                in_flight.checked_sub(bytes)
            })
            .map_err(|_| Overpaid)?;
        if self.starved.swap(false, Ordering::SeqCst) {
            self.bell.ring();
        }
        Ok(())
    }
}

// === impl Permit ===

impl Permit {
    pub(super) fn new(cost: u64, source: Source, seat: Arc<Seat>) -> Self {
        let _seat = seat;
        Self { cost, source, _seat }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match &self.source {
            Source::Memory(credit) => {
                let returned = credit.give_back(self.cost);
                debug_assert_eq!(returned, Ok(()), "a permit gives back what was taken for it");
            }
            Source::Wire(ledger) => ledger.release(self.cost),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_refused_sender_is_rung_when_credit_returns() {
        let bell = Doorbell::new();
        let credit = Credit::new(10_000, bell.clone());
        assert!(credit.take(6_000));
        credit.give_back(1_000).unwrap();
        assert!(!bell.ready(), "nobody waited");
        assert!(!credit.take(6_000));
        assert!(!bell.ready());
        credit.give_back(5_000).unwrap();
        assert!(bell.ready());
        assert!(credit.take(6_000));
    }

    #[test]
    fn a_frame_above_the_window_goes_alone() {
        let credit = Credit::new(10_000, Doorbell::new());
        assert!(credit.take(50_000));
        assert!(!credit.take(4_096));
        credit.give_back(50_000).unwrap();
        assert!(credit.take(4_096));
        assert!(!credit.take(50_000));
    }

    proptest! {
        #[test]
        fn the_window_is_kept_and_never_overpaid(steps: Vec<(bool, u16)>) {
            const WINDOW: u64 = 100_000;
            let credit = Credit::new(WINDOW, Doorbell::new());
            let mut in_flight = 0_u64;
            for (take, bytes) in steps {
                let bytes = u64::from(bytes);
                if take {
                    let fits = in_flight == 0 || in_flight + bytes <= WINDOW;
                    prop_assert_eq!(credit.take(bytes), fits);
                    in_flight += if fits { bytes } else { 0 };
                } else {
                    let expected = if bytes <= in_flight { Ok(()) } else { Err(Overpaid) };
                    prop_assert_eq!(credit.give_back(bytes), expected);
                    in_flight = in_flight.checked_sub(bytes).unwrap_or(in_flight);
                }
            }
        }
    }
}
