//! All pairs of a device: hands commands to them, gives them turns, remembers who gave trouble. Knows no clock and no NCCL.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use domain::NodeId;

use super::{
    Bounds, Command, RECEIVES_MAX,
    backend::Backend,
    pair::{Desk, Hurry, Pair, Trouble},
};
use crate::backoff::Pauses;

/// How soon to look again while rows are under way: much less than a hop may take.
const LOOK_ROWS: Duration = Duration::from_micros(20);
/// While communicators are being made, which takes NCCL tenths of a second.
const LOOK_JOINING: Duration = Duration::from_millis(1);
/// While nothing is under way: for peers that died, links that ended, and attempts that are due.
const LOOK_IDLE: Duration = Duration::from_millis(50);

/// Names the pair of one link within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PairId(u64);

pub(super) struct Machine<B: Backend> {
    desk: Desk<B>,
    /// In turn: the first one of a turn is the last one of the next. As many as there are links.
    pairs: VecDeque<Pair<B>>,
    /// Peers with whom something failed lately.
    troubles: HashMap<NodeId, Past>,
    looked: Option<Instant>,
}

/// What went wrong with a peer before, whatever link it was on.
struct Past {
    pauses: Pauses,
    /// No attempt before.
    until: Instant,
}

impl PairId {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl<B: Backend> Machine<B> {
    pub(super) fn new(backend: B, bounds: Bounds) -> Self {
        let desk = Desk { backend, bounds, receives: RECEIVES_MAX, look: false };
        Self { desk, pairs: VecDeque::new(), troubles: HashMap::new(), looked: None }
    }

    pub(super) fn take(&mut self, command: Command, now: Instant) {
        let (id, outcome) = match command {
            Command::Open(link) => {
                let max = self.desk.bounds.backoff.max;
                self.troubles.retain(|_, past| now < past.until + max);
                let first = self.troubles.get(&link.peer).map_or(now, |past| past.until);
                return self.pairs.push_back(Pair::new(*link, first));
            }
            Command::Hear { pair, word } => {
                let at = self.pairs.iter_mut().find(|known| known.link().id == pair);
                (pair, at.map_or(Ok(()), |known| known.hear(word, &mut self.desk, now)))
            }
            Command::Send { pair, parcel } => {
                return self.with(pair, |pair| pair.send(parcel));
            }
            Command::Receive { pair, awaited } => {
                return self.with(pair, |pair| pair.receive(awaited));
            }
        };
        if let Err(trouble) = outcome
            && let Some(at) = self.pairs.iter().position(|known| known.link().id == id)
        {
            self.meet(trouble, at, now);
        }
    }

    /// Has every pair go on as far as it can; when it wants to be asked again.
    pub(super) fn turn(&mut self, now: Instant) -> Instant {
        self.desk.look = self.looked.is_none_or(|looked| now >= looked + LOOK_IDLE);
        if self.desk.look {
            self.looked = Some(now);
        }
        let mut hurry = Hurry::None;
        for at in (0..self.pairs.len()).rev() {
            if self.pairs[at].is_over() {
                self.end(at, None);
                continue;
            }
            match self.pairs[at].turn(&mut self.desk, now) {
                Ok(wish) => hurry = hurry.min(wish),
                Err(trouble) => self.meet(trouble, at, now),
            }
        }
        if !self.pairs.is_empty() {
            self.pairs.rotate_left(1);
        }
        now + match hurry {
            Hurry::Rows => LOOK_ROWS,
            Hurry::Joining => LOOK_JOINING,
            Hurry::None => LOOK_IDLE,
        }
    }

    /// Gives all pairs up.
    pub(super) fn close(mut self) {
        while !self.pairs.is_empty() {
            self.end(0, None);
        }
    }

    /// Does something with a pair, if its link is still there.
    fn with(&mut self, id: PairId, then: impl FnOnce(&mut Pair<B>)) {
        if let Some(pair) = self.pairs.iter_mut().find(|known| known.link().id == id) {
            then(pair);
        }
    }

    fn meet(&mut self, trouble: Trouble, at: usize, now: Instant) {
        let again = self.pause(at, now);
        self.pairs[at].link().metrics.nccl_pairs_failed.inc();
        match trouble {
            Trouble::Failed(why) => self.pairs[at].fail(&why, &mut self.desk, again),
            Trouble::Lost(why) => self.end(at, Some(format!("rows by NCCL: {why}"))),
        }
    }

    /// When to try again with a pair's peer: later each time, unless all was well for long.
    fn pause(&mut self, at: usize, now: Instant) -> Instant {
        let backoff = self.desk.bounds.backoff;
        let pair = &self.pairs[at];
        let fresh = || Past { pauses: backoff.pauses(), until: now };
        let past = self.troubles.entry(pair.link().peer).or_insert_with(fresh);
        if pair.joined_since().is_some_and(|since| now > since + backoff.max) {
            past.pauses.reset();
        }
        past.until = now + past.pauses.next();
        past.until
    }

    fn end(&mut self, at: usize, reason: Option<String>) {
        if let Some(pair) = self.pairs.remove(at) {
            pair.end(reason, &mut self.desk);
        }
    }
}
