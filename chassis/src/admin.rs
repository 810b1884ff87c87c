//! The admin door of a process: `/metrics`, `/health`, `/livez`, `/readyz` and the pages its role adds.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::Registry;
use serde::Deserialize;
use tokio::{net::TcpListener, task::JoinHandle};
use tower::ServiceExt;

use crate::{Readiness, Shutdown, metrics};

#[cfg(test)]
mod tests;

/// Section `[admin]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Where the admin door listens; port 0 takes any free one.
    pub address: SocketAddr,
}

impl Default for AdminConfig {
    /// Loopback, because metrics tell strangers too much; 9464 is the usual port of an exporter.
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 9464)) }
    }
}

/// Why the admin door could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("key `admin.address`: cannot listen on {address}: {source}")]
pub struct AdminError {
    address: SocketAddr,
    source: std::io::Error,
}

/// The pages that a role adds to its admin door while it runs, such as `/plan`.
#[derive(Clone, Debug, Default)]
pub struct Pages(Arc<RwLock<Router>>);

impl Pages {
    /// Adds `routes` to those that are there.
    ///
    /// # Panics
    /// When a path is added twice: two components of one process want the same page.
    pub fn add(&self, routes: Router) {
        let mut pages = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *pages = std::mem::take(&mut *pages).merge(routes);
    }

    async fn answer(self, request: Request) -> Response {
        let router = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// An open admin door; dropping it closes it.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Admin {
    /// Where it listens, with the port that was taken when the configuration left it open.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The routes that every process answers; the gateway mounts them on its public port as well.
///
/// `/livez` says that the process runs, `/readyz` and `/health` that it can take work: 503 with the unmet
/// conditions while it starts, has lost something it needs, or drains.
pub fn routes(registry: Registry, readiness: Readiness, shutdown: Shutdown) -> Router {
    let health = get(move || health(readiness.clone(), shutdown.clone()));
    Router::new()
        .route("/metrics", get(move || exposition(registry.clone())))
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", health.clone())
        .route("/health", health)
}

async fn health(readiness: Readiness, shutdown: Shutdown) -> Response {
    if shutdown.is_requested() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    if readiness.is_ready() {
        return "ready\n".into_response();
    }
    let reason = match readiness.unmet().join(", ") {
        unmet if unmet.is_empty() => "starting\n".to_owned(),
        unmet => format!("waiting for: {unmet}\n"),
    };
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}

async fn exposition(registry: Registry) -> Response {
    match metrics::encode(&registry) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Opens the admin door. It stays open while the process drains, so that probes can see it drain.
pub async fn serve(
    config: &AdminConfig,
    routes: Router,
    pages: Pages,
) -> Result<Admin, AdminError> {
    let failed = |source| AdminError { address: config.address, source };
    let listener = TcpListener::bind(config.address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let routes = routes.fallback(move |request| pages.clone().answer(request));
    let server = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the admin door closed");
        }
    });
    tracing::info!(%address, "admin door open");
    Ok(Admin { address, server })
}
