//! The two halves of a gRPC link: the stream of frames going out and the reader of those coming in.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use domain::NodeId;
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
    LinkEvent, LinkEventKind, LinkSender, LocalEnd, Path, Refused, Seat,
    credit::{Credit, Permit, Source, cost, frames_max},
};
use crate::{channel::sentence, mailbox};

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
}

/// What goes out, as the connection's task pulls it: greeting, credits, frames.
#[derive(Debug)]
pub(super) struct Outgoing {
    hello: Option<internal::Frame>,
    frames: mpsc::Receiver<Frame>,
    ledger: Arc<Ledger>,
}

/// One end of a link that is up: reads what comes in until the link ends.
#[derive(Debug)]
pub(super) struct Reader {
    end: Arc<LocalEnd>,
    side: Side,
    seat: Arc<Seat>,
    ledger: Arc<Ledger>,
    inbound: Streaming<internal::Frame>,
    peer: NodeId,
    credit: Arc<Credit>,
    closing: CancellationToken,
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
        self.frames.poll_recv(cx).map(|frame| frame.map(Frame::encode))
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
    fn book(&self, cost: u64) -> bool {
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

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.outgoing.wake();
    }
}

// === impl Opening ===

impl Opening {
    /// One end of a new link, and the stream that greets the peer.
    pub(super) fn new(end: Arc<LocalEnd>, side: Side, seat: Arc<Seat>) -> (Self, Outgoing) {
        let granted = end.settings.credit_bytes;
        let hello = Frame::Hello(Hello {
            node: end.identity.node,
            model_fingerprint: end.identity.model_fingerprint.clone(),
            credit_bytes: granted,
        });
        let (frames, queued) = mpsc::channel(frames_max(granted));
        let ledger = Arc::new(Ledger::new(granted));
        let outgoing =
            Outgoing { hello: Some(hello.encode()), frames: queued, ledger: Arc::clone(&ledger) };
        let opening = Self { end, side, seat, frames, ledger };
        (opening, outgoing)
    }

    /// The peer said hello: the link can go up.
    pub(super) fn greeted(
        self,
        hello: &Hello,
        inbound: Streaming<internal::Frame>,
    ) -> (Reader, LinkSender) {
        let Self { end, side, seat, frames, ledger } = self;
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
        let reader = Reader { end, side, seat, ledger, inbound, peer: hello.node, credit, closing };
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
fn broken(status: &Status) -> Ending {
    match status.code() {
        Code::Internal | Code::OutOfRange => Ending::Malformed(status.message().to_owned()),
        _ => Ending::Gone(sentence(status)),
    }
}

// === impl Reader ===

impl Reader {
    /// Runs a link from its `Up` to its `Down`; ends early when `stop` is cancelled.
    pub(super) async fn run(mut self, sender: LinkSender, stop: &CancellationToken) -> Ending {
        self.end.metrics.links_up.inc();
        let up = LinkEvent { peer: self.peer, kind: LinkEventKind::Up(sender) };
        let ending = match self.end.inbox.send(up).await {
            Ok(()) => self.read(stop).await,
            Err(_) => Ending::Gone("the engine is gone".into()),
        };
        self.ledger.end();
        self.end.metrics.links_up.dec();
        if matches!(ending, Ending::Malformed(_)) {
            self.end.metrics.frames_malformed.inc();
        }
        let down = LinkEvent::down(self.peer, ending.to_string(), Arc::clone(&self.seat));
        // An engine that is gone needs no telling.
        let _ = self.end.inbox.send(down).await;
        ending
    }

    async fn read(&mut self, stop: &CancellationToken) -> Ending {
        let quit = quit(
            stop.clone(),
            self.closing.clone(),
            self.end.inbox.clone(),
            self.end.settings.greeting_timeout,
        );
        tokio::pin!(quit);
        loop {
            let message = tokio::select! {
                message = self.inbound.message() => message,
                ending = &mut quit => return ending,
            };
            let taken = match message {
                Ok(Some(frame)) => self.take(frame).await,
                Ok(None) => Err(Ending::Gone(format!("{} closed the link", self.peer))),
                Err(status) => Err(broken(&status)),
            };
            match taken {
                Ok(()) => {}
                Err(Ending::Gone(_)) if self.closing.is_cancelled() => {
                    let here = self.end.identity.node;
                    return Ending::Gone(format!("{here} closed the link"));
                }
                Err(ending) => return ending,
            }
        }
    }

    async fn take(&self, frame: internal::Frame) -> Result<(), Ending> {
        let frame = Frame::decode(frame, &self.end.settings.limits)
            .map_err(|invalid| Ending::Malformed(invalid.to_string()))?;
        match (&frame, self.side) {
            (&Frame::Credit(bytes), _) => self
                .credit
                .give_back(bytes)
                .map_err(|_| malformed("more credit came back than was taken")),
            (Frame::Hello(_), _) => Err(malformed("a second hello")),
            (Frame::Dispatch(_) | Frame::Cancel(_), Side::Expert)
            | (Frame::Output(_) | Frame::Reject(_) | Frame::Barrier { .. }, Side::Attention)
            | (Frame::Tally(_), _) => self.deliver(frame).await,
            (Frame::Dispatch(_) | Frame::Cancel(_), Side::Attention) => {
                Err(malformed("a dispatch or cancel for an attention node"))
            }
            (Frame::Output(_) | Frame::Reject(_) | Frame::Barrier { .. }, Side::Expert) => {
                Err(malformed("an output, reject or barrier for an expert node"))
            }
        }
    }

    async fn deliver(&self, frame: Frame) -> Result<(), Ending> {
        let payload = frame.payload_bytes();
        let cost = cost(payload);
        if !self.ledger.book(cost) {
            return Err(malformed("more rows than the credit granted"));
        }
        let source = Source::Wire(Arc::clone(&self.ledger));
        let permit = Permit::new(cost, source, Arc::clone(&self.seat));
        self.end.metrics.received(payload);
        let event = LinkEvent { peer: self.peer, kind: LinkEventKind::Frame(frame, permit) };
        let delivered = self.end.inbox.send(event).await;
        delivered.map_err(|_| Ending::Gone("the engine is gone".into()))
    }
}

fn malformed(what: &str) -> Ending {
    Ending::Malformed(what.to_owned())
}

/// What ends a link from this side: the owner of its task, the engine, or a peer that does not
/// answer the engine's goodbye within `linger`.
async fn quit(
    stop: CancellationToken,
    closing: CancellationToken,
    inbox: mailbox::Sender<LinkEvent>,
    linger: Duration,
) -> Ending {
    tokio::select! {
        () = stop.cancelled() => Ending::Gone("closed here".into()),
        () = inbox.closed() => Ending::Gone("the engine is gone".into()),
        () = async { closing.cancelled().await; time::sleep(linger).await } => {
            Ending::Gone("closed here, without an answer".into())
        }
    }
}
