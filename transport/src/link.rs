//! Data links between attention and expert nodes: frames in order, byte credits, one event queue per engine.
//!
//! An engine has one [`Links`]. It dials peers (`Links::connect`) or lets them dial it
//! (`Links::listen` inside the process, `Links::service` on a port), and from then on sees only
//! [`LinkEvent`]s in its mailbox and a [`LinkSender`] per link that is up; how the bytes travel does
//! not show. What holds for every link:
//!
//! - Per link the mailbox gets `Up` once, then frames in the order they were sent, then `Down` once.
//!   A link that comes back is a new link: `Down` of the old one comes before `Up` of the next.
//! - A frame costs its bytes of rows, at least [`FRAME_COST_MIN`]. The sender may have as much in
//!   flight as the receiver granted; a frame larger than the whole grant goes when nothing is in
//!   flight. The receiver's [`Permit`] stands for that cost until it is dropped, so rows that wait
//!   in an engine's queue hold their sender back.
//! - A sender that was refused for want of credit has its doorbell rung when credit comes back.
//! - Credits start anew with each link, and nothing that was in flight survives its link.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::NodeId;
use proto::frame::{DONE_BYTES, Frame, Limits, PAIR_BYTES};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    Doorbell, Hub,
    address::{Address, AddressError},
    backoff::Backoff,
    channel::KeepAlive,
    mailbox::{self, Mailbox},
};

pub(crate) use self::memory::Listening;
pub use self::{
    credit::{FRAME_COST_MIN, Permit},
    dial::Connection,
    memory::MemoryListener,
    metrics::LinkMetrics,
    nccl::Nccl,
    server::{Acceptor, LinkService},
};

mod credit;
mod dial;
mod memory;
mod metrics;
mod nccl;
mod reader;
mod server;
mod wire;

#[cfg(test)]
mod tests;

/// Who this end of its links is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// This node's number, as the coordinator gave it.
    pub node: NodeId,
    /// Weights served here and the precision of rows; links to nodes with others are refused.
    pub model_fingerprint: String,
}

/// Bounds and times of an engine's links.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// What received frames are validated against.
    pub limits: Limits,
    /// Bytes that each peer may have in flight towards this node.
    pub credit_bytes: u64,
    /// Largest frame to send or to accept, in bytes; must be the same on all nodes.
    pub frame_bytes_max: usize,
    /// Links that may exist at once, those included whose rows still wait in the engine.
    pub links_max: usize,
    /// How long the first frame of a new link may take, and the last ones of a closing one.
    pub greeting_timeout: Duration,
    /// Pauses between attempts to reach a peer.
    pub backoff: Backoff,
    /// Pause after a peer refused the link (other weights, no room): trying sooner changes nothing.
    pub refused_pause: Duration,
    /// How a silent connection is noticed.
    pub keep_alive: KeepAlive,
    /// How rows reach the GPUs of peers without a detour through processors. Without it gRPC carries all.
    pub nccl: Option<Nccl>,
}

/// All links of one engine. Clones are the same.
#[derive(Clone, Debug)]
pub struct Links {
    end: Arc<LocalEnd>,
    hub: Hub,
}

/// What this end of every link shares.
#[derive(Debug)]
struct LocalEnd {
    identity: Identity,
    settings: LinkSettings,
    inbox: mailbox::Sender<LinkEvent>,
    seats: Arc<Semaphore>,
    metrics: LinkMetrics,
    /// By peer, cancelled when the newest dialler of it has ended.
    dialers: Mutex<HashMap<NodeId, CancellationToken>>,
}

/// Something that happened on a link.
#[derive(Debug)]
pub struct LinkEvent {
    /// The node at the other end.
    pub peer: NodeId,
    /// What happened.
    pub kind: LinkEventKind,
}

