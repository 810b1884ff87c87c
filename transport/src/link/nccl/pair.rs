//! One pair: apart, joining, joined, and what leads from one to the other.

use std::{
    mem,
    sync::{Arc, OnceLock},
    time::Instant,
};

use domain::NodeId;
use proto::frame::{NcclName, NcclStep, NcclWord};
use tokio::sync::{mpsc, oneshot};

use super::{
    Awaited, Bounds, Parcel,
    backend::{Backend, End},
    ends::Route,
    machine::PairId,
    way::Way,
};
use crate::link::LinkMetrics;

/// A link that wants a pair beside it.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) id: PairId,
    pub(super) peer: NodeId,
    /// Whether this end names the communicators: one of the two does.
    pub(super) leads: bool,
    /// The most bytes of rows that the peer takes from one frame.
    pub(super) row_bytes_max: usize,
    /// Into the link, for the peer.
    pub(super) words: mpsc::Sender<NcclWord>,
    /// Told to the link once the pair is made.
    pub(super) route: Arc<OnceLock<Route>>,
    /// Tells the link that rows may be lost; closed when the link is.
    pub(super) lost: oneshot::Sender<String>,
    pub(super) metrics: LinkMetrics,
}

pub(super) struct Pair<B: Backend> {
    link: Newcomer,
    attempt: u32,
    stage: Stage<B>,
}

enum Stage<B: Backend> {
    /// Rows go by gRPC. The leader tries when the time has come, the other end when it is told to.
    Apart { again: Option<Instant> },
    /// Both communicators are being made; which ends have them.
    Joining { out: B::Channel, back: B::Channel, deadline: Instant, here: bool, there: bool },
    /// Rows go through.
    Joined { out: Way<B, Parcel>, back: Way<B, Awaited>, since: Instant },
}

/// What all pairs of a device share.
pub(super) struct Desk<B> {
    pub(super) backend: B,
    pub(super) bounds: Bounds,
    /// Transfers that may still begin to come in.
    pub(super) receives: usize,
    /// Whether to ask communicators that nothing goes through how they are.
    pub(super) look: bool,
}

/// How soon a pair wants its next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hurry {
    /// Rows are under way.
    Rows,
    /// Communicators are being made.
    Joining,
    /// Nothing is.
    None,
}

/// Why a pair's stage ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The attempt is over and no rows were sent: the link goes on by gRPC.
    Failed(String),
    /// Rows may be lost: the link must go down.
    Lost(String),
}

impl<B: Backend> Pair<B> {
    /// A pair that is not made yet; the leader tries at `first`.
    pub(super) fn new(link: Newcomer, first: Instant) -> Self {
        let again = link.leads.then_some(first);
        Self { link, attempt: 0, stage: Stage::Apart { again } }
    }

    pub(super) fn link(&self) -> &Newcomer {
        &self.link
    }

    /// The link is gone, and nobody waits for the pair.
    pub(super) fn is_over(&self) -> bool {
        self.link.lost.is_closed()
    }

    /// Since when rows go through.
    pub(super) fn joined_since(&self) -> Option<Instant> {
        match self.stage {
            Stage::Joined { since, .. } => Some(since),
            Stage::Apart { .. } | Stage::Joining { .. } => None,
        }
    }

    pub(super) fn turn(&mut self, desk: &mut Desk<B>, now: Instant) -> Result<Hurry, Trouble> {
        match self.stage {
            Stage::Apart { again: Some(again) } if again <= now => self.propose(desk, now)?,
            Stage::Apart { .. } => return Ok(Hurry::None),
            Stage::Joining { .. } => self.look(desk, now)?,
            Stage::Joined { .. } => return self.exchange(desk, now),
        }
        Ok(Hurry::Joining)
    }

