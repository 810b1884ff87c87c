//! Links between two engines of one process: a frame goes straight into the other engine's mailbox.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use domain::NodeId;
use proto::frame::Frame;
use tokio_util::sync::CancellationToken;

use super::{
    LinkEvent, LinkEventKind, LinkMetrics, LinkSender, LocalEnd, NoLink, Path, Refused, Seat,
    credit::{Credit, Permit, Source, cost},
};
use crate::{
    Hub,
    address::AddressError,
    mailbox::{self, Place, Rejected},
};

/// Makes an engine reachable by `memory:NAME`. Dropping it closes its links and frees the name.
#[derive(Debug)]
pub struct MemoryListener {
    hub: Hub,
    name: String,
    listening: Arc<Listening>,
}

/// The accepting end, as dialers find it in the hub.
#[derive(Debug)]
pub(crate) struct Listening {
    end: Arc<LocalEnd>,
    /// By dialer; none once nobody listens any more.
    links: Mutex<Option<HashMap<NodeId, Weak<MemoryLink>>>>,
}

/// One link. Index 0 is the dialing end, 1 the listening one.
#[derive(Debug)]
pub(super) struct MemoryLink {
    ways_in: [WayIn; 2],
    /// The numbers of the two nodes.
    nodes: [NodeId; 2],
    closed: CancellationToken,
}

/// The way into one end's mailbox.
#[derive(Debug)]
struct WayIn {
    /// Frames and the last event pass under this lock, so that nothing follows a `Down`.
    door: Mutex<Option<Door>>,
    /// The credit of the opposite end, which sends through here.
    credit: Arc<Credit>,
}

#[derive(Debug)]
struct Door {
    inbox: mailbox::Sender<LinkEvent>,
    /// Kept free from the start: `Down` must not depend on room in the mailbox.
    last: Place<LinkEvent>,
    seat: Arc<Seat>,
    metrics: LinkMetrics,
}

/// A link as one end's sender sees it.
#[derive(Debug)]
pub(super) struct Towards {
    link: Arc<MemoryLink>,
    /// Which end receives.
    to: usize,
}

pub(super) fn listen(
    hub: &Hub,
    name: &str,
    end: Arc<LocalEnd>,
) -> Result<MemoryListener, AddressError> {
    let links = Mutex::new(Some(HashMap::new()));
    let listening = Arc::new(Listening { end, links });
    hub.listen_memory(name, Arc::clone(&listening))?;
    Ok(MemoryListener { hub: hub.clone(), name: name.to_owned(), listening })
}

/// Links `dialing` up with whoever listens at `name` and expects it to be `peer`.
pub(super) fn dial(
    hub: &Hub,
    name: &str,
    peer: NodeId,
    dialing: &Arc<LocalEnd>,
) -> Result<Arc<MemoryLink>, NoLink> {
    let listening = hub
        .memory(name)
        .ok_or_else(|| NoLink::Unreachable(format!("nobody listens at memory:{name}")))?;
    let there = &listening.end.identity;
    if there.node != peer {
        let found = there.node;
        return Err(NoLink::Refused(format!("{found} listens at memory:{name}, expected {peer}")));
    }
    dialing.agrees(peer, &there.model_fingerprint).map_err(NoLink::Refused)?;
    listening.accept(dialing)
}

// === impl MemoryListener, Listening ===

impl Drop for MemoryListener {
    fn drop(&mut self) {
        self.hub.unlisten_memory(&self.name);
        let links = lock(&self.listening.links).take().unwrap_or_default();
        let reason = format!("{} stopped listening", self.listening.end.identity.node);
        for link in links.values().filter_map(Weak::upgrade) {
            link.close(&reason);
        }
    }
}

impl Listening {
    /// Under one lock, so that a node's links come one after the other. A node that dials again has
    /// lost its old link, whatever this end believes.
    fn accept(&self, dialing: &Arc<LocalEnd>) -> Result<Arc<MemoryLink>, NoLink> {
        let dialer = dialing.identity.node;
        let mut links = lock(&self.links);
        let links =
            links.as_mut().ok_or_else(|| NoLink::Unreachable("the listener is gone".into()))?;
        links.retain(|_, link| link.strong_count() > 0);
        if let Some(link) = links.remove(&dialer).as_ref().and_then(Weak::upgrade) {
            link.close(&format!("{dialer} opened a newer link"));
        }
        let link = MemoryLink::open([dialing, &self.end])?;
        links.insert(dialer, Arc::downgrade(&link));
        Ok(link)
    }
}

// === impl MemoryLink ===

