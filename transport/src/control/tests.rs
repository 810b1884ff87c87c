//! The client against a coordinator that does what each test says.

use domain::{Digest, Health, Load, ModelShape, NodeId, Plan, Role};
use futures::stream::BoxStream;
use proto::internal::{
    self,
    control_server::{Control, ControlServer},
};
use tonic::{Request, Response, metadata::MetadataValue};
use trust::Callers;

use super::*;
use crate::{
    relay::Relay,
    server::{Listener, Services, serve},
};

/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// A lease so long that only urgent beats and the first one come during a test.
const SLOW: Welcome =
    Welcome { node_id: NodeId(7), lease_ms: 3_600_000, heartbeat_ms: 1_800_000, report_ms: 0 };

type Answer = Result<CoordinatorMessage, Status>;

/// A coordinator that hands every session to the test.
struct Coordinator {
    address: String,
    sessions: mpsc::Receiver<Opened>,
    server: tokio::task::JoinHandle<()>,
}

/// A session as the coordinator sees it.
struct Opened {
    inbound: Streaming<NodeMessage>,
    answers: mpsc::Sender<Answer>,
}

struct Service {
    sessions: mpsc::Sender<Opened>,
}

#[tonic::async_trait]
impl Control for Service {
    type SessionStream = BoxStream<'static, Answer>;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (answers, stream) = mpsc::channel(16);
        let opened = Opened { inbound: request.into_inner(), answers };
        self.sessions.send(opened).await.map_err(|_| Status::unavailable("test over"))?;
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }
}

impl Coordinator {
    async fn start(address: &str, hub: &Hub) -> Self {
        let listener = Listener::bind(address, hub).await.unwrap();
        let address = listener.address().unwrap();
        let (sender, sessions) = mpsc::channel(16);
        let services = Services::new(settings(&[]).keep_alive)
            .add(ControlServer::new(Service { sessions: sender }), Callers::Everybody);
        let server = tokio::spawn(async move {
            serve(listener, services, std::future::pending()).await.unwrap();
        });
        Self { address, sessions, server }
    }

    async fn session(&mut self) -> (Registration, Opened) {
        let session = time::timeout(PATIENCE, self.sessions.recv()).await;
        let mut opened = session.expect("no session").unwrap();
        let Some(FromNode::Register(register)) = opened.next().await else {
            panic!("expected a registration first");
        };
        (Registration::try_from(register).unwrap(), opened)
    }

    async fn welcomed(&mut self, welcome: Welcome) -> (Registration, Opened) {
        let (registration, opened) = self.session().await;
        opened.answer(ToNode::Welcome(welcome.into())).await;
        (registration, opened)
    }
}

impl Opened {
    async fn next(&mut self) -> Option<FromNode> {
        let message = time::timeout(PATIENCE, self.inbound.message()).await;
        message.expect("no message").ok().flatten()?.kind
    }

    async fn beat(&mut self) -> Beat {
        match self.next().await {
            Some(FromNode::Heartbeat(beat)) => Beat::try_from(beat).unwrap(),
            other => panic!("expected a heartbeat, got {other:?}"),
        }
    }

    async fn answer(&self, kind: ToNode) {
        let message = CoordinatorMessage { kind: Some(kind) };
        self.answers.send(Ok(message)).await.unwrap();
    }

    async fn view(&self, version: u64, epoch: u64) {
        let view = internal::ClusterView::from(&view(version, epoch));
        self.answer(ToNode::View(view)).await;
    }
}

fn settings(endpoints: &[&str]) -> ControlSettings {
    ControlSettings {
        welcome_timeout: Duration::from_secs(5),
        backoff: Backoff { first: Duration::from_millis(5), max: Duration::from_millis(20) },
        refused_pause: Duration::from_millis(5),
        keep_alive: KeepAlive {
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(400),
        },
        ..ControlSettings::new(endpoints.iter().map(ToString::to_string).collect())
    }
}

fn shape() -> ModelShape {
    ModelShape {
        layers: 1,
        moe_layers: vec![],
        experts: 0,
        top_k: 0,
        hidden: 8,
        expert_bytes: 0,
        vocab: 8,
        positions_max: 8,
    }
}

fn view(version: u64, epoch: u64) -> ClusterView {
    let plan = Plan::new(Epoch(epoch), None, &shape(), vec![]).unwrap();
    ClusterView {
        version,
        shape: Some(shape()),
        serving: Some(Arc::new(plan)),
        ..ClusterView::default()
    }
}

fn registration() -> Registration {
    Registration {
        name: "gate".into(),
        role: Role::Gateway,
        address: "gate:1".into(),
        model_fingerprint: String::new(),
        numerics: String::new(),
        shape: None,
        expert_slots: 0,
        experts_max: None,
        epoch: Epoch(2),
        node: None,
        curves: None,
    }
}

