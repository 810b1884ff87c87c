//! A process's session with the coordinator: registers, beats, keeps the newest view, and begins again when it is lost.

use std::{sync::Arc, time::Duration};

use domain::{ClusterView, Epoch, Guidance};
use futures::{StreamExt, stream};
use proto::{
    control::{self, Beat, Registration, Report, Welcome},
    internal::{
        CoordinatorMessage, Heartbeat, NodeMessage, Register, control_client,
        coordinator_message::Kind as ToNode, node_message::Kind as FromNode,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{self, MissedTickBehavior},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, Streaming};
use trust::Party;

use crate::{
    Address, AddressError, Backoff, Hub, KeepAlive,
    backoff::Pauses,
    channel::{self, sentence},
};

#[cfg(test)]
mod tests;

/// Metadata by which a coordinator that does not lead names the one that does.
const LEADER_METADATA: &str = "amoe-leader";
/// How often a leader's address is followed to the next before an ordinary pause.
const REDIRECTS_MAX: u32 = 4;
/// Beats and reports that may wait for the connection; more are dropped. The next beat says it all,
/// and reports are samples.
const SAID_MAX: usize = 8;
/// Largest message from a coordinator: a view with the plans of a large model.
const VIEW_BYTES_MAX: usize = 64 << 20;

/// Where the coordinators are and how patient to be with them.
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// All coordinators, `host:port` or `inproc:NAME`; at least one.
    pub endpoints: Vec<String>,
    /// How long the answer to a registration may take.
    pub welcome_timeout: Duration,
    /// Pauses between rounds of attempts.
    pub backoff: Backoff,
    /// Pause after a registration was refused: trying sooner changes nothing.
    pub refused_pause: Duration,
    /// How a silent connection is noticed.
    pub keep_alive: KeepAlive,
}

/// How the session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlStatus {
    /// There is none, and this is why. The last view stays valid.
    Lost(String),
    /// The coordinator does not want this node, and this is why.
    Refused(String),
    /// There is one with the coordinator at this address.
    Connected(String),
}

/// A session that is kept up. Dropping it ends the session.
#[derive(Debug)]
pub struct ControlClient {
    welcome: watch::Receiver<Option<Welcome>>,
    view: watch::Receiver<Arc<ClusterView>>,
    guidance: watch::Receiver<Arc<Guidance>>,
    status: watch::Receiver<ControlStatus>,
    _stop: DropGuard,
}

/// The task behind a [`ControlClient`].
struct Keeper {
    settings: ControlSettings,
    endpoints: Vec<Address>,
    hub: Hub,
    registration: Registration,
    beats: watch::Receiver<Beat>,
    reports: mpsc::Receiver<Report>,
    welcome: watch::Sender<Option<Welcome>>,
    view: watch::Sender<Arc<ClusterView>>,
    guidance: watch::Sender<Arc<Guidance>>,
    status: watch::Sender<ControlStatus>,
}

/// An open session.
struct Session {
    inbound: Streaming<CoordinatorMessage>,
    outbound: mpsc::Sender<NodeMessage>,
    welcome: Welcome,
}

/// Why there is no session, or no longer.
#[derive(Debug)]
enum End {
    Lost(String),
    Refused(String),
    Redirect(Address),
}

impl ControlSettings {
    /// Settings for the given coordinators.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            welcome_timeout: Duration::from_secs(10),
            backoff: Backoff::default(),
            refused_pause: Duration::from_secs(5),
            keep_alive: KeepAlive::default(),
        }
    }
}

// === impl ControlClient ===

impl ControlClient {
    /// Registers and keeps the session up until dropped. `beats` holds what to say at each
    /// heartbeat; a change of its health or epoch is said at once. `reports` are passed on while
    /// there is a session; who has none to give closes the channel. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// When there is no endpoint, or one that is no address of a server.
    pub fn start(
        settings: ControlSettings,
        registration: Registration,
        beats: watch::Receiver<Beat>,
        reports: mpsc::Receiver<Report>,
        hub: Hub,
    ) -> Result<Self, AddressError> {
        let endpoints = addresses(&settings.endpoints)?;
        let (welcome, welcome_seen) = watch::channel(None);
        let (view, view_seen) = watch::channel(Arc::default());
        let (guidance, guidance_seen) = watch::channel(Arc::default());
        let (status, status_seen) = watch::channel(ControlStatus::Lost("not tried yet".into()));
        let keeper = Keeper {
            settings,
            endpoints,
            hub,
            registration,
            beats,
            reports,
            welcome,
            view,
            guidance,
            status,
        };
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(keeper.run()));
        Ok(Self {
            welcome: welcome_seen,
            view: view_seen,
            guidance: guidance_seen,
            status: status_seen,
            _stop: stop.drop_guard(),
        })
    }

    /// The newest answer to a registration; none before the first.
    #[must_use]
    pub fn welcome(&self) -> watch::Receiver<Option<Welcome>> {
        self.welcome.clone()
    }

    /// The newest view of the cluster, empty (version 0) before the first. It outlives its session.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.clone()
    }

    /// The newest advice, empty before the first. It outlives its session.
    #[must_use]
    pub fn guidance(&self) -> watch::Receiver<Arc<Guidance>> {
        self.guidance.clone()
    }

    /// How the session stands, for readiness and metrics.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<ControlStatus> {
        self.status.clone()
    }
}

