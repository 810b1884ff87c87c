//! One way of a pair that is made: transfers in order, one at a time.

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;

use super::{Awaited, Bounds, Parcel, backend::Backend};

/// What goes through a way.
pub(super) trait Job {
    /// Begins the transfer.
    fn begin<B: Backend>(&self, backend: &mut B, by: &B::Channel) -> Result<B::Transfer, String>;

    /// Bytes of its rows.
    fn bytes(&self) -> usize;

    /// The transfer is over.
    fn end(self, rows: Bytes);
}

/// A communicator and what waits for it.
pub(super) struct Way<B: Backend, J> {
    channel: B::Channel,
    waiting: VecDeque<J>,
    current: Option<Current<B, J>>,
}

struct Current<B: Backend, J> {
    transfer: B::Transfer,
    job: J,
    deadline: Instant,
}

/// What a turn of a way came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// Bytes of rows that are through.
    pub(super) bytes: usize,
    /// Something is under way or waits.
    pub(super) busy: bool,
}

impl<B: Backend, J: Job> Way<B, J> {
    pub(super) fn new(channel: B::Channel) -> Self {
        Self { channel, waiting: VecDeque::new(), current: None }
    }

    /// Bounded by the link's credit, which every job holds a part of.
    pub(super) fn push(&mut self, job: J) {
        self.waiting.push_back(job);
    }

    /// Ends the transfer that is over and begins the next one, if `room` has a place left.
    pub(super) fn turn(
        &mut self,
        backend: &mut B,
        bounds: &Bounds,
        now: Instant,
        room: &mut usize,
    ) -> Result<Moved, String> {
        let mut moved = Moved::default();
        if let Some(current) = &mut self.current {
            match backend.poll(&self.channel, &mut current.transfer)? {
                Some(rows) => {
                    moved.bytes = current.job.bytes();
                    *room += 1;
                    self.finish(backend, rows);
                }
                None if now >= current.deadline => {
                    let (bytes, limit) = (current.job.bytes(), bounds.transfer);
                    return Err(format!("{bytes} bytes of rows did not get through in {limit:?}"));
                }
                None => {}
            }
        }
        if self.current.is_none()
            && *room > 0
            && let Some(job) = self.waiting.pop_front()
        {
            let transfer = job.begin(backend, &self.channel)?;
            *room -= 1;
            self.current = Some(Current { transfer, job, deadline: now + bounds.transfer });
        }
        moved.busy = self.current.is_some() || !self.waiting.is_empty();
        Ok(moved)
    }

    /// An error if the communicator broke while nothing went through it.
    pub(super) fn check(&self, backend: &mut B) -> Result<(), String> {
        backend.check(&self.channel).map(drop)
    }

    /// What is left of it when its pair is given up. Jobs are dropped, and with them the promise to whoever waits.
    pub(super) fn dismantle(self, room: &mut usize) -> (B::Channel, Option<B::Transfer>) {
        let transfer = self.current.map(|current| current.transfer);
        *room += usize::from(transfer.is_some());
        (self.channel, transfer)
    }

    fn finish(&mut self, backend: &mut B, rows: Bytes) {
        if let Some(Current { transfer, job, .. }) = self.current.take() {
            backend.retire(transfer);
            job.end(rows);
        }
    }
}

impl Job for Parcel {
    fn begin<B: Backend>(&self, backend: &mut B, by: &B::Channel) -> Result<B::Transfer, String> {
        backend.send(by, &self.rows)
    }

    fn bytes(&self) -> usize {
        self.rows.len()
    }

    fn end(self, _: Bytes) {}
}

impl Job for Awaited {
    fn begin<B: Backend>(&self, backend: &mut B, by: &B::Channel) -> Result<B::Transfer, String> {
        backend.receive(by, self.bytes)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn end(self, rows: Bytes) {
        // A link that went down does not wait any more.
        let _ = self.done.send(rows);
    }
}
