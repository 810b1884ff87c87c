//! A gRPC link up to its first greeting, and the stream of frames going out.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::{Stream, task::AtomicWaker};
use proto::{
    frame::{Frame, Hello},
    internal,
};
use thiserror::Error;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{
    LinkSender, LocalEnd, Path, Refused, Seat,
    credit::{Credit, cost, frames_max},
    nccl::{Nccl, Outlet, Unpaired},
    reader::Reader,
};
use crate::channel::sentence;

/// Which end of the link this process is; it decides what may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Attention,
    Expert,
}

/// Why a link ended.
#[derive(Debug, Error)]
pub(super) enum Ending {
    /// One side hung up or the connection broke.
    #[error("{0}")]
    Gone(String),
    /// The peer broke the rules.
    #[error("{0}")]
    Malformed(String),
}

/// The receiver's account of a link: what arrived and what its sender may be told is free again.
#[derive(Debug)]
pub(super) struct Ledger {
    granted: u64,
    /// Cost of the permits that are alive.
    held: AtomicU64,
    /// Given back by permits, not yet told.
    released: AtomicU64,
    /// The link is down: nothing more is to be sent.
    ended: AtomicBool,
    /// Wakes the outgoing stream.
    outgoing: AtomicWaker,
}

/// One end of a link before the peer's greeting is known.
#[derive(Debug)]
pub(super) struct Opening {
    end: Arc<LocalEnd>,
    side: Side,
    seat: Arc<Seat>,
    frames: mpsc::Sender<Frame>,
    ledger: Arc<Ledger>,
    unpaired: Option<Unpaired>,
}

/// What goes out, as the connection's task pulls it: greeting, credits, frames.
#[derive(Debug)]
pub(super) struct Outgoing {
    hello: Option<internal::Frame>,
    frames: mpsc::Receiver<Frame>,
    /// Taken from the queue, and waiting for a place among the transfers by NCCL.
    held: Option<Frame>,
    ledger: Arc<Ledger>,
    outlet: Option<Outlet>,
}

// === sending ===

/// Queues frames for the connection. The queue has a place for every frame that credit allows.
#[derive(Debug)]
pub(super) struct Towards {
    frames: mpsc::Sender<Frame>,
    credit: Arc<Credit>,
    ledger: Arc<Ledger>,
    closing: CancellationToken,
}

impl Towards {
    pub(super) fn try_send(&self, frame: Frame) -> Result<(), Refused> {
        if self.ledger.ended.load(Ordering::Acquire) {
            return Err(Refused::Closed(frame));
        }
        let place = match self.frames.try_reserve() {
            Ok(place) => place,
            Err(TrySendError::Full(())) => return Err(Refused::NoCredit(frame)),
            Err(TrySendError::Closed(())) => return Err(Refused::Closed(frame)),
        };
        if !self.credit.take(cost(frame.payload_bytes())) {
            return Err(Refused::NoCredit(frame));
        }
        place.send(frame);
        Ok(())
    }

    /// The outgoing stream ends by itself when this is dropped and all that was queued is sent.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }
}

impl Stream for Outgoing {
    type Item = internal::Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(hello));
        }
        // First register, then look: whoever changes the ledger wakes afterwards.
        self.ledger.outgoing.register(cx.waker());
        if self.ledger.ended.load(Ordering::Acquire) {
            return Poll::Ready(None);
        }
        if let Some(bytes) = self.ledger.owed() {
            return Poll::Ready(Some(Frame::Credit(bytes).encode()));
        }
        let this = &mut *self;
        let Some(outlet) = &mut this.outlet else {
            return this.frames.poll_recv(cx).map(|frame| frame.map(Frame::encode));
        };
        // Words go before frames: rows follow the news that they may.
        if let Poll::Ready(word) = outlet.poll_word(cx) {
            return Poll::Ready(Some(Frame::Nccl(word).encode()));
        }
        let frame = match this.held.take() {
            Some(frame) => frame,
            None => match ready!(this.frames.poll_recv(cx)) {
                Some(frame) => frame,
                None => return Poll::Ready(None),
            },
        };
        match outlet.poll_encode(frame, cx) {
            Ok(frame) => Poll::Ready(Some(frame)),
            Err(frame) => {
                this.held = Some(frame);
                Poll::Pending
            }
        }
    }
}

// === impl Ledger ===

impl Ledger {
    fn new(granted: u64) -> Self {
        Self {
            granted,
            held: AtomicU64::new(0),
            released: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            outgoing: AtomicWaker::new(),
        }
    }

    /// Books a frame that arrived; false when its sender had not been granted that much.
    pub(super) fn book(&self, cost: u64) -> bool {
        let held = self.held.fetch_add(cost, Ordering::AcqRel);
        held == 0 || held.saturating_add(cost) <= self.granted
    }