fn addresses(endpoints: &[String]) -> Result<Vec<Address>, AddressError> {
    if endpoints.is_empty() {
        return Err(AddressError::Unknown(String::new()));
    }
    endpoints.iter().map(|endpoint| server_address(endpoint)).collect()
}

fn server_address(text: &str) -> Result<Address, AddressError> {
    match text.parse()? {
        address @ Address::Memory(_) => {
            let expected = "a coordinator's address, host:port or inproc:NAME";
            Err(AddressError::WrongKind { address, expected })
        }
        address => Ok(address),
    }
}

// === impl Keeper ===

impl Keeper {
    async fn run(mut self) {
        let mut pauses = self.settings.backoff.pauses();
        let mut turn = 0;
        let mut failures = 0;
        let mut redirects = 0;
        let mut leader = None;
        loop {
            let address = leader
                .take()
                .unwrap_or_else(|| self.endpoints[turn % self.endpoints.len()].clone());
            let (connected, end) = self.attempt(&address).await;
            if connected {
                (failures, redirects) = (0, 0);
                pauses.reset();
            }
            self.report(&address, &end, connected, failures);
            match end {
                End::Redirect(next) if redirects < REDIRECTS_MAX => {
                    redirects += 1;
                    leader = Some(next);
                }
                End::Refused(_) => {
                    turn += 1;
                    time::sleep(self.settings.refused_pause).await;
                }
                End::Lost(_) | End::Redirect(_) => {
                    redirects = 0;
                    failures += 1;
                    turn += 1;
                    self.rest(&mut pauses, failures).await;
                }
            }
        }
    }

    /// A pause after each round of all coordinators, and after each lost session: when a
    /// coordinator goes, all nodes come back at once.
    async fn rest(&self, pauses: &mut Pauses, failures: usize) {
        if failures == 1 || failures.is_multiple_of(self.endpoints.len()) {
            time::sleep(pauses.next()).await;
        }
    }

    /// What is new is told once: a lost session or a refusal as a warning, the first failure to get a
    /// session as information.
    fn report(&self, address: &Address, end: &End, connected: bool, failures: usize) {
        let status = match end {
            End::Lost(why) => ControlStatus::Lost(why.clone()),
            End::Refused(why) => ControlStatus::Refused(why.clone()),
            End::Redirect(leader) => {
                ControlStatus::Lost(format!("{address} does not lead, {leader} does"))
            }
        };
        match end {
            End::Redirect(leader) => tracing::info!(%address, %leader, "another coordinator leads"),
            End::Lost(why) if connected => tracing::warn!(%address, "session lost: {why}"),
            End::Lost(why) if failures == 0 => tracing::info!(%address, "no session yet: {why}"),
            End::Refused(why) if *self.status.borrow() != status => {
                tracing::warn!(%address, "the coordinator refused this node: {why}");
            }
            End::Lost(why) | End::Refused(why) => {
                tracing::debug!(%address, failures, "no session yet: {why}");
            }
        }
        self.status.send_replace(status);
    }

    /// One session from registration to its end; whether it came to be.
    async fn attempt(&mut self, address: &Address) -> (bool, End) {
        match self.open(address).await {
            Err(end) => (false, end),
            Ok(session) => {
                let node = session.welcome.node_id;
                tracing::info!(%address, %node, "registered with the coordinator");
                self.welcome.send_replace(Some(session.welcome));
                self.status.send_replace(ControlStatus::Connected(address.to_string()));
                (true, self.keep(session).await)
            }
        }
    }