impl MemoryLink {
    fn open(ends: [&Arc<LocalEnd>; 2]) -> Result<Arc<Self>, NoLink> {
        let doors = [Door::new(ends[0])?, Door::new(ends[1])?];
        let seats = [Arc::clone(&doors[0].seat), Arc::clone(&doors[1].seat)];
        let ups = [place(ends[0])?, place(ends[1])?];
        let way_in = |receiver: usize| {
            let window = ends[receiver].settings.credit_bytes;
            let bell = ends[1 - receiver].inbox.bell().clone();
            WayIn { door: Mutex::new(None), credit: Arc::new(Credit::new(window, bell)) }
        };
        let link = Arc::new(Self {
            ways_in: [way_in(0), way_in(1)],
            nodes: [ends[0].identity.node, ends[1].identity.node],
            closed: CancellationToken::new(),
        });
        // An engine may send as soon as it sees its `Up`; the locks keep its frames behind the
        // other end's `Up`.
        let mut ways_in = link.ways_in.each_ref().map(|way_in| lock(&way_in.door));
        for (way_in, door) in ways_in.iter_mut().zip(doors) {
            **way_in = Some(door);
        }
        for (at, (up, seat)) in ups.into_iter().zip(seats).enumerate() {
            let towards = Towards { link: Arc::clone(&link), to: 1 - at };
            let sender = LinkSender {
                peer: link.nodes[1 - at],
                path: Path::Memory(towards),
                frame_bytes_max: ends[at].settings.frame_bytes_max,
                metrics: ends[at].metrics.clone(),
                _seat: seat,
            };
            ends[at].metrics.links_up.inc();
            up.fill(LinkEvent { peer: link.nodes[1 - at], kind: LinkEventKind::Up(sender) });
        }
        drop(ways_in);
        Ok(link)
    }

    /// Tells both ends `Down`, once.
    pub(super) fn close(&self, reason: &str) {
        for (at, way_in) in self.ways_in.iter().enumerate() {
            let door = lock(&way_in.door).take();
            if let Some(Door { last, seat, metrics, .. }) = door {
                metrics.links_up.dec();
                last.fill(LinkEvent::down(self.nodes[1 - at], reason.to_owned(), seat));
            }
        }
        self.closed.cancel();
    }

    /// Returns when the link is closed, which it is at the latest when an engine's mailbox is gone.
    pub(super) async fn closed(&self) {
        let inboxes = self.ways_in.each_ref().map(|way_in| {
            let door = lock(&way_in.door);
            door.as_ref().map(|door| door.inbox.clone())
        });
        if let [Some(here), Some(there)] = &inboxes {
            tokio::select! {
                () = self.closed.cancelled() => {}
                () = here.closed() => self.close("the dialing engine is gone"),
                () = there.closed() => self.close("the listening engine is gone"),
            }
        }
        self.closed.cancelled().await;
    }
}

// === impl Door ===

impl Door {
    fn new(end: &LocalEnd) -> Result<Self, NoLink> {
        let seat = end.seat().ok_or_else(|| NoLink::Refused(end.no_seat()))?;
        Ok(Self { inbox: end.inbox.clone(), last: place(end)?, seat, metrics: end.metrics.clone() })
    }
}

fn place(end: &LocalEnd) -> Result<Place<LinkEvent>, NoLink> {
    end.inbox.reserve().ok_or_else(|| {
        let node = end.identity.node;
        NoLink::Unreachable(format!("the engine of {node} takes no more events"))
    })
}

// === impl Towards ===

impl Towards {
    pub(super) fn try_send(&self, frame: Frame) -> Result<(), Refused> {
        let WayIn { door, credit } = &self.link.ways_in[self.to];
        let door = lock(door);
        let Some(door) = door.as_ref() else {
            return Err(Refused::Closed(frame));
        };
        let payload = frame.payload_bytes();
        let cost = cost(payload);
        if !credit.take(cost) {
            return Err(Refused::NoCredit(frame));
        }
        let source = Source::Memory(Arc::clone(credit));
        let permit = Permit::new(cost, source, Arc::clone(&door.seat));
        let event = LinkEvent {
            peer: self.link.nodes[1 - self.to],
            kind: LinkEventKind::Frame(frame, permit),
        };
        match door.inbox.try_send(event) {
            Ok(()) => {
                door.metrics.received(payload);
                Ok(())
            }
            Err(Rejected::Full(event)) => Err(Refused::NoCredit(frame_of(event))),
            Err(Rejected::Closed(event)) => Err(Refused::Closed(frame_of(event))),
        }
    }

    pub(super) fn close(&self) {
        let closing = self.link.nodes[1 - self.to];
        self.link.close(&format!("{closing} closed the link"));
    }
}

fn frame_of(event: LinkEvent) -> Frame {
    match event.kind {
        LinkEventKind::Frame(frame, _) => frame,
        LinkEventKind::Up(_) | LinkEventKind::Down(_) => {
            unreachable!("only frames are sent through a door")
        }
    }
}

/// No code panics while it holds one of these locks halfway through a change.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
