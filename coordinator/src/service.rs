//! The gRPC face of the coordinator: sessions of nodes in, events to the leader's loop; views out.
//!
//! A session holds no queue of views, only the newest one, so a slow node costs nothing and skips
//! what it has missed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use domain::{ClusterView, Guidance, Leased, ModelShape, NodeId, Role};
use futures::{Stream, future::OptionFuture, stream, stream::BoxStream, stream::StreamExt};
use proto::{
    Invalid,
    control::{Beat, Registration, Report, Welcome, next_guidance},
    internal::{
        self as wire, control_server::Control, coordinator_message::Kind as ToNode,
        node_message::Kind as FromNode,
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};
use trust::{Party, Peer};

use crate::{
    ask::Ask,
    cluster::Event,
    nodes::{Refusal, SessionId},
};

/// The address of the leader, in the metadata of a refusal by a coordinator that does not lead.
pub const LEADER_METADATA: &str = "amoe-leader";

/// A session that says nothing for this long after it was opened is closed.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(5);
/// A registration waits for the state store at most this long.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether this coordinator takes sessions.
#[derive(Clone, Debug)]
pub(crate) enum Standing {
    /// Yes: this is the way to the leader's loop.
    Leading(mpsc::Sender<Message>),
    /// No: another one leads, or none is known to.
    Following { leader: Option<String> },
}

/// What sessions tell the leader's loop.
#[derive(Debug)]
pub(crate) enum Message {
    /// A node wants to join.
    Register {
        session: SessionId,
        registration: Registration,
        /// Told when the node has joined.
        admitted: oneshot::Sender<Result<Admission, Refusal>>,
        /// Ends the session with a status. Holds one; the first is what counts.
        end: mpsc::Sender<Status>,
    },
    /// A member said something, or its session ended.
    Event(Event),
    /// Somebody else wants to look at the cluster or to change it.
    Ask(Ask),
}

/// What a session needs once its node has joined.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) welcome: Welcome,
    pub(crate) views: watch::Receiver<Arc<ClusterView>>,
    pub(crate) guidance: watch::Receiver<Arc<Guidance>>,
}

/// The service; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct ControlService {
    standing: watch::Receiver<Standing>,
    sessions: Arc<Semaphore>,
    opened: Arc<AtomicU64>,
}

impl ControlService {
    /// A service that holds at most `sessions_max` sessions.
    pub(crate) fn new(standing: watch::Receiver<Standing>, sessions_max: usize) -> Self {
        Self {
            standing,
            sessions: Arc::new(Semaphore::new(sessions_max.min(Semaphore::MAX_PERMITS))),
            opened: Arc::default(),
        }
    }
}

// === impl Standing ===

impl Standing {
    /// The way to the leader's loop.
    pub(crate) fn inbox(&self) -> Result<mpsc::Sender<Message>, Status> {
        match self {
            Self::Leading(inbox) => Ok(inbox.clone()),
            Self::Following { leader } => Err(not_leading(leader.as_deref())),
        }
    }

    /// The address of the one that leads, if it is another one and known.
    pub(crate) fn leader(&self) -> Option<String> {
        match self {
            Self::Leading(_) => None,
            Self::Following { leader } => leader.clone(),
        }
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    type SessionStream = BoxStream<'static, Result<wire::CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let inbox = self.standing.borrow().inbox()?;
        let permit = self.sessions.clone().try_acquire_owned();
        let permit =
            permit.map_err(|_| Status::resource_exhausted("too many sessions are open"))?;
        let peer = request.extensions().get::<Peer>().cloned();
        let mut messages = request.into_inner();
        let registration = timeout(REGISTRATION_TIMEOUT, first(&mut messages)).await;
        let registration = registration.map_err(|_| {
            Status::deadline_exceeded("no registration came after the session opened")
        })??;
        check(peer.as_ref(), registration.role)?;
        let session = SessionId(self.opened.fetch_add(1, Ordering::Relaxed));
        let (role, shape) = (registration.role, registration.shape.clone());
        let (end, ended) = mpsc::channel(1);
        let admission = register(&inbox, session, registration, end.clone()).await?;
        let open = CancellationToken::new();
        tokio::spawn(read_beats(Reader {
            session,
            id: admission.welcome.node_id,
            role,
            shape,
            messages,
            inbox,
            end,
            open: open.clone(),
        }));
        let writer = Writer {
            ended,
            open: open.clone(),
            views: admission.views,
            guidance: (role != Role::Gateway).then_some(admission.guidance),
            role,
            told: None,
            _closes: open.drop_guard(),
            _permit: permit,
        };
        let welcome = ToNode::Welcome(admission.welcome.into());
        let welcome = stream::once(async { Ok(message(welcome)) });
        Ok(Response::new(welcome.chain(views(writer)).boxed()))
    }
}

