//! A whole cluster in one process: gateway, coordinator, attention nodes and expert nodes on one device.

use std::{
    net::SocketAddr,
    num::{NonZeroU16, NonZeroUsize},
    path::PathBuf,
    pin::Pin,
};

use anyhow::{Context, Error, Result, ensure};
use attention_node::{
    AttentionNode,
    config::{BoundsConfig, CanaryConfig, PrefixCachingConfig, RoutingConfig},
};
use chassis::role::{Process, RoleConfig};
use clap::{Args, ValueEnum};
use coordinator::Coordinator;
use expert_node::ExpertNode;
use gateway::{Gateway, Membership, config::SamplingDefaults};
use model::{Compute, CpuOptions, Isa};
use node::{
    Site,
    config::{ClusterConfig, Device, LinksConfig, ModelConfig, NcclUse, Schedule},
};
use policy::batching::Tuning;
use transport::Hub;
use trust::PublicTlsConfig;

use crate::gpu::DeviceFlags;

/// Where the coordinator is reached within the process.
const COORDINATOR: &str = "inproc:coordinator";
/// The bundled model, from the repository's root.
pub(crate) const DEMO: &str = "models/demo";

/// What a local cluster is made of.
#[derive(Clone, Debug, Args)]
pub(crate) struct LocalFlags {
    /// Folder of the checkpoint, in Hugging Face's layout.
    #[arg(default_value = DEMO)]
    pub(crate) model: PathBuf,
    /// Attention nodes.
    #[arg(long, default_value_t = NonZeroU16::MIN, value_name = "N", env = "AMOE_ATTENTION")]
    pub(crate) attention: NonZeroU16,
    /// Expert nodes.
    #[arg(long, default_value_t = NonZeroU16::MIN, value_name = "N", env = "AMOE_EXPERTS")]
    pub(crate) experts: NonZeroU16,
    #[command(flatten)]
    pub(crate) device: DeviceFlags,
    /// Threads that compute; all cores by default.
    #[arg(long, value_name = "N", env = "AMOE_THREADS")]
    pub(crate) threads: Option<usize>,
    /// Precision of products, links and KV cache.
    #[arg(long, default_value = "bf16", env = "AMOE_COMPUTE")]
    pub(crate) compute: ComputeName,
    /// Instruction set; the strongest of the machine by default.
    #[arg(long, env = "AMOE_ISA")]
    pub(crate) isa: Option<Isa>,
    /// When a layer may run.
    #[arg(long, default_value = "async", env = "AMOE_SCHEDULE")]
    pub(crate) schedule: ScheduleName,
    /// Longest sequence; by default what the model was made for.
    #[arg(long, value_name = "TOKENS", env = "AMOE_MAX_MODEL_LEN")]
    pub(crate) max_model_len: Option<u32>,
    /// Sequences that run at once on an attention node.
    #[arg(long, default_value_t = 256, value_name = "N", env = "AMOE_MAX_NUM_SEQS")]
    pub(crate) max_num_seqs: usize,
    /// Tokens under way at once on an attention node, of prompts and generated ones together.
    #[arg(long, default_value_t = rows_max(), value_name = "TOKENS", env = "AMOE_MAX_NUM_BATCHED_TOKENS")]
    pub(crate) max_num_batched_tokens: NonZeroUsize,
    /// Memory of an attention node's KV cache; it becomes resident as it is used, or is taken from a GPU at start.
    #[arg(long, default_value_t = 2 << 30, value_name = "BYTES", env = "AMOE_KV_CACHE_BYTES")]
    pub(crate) kv_cache_bytes: u64,
    /// Compute every prompt from its beginning, even if an earlier one began alike.
    #[arg(long, env = "AMOE_NO_ENABLE_PREFIX_CACHING")]
    pub(crate) no_enable_prefix_caching: bool,
    /// Time to the first token that is promised; requests that would wait longer get 429.
    #[arg(long, default_value_t = gateway::config::BoundsConfig::default().first_token_ms, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..), env = "AMOE_FIRST_TOKEN_MS")]
    pub(crate) first_token_ms: u64,
}

impl LocalFlags {
    /// The model as the public sees it, under its folder's name.
    pub(crate) fn public_model(&self, defaults: SamplingDefaults) -> gateway::config::ModelConfig {
        gateway::config::ModelConfig {
            path: self.model.clone(),
            served_names: Vec::new(),
            positions_max: self.max_model_len,
            chat_template: None,
            sampling_defaults: defaults,
        }
    }

