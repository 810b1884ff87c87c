//! The admin door of a process: `/metrics`, `/health`, `/livez`, `/readyz` and the pages its role adds.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
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
use trust::{Scope, ServerTls, Trust};

use crate::{
    Readiness, Shutdown,
    http::{self, Limits},
    metrics,
    routes::{Audience, Guard, Routes, refuse},
};

mod basic;

#[cfg(test)]
mod tests;

/// Few ask here, and briefly.
const LIMITS: Limits = Limits {
    connections_max: 256,
    streams_max: 64,
    headers_max: 64,
    header_bytes_max: http::HEADER_BYTES_LEAST,
    receive_timeout: Duration::from_secs(10),
};

/// Section `[admin]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Where the admin door listens; port 0 takes any free one.
    pub address: SocketAddr,
    /// Whether it speaks HTTPS, with the certificate of section `[tls]`; clients need none.
    pub tls: bool,
}

impl Default for AdminConfig {
    /// Loopback, because metrics tell strangers too much; 9464 is the usual port of an exporter.
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 9464)), tls: false }
    }
}

/// Why the admin door could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("key `admin.address`: cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("key `admin.tls` is true, expected only with a section `tls`")]
    NoCertificate,
}

/// The pages of an admin door. A role adds its own, such as `/plan`, while the door is open.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    guard: Guard,
    pages: Arc<RwLock<(Routes, Router)>>,
}

impl Pages {
    /// No pages yet; who may see those to come is decided by the keys of `trust`.
    #[must_use]
    pub fn new(trust: &Trust) -> Self {
        Self { guard: Guard::new(trust.keys.clone(), refuse), pages: Arc::default() }
    }

    /// Adds `routes` to those that are there.
    ///
    /// # Panics
    /// When a path is added twice: two components of one process want the same page.
    pub fn add(&self, routes: Routes) {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let all = pages.0.clone().merge(routes);
        let fallback = |guard: Guard| async move |request: Request| nothing(&guard, &request);
        let router = all.clone().router(&self.guard).fallback(fallback(self.guard.clone()));
        *pages = (all, router);
    }

    async fn answer(self, mut request: Request) -> Response {
        let router = self.pages.read().unwrap_or_else(PoisonError::into_inner).1.clone();
        basic::show_key(&mut request);
        match router.oneshot(request).await {
            Ok(mut response) => {
                basic::challenge(&mut response);
                response
            }
            Err(never) => match never {},
        }
    }
}

/// Strangers are not even told what there is not.
fn nothing(guard: &Guard, request: &Request) -> Response {
    match guard.check(Audience::KeyHolders, request) {
        Ok(_) => StatusCode::NOT_FOUND.into_response(),
        Err(denied) => refuse(&denied, request),
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
/// conditions while it starts, has lost something it needs, or drains. These three are for everybody, because
/// kubelets and load balancers have no keys, and say no more than that and what is waited for.
pub fn routes(registry: Registry, readiness: Readiness, shutdown: Shutdown) -> Routes {
    let health = get(move || health(readiness.clone(), shutdown.clone()));
    let metrics = get(move || exposition(registry.clone()));
    Routes::default()
        .add("/metrics", Audience::Scope(Scope::Metrics), metrics)
        .add("/livez", Audience::Everybody, get(async || "alive\n"))
        .add("/readyz", Audience::Everybody, health.clone())
        .add("/health", Audience::Everybody, health)
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
pub async fn serve(config: &AdminConfig, pages: Pages, trust: &Trust) -> Result<Admin, AdminError> {
    let own = trust.certificates.as_ref().filter(|_| config.tls);
    if config.tls && own.is_none() {
        return Err(AdminError::NoCertificate);
    }
    let tls: Option<ServerTls> = own.map(trust::Certificates::server_tls);
    let failed = |source| AdminError::Listen { address: config.address, source };
    let listener = TcpListener::bind(config.address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let router = Router::new().fallback(move |request| pages.clone().answer(request));
    let serving = http::serve(listener, router, LIMITS, tls, std::future::pending());
    let server = tokio::spawn(serving);
    tracing::info!(%address, "admin door open");
    Ok(Admin { address, server })
}