/// What happened on a link.
#[derive(Debug)]
pub enum LinkEventKind {
    /// The link is there; frames may be sent.
    Up(LinkSender),
    /// The link is gone with all that was in flight on it. Nothing more comes from it.
    Down(Down),
    /// A frame arrived. Keep the permit for as long as its rows take up room.
    Frame(Frame, Permit),
}

/// Why a link went down, as one sentence for a log.
#[derive(Debug)]
pub struct Down {
    reason: String,
    _seat: Arc<Seat>,
}

/// Counts a link against `links_max` until the last event and the last permit of it are gone, so
/// that an engine's mailbox has room for everything its links may put in.
#[derive(Debug)]
struct Seat {
    _taken: OwnedSemaphorePermit,
}

/// The sending side of one link, owned by the engine. Dropping it closes the link: what was accepted
/// before is still delivered, and both ends are told `Down`.
#[derive(Debug)]
pub struct LinkSender {
    peer: NodeId,
    path: Path,
    frame_bytes_max: usize,
    metrics: LinkMetrics,
    _seat: Arc<Seat>,
}

#[derive(Debug)]
enum Path {
    Memory(memory::Towards),
    Wire(wire::Towards),
}

/// Why a frame was not taken; it comes back with the answer.
#[derive(Debug, PartialEq, Error)]
pub enum Refused {
    /// The receiver has granted no more for now. The doorbell rings when that changes.
    #[error("the receiver of the link has no credit left")]
    NoCredit(Frame),
    /// The link is down; its event is in the mailbox or about to be.
    #[error("the link is closed")]
    Closed(Frame),
    /// The frame would be refused by its receiver. Sending it again is no use.
    #[error("a frame of {bytes} bytes is above the limit of {max} (frame_bytes_max)")]
    TooLarge {
        /// The frame.
        frame: Frame,
        /// Its size on the wire.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
}

/// Why an attempt to link up came to nothing.
#[derive(Debug)]
enum NoLink {
    /// It may work later.
    Unreachable(String),
    /// It will not work until somebody changes something.
    Refused(String),
}

// === impl LinkSettings ===

impl LinkSettings {
    /// Defaults for a model whose frames keep to `limits`.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            credit_bytes: 64 << 20,
            frame_bytes_max: 64 << 20,
            links_max: 256,
            greeting_timeout: Duration::from_secs(5),
            backoff: Backoff::default(),
            refused_pause: Duration::from_secs(10),
            keep_alive: KeepAlive::default(),
            nccl: None,
        }
    }

    /// Messages an engine's mailbox has to hold: all frames in flight on all links, and their ends.
    fn inbox_capacity(&self) -> usize {
        let events = credit::frames_max(self.credit_bytes) + 2;
        self.links_max.max(1).saturating_mul(events).min(Semaphore::MAX_PERMITS)
    }
}

// === impl Links ===

impl Links {
    /// The links of the engine that `bell` wakes, and the mailbox their events arrive in.
    #[must_use]
    pub fn new(
        identity: Identity,
        settings: LinkSettings,
        metrics: LinkMetrics,
        hub: Hub,
        bell: Doorbell,
    ) -> (Self, Mailbox<LinkEvent>) {
        let (inbox, mailbox) = mailbox::bounded(settings.inbox_capacity(), bell);
        let seats = Arc::new(Semaphore::new(settings.links_max.min(Semaphore::MAX_PERMITS)));
        let dialers = Mutex::default();
        let end = LocalEnd { identity, settings, inbox, seats, metrics, dialers };
        let end = Arc::new(end);
        (Self { end, hub }, mailbox)
    }

    /// Keeps a link to `peer` up for as long as the returned handle lives: dials `address`, and
    /// dials again whenever the link is lost. A peer has one connection at a time: another one waits
    /// until the first was dropped and its link is down. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When `address` is not one ([`Address`]).
    pub fn connect(&self, peer: NodeId, address: &str) -> Result<Connection, AddressError> {
        let address: Address = address.parse()?;
        Ok(dial::keep_linked(self.clone(), peer, address))
    }