    /// Checks what the types cannot, before anything starts.
    fn check(&self) -> Result<()> {
        let folder = &self.model;
        ensure!(
            folder.is_dir(),
            "{}: no such folder, expected one that holds a checkpoint in Hugging Face's layout",
            folder.display()
        );
        let on_gpu = matches!(self.device.device, Device::Cuda(_));
        ensure!(
            !on_gpu || self.experts == NonZeroU16::MIN,
            "--experts is {}, expected 1 on a GPU: an expert node takes what the device has left",
            self.experts
        );
        attention_config(self, 0).check().map_err(Error::msg)?;
        expert_config(self, 0).check().map_err(Error::msg)?;
        Ok(())
    }
}

/// Precisions by their names.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ComputeName {
    /// bf16 operands, f32 sums.
    Bf16,
    /// f32 everywhere: the exact reference.
    F32,
}

impl From<ComputeName> for Compute {
    fn from(name: ComputeName) -> Self {
        match name {
            ComputeName::Bf16 => Self::Bf16,
            ComputeName::F32 => Self::F32,
        }
    }
}

/// Schedules by their names.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ScheduleName {
    /// Every token goes on alone.
    Async,
    /// Ordinary expert parallelism, the baseline.
    Lockstep,
}

/// The cluster, listening and not serving yet.
#[derive(Debug)]
pub(crate) struct LocalCluster {
    flags: LocalFlags,
    process: Process,
    hub: Hub,
    coordinator: Coordinator,
    membership: Membership,
    gateway: Gateway,
}

// === impl LocalCluster ===

impl LocalCluster {
    /// Opens the coordinator and the gateway, which shows the model as `model` says. Must be called within a
    /// tokio runtime.
    pub(crate) async fn open(
        flags: LocalFlags,
        model: gateway::config::ModelConfig,
        server: gateway::config::ServerConfig,
        public_tls: Option<PublicTlsConfig>,
        process: Process,
    ) -> Result<Self> {
        flags.check()?;
        let hub = Hub::new();
        let coordinator =
            Coordinator::bind(coordinator_config(&flags), &hub, process.clone()).await?;
        let config = gateway::Config {
            model,
            cluster: gateway::config::ClusterConfig {
                name: "gateway".to_owned(),
                coordinators: vec![COORDINATOR.to_owned()],
            },
            server,
            public_tls,
            bounds: gateway::config::BoundsConfig {
                first_token_ms: flags.first_token_ms,
                ..gateway::config::BoundsConfig::default()
            },
            patience: gateway::config::PatienceConfig::default(),
        };
        let membership = Membership::join(&config, hub.clone())?;
        let gateway = Gateway::open(config, membership.cluster(), process.clone()).await?;
        Ok(Self { flags, process, hub, coordinator, membership, gateway })
    }

    /// Where the gateway listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    /// Serves until the process's shutdown is requested and everything has drained.
    pub(crate) async fn serve(self) -> Result<()> {
        let Self { flags, process, hub, coordinator, membership, gateway } = self;
        let coordinator = tokio::spawn(coordinator.serve());
        let gateway = tokio::spawn(gateway.serve());
        let leaver = process.shutdown.clone();
        let leave = tokio::spawn(async move {
            leaver.requested().await;
            membership.leave();
        });
        let nodes = nodes(&flags, hub, process.clone()).await;
        // Without its nodes the rest has nothing to serve.
        process.shutdown.request();
        gateway.await?;
        leave.await?;
        coordinator.await??;
        nodes
    }
}

/// The attention nodes and the expert nodes, taking turns on one device.
async fn nodes(flags: &LocalFlags, hub: Hub, process: Process) -> Result<()> {
    let device = (&flags.device.device, &flags.device.gpu());
    let site = Site::open(&processor(flags), device, hub, process)?;
    let mut engines = Vec::new();
    let mut doors: Vec<Pin<Box<dyn Future<Output = Result<()>> + Send>>> = Vec::new();
    for number in 0..flags.attention.get() {
        let attention = AttentionNode::join(attention_config(flags, number), &site);
        let Some(attention) = attention.await.context("attention node")? else { return Ok(()) };
        let (engine, door) = attention.start(&site);
        engines.push(engine);
        doors.push(Box::pin(door));
    }
    for number in 0..flags.experts.get() {
        let expert = ExpertNode::join(expert_config(flags, number), &site);
        let Some(expert) = expert.await.context("expert node")? else { return Ok(()) };
        let (engine, door) = expert.start(&site);
        engines.push(engine);
        doors.push(Box::pin(door));
    }
    site.drive(engines).await?;
    for door in doors {
        door.await?;
    }
    Ok(())
}

