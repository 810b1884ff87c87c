//! The expert node: holds experts, queues what attention nodes send, runs the queue that is worth most.

mod barrier;
pub mod config;
mod engine;
mod launch;
mod loader;
mod metrics;
mod profile;
mod queues;
mod shard;
mod tallies;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chassis::{Shutdown, engine::Engine, role::Process};
use domain::{Curves, Role};
use model::{Checkpoint, Cpu, ExpertHalf, Gpu};
use node::{Membership, Newcomer, Pace, Site, config::GpuConfig};
use transport::{
    Address, Hub, KeepAlive, Listener, Services,
    link::{LinkMetrics, Links, MemoryListener},
};
use trust::{Callers, Party};

pub use config::Config;
use engine::{ExpertEngine, Joints, Schedule};
use loader::Loader;
use metrics::Metrics;
pub use profile::profile;
use shard::Shard;

/// The condition that this node names to its process's readiness.
const EXPERTS_LOADED: &str = "experts";

/// The part of a GPU's places for experts that is left to a next plan, whose experts come before the old ones go.
const SPARE_PART: usize = 8;

/// A node that has joined its cluster and is not driven yet.
#[derive(Debug)]
pub struct ExpertNode {
    engine: ExpertEngine,
    door: Door,
    membership: Membership,
}

/// How attention nodes get in.
#[derive(Debug)]
enum Door {
    /// From within the process. Its links end with it.
    Memory(MemoryListener),
    /// Through a port.
    Port { listener: Listener, links: Links },
}

/// Serves until the process's shutdown is requested and no attention node is linked any more.
///
/// # Errors
/// The device, the checkpoint or the addresses cannot be used, or the engine died.
pub async fn run(config: Config, process: Process) -> Result<()> {
    let hub = Hub::trusting(&process.trust);
    let site = Site::open(&config.device, (&config.node.device, &config.gpu), hub, process)?;
    let Some(node) = ExpertNode::join(config, &site).await? else { return Ok(()) };
    let (engine, serving) = node.start(&site);
    site.drive(vec![engine]).await?;
    serving.await
}

impl ExpertNode {
    /// Opens the checkpoint and the door, and registers. None if a stop was asked for meanwhile.
    ///
    /// # Errors
    /// The checkpoint or the addresses cannot be used.
    pub async fn join(config: Config, site: &Site) -> Result<Option<Self>> {
        site.process.readiness.part(&config.node.name).set(EXPERTS_LOADED, false);
        let checkpoint = Checkpoint::open(&config.model.path)?;
        let model_fingerprint = checkpoint.fingerprint_in(site.cpu.compute());
        let gpu = site.gpu.as_ref().map(|gpu| (gpu, &config.gpu));
        let half = open_half(checkpoint, &site.cpu, gpu, config.batching.drain_max)?;
        let memory = match config.node.listen.parse::<Address>()? {
            Address::Memory(name) => Some(name),
            Address::Tcp(_) | Address::Inproc(_) => None,
        };
        let listener = match &memory {
            Some(_) => None,
            None => Some(Listener::bind(&config.node.listen, &site.hub).await?),
        };
        let pace = Pace::open(&config.node.device, &config.node.name)?;
        let (half, curves) = measure(half, &config, &pace).await?;
        let shape = half.spec().shape();
        let (expert_slots, experts_max) = expert_slots(&config, &half)?;
        let newcomer = Newcomer {
            name: config.node.name.clone(),
            role: Role::Expert,
            address: address(&config, listener.as_ref())?,
            model_fingerprint,
            shape: shape.clone(),
            expert_slots,
            experts_max,
            curves: curves.clone(),
        };
        let coordinators = &config.cluster.coordinators;
        let Some(membership) = Membership::join(newcomer, coordinators, site).await? else {
            return Ok(None);
        };
        let (links, inbox) = Links::new(
            membership.identity.clone(),
            node::link_settings(&shape, site, &config.links)?,
            LinkMetrics::register(&site.process.registry, &config.node.name)?,
            site.hub.clone(),
            site.bell.clone(),
        );
        let door = match (listener, memory) {
            (Some(listener), _) => Door::Port { listener, links },
            (None, name) => Door::Memory(links.listen(&name.unwrap_or_default())?),
        };
        let joints = Joints {
            inbox,
            views: membership.views.clone(),
            guidance: membership.guidance.clone(),
            beats: membership.beats.clone(),
            reports: membership.reports.clone(),
            curve: curves.map(|curves| curves.expert),
            pace,
            shutdown: site.process.shutdown.clone(),
            readiness: site.process.readiness.part(&config.node.name),
            metrics: Metrics::register(&site.process.registry, &config.node.name)?,
        };
        let schedule = match config.node.schedule {
            node::config::Schedule::Async => Schedule::asynchronous(shape.layers, config.batching),
            node::config::Schedule::Lockstep => Schedule::lockstep(),
        };
        let loader = Loader::start(
            half.loader()?,
            config.loading.bytes_per_second,
            shape.expert_bytes,
            site.bell.clone(),
        )?;
        let shard = Shard::new(membership.identity.node, half, loader);
        let engine = ExpertEngine::new(shard, schedule, config.batching.drain_max, joints);
        Ok(Some(Self { engine, door, membership }))
    }