fn beat(health: Health, running: u32) -> Beat {
    Beat { health, load: Load { running, ..Load::default() }, epoch_ready: Epoch(0) }
}

/// A client of the given coordinators, and what it says of itself.
fn client(endpoints: &[&str], hub: &Hub) -> (ControlClient, watch::Sender<Beat>) {
    let (_, reports) = mpsc::channel(1);
    client_that_reports(endpoints, reports, hub)
}

fn client_that_reports(
    endpoints: &[&str],
    reports: mpsc::Receiver<Report>,
    hub: &Hub,
) -> (ControlClient, watch::Sender<Beat>) {
    let (beats, said) = watch::channel(beat(Health::Joining, 0));
    let (settings, hub) = (settings(endpoints), hub.clone());
    let client = ControlClient::start(settings, registration(), said, reports, hub).unwrap();
    (client, beats)
}

async fn seen<T>(watched: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) {
    let seen = time::timeout(PATIENCE, watched.wait_for(wanted)).await;
    drop(seen.expect("never seen").expect("the client is gone"));
}

#[tokio::test]
async fn a_client_registers_and_beats() {
    let hub = Hub::new();
    let mut coordinator = Coordinator::start("inproc:c", &hub).await;
    let (client, _beats) = client(&["inproc:c"], &hub);
    let often = Welcome { node_id: NodeId(7), lease_ms: 100, heartbeat_ms: 5, report_ms: 0 };
    let (registered, mut opened) = coordinator.welcomed(often).await;
    assert_eq!(registered, registration());
    for _ in 0..5 {
        assert_eq!(opened.beat().await, beat(Health::Joining, 0));
    }
    assert_eq!(*client.welcome().borrow(), Some(often));
    let connected = ControlStatus::Connected("inproc:c".into());
    assert_eq!(*client.status().borrow(), connected);
    drop(client);
    while opened.next().await.is_some() {}
}

#[tokio::test]
async fn what_the_coordinator_acts_on_is_said_at_once() {
    let hub = Hub::new();
    let mut coordinator = Coordinator::start("inproc:c", &hub).await;
    let (_client, beats) = client(&["inproc:c"], &hub);
    let (_, mut opened) = coordinator.welcomed(SLOW).await;
    assert_eq!(opened.beat().await, beat(Health::Joining, 0));
    // A load waits for the next heartbeat, which is half an hour away.
    beats.send_replace(beat(Health::Joining, 5));
    tokio::task::yield_now().await;
    beats.send_replace(beat(Health::Ready, 6));
    assert_eq!(opened.beat().await, beat(Health::Ready, 6));
    let ready = Beat { epoch_ready: Epoch(3), ..beat(Health::Ready, 7) };
    beats.send_replace(ready.clone());
    assert_eq!(opened.beat().await, ready);
}

#[tokio::test]
async fn reports_are_passed_on_and_guidance_is_kept() {
    let hub = Hub::new();
    let mut coordinator = Coordinator::start("inproc:c", &hub).await;
    let (reports, to_pass_on) = mpsc::channel(2);
    let report = |queued| Report { queued: vec![queued], ..Report::default() };
    reports.send(report(1)).await.unwrap();
    let (client, _beats) = client_that_reports(&["inproc:c"], to_pass_on, &hub);
    let (_, mut opened) = coordinator.welcomed(SLOW).await;
    assert_eq!(opened.beat().await, beat(Health::Joining, 0));
    reports.send(report(2)).await.unwrap();
    match opened.next().await {
        Some(FromNode::Report(passed)) => {
            assert_eq!(
                Report::from(passed),
                report(2),
                "what is older than the session is dropped"
            );
        }
        other => panic!("expected a report, got {other:?}"),
    }
    let digest = Digest { rows: vec![1], pairs: vec![2] };
    let guidance = Guidance { lease: None, digest: Some(digest) };
    opened.answer(ToNode::Guidance(internal::Guidance::from(&guidance))).await;
    seen(&mut client.guidance(), |seen| **seen == guidance).await;
    drop((coordinator.sessions, opened));
    coordinator.server.abort();
    seen(&mut client.status(), |status| matches!(status, ControlStatus::Lost(_))).await;
    assert_eq!(**client.guidance().borrow(), guidance);
}