    async fn open(&mut self, address: &Address) -> Result<Session, End> {
        self.registration.epoch = self.epoch_newest();
        self.registration.node = self.welcome.borrow().map(|welcome| welcome.node_id);
        let channel =
            channel::connect(address, Party::Coordinator, &self.hub, self.settings.keep_alive)
                .await
                .map_err(End::Lost)?;
        let mut client =
            control_client::ControlClient::new(channel).max_decoding_message_size(VIEW_BYTES_MAX);
        let (outbound, queued) = mpsc::channel(SAID_MAX);
        let register = FromNode::Register(Register::from(self.registration.clone()));
        let register = stream::once(async { message(register) });
        let greeted = async {
            let outgoing = register.chain(ReceiverStream::new(queued));
            let mut inbound =
                client.session(outgoing).await.map_err(|status| end(&status))?.into_inner();
            let first = inbound.message().await.map_err(|status| end(&status))?;
            let Some(CoordinatorMessage { kind: Some(ToNode::Welcome(welcome)) }) = first else {
                return Err(End::Lost("the first message is not a welcome".into()));
            };
            let welcome =
                Welcome::try_from(welcome).map_err(|invalid| End::Lost(invalid.to_string()))?;
            Ok(Session { inbound, outbound, welcome })
        };
        let limit = self.settings.welcome_timeout;
        time::timeout(limit, greeted)
            .await
            .map_err(|_| End::Lost(format!("no welcome came within {limit:?}")))?
    }

    /// The coordinator may have forgotten which epochs there were; it must not use one again.
    fn epoch_newest(&self) -> Epoch {
        let view = self.view.borrow();
        let served = view.serving.as_ref().map_or(Epoch(0), |plan| plan.epoch());
        self.registration.epoch.max(served)
    }

    async fn keep(&mut self, mut session: Session) -> End {
        let interval = Duration::from_millis(session.welcome.heartbeat_ms.into());
        let mut ticks = time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut newest = None;
        let mut told = Arc::<Guidance>::default();
        let mut said = None;
        // Whoever gave up saying anything new still lives for as long as this client does.
        let mut news = true;
        // What was seen before the session is of no use to anybody now.
        while self.reports.try_recv().is_ok() {}
        loop {
            let received = tokio::select! {
                received = session.inbound.message() => received,
                _ = ticks.tick() => {
                    said = Some(self.beat(&session));
                    continue;
                }
                changed = self.beats.changed(), if news => {
                    news = changed.is_ok();
                    if said.as_ref().is_none_or(|said| urgent(said, &self.beats.borrow())) {
                        said = Some(self.beat(&session));
                    }
                    continue;
                }
                Some(report) = self.reports.recv() => {
                    // A queue that is full is one more reason not to keep old samples.
                    let _ = session.outbound.try_send(message(FromNode::Report(report.into())));
                    continue;
                }
            };
            match received {
                Ok(Some(CoordinatorMessage { kind: Some(ToNode::View(view)) })) => {
                    match ClusterView::try_from(view) {
                        Ok(view) => self.take(view, &mut newest),
                        Err(invalid) => return End::Lost(invalid.to_string()),
                    }
                }
                Ok(Some(CoordinatorMessage { kind: Some(ToNode::Guidance(guidance)) })) => {
                    told = Arc::new(control::guidance(guidance, &told));
                    self.guidance.send_replace(Arc::clone(&told));
                }
                Ok(Some(_)) => {
                    return End::Lost("expected a view or guidance, got another message".into());
                }
                Ok(None) => return End::Lost("the coordinator ended the session".into()),
                Err(status) => return end(&status),
            }
        }
    }

    /// Says the current beat and returns it.
    fn beat(&mut self, session: &Session) -> Beat {
        let beat = self.beats.borrow_and_update().clone();
        let heartbeat = FromNode::Heartbeat(Heartbeat::from(beat.clone()));
        // A queue that stays full belongs to a connection that keep-alive is about to end.
        let _ = session.outbound.try_send(message(heartbeat));
        beat
    }

    /// Keeps a view unless it is older than the session's last one (`newest`), or serves an older
    /// plan than the view at hand: then it comes from a coordinator that has forgotten, and is not
    /// followed. Versions of different sessions are not compared, for the same reason.
    fn take(&self, view: ClusterView, newest: &mut Option<u64>) {
        let epoch = |view: &ClusterView| view.serving.as_ref().map(|plan| plan.epoch());
        let later = newest.is_none_or(|newest| view.version > newest);
        *newest = (*newest).max(Some(view.version));
        self.view.send_if_modified(|current| {
            let taken = later && epoch(&view) >= epoch(current);
            if taken {
                *current = Arc::new(view);
            } else {
                tracing::debug!(version = view.version, "an older view is ignored");
            }
            taken
        });
    }
}

fn message(kind: FromNode) -> NodeMessage {
    NodeMessage { kind: Some(kind) }
}

/// Whether the coordinator should not have to wait for the next heartbeat.
fn urgent(said: &Beat, now: &Beat) -> bool {
    said.health != now.health || said.epoch_ready != now.epoch_ready
}

fn end(status: &Status) -> End {
    let leader = status.metadata().get(LEADER_METADATA);
    let leader = leader.and_then(|leader| leader.to_str().ok());
    if let (Code::Unavailable, Some(Ok(leader))) = (status.code(), leader.map(server_address)) {
        return End::Redirect(leader);
    }
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => End::Refused(status.message().to_owned()),
        _ => End::Lost(sentence(status)),
    }
}
