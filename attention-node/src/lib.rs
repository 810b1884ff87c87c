//! The attention node: owns sequences and their KV cache, runs attention and the layer loop, sends rows to experts.

mod batch_routes;
pub mod config;
mod engine;
mod experts;
mod metrics;
mod pulse;
mod ready;
mod sequence;
mod server;
mod span;
mod trace;

use std::sync::Arc;

use anyhow::{Result, ensure};
use chassis::{Shutdown, engine::Engine, role::Process};
use domain::Role;
use grammar::Grammars;
use model::{AttentionHalf, BLOCK_TOKENS, BatchBounds, Checkpoint};
use node::{Membership, Newcomer, Pace, Progress, Site, config::Schedule};
use policy::kv_blocks::{KvBlocks, Retention};
use proto::internal::sequences_server::SequencesServer;
use tokio::runtime::Handle;
use transport::{
    Hub, KeepAlive, Listener, Services,
    link::{LinkMetrics, Links},
    mailbox,
};
use trust::{Callers, Party};

pub use config::Config;
use engine::{AttentionEngine, Bounds, Joints};
use experts::Experts;
use metrics::Metrics;
use ready::Ready;
use server::Door;

/// The condition that this node names to its process's readiness.
const EXPERTS_LINKED: &str = "expert nodes";
/// Commands that may wait for the engine: it takes all of them every turn.
const COMMANDS_MAX: usize = 4096;
/// Rows of one LM head run: their logits are `vocab` numbers each.
const HEAD_ROWS_MAX: usize = 64;

/// A node that has joined its cluster and is not driven yet.
#[derive(Debug)]
pub struct AttentionNode {
    engine: AttentionEngine,
    door: Door,
    listener: Listener,
    membership: Membership,
}

/// Serves until the process's shutdown is requested and all sequences have ended.
///
/// # Errors
/// The device, the checkpoint or the addresses cannot be used, or the engine died.
pub async fn run(config: Config, process: Process) -> Result<()> {
    let hub = Hub::trusting(&process.trust);
    let site = Site::open(&config.device, (&config.node.device, &config.gpu), hub, process)?;
    let Some(node) = AttentionNode::join(config, &site).await? else { return Ok(()) };
    let (engine, serving) = node.start(&site);
    site.drive(vec![engine]).await?;
    serving.await
}

impl AttentionNode {
    /// Loads the attention half, opens the door, and registers. None if a stop was asked for
    /// meanwhile.
    ///
    /// # Errors
    /// The checkpoint or the addresses cannot be used.
    pub async fn join(config: Config, site: &Site) -> Result<Option<Self>> {
        site.process.readiness.part(&config.node.name).set(EXPERTS_LINKED, false);
        let checkpoint = Checkpoint::open(&config.model.path)?;
        let model_fingerprint = checkpoint.fingerprint_in(site.cpu.compute());
        let mut progress = Progress::new("layers");
        let told = |done, all| progress.left(all - done);
        let cpu = Arc::clone(&site.cpu);
        let half = match &site.gpu {
            None => AttentionHalf::load(&checkpoint, cpu, told)?,
            Some(gpu) => AttentionHalf::on_gpu(&checkpoint, cpu, Arc::clone(gpu), told)?,
        };
        drop(checkpoint);
        let listener = Listener::bind(&config.node.listen, &site.hub).await?;
        let newcomer = Newcomer {
            name: config.node.name.clone(),
            role: Role::Attention,
            address: match &config.node.advertise {
                Some(address) => address.clone(),
                None => listener.address()?,
            },
            model_fingerprint,
            shape: half.spec().shape(),
            expert_slots: 0,
            experts_max: None,
            curves: None,
        };
        let coordinators = &config.cluster.coordinators;
        let Some(membership) = Membership::join(newcomer, coordinators, site).await? else {
            return Ok(None);
        };
        let (engine, door) = assemble(&config, site, half, &membership)?;
        Ok(Some(Self { engine, door, listener, membership }))
    }

    /// The engine, for the device's thread, and the node's door, to be awaited after the engine has
    /// finished. Must be called within a tokio runtime.
    pub fn start(
        self,
        site: &Site,
    ) -> (Box<dyn Engine + Send>, impl Future<Output = Result<()>> + use<>) {
        let Self { engine, door, listener, membership } = self;
        let door = tokio::spawn(serve(listener, door, site.process.shutdown.clone()));
        let serving = async move {
            drop(membership);
            door.await?
        };
        (Box::new(engine), serving)
    }
}