#[tokio::test]
async fn the_last_view_outlives_its_coordinator() {
    let hub = Hub::new();
    let mut coordinator = Coordinator::start("inproc:c", &hub).await;
    let (client, _beats) = client(&["inproc:c"], &hub);
    let mut seen_view = client.view();
    let (_, opened) = coordinator.welcomed(SLOW).await;
    for (version, epoch) in [(5, 3), (4, 3), (6, 4)] {
        opened.view(version, epoch).await;
    }
    seen(&mut seen_view, |view| view.version == 6).await;

    drop((coordinator.sessions, opened));
    coordinator.server.abort();
    seen(&mut client.status(), |status| matches!(status, ControlStatus::Lost(_))).await;
    assert_eq!(**seen_view.borrow(), view(6, 4));

    let mut coordinator = loop {
        // The name is free when the old server's task has been dropped.
        tokio::task::yield_now().await;
        if hub.inproc("c").is_none_or(|server| server.is_closed()) {
            break Coordinator::start("inproc:c", &hub).await;
        }
    };
    let (registered, opened) = coordinator.welcomed(SLOW).await;
    assert_eq!(registered.epoch, Epoch(4), "the newest epoch the node has served");
    opened.view(1, 3).await;
    opened.view(2, 4).await;
    seen(&mut seen_view, |view| view.version != 6).await;
    assert_eq!(**seen_view.borrow(), view(2, 4));
}

#[tokio::test]
async fn the_leader_is_found_from_any_coordinator() {
    let hub = Hub::new();
    let mut follower = Coordinator::start("127.0.0.1:0", &hub).await;
    let mut leader = Coordinator::start("127.0.0.1:0", &hub).await;
    let (client, _beats) = client(&[&follower.address], &hub);
    let not_leading = |leader: &str| {
        let mut status = Status::unavailable("another coordinator leads");
        status.metadata_mut().insert(LEADER_METADATA, MetadataValue::try_from(leader).unwrap());
        status
    };
    let (_, opened) = follower.session().await;
    opened.answers.send(Err(not_leading(&leader.address))).await.unwrap();
    let (_, opened) = leader.welcomed(SLOW).await;
    let connected = ControlStatus::Connected(leader.address.clone());
    seen(&mut client.status(), |status| *status == connected).await;
    // The lead moves while the session lasts.
    opened.answers.send(Err(not_leading(&follower.address))).await.unwrap();
    let (_, _opened) = follower.welcomed(SLOW).await;
    let connected = ControlStatus::Connected(follower.address.clone());
    seen(&mut client.status(), |status| *status == connected).await;
}

#[tokio::test]
async fn the_next_coordinator_is_tried_when_one_goes_silent() {
    let hub = Hub::new();
    let mut first = Coordinator::start("127.0.0.1:0", &hub).await;
    let relay = Relay::to(&first.address).await;
    let mut second = Coordinator::start("inproc:second", &hub).await;
    let (client, _beats) = client(&[&relay.address, "inproc:second"], &hub);
    let (_, mut opened) = first.welcomed(SLOW).await;
    opened.beat().await;
    relay.freeze(true);
    let (_, mut opened) = second.welcomed(SLOW).await;
    opened.beat().await;
    let connected = ControlStatus::Connected("inproc:second".into());
    seen(&mut client.status(), |status| *status == connected).await;
}

#[tokio::test]
async fn a_refused_node_says_why_and_asks_again() {
    let hub = Hub::new();
    let mut coordinator = Coordinator::start("inproc:c", &hub).await;
    let (client, _beats) = client(&["inproc:c"], &hub);
    for _ in 0..2 {
        let (_, opened) = coordinator.session().await;
        let refusal = Status::failed_precondition("another model");
        opened.answers.send(Err(refusal)).await.unwrap();
        let refused = ControlStatus::Refused("another model".into());
        seen(&mut client.status(), |status| *status == refused).await;
    }
    let (_, mut opened) = coordinator.welcomed(SLOW).await;
    opened.beat().await;
}

#[tokio::test]
async fn a_coordinator_that_talks_nonsense_is_left() {
    let hub = Hub::new();
    let mut coordinator = Coordinator::start("inproc:c", &hub).await;
    let (client, _beats) = client(&["inproc:c"], &hub);
    let nonsense = internal::Welcome { node_id: 1, lease_ms: 5, heartbeat_ms: 5, report_ms: 0 };
    let broken_view = internal::ClusterView {
        serving: Some(internal::Plan::default()),
        ..internal::ClusterView::default()
    };
    for (first, then, why) in [
        (
            ToNode::View(internal::ClusterView::default()),
            None,
            "the first message is not a welcome",
        ),
        (
            ToNode::Welcome(nonsense),
            None,
            "welcome.heartbeat_ms: is 5, expected 1 to below the lease of 5",
        ),
        (
            ToNode::Welcome(SLOW.into()),
            Some(ToNode::Welcome(SLOW.into())),
            "expected a view or guidance, got another message",
        ),
        (ToNode::Welcome(SLOW.into()), Some(ToNode::View(broken_view)), "view.shape: is missing"),
    ] {
        let (_, opened) = coordinator.session().await;
        opened.answer(first).await;
        if let Some(then) = then {
            opened.answer(then).await;
        }
        let lost = ControlStatus::Lost(why.into());
        seen(&mut client.status(), |status| *status == lost).await;
    }
    assert_eq!(client.view().borrow().version, 0);
}