    /// Lets engines of this process link up by `memory:NAME` for as long as the listener lives.
    ///
    /// # Errors
    /// When something else listens there.
    pub fn listen(&self, name: &str) -> Result<MemoryListener, AddressError> {
        memory::listen(&self.hub, name, Arc::clone(&self.end))
    }

    /// The gRPC service that lets other processes link up.
    #[must_use]
    pub fn service(&self) -> LinkService {
        server::service(Arc::clone(&self.end))
    }
}

// === impl LocalEnd ===

impl LocalEnd {
    fn seat(&self) -> Option<Arc<Seat>> {
        let taken = Arc::clone(&self.seats).try_acquire_owned().ok()?;
        Some(Arc::new(Seat { _taken: taken }))
    }

    /// Every change of the table is one call, so a panic elsewhere cannot leave it half done.
    fn dialers(&self) -> MutexGuard<'_, HashMap<NodeId, CancellationToken>> {
        self.dialers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_seat(&self) -> String {
        format!(
            "{} has all {} links it may have (links_max)",
            self.identity.node, self.settings.links_max
        )
    }

    /// Both ends must serve the same model, or their results would be mixed.
    fn agrees(&self, peer: NodeId, model_fingerprint: &str) -> Result<(), String> {
        if self.identity.model_fingerprint == model_fingerprint {
            return Ok(());
        }
        Err(format!(
            "{peer} serves the model {model_fingerprint:?} where {} serves {:?}: \
             all nodes of a cluster must serve the same weights with rows of the same precision",
            self.identity.node, self.identity.model_fingerprint
        ))
    }
}

// === impl LinkSender ===

impl LinkSender {
    /// The node at the other end.
    #[must_use]
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// Hands a frame to the link. Never blocks.
    ///
    /// # Errors
    /// Every refusal brings the frame back.
    ///
    /// # Panics
    /// On `Hello`, `Credit` and `Nccl`, which links exchange among themselves.
    pub fn try_send(&self, frame: Frame) -> Result<(), Refused> {
        assert!(
            !matches!(frame, Frame::Hello(_) | Frame::Credit(_) | Frame::Nccl(_)),
            "greetings, credits and words on NCCL belong to the link"
        );
        let (bytes, max) = (bytes_on_wire(&frame), self.frame_bytes_max);
        if bytes > max {
            return Err(Refused::TooLarge { frame, bytes, max });
        }
        let payload = frame.payload_bytes();
        let sent = match &self.path {
            Path::Memory(towards) => towards.try_send(frame),
            Path::Wire(towards) => towards.try_send(frame),
        };
        self.metrics.sent(payload, &sent);
        sent
    }
}

impl Drop for LinkSender {
    fn drop(&mut self) {
        match &self.path {
            Path::Memory(towards) => towards.close(),
            Path::Wire(towards) => towards.close(),
        }
    }
}

/// At least what the frame takes on the wire: records, rows and a little for the rest.
fn bytes_on_wire(frame: &Frame) -> usize {
    const FIELDS: usize = 64;
    const TICKET: usize = 10;
    const COUNT: usize = 5;
    FIELDS
        + match frame {
            Frame::Dispatch(dispatch) => dispatch.pairs.len() * PAIR_BYTES + dispatch.rows.len(),
            Frame::Output(output) => output.results.len() * DONE_BYTES + output.rows.len(),
            Frame::Cancel(tickets) | Frame::Reject(tickets) => tickets.len() * TICKET,
            Frame::Tally(tally) => tally.tokens.len() * COUNT,
            Frame::Hello(_) | Frame::Credit(_) | Frame::Barrier { .. } | Frame::Nccl(_) => 0,
        }
}

// === impl LinkEvent, Down ===

impl LinkEvent {
    fn down(peer: NodeId, reason: String, seat: Arc<Seat>) -> Self {
        let down = Down { reason, _seat: seat };
        let kind = LinkEventKind::Down(down);
        Self { peer, kind }
    }
}

impl Down {
    /// The sentence.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