/// Builds the engine and its door.
fn assemble(
    config: &Config,
    site: &Site,
    half: AttentionHalf,
    membership: &Membership,
) -> Result<(AttentionEngine, Door)> {
    let (registry, shape) = (&site.process.registry, half.spec().shape());
    let (links, link_events) = Links::new(
        membership.identity.clone(),
        node::link_settings(&shape, site, &config.links)?,
        LinkMetrics::register(registry, &config.node.name)?,
        site.hub.clone(),
        site.bell.clone(),
    );
    let blocks = kv_blocks(config, &half)?;
    let bounds = bounds(config, &half, blocks);
    let kv = half.new_kv(blocks)?;
    let pool = KvBlocks::new(u32::try_from(blocks)?, BLOCK_TOKENS, retention(config, site));
    let scratch = half.new_scratch(
        BatchBounds {
            rows: config.bounds.rows_max,
            head_rows: bounds.head_rows_max,
            positions: bounds.positions_max,
        },
        &kv,
    )?;
    let stages = usize::from(shape.layers) + 1;
    let ready = match config.node.schedule {
        Schedule::Async => Ready::asynchronous(stages, config.batching),
        Schedule::Lockstep => Ready::lockstep(stages),
    };
    let (commands, command_queue) = mailbox::bounded(COMMANDS_MAX, site.bell.clone());
    let joints = Joints {
        commands: command_queue,
        links: link_events,
        views: membership.views.clone(),
        guidance: membership.guidance.clone(),
        beats: membership.beats.clone(),
        reports: membership.reports.clone(),
        shutdown: site.process.shutdown.clone(),
        readiness: site.process.readiness.part(&config.node.name),
        metrics: Metrics::register(registry, &config.node.name)?,
    };
    let tracer = site.process.tracer.clone();
    let ends = half.spec().eos.clone();
    let grammars = Grammars::new(config.model.path.clone(), shape.vocab, ends);
    let door = Door::new(commands, shape.vocab, bounds.positions_max, grammars, tracer);
    let by_batch = config.routing.by_batch;
    let experts = Experts::new(links, Handle::current(), &shape, by_batch);
    let pace = Pace::open(&config.node.device, &config.node.name)?;
    Ok((
        AttentionEngine::new(half, pace, (kv, pool, scratch), bounds, ready, experts, joints),
        door,
    ))
}

/// Blocks of the KV cache: what its memory holds, but no more than all sequences can fill.
fn kv_blocks(config: &Config, half: &AttentionHalf) -> Result<usize> {
    let block_bytes = half.kv_bytes_per_block() as u64;
    let fit = usize::try_from(config.bounds.kv_bytes / block_bytes)?;
    ensure!(
        fit > 0,
        "key `bounds.kv_bytes` is {}, expected at least one block of {block_bytes}",
        config.bounds.kv_bytes
    );
    let positions = positions_max(config, half);
    Ok(fit.min(positions.div_ceil(BLOCK_TOKENS).saturating_mul(config.bounds.sequences_max)))
}

/// A GPU's KV cache is all there from the start, a processor's is taken as it is used.
fn retention(config: &Config, site: &Site) -> Retention {
    match (config.prefix_caching.enabled, &site.gpu) {
        (false, _) => Retention::Nothing,
        (true, None) => Retention::Earned,
        (true, Some(_)) => Retention::Everything,
    }
}

fn positions_max(config: &Config, half: &AttentionHalf) -> usize {
    let model = half.spec().shape().positions_max as usize;
    config.bounds.positions_max.map_or(model, |configured| configured.min(model))
}

/// The engine's bounds; a sequence alone always fits into the cache.
fn bounds(config: &Config, half: &AttentionHalf, blocks: usize) -> Bounds {
    Bounds {
        sequences_max: config.bounds.sequences_max,
        waiting_max: config.bounds.waiting_max,
        chunk_tokens_max: config.bounds.chunk_tokens_max,
        rows_max: config.bounds.rows_max,
        positions_max: positions_max(config, half).min(blocks * BLOCK_TOKENS),
        head_rows_max: HEAD_ROWS_MAX,
        canary: config.canary,
    }
}

/// Keeps the door open until a stop was asked for, then until all sequences have ended.
async fn serve(listener: Listener, door: Door, shutdown: Shutdown) -> Result<()> {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let services = Services::new(KeepAlive::default())
        .add(health, Callers::Everybody)
        .add(SequencesServer::new(door), Callers::Parties(&[Party::Gateway]));
    let stop = async move { shutdown.requested().await };
    Ok(transport::serve(listener, services, stop).await?)
}
