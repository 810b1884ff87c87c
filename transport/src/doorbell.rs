//! Wakes the one thread that drives a device when any of its mailboxes has something new.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

/// Nobody rang since the waiter last looked.
const QUIET: u8 = 0;
/// Somebody rang; the next wait returns at once.
const RUNG: u8 = 1;
/// The waiter sleeps, or is about to: whoever rings has to wake it.
const ASLEEP: u8 = 2;

/// A bell that any number of threads and tasks ring and one thread waits on. Clones share the bell.
///
/// A ring is remembered until the waiter takes it, so the order "look into the mailboxes, then
/// wait" never sleeps through a message:
///
/// Every change of `state` is one atomic read-modify-write, so all of them stand in one order. A
/// sender puts its message into the queue *before* its swap to `RUNG`. Take the waiter's last swap
/// or exchange before it sleeps (`QUIET` → `ASLEEP`). If the ring stands before it, the exchange
/// finds `RUNG` instead of `QUIET`, fails, and the waiter returns, having acquired what the sender
/// put. If the ring stands after it, the ring's swap finds `ASLEEP` and notifies. The waiter holds
/// the mutex from the exchange until the condition variable has it asleep, and the ringer takes the
/// same mutex before it notifies, so the notification cannot fall between the two. A ring that an
/// earlier wait took was for a message that stood in the queue before that wait returned, and the
/// waiter looks into its mailboxes after each return.
#[derive(Clone, Debug, Default)]
pub struct Doorbell {
    bell: Arc<Bell>,
}

#[derive(Debug, Default)]
struct Bell {
    state: AtomicU8,
    sleeper: Mutex<()>,
    woken: Condvar,
}

// === impl Doorbell ===

impl Doorbell {
    /// A bell nobody has rung.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the waiter, or keeps it from falling asleep. One atomic operation while it is awake.
    pub fn ring(&self) {
        if self.bell.state.swap(RUNG, Ordering::AcqRel) == ASLEEP {
            let _asleep = self.bell.lock();
            self.bell.woken.notify_one();
        }
    }

    /// Whether a ring is remembered; it stays so until a wait takes it. Cheap enough to spin on.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.bell.state.load(Ordering::Acquire) == RUNG
    }

    /// Takes a ring that is remembered, else sleeps until the next one or until the given instant;
    /// whether it rang. Only for the waiter.
    pub fn wait(&self, until: Option<Instant>) -> bool {
        let mut asleep = self.bell.lock();
        if !self.bell.moves(QUIET, ASLEEP) {
            return self.bell.take();
        }
        loop {
            asleep = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => {
                    return !self.bell.moves(ASLEEP, QUIET) && self.bell.take();
                }
                Some(left) => unpoisoned(self.bell.woken.wait_timeout(asleep, left)).0,
                None => unpoisoned(self.bell.woken.wait(asleep)),
            };
            if self.ready() {
                return self.bell.take();
            }
        }
    }
}

// === impl Bell ===

impl Bell {
    fn lock(&self) -> MutexGuard<'_, ()> {
        unpoisoned(self.sleeper.lock())
    }

    /// Takes the ring, if there is one. Acquires what the ringer wrote before it rang.
    fn take(&self) -> bool {
        self.state.swap(QUIET, Ordering::AcqRel) == RUNG
    }

    fn moves(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The mutex guards no data, so a panic elsewhere cannot have left any half changed.
fn unpoisoned<T>(outcome: Result<T, PoisonError<T>>) -> T {
    outcome.unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicU64, thread, time::Duration};

    use super::*;

    #[test]
    fn a_ring_is_remembered_once() {
        let bell = Doorbell::new();
        assert!(!bell.ready());
        bell.ring();
        bell.ring();
        assert!(bell.ready());
        assert!(bell.wait(None), "rung before the wait");
        assert!(!bell.ready());
        assert!(!bell.wait(Some(Instant::now())), "taken by the first wait");
    }

    #[test]
    fn a_wait_ends_at_its_instant() {
        let bell = Doorbell::new();
        assert!(!bell.wait(Some(Instant::now() + Duration::from_millis(5))));
        bell.ring();
        assert!(bell.wait(None), "a timed out wait leaves a working bell");
    }

    /// Two threads take turns; one lost ring and both sleep for ever (the runner's timeout).
    #[test]
    fn no_ring_is_lost_between_two_sleepers() {
        const TURNS: u64 = 50_000;
        let bells = [Doorbell::new(), Doorbell::new()];
        let turn = Arc::new(AtomicU64::new(0));
        let player = |me: usize| {
            let (bells, turn) = (bells.clone(), Arc::clone(&turn));
            move || {
                for mine in (me as u64..TURNS).step_by(2) {
                    while turn.load(Ordering::Relaxed) != mine {
                        // Sometimes about to sleep, sometimes asleep, sometimes timing out.
                        let spins = (mine % 3) * 100;
                        if (0..spins).any(|_| bells[me].ready()) || mine % 5 != 0 {
                            bells[me].wait(None);
                        } else {
                            bells[me].wait(Some(Instant::now() + Duration::from_micros(mine % 50)));
                        }
                    }
                    turn.store(mine + 1, Ordering::Relaxed);
                    bells[1 - me].ring();
                }
            }
        };
        let players = [thread::spawn(player(0)), thread::spawn(player(1))];
        for player in players {
            player.join().unwrap();
        }
        assert_eq!(turn.load(Ordering::Relaxed), TURNS);
    }
}
