//! The public door of a cluster: OpenAI's HTTP API and gRPC on one port, text to tokens and back,
//! and a client's stream that goes on when the attention node behind it is lost.

mod api;
mod chat;
mod clock;
mod cluster;
pub mod config;
mod constraint;
mod cors;
mod deadline;
mod defaults;
mod detokenizer;
mod door;
mod grpc;
mod metrics;
mod model;
mod nodes;
mod output;
mod random;
mod refusal;
mod request;
mod requests;
mod sequence;
mod server;
mod stop;
mod tokenizer;
mod tools;
mod trace;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use chassis::{http, role::Process, routes::Audience};
use proto::v1::inference_server::{InferenceServer, SERVICE_NAME};
use tokio::net::TcpListener;
use tonic_health::{ServingStatus, server::HealthReporter};
use transport::Hub;
use trust::{Scope, ServerTls, TrustError};

pub use cluster::{Cluster, Membership};
pub use config::Config;
pub use model::LoadError;

use crate::{
    metrics::Metrics,
    model::ServedModel,
    nodes::{Nodes, Standing},
    requests::Requests,
};

/// The gateway's condition for being ready.
const NODES_READY: &str = "attention nodes";
// Where gRPC has its services: at their full names.
const INFERENCE: &str = "/amoe.v1.Inference/{*method}";
const HEALTH: &str = "/grpc.health.v1.Health/{*method}";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/{*method}";
const REFLECTION_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/{*method}";

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A configured value cannot be meant.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The model's files cannot be used.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// A coordinator's address is none.
    #[error("key `cluster.coordinators`: {0}")]
    Coordinators(#[from] transport::AddressError),
    /// The certificate of the public port cannot be used.
    #[error("section `public_tls`: {0}")]
    Certificate(#[from] TrustError),
    /// The port is not to be had.
    #[error("key `server.address`: cannot listen on {address}: {error}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The system's reason.
        error: io::Error,
    },
    /// Two components of this process want the same metric.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The descriptors of the public API are broken.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A gateway whose port is open.
#[derive(Debug)]
pub struct Gateway {
    config: Config,
    process: Process,
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    tls: Option<ServerTls>,
    requests: Arc<Requests>,
    health: HealthReporter,
}

impl Gateway {
    /// Loads the model's text files and opens the port. Nothing is served before [`Self::serve`].
    pub async fn open(
        config: Config,
        cluster: Cluster,
        process: Process,
    ) -> Result<Self, StartError> {
        config.check()?;
        process.readiness.set(NODES_READY, false);
        let model = Arc::new(ServedModel::load(&config.model)?);
        let metrics = Metrics::register(&process.registry, model.name(), model.positions_max)?;
        let metrics = Arc::new(metrics);
        let requests = Arc::new(Requests::new(
            Arc::clone(&model),
            Nodes::new(cluster, Duration::from_secs(config.patience.node_s)),
            Arc::clone(&metrics),
            process.tracer.clone(),
            &config,
        ));
        let (health, health_service) = tonic_health::server::health_reporter();
        let inference = InferenceServer::new(grpc::Inference::new(Arc::clone(&requests)))
            .max_decoding_message_size(config.server.body_bytes_max);
        let routes = api::routes(&requests)
            .merge(process.routes())
            .add(
                INFERENCE,
                Audience::Scope(Scope::Inference),
                server::grpc(inference, &config.server),
            )
            .add(HEALTH, Audience::Everybody, server::grpc(health_service, &config.server))
            .add(
                REFLECTION,
                Audience::KeyHolders,
                server::grpc(reflection()?.build_v1()?, &config.server),
            )
            .add(
                REFLECTION_ALPHA,
                Audience::KeyHolders,
                server::grpc(reflection()?.build_v1alpha()?, &config.server),
            );
        let keys = process.trust.keys.clone();
        let router = server::router(routes, keys, &config.server, metrics);
        let tls = config.public_tls.as_ref().map(|tls| process.trust.public(tls)).transpose()?;
        let failed = |error| StartError::Listen { address: config.server.address, error };
        let listener = TcpListener::bind(config.server.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, model = model.name(), "gateway open");
        Ok(Self { config, process, listener, address, router, tls, requests, health })
    }

    /// Where it listens, with the port that was taken when the configuration left it open.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All routes, for whoever asks them without a connection.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Serves until the process's shutdown is requested and all requests are done.
    pub async fn serve(self) {
        let shutdown = self.process.shutdown.clone();
        let report = report(&self.requests, &self.process, &self.health);
        let limits = server::limits(&self.config.server);
        let served =
            http::serve(self.listener, self.router, limits, self.tls, shutdown.requested());
        tokio::select! {
            () = served => {}
            () = report => {}
        }
    }
}

/// The whole life of a gateway process: joins the cluster, serves, drains.
pub async fn run(config: Config, hub: Hub, process: Process) -> Result<(), StartError> {
    let membership = Membership::join(&config, hub)?;
    let shutdown = process.shutdown.clone();
    let gateway = Gateway::open(config, membership.cluster(), process).await?;
    let leave = async {
        shutdown.requested().await;
        membership.leave();
    };
    tokio::join!(gateway.serve(), leave);
    Ok(())
}

fn reflection() -> Result<tonic_reflection::server::Builder<'static>, StartError> {
    Ok(tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::PUBLIC_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET))
}

/// Follows the view: readiness, gRPC health and the gauges that come from it. Never returns.
async fn report(requests: &Requests, process: &Process, health: &HealthReporter) {
    let mut view = requests.nodes.watch();
    loop {
        view.borrow_and_update();
        let kv = requests.nodes.kv_cache();
        // Held requests are as good as taken: were all gateways to leave their service at once, because
        // they all wait for the same nodes, clients would be refused.
        let (takes, answers, held) = match requests.nodes.standing() {
            Standing::Ready => (true, true, None),
            Standing::Holding(left) => (true, false, Some(left)),
            Standing::Away => (false, false, None),
        };
        process.readiness.set(NODES_READY, takes);
        let used = 1.0 - kv.blocks_free as f64 / kv.blocks.max(1) as f64;
        requests.metrics.kv_cache_used.set(if kv.blocks == 0 { 0.0 } else { used });
        requests.metrics.nodes_ready.set(i64::try_from(kv.nodes).unwrap_or(i64::MAX));
        let draining = process.shutdown.is_requested();
        let status = |good: bool| match good && !draining {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        health.set_service_status("", status(takes)).await;
        health.set_service_status(SERVICE_NAME, status(takes)).await;
        // A model is well only while a node says that its tokens come back.
        for model in requests.model.names() {
            health.set_service_status(model, status(answers)).await;
        }
        let changed = async {
            // Without a sender the view stays as it is.
            if view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(held.unwrap_or_default()), if held.is_some() => {}
            () = process.shutdown.requested(), if !draining => {}
        }
    }
}
