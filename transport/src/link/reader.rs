//! The reader of a gRPC link: what comes in, from its `Up` to its `Down`, and rows that come beside it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use domain::NodeId;
use proto::{
    frame::{Frame, apart},
    internal,
};
use tokio::{sync::oneshot, time};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    LinkEvent, LinkEventKind, LinkSender, LocalEnd, Seat,
    credit::{Credit, Permit, Source, cost},
    nccl::Inlet,
    wire::{Ending, Ledger, Side, broken},
};
use crate::mailbox;

/// One end of a link that is up: reads what comes in until the link ends.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) end: Arc<LocalEnd>,
    pub(super) side: Side,
    pub(super) seat: Arc<Seat>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) inbound: Streaming<internal::Frame>,
    pub(super) peer: NodeId,
    pub(super) credit: Arc<Credit>,
    pub(super) closing: CancellationToken,
    /// What of the link goes by NCCL, if anything ever does.
    pub(super) inlet: Option<Inlet>,
    /// A frame whose rows come apart, and whatever came after it. Bounded by the credit, which all of them hold.
    pub(super) awaiting: VecDeque<Arriving>,
}

/// A frame that has its place in the order, and its permit.
#[derive(Debug)]
pub(super) struct Arriving {
    content: Content,
    permit: Permit,
}

#[derive(Debug)]
enum Content {
    Whole(Frame),
    Header(internal::Frame, oneshot::Receiver<Bytes>),
}

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
        let mut over = false;
        loop {
            if over && self.awaiting.is_empty() {
                return self.gone(format!("{} closed the link", self.peer));
            }
            let taken = tokio::select! {
                message = self.inbound.message(), if !over => match message {
                    Ok(Some(frame)) => self.take(frame).await,
                    // What came before is still to be delivered.
                    Ok(None) => { over = true; Ok(()) }
                    Err(status) => Err(self.torn(&status)),
                },
                whole = next(&mut self.awaiting), if !self.awaiting.is_empty() => match whole {
                    Ok((frame, permit)) => self.receive(frame, permit).await,
                    Err(_) => Err(self.gone("rows on their way by NCCL are lost".to_owned())),
                },
                reason = Inlet::lost(&mut self.inlet) => Err(self.gone(reason)),
                ending = &mut quit => return ending,
            };
            if let Err(ending) = taken {
                return ending;
            }
        }
    }

    /// Takes a frame in, in its order: rows that come apart hold back what comes after them, but for credits.
    async fn take(&mut self, frame: internal::Frame) -> Result<(), Ending> {
        let bytes = apart::bytes(&frame);
        if bytes > 0 {
            let Some(inlet) = &self.inlet else {
                return Err(malformed("rows apart from their frame, which nobody agreed to"));
            };
            let permit = self.book(usize::try_from(bytes).unwrap_or(usize::MAX))?;
            let rows = inlet.receive(bytes).await.map_err(Ending::Malformed)?;
            self.awaiting.push_back(Arriving { content: Content::Header(frame, rows), permit });
            return Ok(());
        }
        match self.decode(frame)? {
            Frame::Credit(bytes) => self
                .credit
                .give_back(bytes)
                .map_err(|_| malformed("more credit came back than was taken")),
            Frame::Hello(_) => Err(malformed("a second hello")),
            Frame::Nccl(word) => match &self.inlet {
                Some(inlet) => {
                    inlet.hear(word).await;
                    Ok(())
                }
                None => Err(malformed("a word on NCCL, which nobody agreed to")),
            },
            frame => {
                self.fits(&frame)?;
                let permit = self.book(frame.payload_bytes())?;
                if self.awaiting.is_empty() {
                    return self.deliver(frame, permit).await;
                }
                self.awaiting.push_back(Arriving { content: Content::Whole(frame), permit });
                Ok(())
            }
        }
    }

    /// The first of those that waited is whole.
    async fn receive(&self, content: Content, permit: Permit) -> Result<(), Ending> {
        let frame = match content {
            Content::Whole(frame) => frame,
            Content::Header(frame, _) => {
                let frame = self.decode(frame)?;
                self.fits(&frame)?;
                frame
            }
        };
        self.deliver(frame, permit).await
    }

    fn decode(&self, frame: internal::Frame) -> Result<Frame, Ending> {
        let decoded = Frame::decode(frame, &self.end.settings.limits);
        decoded.map_err(|invalid| Ending::Malformed(invalid.to_string()))
    }

    /// Refuses what no such peer has to send.
    fn fits(&self, frame: &Frame) -> Result<(), Ending> {
        match (frame, self.side) {
            (Frame::Dispatch(_) | Frame::Cancel(_), Side::Attention) => {
                Err(malformed("a dispatch or cancel for an attention node"))
            }
            (Frame::Output(_) | Frame::Reject(_) | Frame::Barrier { .. }, Side::Expert) => {
                Err(malformed("an output, reject or barrier for an expert node"))
            }
            _ => Ok(()),
        }
    }

    fn book(&self, payload: usize) -> Result<Permit, Ending> {
        let cost = cost(payload);
        if !self.ledger.book(cost) {
            return Err(malformed("more rows than the credit granted"));
        }
        let source = Source::Wire(Arc::clone(&self.ledger));
        Ok(Permit::new(cost, source, Arc::clone(&self.seat)))
    }

    async fn deliver(&self, frame: Frame, permit: Permit) -> Result<(), Ending> {
        self.end.metrics.received(frame.payload_bytes());
        let event = LinkEvent { peer: self.peer, kind: LinkEventKind::Frame(frame, permit) };
        let delivered = self.end.inbox.send(event).await;
        delivered.map_err(|_| self.gone("the engine is gone".into()))
    }

    fn torn(&self, status: &Status) -> Ending {
        match broken(status) {
            Ending::Gone(why) => self.gone(why),
            malformed @ Ending::Malformed(_) => malformed,
        }
    }

    /// Who hung up first is the reason, whatever came of it.
    fn gone(&self, why: String) -> Ending {
        if self.closing.is_cancelled() {
            return Ending::Gone(format!("{} closed the link", self.end.identity.node));
        }
        Ending::Gone(why)
    }
}

/// The first of those that wait, once it is whole. May be dropped at any time; there must be one.
async fn next(
    awaiting: &mut VecDeque<Arriving>,
) -> Result<(Content, Permit), oneshot::error::RecvError> {
    if let Some(Arriving { content: Content::Header(frame, rows), .. }) = awaiting.front_mut() {
        let rows = rows.await?;
        apart::attach(frame, rows);
    }
    match awaiting.pop_front() {
        Some(Arriving { content, permit }) => Ok((content, permit)),
        None => std::future::pending().await,
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
