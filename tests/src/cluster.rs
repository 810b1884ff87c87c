//! A cluster inside the test's process: a coordinator, attention nodes and expert nodes, each on a thread of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use attention_node::AttentionNode;
use chassis::{Readiness, Shutdown, role::Process};
use domain::SequenceRequest;
use expert_node::ExpertNode;
use futures::StreamExt;
use gateway::{Gateway, Membership};
use model::{Compute, CpuOptions};
use node::{
    Site,
    config::{ClusterConfig, Device, GpuConfig, LinksConfig, ModelConfig, Schedule},
};
use policy::{batching::Tuning, placement, routing};
use proto::v1::admin_client::AdminClient;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use transport::{Hub, KeepAlive, sequences::Sequences};
use trust::Party;

use crate::Answer;

const COORDINATOR: &str = "inproc:coordinator";
/// Nothing in a test takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that comes.
const PAUSE: Duration = Duration::from_millis(10);

/// How attention nodes and expert nodes are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Within the process.
    Memory,
    /// Over loopback.
    Grpc,
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Attention nodes.
    pub attention: usize,
    /// Expert nodes.
    pub experts: usize,
    /// When layers run.
    pub schedule: Schedule,
    /// How nodes are joined.
    pub links: LinkKind,
    /// Precision.
    pub compute: Compute,
    /// Sequences that run at once on each attention node.
    pub sequences_max: usize,
    /// Sequences that wait on each attention node.
    pub waiting_max: usize,
    /// Memory of each KV cache.
    pub kv_bytes: u64,
    /// Tokens of a prefill chunk.
    pub chunk_tokens_max: usize,
    /// Whether sequences that begin alike share keys and values.
    pub prefix_caching: bool,
    /// Whether every expert node holds every expert.
    pub replicas: bool,
    /// How replicas are chosen for each batch, in lockstep.
    pub by_batch: Option<routing::Policy>,
    /// How plans are made; they are looked at again several times per second.
    pub placement: placement::Policy,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            attention: 1,
            experts: 1,
            schedule: Schedule::Async,
            links: LinkKind::Memory,
            compute: Compute::Bf16,
            sequences_max: 256,
            waiting_max: 1024,
            kv_bytes: 64 << 20,
            chunk_tokens_max: 32,
            prefix_caching: true,
            replicas: false,
            by_batch: None,
            placement: placement::Policy::Linear,
        }
    }
}

