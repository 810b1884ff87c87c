//! The control plane: keeps the registry of nodes and the cluster's plans, and tells every node what
//! the cluster looks like. Hidden states never come here, and no layer of a model waits for it.

mod admin;
mod ask;
mod cluster;
mod config;
mod console;
mod draft;
mod election;
mod guide;
mod leader;
mod metrics;
mod nodes;
mod observations;
mod page;
mod reconcile;
mod record;
mod reviewer;
mod service;
pub mod store;
mod term;

use std::{sync::Arc, time::Duration};

use chassis::{Readiness, role::Process};
use futures::{FutureExt, TryFutureExt};
use proto::{internal::control_server::ControlServer, v1::admin_server::AdminServer};
use thiserror::Error;
use tokio::sync::watch;
use tonic_health::server::HealthReporter;
use transport::{Hub, KeepAlive, ListenError, Listener, Services};
use trust::{Callers, Party};

pub use config::{
    ClusterConfig, Config, ConfigError, ControlConfig, EtcdTls, PlacementConfig, RoutingConfig,
    StoreConfig,
};
pub use service::LEADER_METADATA;

use admin::AdminService;
use cluster::Rules;
use console::Console;
use election::Election;
use metrics::Metrics;
use service::{ControlService, Standing};
use store::{Metered, Store, StoreError};

/// Sessions per member allowed: a node may open a new one before the old one is known to be dead.
const SESSIONS_PER_MEMBER: usize = 2;
/// Who may be a member; a session as what is checked when it registers.
const MEMBERS: [Party; 3] = [Party::Gateway, Party::AttentionNode, Party::ExpertNode];
/// The condition that this process names to its readiness.
const LEADER_KNOWN: &str = "leader";

/// Why a coordinator could not start or go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// A value of the configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It cannot listen where it should.
    #[error("key `control.listen`: {0}")]
    Listen(#[from] ListenError),
    /// The operating system does not say where it listens.
    #[error("key `control.listen`: {0}")]
    Address(#[from] std::io::Error),
    /// The state store cannot be used.
    #[error("section `store`: {0}")]
    Store(#[from] StoreError),
    /// Metrics with these names exist already in this process.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The server cannot go on.
    #[error("the control server stopped: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// A coordinator that listens and does not serve yet.
#[derive(Debug)]
pub struct Coordinator {
    rules: Rules,
    leader_lease: Duration,
    store: Arc<dyn Store>,
    metrics: Metrics,
    process: Process,
    listener: Listener,
    advertise: String,
}

/// Serves until the process's shutdown is requested.
///
/// # Errors
/// It cannot start, or what lies in the state store is broken. A store that does not answer is no
/// error: it waits.
pub async fn run(config: Config, hub: Hub, process: Process) -> Result<(), RunError> {
    Coordinator::bind(config, &hub, process).await?.serve().await
}

impl Coordinator {
    /// Opens the state store and listens.
    ///
    /// # Errors
    /// The configuration, the store or the address cannot be used.
    pub async fn bind(config: Config, hub: &Hub, process: Process) -> Result<Self, RunError> {
        let rules = config.rules()?;
        let metrics = Metrics::register(&process.registry)?;
        process.readiness.set(LEADER_KNOWN, false);
        let store = Metered::new(store::open(config.store).await?, metrics.clone());
        let listener = Listener::bind(&config.control.listen, hub).await?;
        let address = listener.address()?;
        Ok(Self {
            rules,
            leader_lease: Duration::from_millis(config.control.leader_lease_ms),
            store: Arc::new(store),
            metrics,
            process,
            listener,
            advertise: config.control.advertise.unwrap_or(address),
        })
    }

    /// Where nodes and other coordinators reach it.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.advertise
    }

    /// Serves until the process's shutdown is requested.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn serve(self) -> Result<(), RunError> {
        let (standing, watched) = watch::channel(Standing::Following { leader: None });
        let (views, viewed) = watch::channel(Arc::default());
        let (guidance, _) = watch::channel(Arc::default());
        let console = Console::new(watched.clone());
        self.process.pages.add(page::routes(watched.clone(), viewed));
        self.process.pages.add(console.clone().routes());
        let sessions_max = self.rules.members_max.saturating_mul(SESSIONS_PER_MEMBER);
        let control = ControlService::new(watched.clone(), sessions_max);
        let (reporter, health) = tonic_health::server::health_reporter();
        let operators = Callers::Operators(self.process.trust.keys.clone());
        let admin = AdminServer::new(AdminService::new(watched.clone(), console));
        let services = Services::new(KeepAlive::default())
            .add(health, Callers::Everybody)
            .add(ControlServer::new(control), Callers::Parties(&MEMBERS))
            .add(admin, operators);
        let shutdown = self.process.shutdown.clone();
        let stop = async move { shutdown.requested().await };
        let election = Election {
            rules: self.rules,
            leader_lease: self.leader_lease,
            store: self.store,
            metrics: self.metrics,
            address: self.advertise,
            standing,
            views,
            guidance,
            shutdown: self.process.shutdown,
        };
        tokio::try_join!(
            transport::serve(self.listener, services, stop).map_err(RunError::from),
            election.run().map_err(RunError::from),
            announce(watched, reporter, self.process.readiness).map(Ok),
        )?;
        Ok(())
    }
}

/// Tells health checks who leads, until the election is over.
async fn announce(
    mut standing: watch::Receiver<Standing>,
    health: HealthReporter,
    readiness: Readiness,
) {
    type Server = ControlServer<ControlService>;
    loop {
        let (leads, known) = match &*standing.borrow_and_update() {
            Standing::Leading(_) => (true, true),
            Standing::Following { leader } => (false, leader.is_some()),
        };
        if leads {
            health.set_serving::<Server>().await;
        } else {
            health.set_not_serving::<Server>().await;
        }
        readiness.set(LEADER_KNOWN, known);
        if standing.changed().await.is_err() {
            return;
        }
    }
}