    /// The engine, for the device's thread, and the node's door, to be awaited after the engine has
    /// finished. Must be called within a tokio runtime.
    pub fn start(
        self,
        site: &Site,
    ) -> (Box<dyn Engine + Send>, impl Future<Output = Result<()>> + use<>) {
        let Self { engine, door, membership } = self;
        let (memory, port) = match door {
            Door::Memory(listener) => (Some(listener), None),
            Door::Port { listener, links } => {
                let serving = serve(listener, links, site.process.shutdown.clone());
                (None, Some(tokio::spawn(serving)))
            }
        };
        let serving = async move {
            drop((membership, memory));
            match port {
                Some(port) => port.await?,
                None => Ok(()),
            }
        };
        (Box::new(engine), serving)
    }
}

/// Where attention nodes reach the node.
fn address(config: &Config, listener: Option<&Listener>) -> Result<String> {
    Ok(match (&config.node.advertise, listener) {
        (Some(address), _) => address.clone(),
        (None, Some(listener)) => listener.address()?,
        (None, None) => config.node.listen.clone(),
    })
}

/// A half without experts, on a GPU if there is one, in launches of at most `pairs` rows for experts.
///
/// # Errors
/// The GPU does not compute such experts, or has no memory left.
pub fn open_half(
    checkpoint: Checkpoint,
    cpu: &Arc<Cpu>,
    gpu: Option<(&Arc<Gpu>, &GpuConfig)>,
    pairs: usize,
) -> Result<ExpertHalf> {
    let (checkpoint, cpu) = (Arc::new(checkpoint), Arc::clone(cpu));
    let Some((gpu, config)) = gpu else { return Ok(ExpertHalf::new(checkpoint, cpu)) };
    let (free, total) = gpu.memory().context("the GPU's memory")?;
    let bytes = config.share(free, total);
    let half = ExpertHalf::on_gpu(checkpoint, cpu, Arc::clone(gpu), (bytes, pairs));
    half.context("experts on the GPU")
}

/// How many experts the node says it has room for, and how many it holds at most at once. Where a GPU does not hold all of
/// the model's, some places stay free for those of a next plan.
fn expert_slots(config: &Config, half: &ExpertHalf) -> Result<(u32, Option<u32>)> {
    let all = half.spec().shape().slots().count();
    let fit = half.slots().unwrap_or(all);
    let spare = if fit < all { fit / SPARE_PART } else { 0 };
    let (fit, told) = (u32::try_from(fit)?, u32::try_from(fit - spare)?);
    let slots = config.node.expert_slots.unwrap_or(told);
    ensure!(
        half.slots().is_none() || slots <= fit,
        "key `node.expert_slots` is {slots}, expected at most {fit}: the GPU's memory holds no more"
    );
    Ok((slots, half.slots().map(|_| fit)))
}

/// What work costs on the node's device, as far as that is known or to be measured.
async fn measure(
    mut half: ExpertHalf,
    config: &Config,
    pace: &Pace,
) -> Result<(ExpertHalf, Option<Curves>)> {
    match pace.curves() {
        None if config.node.profile => {
            let measured = tokio::task::spawn_blocking(move || {
                let curves = profile(&mut half);
                (half, curves)
            });
            let (half, curves) = measured.await?;
            Ok((half, Some(curves?)))
        }
        known => Ok((half, known)),
    }
}

/// Keeps the port open until a stop was asked for. Links that are up end with the engine.
async fn serve(listener: Listener, links: Links, shutdown: Shutdown) -> Result<()> {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let services = Services::new(KeepAlive::default())
        .add(health, Callers::Everybody)
        .add(links.service(), Callers::Parties(&[Party::AttentionNode]));
    let stop = async move { shutdown.requested().await };
    Ok(transport::serve(listener, services, stop).await?)
}
