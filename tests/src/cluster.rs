//! A cluster inside the test's process: a coordinator, attention nodes and expert nodes, each on a thread of its own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use attention_node::AttentionNode;
use chassis::{Readiness, Shutdown, role::Process};
use domain::SequenceRequest;
use expert_node::ExpertNode;
use futures::StreamExt;
use model::{Compute, CpuOptions};
use node::{
    Site,
    config::{ClusterConfig, LinksConfig, ModelConfig, Schedule},
};
use policy::batching::Tuning;
use tokio::task::JoinHandle;
use transport::{Hub, KeepAlive, sequences::Sequences};

use crate::Answer;

const COORDINATOR: &str = "inproc:coordinator";
/// Nothing in a test takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

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
    /// Memory of each KV cache.
    pub kv_bytes: u64,
    /// Tokens of a prefill chunk.
    pub chunk_tokens_max: usize,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            attention: 1,
            experts: 1,
            schedule: Schedule::Async,
            links: LinkKind::Memory,
            compute: Compute::Bf16,
            kv_bytes: 64 << 20,
            chunk_tokens_max: 32,
        }
    }
}

/// A running cluster. Stop it with [`Cluster::stop`].
#[derive(Debug)]
pub struct Cluster {
    process: Process,
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
        };
        let hub = Hub::new();
        let mut config = coordinator::Config::default();
        COORDINATOR.clone_into(&mut config.control.listen);
        config.cluster.expert_nodes_min = layout.experts;
        config.cluster.heartbeat_ms = 50;
        let coordinator = coordinator::Coordinator::bind(config, &hub, process.clone()).await?;
        let mut tasks = vec![tokio::spawn(async move { Ok(coordinator.serve().await?) })];
        for number in 0..layout.experts {
            let config = expert_config(checkpoint, layout, number);
            let site = Site::open(&config.device, hub.clone(), process.clone())?;
            tasks.push(tokio::spawn(async move {
                let joined = ExpertNode::join(config, &site).await?;
                let (engine, door) = joined.context("stopped early")?.start(&site);
                site.drive(vec![engine]).await?;
                door.await
            }));
        }
        for number in 0..layout.attention {
            let config = attention_config(checkpoint, layout, number);
            let site = Site::open(&config.device, hub.clone(), process.clone())?;
            let joined = AttentionNode::join(config, &site).await?;
            let (engine, door) = joined.context("stopped early")?.start(&site);
            tasks.push(tokio::spawn(async move {
                site.drive(vec![engine]).await?;
                door.await
            }));
        }
        Ok(Self { process, sequences: Sequences::new(hub, KeepAlive::default()), tasks })
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
            let mut tokens = self.sequences.run(&address, request).await?;
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
        Ok(self.sequences.run(&address, request).await?)
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
            expert_slots: None,
        },
        cluster: cluster(),
        model: model(checkpoint),
        device: device(layout),
        batching: Tuning::default(),
        links: LinksConfig::default(),
    }
}

fn attention_config(checkpoint: &Path, layout: &Layout, number: usize) -> attention_node::Config {
    attention_node::Config {
        node: attention_node::config::NodeConfig {
            name: format!("attention-{number}"),
            listen: format!("inproc:attention-{number}"),
            advertise: None,
            schedule: layout.schedule,
        },
        cluster: cluster(),
        model: model(checkpoint),
        device: device(layout),
        batching: Tuning::default(),
        bounds: attention_node::config::BoundsConfig {
            kv_bytes: layout.kv_bytes,
            chunk_tokens_max: layout.chunk_tokens_max,
            ..attention_node::config::BoundsConfig::default()
        },
        links: LinksConfig::default(),
    }
}