async fn first(messages: &mut Streaming<wire::NodeMessage>) -> Result<Registration, Status> {
    let kind = messages.message().await?.and_then(|message| message.kind);
    match kind {
        Some(FromNode::Register(register)) => Registration::try_from(register).map_err(Into::into),
        _ => Err(Status::invalid_argument("the first message of a session must be a registration")),
    }
}

/// A node joins as what its certificate says, or not at all.
fn check(peer: Option<&Peer>, role: Role) -> Result<(), Status> {
    let party = match role {
        Role::Gateway => Party::Gateway,
        Role::Attention => Party::AttentionNode,
        Role::Expert => Party::ExpertNode,
    };
    match peer {
        Some(peer) if peer.is(party) => Ok(()),
        Some(peer) => {
            Err(Status::permission_denied(format!("{peer}; expected that of {party} to join so")))
        }
        None => Err(Status::internal("nothing is known of who calls")),
    }
}

async fn register(
    inbox: &mpsc::Sender<Message>,
    session: SessionId,
    registration: Registration,
    end: mpsc::Sender<Status>,
) -> Result<Admission, Status> {
    let (admitted, answer) = oneshot::channel();
    let register = Message::Register { session, registration, admitted, end };
    inbox.send(register).await.map_err(|_| not_leading(None))?;
    match timeout(ADMISSION_TIMEOUT, answer).await {
        Ok(Ok(Ok(admission))) => Ok(admission),
        Ok(Ok(Err(refusal))) => Err(refused(&refusal)),
        Ok(Err(_)) => Err(not_leading(None)),
        Err(_) => Err(Status::unavailable(
            "the state store does not take anything in, so no new node can get a number",
        )),
    }
}

// === node → coordinator ===

struct Reader {
    session: SessionId,
    id: NodeId,
    role: Role,
    shape: Option<ModelShape>,
    messages: Streaming<wire::NodeMessage>,
    inbox: mpsc::Sender<Message>,
    end: mpsc::Sender<Status>,
    /// Cancelled when either direction has ended.
    open: CancellationToken,
}

/// Hands beats and reports on until either side ends the session. A reason to end it that was given before stands.
async fn read_beats(mut reader: Reader) {
    let (session, id) = (reader.session, reader.id);
    loop {
        let message = tokio::select! {
            message = reader.messages.message() => message,
            () = reader.open.cancelled() => break,
        };
        let Ok(Some(message)) = message else { break };
        match reader.said(message.kind) {
            Ok(event) => {
                if reader.inbox.send(Message::Event(event)).await.is_err() {
                    let _ = reader.end.try_send(not_leading(None));
                    break;
                }
            }
            Err(invalid) => {
                let _ = reader.end.try_send(invalid.into());
                break;
            }
        }
    }
    reader.open.cancel();
    // A loop that is gone has no members to take off.
    let _ = reader.inbox.send(Message::Event(Event::Left { session, id })).await;
}

impl Reader {
    fn said(&self, kind: Option<FromNode>) -> Result<Event, Invalid> {
        let Self { session, id, .. } = *self;
        match (kind, &self.shape) {
            (Some(FromNode::Heartbeat(beat)), _) => {
                Ok(Event::Beat { session, id, beat: Beat::try_from(beat)? })
            }
            (Some(FromNode::Report(report)), Some(shape)) => {
                let report = Report::from(report);
                report.check(self.role, shape)?;
                Ok(Event::Report { session, id, report })
            }
            _ => Err(Invalid::new("heartbeat", "is missing")),
        }
    }
}

// === coordinator → node ===

struct Writer {
    views: watch::Receiver<Arc<ClusterView>>,
    /// None for who needs no advice.
    guidance: Option<watch::Receiver<Arc<Guidance>>>,
    role: Role,
    /// The lease that the node was last told.
    told: Option<Arc<Leased>>,
    ended: mpsc::Receiver<Status>,
    open: CancellationToken,
    _closes: DropGuard,
    _permit: OwnedSemaphorePermit,
}