    /// A permit is gone.
    pub(super) fn release(&self, cost: u64) {
        let released = self.released.fetch_add(cost, Ordering::AcqRel) + cost;
        let held = self.held.fetch_sub(cost, Ordering::AcqRel) - cost;
        if self.worth_telling(released, held) {
            self.outgoing.wake();
        }
    }

    /// What to tell the sender now. Taking it leaves nothing owed.
    fn owed(&self) -> Option<u64> {
        let held = self.held.load(Ordering::Acquire);
        let released = self.released.load(Ordering::Acquire);
        self.worth_telling(released, held)
            .then(|| self.released.swap(0, Ordering::AcqRel))
            .filter(|&bytes| bytes > 0)
    }

    /// A quarter of the window at a time, so that credits do not double the number of frames; and
    /// all of it when nothing is held, for a sender that waits to have nothing in flight.
    fn worth_telling(&self, released: u64, held: u64) -> bool {
        released > 0 && (held == 0 || released >= self.granted / 4)
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.outgoing.wake();
    }
}

// === impl Opening ===

impl Opening {
    /// One end of a new link, and the stream that greets the peer.
    pub(super) fn new(end: Arc<LocalEnd>, side: Side, seat: Arc<Seat>) -> (Self, Outgoing) {
        let granted = end.settings.credit_bytes;
        let nccl = end.settings.nccl.as_ref();
        let hello = Frame::Hello(Hello {
            node: end.identity.node,
            model_fingerprint: end.identity.model_fingerprint.clone(),
            credit_bytes: granted,
            nccl: nccl.map(Nccl::offer),
        });
        let (unpaired, outlet) = nccl.map(Nccl::beside).unzip();
        let (frames, queued) = mpsc::channel(frames_max(granted));
        let ledger = Arc::new(Ledger::new(granted));
        let outgoing = Outgoing {
            hello: Some(hello.encode()),
            frames: queued,
            held: None,
            ledger: Arc::clone(&ledger),
            outlet,
        };
        let opening = Self { end, side, seat, frames, ledger, unpaired };
        (opening, outgoing)
    }

    /// The peer said hello: the link can go up.
    pub(super) fn greeted(
        self,
        hello: &Hello,
        inbound: Streaming<internal::Frame>,
    ) -> (Reader, LinkSender) {
        let Self { end, side, seat, frames, ledger, unpaired } = self;
        let leads = side == Side::Attention;
        let inlet = unpaired
            .and_then(|unpaired| unpaired.greeted(hello.node, leads, hello.nccl, &end.metrics));
        // No more than the queue has places for.
        let window = hello.credit_bytes.min(ledger.granted);
        let credit = Arc::new(Credit::new(window, end.inbox.bell().clone()));
        let closing = CancellationToken::new();
        let towards = Towards {
            frames,
            credit: Arc::clone(&credit),
            ledger: Arc::clone(&ledger),
            closing: closing.clone(),
        };
        let sender = LinkSender {
            peer: hello.node,
            path: Path::Wire(towards),
            frame_bytes_max: end.settings.frame_bytes_max,
            metrics: end.metrics.clone(),
            _seat: Arc::clone(&seat),
        };
        let reader = Reader {
            end,
            side,
            seat,
            ledger,
            inbound,
            peer: hello.node,
            credit,
            closing,
            inlet,
            awaiting: VecDeque::new(),
        };
        (reader, sender)
    }
}

/// The first frame of a peer, which has to be its greeting.
pub(super) async fn greeting(
    inbound: &mut Streaming<internal::Frame>,
    end: &LocalEnd,
) -> Result<Hello, Ending> {
    let limit = end.settings.greeting_timeout;
    let first = time::timeout(limit, inbound.message())
        .await
        .map_err(|_| Ending::Gone(format!("no greeting came within {limit:?}")))?
        .map_err(|status| broken(&status))?
        .ok_or_else(|| Ending::Gone("the peer hung up before it greeted".into()))?;
    match Frame::decode(first, &end.settings.limits) {
        Ok(Frame::Hello(hello)) => Ok(hello),
        Ok(_) => Err(Ending::Malformed("the first frame is not a hello".into())),
        Err(invalid) => Err(Ending::Malformed(invalid.to_string())),
    }
}

/// The error of a stream; what cannot be decoded, or is too large to be, is the peer's fault.
pub(super) fn broken(status: &Status) -> Ending {
    match status.code() {
        Code::Internal | Code::OutOfRange => Ending::Malformed(status.message().to_owned()),
        _ => Ending::Gone(sentence(status)),
    }
}
