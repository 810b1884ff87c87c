//! Bounded queues into a device thread: filled from any thread or task, emptied without ever blocking.

use thiserror::Error;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::Doorbell;

/// A queue of at most `capacity` messages whose senders ring `bell` after every message.
///
/// All mailboxes of one device thread share its bell.
///
/// # Panics
/// When `capacity` is 0.
#[must_use]
pub fn bounded<T>(capacity: usize, bell: Doorbell) -> (Sender<T>, Mailbox<T>) {
    let (queue, messages) = mpsc::channel(capacity);
    (Sender { queue, bell }, Mailbox { messages })
}

/// The sending side; clones feed the same mailbox.
#[derive(Debug)]
pub struct Sender<T> {
    queue: mpsc::Sender<T>,
    bell: Doorbell,
}

/// The receiving side, for one thread.
#[derive(Debug)]
pub struct Mailbox<T> {
    messages: mpsc::Receiver<T>,
}

/// Why a message was not taken; it comes back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rejected<T> {
    /// The mailbox holds as many messages as it may.
    #[error("the mailbox is full")]
    Full(T),
    /// The receiver is gone.
    #[error("the receiver of the mailbox is gone")]
    Closed(T),
}

/// The receiver is gone; the message comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the receiver of the mailbox is gone")]
pub struct Closed<T>(pub T);

/// A place in a mailbox that is kept free for one message.
#[derive(Debug)]
pub(crate) struct Place<T> {
    place: mpsc::OwnedPermit<T>,
    bell: Doorbell,
}

// === impl Sender ===

impl<T> Sender<T> {
    /// Puts a message in, or hands it back at once.
    ///
    /// # Errors
    /// [`Rejected::Full`] at capacity, [`Rejected::Closed`] when the receiver is gone.
    pub fn try_send(&self, message: T) -> Result<(), Rejected<T>> {
        match self.queue.try_send(message) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full(message)) => Err(Rejected::Full(message)),
            Err(TrySendError::Closed(message)) => Err(Rejected::Closed(message)),
        }
    }

    /// Puts a message in as soon as there is room.
    ///
    /// # Errors
    /// When the receiver is gone.
    pub async fn send(&self, message: T) -> Result<(), Closed<T>> {
        match self.queue.send(message).await {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(closed) => Err(Closed(closed.0)),
        }
    }

    /// The same from a thread that may block. Panics inside an async task, as tokio's does.
    ///
    /// # Errors
    /// When the receiver is gone.
    pub fn blocking_send(&self, message: T) -> Result<(), Closed<T>> {
        match self.queue.blocking_send(message) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(closed) => Err(Closed(closed.0)),
        }
    }

    /// Returns when the receiver is gone.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }

    /// Whether the receiver is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// The bell of the receiving thread.
    #[must_use]
    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }

    /// Keeps a place free; none when the mailbox is full or its receiver gone.
    pub(crate) fn reserve(&self) -> Option<Place<T>> {
        let place = self.queue.clone().try_reserve_owned().ok()?;
        Some(Place { place, bell: self.bell.clone() })
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), bell: self.bell.clone() }
    }
}

// === impl Mailbox ===

impl<T> Mailbox<T> {
    /// The oldest message, if there is one. Never blocks.
    pub fn try_recv(&mut self) -> Option<T> {
        self.messages.try_recv().ok()
    }

    /// Messages that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether no message waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether all senders are gone and every message was taken.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.messages.is_closed() && self.messages.is_empty()
    }
}

// === impl Place ===

impl<T> Place<T> {
    pub(crate) fn fill(self, message: T) {
        self.place.send(message);
        self.bell.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_full_or_orphaned_mailbox_hands_the_message_back() {
        let (sender, mut mailbox) = bounded(1, Doorbell::new());
        sender.try_send('a').unwrap();
        assert_eq!(sender.try_send('b'), Err(Rejected::Full('b')));
        assert!(sender.reserve().is_none());
        assert_eq!(mailbox.try_recv(), Some('a'));
        let place = sender.reserve().unwrap();
        assert_eq!(sender.try_send('c'), Err(Rejected::Full('c')));
        place.fill('d');
        assert_eq!((mailbox.try_recv(), mailbox.try_recv()), (Some('d'), None));
        drop(mailbox);
        assert_eq!(sender.try_send('e'), Err(Rejected::Closed('e')));
        assert!(sender.is_closed());
    }

    #[test]
    fn a_mailbox_is_finished_when_empty_and_without_senders() {
        let (sender, mut mailbox) = bounded(2, Doorbell::new());
        sender.try_send(1).unwrap();
        drop(sender);
        assert!(!mailbox.is_finished());
        assert_eq!(mailbox.try_recv(), Some(1));
        assert!(mailbox.is_finished());
    }

    /// Threads and tasks send into a small mailbox; the receiver sleeps whenever it is empty. A lost
    /// wake-up hangs the test, a lost or reordered message fails it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn messages_from_threads_and_tasks_all_arrive_in_order() {
        const EACH: u64 = 20_000;
        const SENDERS: u64 = 4;
        let bell = Doorbell::new();
        let (sender, mut mailbox) = bounded(16, bell.clone());
        let receiver = thread::spawn(move || {
            let mut next = [0; SENDERS as usize];
            while !mailbox.is_finished() && next.iter().sum::<u64>() < EACH * SENDERS {
                while let Some((from, number)) = mailbox.try_recv() {
                    assert_eq!(next[from], number);
                    next[from] += 1;
                }
                if next.iter().sum::<u64>() < EACH * SENDERS {
                    bell.wait(None);
                }
            }
            next
        });
        let threads = [0, 1].map(|from| {
            let sender = sender.clone();
            thread::spawn(move || {
                (0..EACH).for_each(|number| sender.blocking_send((from, number)).unwrap());
            })
        });
        let tasks = [2, 3].map(|from| {
            let sender = sender.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    sender.send((from, number)).await.unwrap();
                }
            })
        });
        for task in tasks {
            task.await.unwrap();
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(receiver.join().unwrap(), [EACH; SENDERS as usize]);
    }
}