/// The newest view and guidance, again and again, then the status the session ends with.
fn views(
    mut writer: Writer,
) -> impl Stream<Item = Result<wire::CoordinatorMessage, Status>> + Send + 'static {
    writer.views.mark_changed();
    writer.guidance.iter_mut().for_each(watch::Receiver::mark_changed);
    stream::unfold(Some(writer), |writer| async {
        let mut writer = writer?;
        tokio::select! {
            biased;
            Some(status) = writer.ended.recv() => return Some((Err(status), None)),
            () = writer.open.cancelled() => {
                return writer.ended.try_recv().ok().map(|status| (Err(status), None));
            }
            changed = writer.views.changed() => changed.ok()?,
            Some(changed) = OptionFuture::from(writer.guidance.as_mut().map(watch::Receiver::changed)) => {
                changed.ok()?;
                let guidance = writer.guide();
                return Some((Ok(message(ToNode::Guidance(guidance))), Some(writer)));
            }
        }
        let view = writer.views.borrow_and_update().clone();
        let view = message(ToNode::View(wire::ClusterView::from(&*view)));
        Some((Ok(view), Some(writer)))
    })
}

impl Writer {
    /// The newest guidance, as far as it says anything new.
    fn guide(&mut self) -> wire::Guidance {
        let guidance = self.guidance.as_mut().map(|guidance| guidance.borrow_and_update().clone());
        let mut guidance = guidance.as_deref().cloned().unwrap_or_default();
        if self.role == Role::Expert {
            // It runs what it is sent.
            guidance.lease = None;
        }
        let told = next_guidance(&guidance, self.told.as_ref());
        self.told = guidance.lease;
        told
    }
}

fn message(kind: ToNode) -> wire::CoordinatorMessage {
    wire::CoordinatorMessage { kind: Some(kind) }
}

// === statuses ===

/// Sends a node to the leader, or to try again.
pub(crate) fn not_leading(leader: Option<&str>) -> Status {
    let Some(leader) = leader else {
        return Status::unavailable("no coordinator is known to lead at the moment");
    };
    let mut status =
        Status::unavailable(format!("this coordinator does not lead, the one at {leader} does"));
    // An address that cannot stand in a header still stands in the sentence.
    if let Ok(leader) = MetadataValue::try_from(leader) {
        status.metadata_mut().insert(LEADER_METADATA, leader);
    }
    status
}

fn refused(refusal: &Refusal) -> Status {
    let sentence = refusal.to_string();
    match refusal {
        Refusal::TooLong { .. } | Refusal::Missing { .. } | Refusal::Epoch { .. } => {
            Status::invalid_argument(sentence)
        }
        Refusal::OtherModel { .. } | Refusal::OtherShape { .. } | Refusal::OtherNumerics { .. } => {
            Status::failed_precondition(sentence)
        }
        Refusal::NameTaken { .. } => Status::already_exists(sentence),
        Refusal::Full { .. } => Status::resource_exhausted(sentence),
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::Arc};

    use domain::{ClusterView, Role};
    use futures::StreamExt;
    use proto::internal::{self as wire, coordinator_message::Kind as ToNode};
    use tokio::sync::{Semaphore, mpsc, watch};
    use tokio_util::sync::CancellationToken;
    use tonic::Status;

    use super::{Writer, views};

    fn version(message: Option<Result<wire::CoordinatorMessage, Status>>) -> u64 {
        match message.unwrap().unwrap().kind {
            Some(ToNode::View(view)) => view.version,
            other => panic!("expected a view, got {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_slow_node_gets_the_newest_view_only_and_then_the_reason_of_the_end() {
        let (sender, receiver) = watch::channel(Arc::default());
        let (end, ended) = mpsc::channel(1);
        let open = CancellationToken::new();
        let sessions = Arc::new(Semaphore::new(1));
        let writer = Writer {
            views: receiver,
            guidance: None,
            role: Role::Gateway,
            told: None,
            ended,
            open: open.clone(),
            _closes: open.clone().drop_guard(),
            _permit: sessions.clone().try_acquire_owned().unwrap(),
        };
        let mut stream = Box::pin(views(writer));
        assert_eq!(version(stream.next().await), 0);
        for version in 1..=1000 {
            sender.send_replace(Arc::new(ClusterView { version, ..ClusterView::default() }));
        }
        assert_eq!(version(stream.next().await), 1000);
        let mut next = pin!(stream.next());
        assert!(futures::poll!(&mut next).is_pending(), "there is no second copy");
        end.try_send(Status::aborted("enough")).unwrap();
        assert_eq!(next.await.unwrap().unwrap_err().message(), "enough");
        assert!(stream.next().await.is_none());
        drop(stream);
        assert!(open.is_cancelled(), "the other direction ends too");
        assert_eq!(sessions.available_permits(), 1);
    }
}