    /// What the peer said. Words of attempts that are over mean nothing.
    pub(super) fn hear(
        &mut self,
        word: NcclWord,
        desk: &mut Desk<B>,
        now: Instant,
    ) -> Result<(), Trouble> {
        let current = word.attempt == self.attempt;
        match (&mut self.stage, word.step) {
            (Stage::Joined { .. }, NcclStep::Names(_)) => {
                Err(Trouble::Lost("the peer makes its communicators anew".to_owned()))
            }
            (_, NcclStep::Names(names)) if !self.link.leads => {
                self.give_up(desk, None);
                self.attempt = word.attempt;
                self.join(&names, desk, now)
            }
            (Stage::Joining { there, .. }, NcclStep::Joined) if current => {
                *there = true;
                self.unite(now);
                Ok(())
            }
            (Stage::Joining { .. }, NcclStep::Failed(why)) if current => {
                Err(Trouble::Failed(format!("the peer says: {why}")))
            }
            (Stage::Joined { .. }, NcclStep::Failed(why)) if current => {
                Err(Trouble::Lost(format!("the peer says: {why}")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn send(&mut self, parcel: Parcel) {
        // Else the link has been told that it is lost, or is gone.
        if let Stage::Joined { out, .. } = &mut self.stage {
            out.push(parcel);
        }
    }

    /// Rows that cannot come are an answer too: whoever waits hears that nobody will send them.
    pub(super) fn receive(&mut self, awaited: Awaited) {
        if let Stage::Joined { back, .. } = &mut self.stage {
            back.push(awaited);
        }
    }

    /// Says that the attempt failed, goes apart, and tries again at `again` if this end leads.
    pub(super) fn fail(&mut self, why: &str, desk: &mut Desk<B>, again: Instant) {
        self.give_up(desk, Some(again));
        let (peer, attempt) = (self.link.peer, self.attempt);
        match attempt {
            1 => tracing::warn!(%peer, "rows go by gRPC, no pair could be made: {why}"),
            _ => tracing::debug!(%peer, attempt, "rows go by gRPC, no pair could be made: {why}"),
        }
        // A link that takes no word is about to end.
        let _ = self.say(NcclStep::Failed(why.to_owned()));
    }

    /// Ends the pair; `reason` tells its link to go down.
    pub(super) fn end(mut self, reason: Option<String>, desk: &mut Desk<B>) {
        if let Some(reason) = reason {
            // First the reason, so that the link does not wonder about rows that do not come.
            let _ = mem::replace(&mut self.link.lost, oneshot::channel().0).send(reason);
        }
        self.give_up(desk, None);
    }

    fn propose(&mut self, desk: &mut Desk<B>, now: Instant) -> Result<(), Trouble> {
        self.attempt += 1;
        let mut name = || desk.backend.name().map_err(Trouble::Failed);
        let names = Box::new([name()?, name()?]);
        self.say(NcclStep::Names(names.clone()))?;
        self.join(&names, desk, now)
    }

    fn join(
        &mut self,
        names: &[NcclName; 2],
        desk: &mut Desk<B>,
        now: Instant,
    ) -> Result<(), Trouble> {
        let mine = if self.link.leads {
            [End::Sender, End::Receiver]
        } else {
            [End::Receiver, End::Sender]
        };
        let first = desk.backend.join(&names[0], mine[0]).map_err(Trouble::Failed)?;
        let second = match desk.backend.join(&names[1], mine[1]) {
            Ok(second) => second,
            Err(why) => {
                desk.backend.abort(vec![first], Vec::new());
                return Err(Trouble::Failed(why));
            }
        };
        let (out, back) = if self.link.leads { (first, second) } else { (second, first) };
        let deadline = now + desk.bounds.join;
        self.stage = Stage::Joining { out, back, deadline, here: false, there: false };
        Ok(())
    }

    /// Joining: whether both communicators are there by now.
    fn look(&mut self, desk: &mut Desk<B>, now: Instant) -> Result<(), Trouble> {
        let Stage::Joining { out, back, deadline, here, .. } = &mut self.stage else {
            return Ok(());
        };
        if !*here {
            let out = desk.backend.check(out).map_err(Trouble::Failed)?;
            let back = desk.backend.check(back).map_err(Trouble::Failed)?;
            *here = out && back;
            if *here {
                self.say(NcclStep::Joined)?;
                self.unite(now);
                return Ok(());
            }
        }
        if now >= *deadline {
            let limit = desk.bounds.join;
            return Err(Trouble::Failed(format!("communicators were not made within {limit:?}")));
        }
        Ok(())
    }

    /// Joining, and both ends are: rows may go. What this end says stands before its first header, so the peer is told before.
    fn unite(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Joining { here: true, there: true, .. }) {
            return;
        }
        let stage = mem::replace(&mut self.stage, Stage::Apart { again: None });
        if let Stage::Joining { out, back, .. } = stage {
            let (out, back) = (Way::new(out), Way::new(back));
            self.stage = Stage::Joined { out, back, since: now };
            let Newcomer { id, row_bytes_max, .. } = self.link;
            // It was never set: a pair that was joined once ends with its link.
            let _ = self.link.route.set(Route { pair: id, row_bytes_max });
            self.link.metrics.nccl_pairs.inc();
            tracing::info!(peer = %self.link.peer, attempt = self.attempt, "rows go by NCCL");
        }
    }

    fn exchange(&mut self, desk: &mut Desk<B>, now: Instant) -> Result<Hurry, Trouble> {
        let Stage::Joined { out, back, .. } = &mut self.stage else { return Ok(Hurry::None) };
        let Desk { backend, bounds, receives, look } = desk;
        // Parcels have taken their places before they came here.
        let mut sends = 1;
        let sent = out.turn(backend, bounds, now, &mut sends).map_err(Trouble::Lost)?;
        let received = back.turn(backend, bounds, now, receives).map_err(Trouble::Lost)?;
        let metrics = &self.link.metrics;
        metrics.nccl_row_bytes_sent.inc_by(sent.bytes as u64);
        metrics.nccl_row_bytes_received.inc_by(received.bytes as u64);
        if *look {
            out.check(backend).map_err(Trouble::Lost)?;
            back.check(backend).map_err(Trouble::Lost)?;
        }
        Ok(if sent.busy || received.busy { Hurry::Rows } else { Hurry::None })
    }

    /// Goes apart and lets go of all that belonged to the attempt.
    fn give_up(&mut self, desk: &mut Desk<B>, again: Option<Instant>) {
        let again = again.filter(|_| self.link.leads);
        match mem::replace(&mut self.stage, Stage::Apart { again }) {
            Stage::Apart { .. } => {}
            Stage::Joining { out, back, .. } => desk.backend.abort(vec![out, back], Vec::new()),
            Stage::Joined { out, back, .. } => {
                self.link.metrics.nccl_pairs.dec();
                let (out, sending) = out.dismantle(&mut 0);
                let (back, receiving) = back.dismantle(&mut desk.receives);
                let transfers = sending.into_iter().chain(receiving).collect();
                desk.backend.abort(vec![out, back], transfers);
            }
        }
    }

    fn say(&self, step: NcclStep) -> Result<(), Trouble> {
        let word = NcclWord { attempt: self.attempt, step };
        let said = self.link.words.try_send(word);
        said.map_err(|_| Trouble::Lost("the link takes no words".to_owned()))
    }
}
