//! The public port: HTTP and gRPC routes on one router, what every request passes, connections.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, FromRequest, MatchedPath, Request, State},
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tonic::{Status, service::Routes};

use crate::{
    api::{self, Problem},
    config::ServerConfig,
    metrics::Metrics,
    refusal::{Kind, Refusal},
};

/// How often an idle HTTP/2 client is asked whether it still lives, and for how long it may be silent.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls at once on one HTTP/2 connection; the bound on sequences is the real one.
const CALLS_MAX: u32 = 4096;
/// A pause after the system refused a connection, for example because all descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const REQUEST_ID: &str = "x-request-id";

/// The name of a request: the client's, or one made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(pub(crate) String);

impl RequestId {
    pub(crate) const EXPECTED: &str = "1 to 128 visible ASCII characters";

    /// A client's id, if it may stand in logs and headers.
    pub(crate) fn accept(id: &str) -> Option<Self> {
        let visible = id.bytes().all(|byte| byte.is_ascii_graphic());
        (visible && (1..=128).contains(&id.len())).then(|| Self(id.to_string()))
    }
}

/// A request's body, within its bounds.
#[derive(Debug)]
pub(crate) struct Body(pub(crate) Bytes);

/// How large a body may be, and how long it may take to come.
#[derive(Clone, Copy, Debug)]
struct BodyBounds {
    bytes_max: usize,
    timeout_s: u64,
}

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let Some(&bounds) = request.extensions().get::<BodyBounds>() else {
            return Err(Problem(Refusal::new(Kind::Internal, "no bounds on bodies are set")));
        };
        let body = Bytes::from_request(request, state);
        let refusal = match timeout(Duration::from_secs(bounds.timeout_s), body).await {
            Ok(Ok(body)) => return Ok(Self(body)),
            Ok(Err(rejection)) if rejection.status() == Kind::BodyTooLarge.http_status() => {
                let max = bounds.bytes_max;
                let message = format!("the body is too large: at most {max} bytes are accepted");
                Refusal::new(Kind::BodyTooLarge, message)
            }
            Ok(Err(rejection)) => {
                Refusal::new(Kind::Invalid, format!("the body: {}", rejection.body_text()))
            }
            Err(_) => {
                let message = format!("the body did not come within {} s", bounds.timeout_s);
                Refusal::new(Kind::BodyTooSlow, message)
            }
        };
        Err(Problem(refusal))
    }
}

/// What the layers around every route need.
#[derive(Debug)]
struct Gate {
    api_keys: Vec<String>,
    metrics: Arc<Metrics>,
}

/// All routes with everything that a request passes on its way to them.
pub(crate) fn router(
    http: Router,
    grpc: Routes,
    config: &ServerConfig,
    metrics: Arc<Metrics>,
) -> Router {
    let gate = Arc::new(Gate { api_keys: config.api_keys.clone(), metrics });
    let bounds =
        BodyBounds { bytes_max: config.body_bytes_max, timeout_s: config.receive_timeout_s };
    http.merge(grpc.into_axum_router().reset_fallback())
        .fallback(nothing_here)
        .method_not_allowed_fallback(api::wrong_method)
        .layer(DefaultBodyLimit::max(bounds.bytes_max))
        .layer(Extension(bounds))
        .layer(middleware::from_fn_with_state(Arc::clone(&gate), check_key))
        .layer(middleware::from_fn(name_request))
        .layer(middleware::from_fn_with_state(gate, count))
}

fn is_grpc(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// A refusal in the form that the client understands.
fn refuse(refusal: Refusal, grpc: bool) -> Response {
    if grpc {
        let kind = refusal.kind;
        let mut response = Status::from(refusal).into_http::<axum::body::Body>();
        response.extensions_mut().insert(kind);
        response
    } else {
        Problem(refusal).into_response()
    }
}

async fn nothing_here(request: Request) -> Response {
    refuse(api::unknown_path(request.uri()), is_grpc(&request))
}

/// Gives every request a name and sends it back.
async fn name_request(mut request: Request, next: Next) -> Response {
    let stated = request.headers().get(REQUEST_ID);
    let stated = stated.and_then(|id| RequestId::accept(id.to_str().ok()?));
    let id = stated.unwrap_or_else(|| RequestId(crate::random::request_id()));
    let header = HeaderValue::from_str(&id.0);
    tracing::debug!(id = id.0, method = %request.method(), path = request.uri().path(), "request");
    request.extensions_mut().insert(id);
    let mut response = next.run(request).await;
    if let Ok(header) = header {
        response.headers_mut().insert(REQUEST_ID, header);
    }
    response
}

/// Paths that answer without a key: probes have none.
fn is_open(path: &str) -> bool {
    matches!(path, "/health" | "/livez" | "/readyz" | "/ping")
        || path.starts_with("/grpc.health.v1.Health/")
}

/// Lets only requests with a key pass, when there are keys.
async fn check_key(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    if gate.api_keys.is_empty() || is_open(request.uri().path()) {
        return next.run(request).await;
    }
    let stated = request.headers().get(header::AUTHORIZATION);
    let stated = stated.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // Every key is looked at, and each to its end: the time says nothing about them.
    let known = |stated: &[u8]| {
        gate.api_keys.iter().fold(false, |found, key| found | same(stated, key.as_bytes()))
    };
    if stated.is_some_and(known) {
        return next.run(request).await;
    }
    let message = "a known key is expected in the header `authorization: Bearer KEY`";
    refuse(Refusal::new(Kind::Unauthorized, message), is_grpc(&request))
}

fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && differences == 0
}

/// Counts answers. Only paths with a route become labels.
async fn count(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    gate.metrics.responses.with_label_values(&[route, response.status().as_str()]).inc();
    if let Some(&kind) = response.extensions().get::<Kind>() {
        gate.metrics.refused(kind);
    }
    response
}

/// Accepts connections until `shutdown`, then lets those that are open finish their requests.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    config: &ServerConfig,
    shutdown: impl Future<Output = ()>,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(config.receive_timeout_s));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(CALLS_MAX);
    let connections = Arc::new(Semaphore::new(config.connections_max));
    let graceful = GracefulShutdown::new();
    let accept = async {
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection closed before it was served");
                continue;
            }
            let service = TowerToHyperService::new(router.clone());
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            let connection = graceful.watch(connection.into_owned());
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection broke");
                }
                drop(permit);
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
    drop(listener);
    graceful.shutdown().await;
}
