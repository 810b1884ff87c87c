//! Coordinators and fake nodes over real gRPC sessions.

use std::{sync::Arc, time::Duration};

use chassis::{Shutdown, admin::AdminConfig, role::Process};
use coordinator::{Config, Coordinator, LEADER_METADATA};
use domain::{ClusterView, Epoch, Health, Layer, Load, ModelShape, Plan, Role};
use proto::{
    control::{Beat, Registration, Welcome},
    internal::{
        self as wire, control_client::ControlClient, coordinator_message::Kind as ToNode,
        node_message::Kind as FromNode,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use transport::{Hub, KeepAlive};

/// Longer than anything takes; only a hang gets here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const HEARTBEAT_MS: u64 = 50;

pub(crate) fn config(expert_nodes_min: usize) -> Config {
    let mut config = Config::default();
    config.control.listen = "127.0.0.1:0".to_owned();
    config.control.leader_lease_ms = 2_000;
    config.cluster.expert_nodes_min = expert_nodes_min;
    config.cluster.heartbeat_ms = HEARTBEAT_MS;
    config.cluster.lease_ms = 2_000;
    config
}

pub(crate) fn shape() -> ModelShape {
    ModelShape {
        layers: 3,
        moe_layers: vec![Layer(1), Layer(2)],
        experts: 6,
        top_k: 2,
        hidden: 64,
        expert_bytes: 1,
        vocab: 512,
        positions_max: 128,
    }
}

// === coordinators ===

/// A coordinator that runs in the background.
pub(crate) struct Running {
    pub(crate) address: String,
    pub(crate) process: Process,
    served: JoinHandle<Result<(), coordinator::RunError>>,
}

impl Running {
    pub(crate) async fn start(config: Config) -> Self {
        Self::start_in(config, &Hub::new()).await
    }

    pub(crate) async fn start_in(config: Config, hub: &Hub) -> Self {
        let process = Process {
            registry: prometheus::Registry::new(),
            readiness: chassis::Readiness::default(),
            shutdown: Shutdown::new(PATIENCE),
            pages: chassis::admin::Pages::default(),
            trust: trust::Trust::default(),
            tracer: chassis::traces::Tracer::default(),
        };
        let coordinator = Coordinator::bind(config, hub, process.clone()).await.unwrap();
        let address = coordinator.address().to_owned();
        let served = tokio::spawn(coordinator.serve());
        Self { address, process, served }
    }

    /// Stops it in good order.
    pub(crate) async fn stop(self) {
        self.process.shutdown.request();
        timeout(PATIENCE, self.served).await.unwrap().unwrap().unwrap();
    }

    /// Ends it in the middle of what it does.
    pub(crate) async fn kill(self) {
        self.served.abort();
        let _ = self.served.await;
    }

    /// A page of its admin door.
    pub(crate) async fn page(&self, path: &str) -> serde_json::Value {
        let config = AdminConfig { address: ([127, 0, 0, 1], 0).into(), tls: false };
        let door = self.process.open_admin(&config).await.unwrap();
        let mut stream = TcpStream::connect(door.address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        serde_json::from_str(body).unwrap()
    }

    /// The sum of a metric's samples whose labels contain `label`.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let text = chassis::metrics::encode(&self.process.registry).unwrap();
        let samples = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    pub(crate) async fn metric_reaches(&self, name: &str, label: &str, expected: f64) {
        let reached = async {
            while self.metric(name, label) != expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, reached).await.is_err() {
            panic!("{name}{{{label}}} is {}, not {expected}", self.metric(name, label));
        }
    }
}

// === nodes ===

pub(crate) fn registration(name: &str) -> Registration {
    let role = if name.starts_with("attention") { Role::Attention } else { Role::Expert };
    Registration {
        name: name.to_owned(),
        role,
        address: format!("{name}:7000"),
        model_fingerprint: "f00d".to_owned(),
        numerics: String::new(),
        shape: Some(shape()),
        expert_slots: if role == Role::Expert { 12 } else { 0 },
        experts_max: None,
        epoch: Epoch(0),
        node: None,
        curves: None,
    }
}

/// A session that was opened by hand.
pub(crate) struct Session {
    pub(crate) welcome: Welcome,
    pub(crate) beats: mpsc::Sender<wire::NodeMessage>,
    pub(crate) messages: Streaming<wire::CoordinatorMessage>,
}

/// The way to a coordinator.
pub(crate) fn channel(address: &str) -> Channel {
    let (party, hub) = (trust::Party::Coordinator, Hub::new());
    transport::channel(address, party, &hub, KeepAlive::default()).unwrap()
}

impl Session {
    pub(crate) async fn open(address: &str, registration: Registration) -> Result<Self, Status> {
        let (beats, from_node) = mpsc::channel(8);
        let register = FromNode::Register(registration.into());
        beats.send(wire::NodeMessage { kind: Some(register) }).await.unwrap();
        let mut client: ControlClient<Channel> = ControlClient::new(channel(address));
        let answer = timeout(PATIENCE, client.session(ReceiverStream::new(from_node)));
        let mut messages = answer.await.unwrap()?.into_inner();
        match messages.message().await?.and_then(|message| message.kind) {
            Some(ToNode::Welcome(welcome)) => {
                Ok(Self { welcome: welcome.try_into().unwrap(), beats, messages })
            }
            other => panic!("expected a welcome, got {other:?}"),
        }
    }

    pub(crate) async fn beat(&self, health: Health, epoch_ready: u64) {
        let beat = Beat { health, load: Load::default(), epoch_ready: Epoch(epoch_ready) };
        let beat = FromNode::Heartbeat(beat.into());
        // A session that has ended takes no beats; its stream says why.
        let _ = self.beats.send(wire::NodeMessage { kind: Some(beat) }).await;
    }

    /// The next view, or the status that the session ended with.
    pub(crate) async fn view(&mut self) -> Result<ClusterView, Status> {
        loop {
            let message =
                timeout(PATIENCE, self.messages.message()).await.expect("no view came")?;
            match message.and_then(|message| message.kind) {
                Some(ToNode::View(view)) => return Ok(view.try_into().unwrap()),
                Some(ToNode::Guidance(_)) => {}
                Some(other) => panic!("expected a view, got {other:?}"),
                None => return Err(Status::unavailable("the session ended without a word")),
            }
        }
    }
}

/// A node that behaves: registers with whoever leads, loads what plans ask for, and beats.
pub(crate) struct Node {
    views: watch::Receiver<Arc<ClusterView>>,
    pub(crate) id: watch::Receiver<u32>,
    /// The health it reports.
    pub(crate) health: watch::Sender<Health>,
    run: JoinHandle<()>,
}

impl Node {
    pub(crate) fn start(coordinators: &[String], name: &str) -> Self {
        let (views, watched) = watch::channel(Arc::default());
        let (id, watched_id) = watch::channel(0);
        let (health, _) = watch::channel(Health::Ready);
        let (coordinators, name) = (coordinators.to_vec(), name.to_owned());
        let reported = health.clone();
        let run = tokio::spawn(async move {
            let mut turn = 0;
            loop {
                let mut address = coordinators[turn % coordinators.len()].clone();
                turn += 1;
                // Whoever does not lead says who does.
                for _ in 0..2 {
                    match serve_session(&address, &name, &views, &id, &reported).await {
                        Err(status) => match status.metadata().get(LEADER_METADATA) {
                            Some(leader) => leader.to_str().unwrap().clone_into(&mut address),
                            None => break,
                        },
                        Ok(()) => break,
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { views: watched, id: watched_id, health, run }
    }

    /// Dies without a word.
    pub(crate) async fn kill(self) {
        self.run.abort();
        let _ = self.run.await;
    }

    pub(crate) fn view(&self) -> Arc<ClusterView> {
        self.views.borrow().clone()
    }

    /// Waits for a view that satisfies `wanted`.
    pub(crate) async fn sees(
        &self,
        what: &str,
        wanted: impl Fn(&ClusterView) -> bool,
    ) -> Arc<ClusterView> {
        let mut views = self.views.clone();
        let seen = timeout(PATIENCE, views.wait_for(|view| wanted(view)));
        match seen.await {
            Ok(view) => view.unwrap().clone(),
            Err(_) => panic!("never saw {what}; the last view is {:?}", self.view()),
        }
    }

    pub(crate) async fn sees_serving(&self, epoch: u64) -> Arc<Plan> {
        let view = self.sees(&format!("epoch {epoch} serve"), |view| serving(view) == epoch).await;
        view.serving.clone().unwrap()
    }
}

pub(crate) fn serving(view: &ClusterView) -> u64 {
    view.serving.as_ref().map_or(0, |plan| plan.epoch().0)
}

async fn serve_session(
    address: &str,
    name: &str,
    views: &watch::Sender<Arc<ClusterView>>,
    id: &watch::Sender<u32>,
    health: &watch::Sender<Health>,
) -> Result<(), Status> {
    let registration =
        Registration { epoch: Epoch(serving(&views.borrow())), ..registration(name) };
    let mut session = Session::open(address, registration).await?;
    id.send_replace(session.welcome.node_id.0);
    let mut beat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    loop {
        tokio::select! {
            view = session.view() => {
                let view = view?;
                assert!(serving(&view) >= serving(&views.borrow()), "an epoch was taken back");
                assert!(view.version > views.borrow().version, "a view was taken back");
                views.send_replace(Arc::new(view));
            }
            _ = beat.tick() => {}
        }
        let view = views.borrow().clone();
        let newest = view.target.as_ref().or(view.serving.as_ref());
        let ready = newest.map_or(0, |plan| plan.epoch().0);
        let health = *health.borrow();
        session.beat(health, ready).await;
    }
}