/// The processor as the flags want it.
pub(crate) fn processor(flags: &LocalFlags) -> CpuOptions {
    let default = CpuOptions::default();
    CpuOptions {
        threads: flags.threads.unwrap_or(default.threads),
        compute: flags.compute.into(),
        isa: flags.isa,
        ..default
    }
}

fn schedule(flags: &LocalFlags) -> Schedule {
    match flags.schedule {
        ScheduleName::Async => Schedule::Async,
        ScheduleName::Lockstep => Schedule::Lockstep,
    }
}

fn coordinator_config(flags: &LocalFlags) -> coordinator::Config {
    let mut config = coordinator::Config::default();
    COORDINATOR.clone_into(&mut config.control.listen);
    config.cluster.expert_nodes_min = usize::from(flags.experts.get());
    // All expert nodes are one device: there is nothing to balance.
    config.placement.policy = policy::placement::Policy::Linear;
    config
}

fn cluster() -> ClusterConfig {
    ClusterConfig { coordinators: vec![COORDINATOR.to_owned()] }
}

fn attention_config(flags: &LocalFlags, number: u16) -> attention_node::Config {
    attention_node::Config {
        node: attention_node::config::NodeConfig {
            name: format!("attention-{number}"),
            listen: format!("inproc:attention-{number}"),
            advertise: None,
            schedule: schedule(flags),
            device: flags.device.device.clone(),
        },
        cluster: cluster(),
        model: ModelConfig { path: flags.model.clone() },
        device: processor(flags),
        gpu: flags.device.gpu(),
        batching: Tuning::default(),
        routing: RoutingConfig::default(),
        bounds: bounds(flags),
        prefix_caching: PrefixCachingConfig { enabled: !flags.no_enable_prefix_caching },
        links: links(),
        canary: CanaryConfig::default(),
    }
}

/// Links within the process carry pointers, on a GPU too.
fn links() -> LinksConfig {
    LinksConfig { nccl: NcclUse::Off, ..LinksConfig::default() }
}

fn bounds(flags: &LocalFlags) -> BoundsConfig {
    let default = BoundsConfig::default();
    let rows_max = flags.max_num_batched_tokens.get();
    BoundsConfig {
        sequences_max: flags.max_num_seqs,
        // A chunk of a prompt is under way as a whole.
        chunk_tokens_max: default.chunk_tokens_max.min(rows_max),
        rows_max,
        positions_max: flags.max_model_len.map(|tokens| tokens as usize),
        kv_bytes: flags.kv_cache_bytes,
        ..default
    }
}

fn rows_max() -> NonZeroUsize {
    NonZeroUsize::new(BoundsConfig::default().rows_max).unwrap_or(NonZeroUsize::MIN)
}

fn expert_config(flags: &LocalFlags, number: u16) -> expert_node::Config {
    expert_node::Config {
        node: expert_node::config::NodeConfig {
            name: format!("expert-{number}"),
            listen: format!("memory:expert-{number}"),
            advertise: None,
            schedule: schedule(flags),
            device: flags.device.device.clone(),
            profile: false,
            expert_slots: None,
        },
        cluster: cluster(),
        model: ModelConfig { path: flags.model.clone() },
        device: processor(flags),
        gpu: flags.device.gpu(),
        batching: expert_node::config::default_batching(),
        links: links(),
        loading: expert_node::config::LoadingConfig::default(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::LocalFlags;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        local: LocalFlags,
    }

    #[test]
    fn what_cannot_be_meant_is_a_sentence_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().to_str().unwrap();
        for (flags, sentence) in [
            (vec![folder], ""),
            (vec!["/nowhere"], "/nowhere: no such folder"),
            (vec![folder, "--max-num-seqs", "0"], "key `bounds.sequences_max` is 0"),
            (vec![folder, "--device", "cuda:0", "--experts", "2"], "--experts is 2, expected 1"),
        ] {
            let parsed = Flags::parse_from([vec!["amoe"], flags].concat());
            let told =
                parsed.local.check().err().map_or_else(String::new, |error| error.to_string());
            assert!(told.starts_with(sentence) && told.is_empty() == sentence.is_empty(), "{told}");
        }
    }
}
