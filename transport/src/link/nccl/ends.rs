//! The ends of a link that has a pair beside it: what takes rows out of frames, and what asks for those that come.

use std::{
    future::pending,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use domain::NodeId;
use proto::{
    frame::{Frame, NcclOffer, NcclWord, apart},
    internal,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::PollSemaphore;

use super::{Awaited, Command, Nccl, Parcel, SENDS_TO_PEER_MAX, machine::PairId, pair::Newcomer};
use crate::{
    link::LinkMetrics,
    mailbox::{self, Rejected},
};

/// A pair's way into the frames that a link sends; set once, when the pair is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) pair: PairId,
    /// What a frame may bring the peer.
    pub(super) row_bytes_max: usize,
}

/// The sending end of a link that may come to have a pair.
#[derive(Debug)]
pub(in crate::link) struct Outlet {
    nccl: Nccl,
    words: mpsc::Receiver<NcclWord>,
    route: Arc<OnceLock<Route>>,
    /// Of this link.
    own: PollSemaphore,
    /// A place of those, while one of the device's is awaited.
    taken: Option<OwnedSemaphorePermit>,
    /// Of the device.
    shared: PollSemaphore,
}

/// A link that does not know yet what its peer offers.
#[derive(Debug)]
pub(in crate::link) struct Unpaired {
    nccl: Nccl,
    words: mpsc::Sender<NcclWord>,
    route: Arc<OnceLock<Route>>,
}

/// The receiving end of a link that has a pair, or comes to have one. Dropping it takes the pair down.
#[derive(Debug)]
pub(in crate::link) struct Inlet {
    pair: PairId,
    commands: mailbox::Sender<Command>,
    row_bytes_max: usize,
    lost: oneshot::Receiver<String>,
}

// === impl Unpaired ===

impl Unpaired {
    pub(super) fn new(
        nccl: Nccl,
        words: mpsc::Sender<NcclWord>,
        route: Arc<OnceLock<Route>>,
    ) -> Self {
        Self { nccl, words, route }
    }

    /// The peer has greeted. Nothing if the two cannot make a pair; `leads` says which end begins.
    pub(in crate::link) fn greeted(
        self,
        peer: NodeId,
        leads: bool,
        offer: Option<NcclOffer>,
        metrics: &LinkMetrics,
    ) -> Option<Inlet> {
        let Self { nccl, words, route } = self;
        let theirs = match offer {
            Some(offer) if offer.major == nccl.major => offer,
            other => {
                metrics.nccl_pairs_failed.inc();
                let theirs = other.map_or("none".to_owned(), |offer| offer.major.to_string());
                tracing::info!(%peer, ours = nccl.major, theirs, "rows go by gRPC: no common NCCL");
                return None;
            }
        };
        let (id, (lost, told)) = (PairId::new(), oneshot::channel());
        let row_bytes_max = nccl.bounds.row_bytes_max.min(theirs.row_bytes_max);
        let newcomer = Newcomer {
            id,
            peer,
            leads,
            row_bytes_max,
            words,
            route,
            lost,
            metrics: metrics.clone(),
        };
        if nccl.commands.try_send(Command::Open(Box::new(newcomer))).is_err() {
            metrics.nccl_pairs_failed.inc();
            tracing::warn!(%peer, "rows go by gRPC: NCCL's thread is behind, or gone");
            return None;
        }
        let Nccl { commands, bounds, .. } = nccl;
        Some(Inlet { pair: id, commands, row_bytes_max: bounds.row_bytes_max, lost: told })
    }
}

// === impl Outlet ===

impl Outlet {
    pub(super) fn new(
        nccl: Nccl,
        words: mpsc::Receiver<NcclWord>,
        route: Arc<OnceLock<Route>>,
    ) -> Self {
        let own = PollSemaphore::new(Arc::new(Semaphore::new(SENDS_TO_PEER_MAX)));
        let shared = PollSemaphore::new(Arc::clone(&nccl.sends));
        Self { nccl, words, route, own, taken: None, shared }
    }

    /// What this end has to say about its pair.
    pub(in crate::link) fn poll_word(&mut self, cx: &mut Context<'_>) -> Poll<NcclWord> {
        match self.words.poll_recv(cx) {
            Poll::Ready(Some(word)) => Poll::Ready(word),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// The wire form of a frame, its rows on their way by NCCL if there is one. Pending while all places are taken; the frame
    /// comes back then.
    pub(in crate::link) fn poll_encode(
        &mut self,
        frame: Frame,
        cx: &mut Context<'_>,
    ) -> Result<internal::Frame, Frame> {
        let bytes = frame.payload_bytes();
        let (min, route) = (self.nccl.bounds.row_bytes_min.max(1), self.route.get().copied());
        let Some(route) = route.filter(|route| (min..=route.row_bytes_max).contains(&bytes)) else {
            return Ok(frame.encode());
        };
        let places = match self.poll_places(cx) {
            Poll::Pending => return Err(frame),
            Poll::Ready(None) => return Ok(frame.encode()),
            Poll::Ready(Some(places)) => places,
        };
        let mut header = frame.encode();
        let parcel = Parcel { rows: apart::detach(&mut header), _places: places };
        let sent = self.nccl.commands.try_send(Command::Send { pair: route.pair, parcel });
        if let Err(Rejected::Full(command) | Rejected::Closed(command)) = sent
            && let Command::Send { parcel, .. } = command
        {
            apart::attach(&mut header, parcel.rows);
        }
        Ok(header)
    }

    /// A place among the transfers to this peer, then one among all.
    fn poll_places(&mut self, cx: &mut Context<'_>) -> Poll<Option<[OwnedSemaphorePermit; 2]>> {
        if self.taken.is_none() {
            self.taken = ready!(self.own.poll_acquire(cx));
        }
        let shared = ready!(self.shared.poll_acquire(cx));
        Poll::Ready(self.taken.take().zip(shared).map(<[_; 2]>::from))
    }
}

// === impl Inlet ===

impl Inlet {
    /// Passes on what the peer said about the pair.
    pub(in crate::link) async fn hear(&self, word: NcclWord) {
        // A thread that is gone shows in `lost`.
        let _ = self.commands.send(Command::Hear { pair: self.pair, word }).await;
    }

    /// Asks for `bytes` bytes of rows whose header has come, in the order of the headers.
    ///
    /// # Errors
    /// When no transfer brings as many, as a sentence.
    pub(in crate::link) async fn receive(
        &self,
        bytes: u64,
    ) -> Result<oneshot::Receiver<Bytes>, String> {
        let bytes = match usize::try_from(bytes) {
            Ok(bytes) if bytes <= self.row_bytes_max => bytes,
            _ => {
                return Err(format!(
                    "{bytes} bytes of rows apart, at most {} were agreed",
                    self.row_bytes_max
                ));
            }
        };
        let (done, arrived) = oneshot::channel();
        let awaited = Awaited { bytes, done };
        let _ = self.commands.send(Command::Receive { pair: self.pair, awaited }).await;
        Ok(arrived)
    }

    /// Returns, with the reason, when rows may have been lost; never without a pair.
    pub(in crate::link) async fn lost(inlet: &mut Option<Self>) -> String {
        match inlet {
            Some(inlet) => {
                let reason = (&mut inlet.lost).await;
                reason.unwrap_or_else(|_| "NCCL's thread is gone".to_owned())
            }
            None => pending().await,
        }
    }
}