/// A running cluster. Stop it with [`Cluster::stop`].
#[derive(Debug)]
pub struct Cluster {
    process: Process,
    hub: Hub,
    sequences: Sequences,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Cluster {
    /// Starts every role. Sequences may be run at once; they wait until the nodes are linked.
    pub async fn start(checkpoint: &Path, layout: &Layout) -> Result<Self> {
        let process = Process {
            registry: chassis::metrics::registry("test")?,
            readiness: Readiness::default(),
            shutdown: Shutdown::new(PATIENCE),
            pages: chassis::admin::Pages::default(),
            trust: trust::Trust::default(),
            tracer: chassis::traces::Tracer::default(),
        };
        let hub = Hub::new();
        let mut config = coordinator::Config::default();
        COORDINATOR.clone_into(&mut config.control.listen);
        config.cluster.expert_nodes_min = layout.experts;
        config.cluster.heartbeat_ms = 50;
        config.placement = coordinator::PlacementConfig {
            policy: layout.placement,
            fill_spare_slots: layout.replicas,
            review_ms: 300,
            gain_percent: 0,
            ..coordinator::PlacementConfig::default()
        };
        let coordinator = coordinator::Coordinator::bind(config, &hub, process.clone()).await?;
        let mut tasks = vec![tokio::spawn(async move { Ok(coordinator.serve().await?) })];
        let site = |processor: &CpuOptions, device: &Device, gpu: &GpuConfig| {
            Site::open(processor, (device, gpu), hub.clone(), process.clone())
        };
        for number in 0..layout.experts {
            let config = expert_config(checkpoint, layout, number);
            let site = site(&config.device, &config.node.device, &config.gpu)?;
            tasks.push(tokio::spawn(async move {
                let joined = ExpertNode::join(config, &site).await?;
                let (engine, door) = joined.context("stopped early")?.start(&site);
                site.drive(vec![engine]).await?;
                door.await
            }));
        }
        for number in 0..layout.attention {
            let config = attention_config(checkpoint, layout, number);
            let site = site(&config.device, &config.node.device, &config.gpu)?;
            let joined = AttentionNode::join(config, &site).await?;
            let (engine, door) = joined.context("stopped early")?.start(&site);
            tasks.push(tokio::spawn(async move {
                site.drive(vec![engine]).await?;
                door.await
            }));
        }
        let sequences = Sequences::new(hub.clone(), KeepAlive::default());
        Ok(Self { process, hub, sequences, tasks })
    }

    /// Opens a gateway in front of it, which is ready when this returns.
    pub async fn open_gateway(&mut self, checkpoint: &Path) -> Result<SocketAddr> {
        let config = gateway_config(checkpoint);
        let membership = Membership::join(&config, self.hub.clone())?;
        let gateway = Gateway::open(config, membership.cluster(), self.process.clone()).await?;
        let address = gateway.address();
        self.tasks.push(tokio::spawn(async move {
            gateway.serve().await;
            membership.leave();
            Ok(())
        }));
        let ready = async {
            while !self.process.readiness.is_ready() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.context("the gateway does not get ready")?;
        Ok(address)
    }

    /// The sum of a metric's samples, over all roles.
    pub fn read(&self, metric: &str) -> Result<f64> {
        let text = chassis::metrics::encode(&self.process.registry)?;
        Ok(crate::metric(&text, metric))
    }

    /// Waits until the sum of a metric's samples is as wanted.
    pub async fn until(&self, metric: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
        let reached = async {
            while !wanted(self.read(metric)?) {
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(reached) => reached,
            Err(_) => bail!("{metric} stays at {}", self.read(metric)?),
        }
    }

    /// A client of the coordinator, as an operator has it.
    pub fn admin(&self) -> Result<AdminClient<Channel>> {
        Ok(AdminClient::new(transport::channel(
            COORDINATOR,
            Party::Coordinator,
            &self.hub,
            KeepAlive::default(),
        )?))
    }

    /// The registry of all roles.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Runs one sequence on an attention node to its end.
    pub async fn run(&self, attention: usize, request: SequenceRequest) -> Result<Answer> {
        let id = request.id.clone();
        let run = async {
            let address = format!("inproc:attention-{attention}");
            let mut tokens = self.sequences.run(&address, request, None).await?;
            let mut answer = Answer::default();
            while let Some(outputs) = tokens.next().await {
                answer.extend(outputs?);
            }
            Ok(answer)
        };
        match tokio::time::timeout(PATIENCE, run).await {
            Ok(answer) => answer,
            Err(_) => bail!("{id} hangs"),
        }
    }

    /// Starts a sequence and gives its stream, so that a test can walk away from it.
    pub async fn open(
        &self,
        attention: usize,
        request: SequenceRequest,
    ) -> Result<transport::sequences::Tokens> {
        let address = format!("inproc:attention-{attention}");
        Ok(self.sequences.run(&address, request, None).await?)
    }

    /// Drains everything; fails if a role did.
    pub async fn stop(self) -> Result<()> {
        self.process.shutdown.request();
        for task in self.tasks {
            tokio::time::timeout(PATIENCE, task).await.context("a role does not stop")???;
        }
        Ok(())
    }
}

fn device(layout: &Layout) -> CpuOptions {
    CpuOptions { threads: 1, compute: layout.compute, ..CpuOptions::default() }
}

fn cluster() -> ClusterConfig {
    ClusterConfig { coordinators: vec![COORDINATOR.to_owned()] }
}

fn model(checkpoint: &Path) -> ModelConfig {
    ModelConfig { path: PathBuf::from(checkpoint) }
}

fn gateway_config(checkpoint: &Path) -> gateway::Config {
    gateway::Config {
        model: gateway::config::ModelConfig {
            path: PathBuf::from(checkpoint),
            served_names: vec!["demo".to_owned()],
            positions_max: None,
            chat_template: None,
            sampling_defaults: gateway::config::SamplingDefaults::default(),
        },
        cluster: gateway::config::ClusterConfig {
            name: "gateway".to_owned(),
            coordinators: vec![COORDINATOR.to_owned()],
        },
        server: gateway::config::ServerConfig {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            ..gateway::config::ServerConfig::default()
        },
        public_tls: None,
        bounds: gateway::config::BoundsConfig::default(),
        patience: gateway::config::PatienceConfig::default(),
    }
}

fn expert_config(checkpoint: &Path, layout: &Layout, number: usize) -> expert_node::Config {
    expert_node::Config {
        node: expert_node::config::NodeConfig {
            name: format!("expert-{number}"),
            listen: match layout.links {
                LinkKind::Memory => format!("memory:expert-{number}"),
                LinkKind::Grpc => "127.0.0.1:0".to_owned(),
            },
            advertise: None,
            schedule: layout.schedule,
            device: Device::default(),
            profile: false,
            expert_slots: None,
        },
        cluster: cluster(),
        model: model(checkpoint),
        device: device(layout),
        gpu: GpuConfig::default(),
        batching: expert_node::config::default_batching(),
        links: LinksConfig::default(),
        loading: expert_node::config::LoadingConfig::default(),
    }
}

fn attention_config(checkpoint: &Path, layout: &Layout, number: usize) -> attention_node::Config {
    attention_node::Config {
        node: attention_node::config::NodeConfig {
            name: format!("attention-{number}"),
            listen: format!("inproc:attention-{number}"),
            advertise: None,
            schedule: layout.schedule,
            device: Device::default(),
        },
        cluster: cluster(),
        model: model(checkpoint),
        device: device(layout),
        gpu: GpuConfig::default(),
        batching: Tuning::default(),
        routing: attention_node::config::RoutingConfig { by_batch: layout.by_batch },
        prefix_caching: attention_node::config::PrefixCachingConfig {
            enabled: layout.prefix_caching,
        },
        bounds: attention_node::config::BoundsConfig {
            sequences_max: layout.sequences_max,
            waiting_max: layout.waiting_max,
            kv_bytes: layout.kv_bytes,
            chunk_tokens_max: layout.chunk_tokens_max,
            ..attention_node::config::BoundsConfig::default()
        },
        links: LinksConfig::default(),
        canary: attention_node::config::CanaryConfig::default(),
    }
}
