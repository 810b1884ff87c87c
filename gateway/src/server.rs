//! The public port: HTTP and gRPC routes on one router, and what every request passes on its way.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, FromRequest, MatchedPath, Request, State},
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any_service},
};
use bytes::Bytes;
use chassis::{
    http::Limits,
    routes::{Audience, Guard, KeyName, Routes},
    traces::TRACEPARENT,
};
use tokio::time::timeout;
use tonic::Status;
use tower::Service;
use trust::{Denied, Keys};

use crate::{
    api::{self, Problem},
    config::ServerConfig,
    cors::{self, Origins},
    deadline::Deadlined,
    metrics::Metrics,
    refusal::{Kind, Refusal},
    trace::Traceparent,
};

const REQUEST_ID: &str = "x-request-id";
/// As clients of llm-d and of the Gateway API's inference extension say it.
const FIRST_TOKEN: &str = "x-slo-ttft-ms";

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

/// When the client wants its first token, if it said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirstToken(pub(crate) Option<Duration>);

impl FirstToken {
    fn read(request: &Request) -> Result<Self, Refusal> {
        let Some(stated) = request.headers().get(FIRST_TOKEN) else { return Ok(Self(None)) };
        let ms = stated.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
        match ms.filter(|ms| *ms >= 1.0).map(|ms| Duration::try_from_secs_f64(ms / 1e3)) {
            Some(Ok(wanted)) => Ok(Self(Some(wanted))),
            _ => {
                Err(Refusal::field(FIRST_TOKEN, "milliseconds, at least 1", format!("{stated:?}")))
            }
        }
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

/// The bounds of the public port.
pub(crate) fn limits(config: &ServerConfig) -> Limits {
    Limits {
        connections_max: config.connections_max,
        streams_max: config.streams_max,
        headers_max: config.headers_max,
        header_bytes_max: config.header_bytes_max,
        receive_timeout: Duration::from_secs(config.receive_timeout_s),
    }
}

/// A gRPC service as a route: its messages have to come as fast as other bodies.
pub(crate) fn grpc<S>(service: S, config: &ServerConfig) -> MethodRouter
where
    S: Service<Request, Response: IntoResponse, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let patience = Duration::from_secs(config.receive_timeout_s);
    any_service(service).layer(middleware::from_fn_with_state(patience, hurry))
}

async fn hurry(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    next.run(request.map(|body| Deadlined::body(body, patience))).await
}

/// All routes with everything that a request passes on its way to them.
pub(crate) fn router(
    routes: Routes,
    keys: Option<Keys>,
    config: &ServerConfig,
    metrics: Arc<Metrics>,
) -> Router {
    let guard = Guard::new(keys, deny);
    let bounds =
        BodyBounds { bytes_max: config.body_bytes_max, timeout_s: config.receive_timeout_s };
    let nothing = guard.clone();
    routes
        .router(&guard)
        .fallback(async move |request: Request| nothing_here(&nothing, &request))
        .layer(DefaultBodyLimit::max(bounds.bytes_max))
        .layer(Extension(bounds))
        .layer(middleware::from_fn(note_headers))
        .layer(middleware::from_fn_with_state(Origins::new(&config.allowed_origins), cors::share))
        .layer(middleware::from_fn(name_request))
        .layer(middleware::from_fn_with_state(metrics, count))
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

/// What the guard says to whom it does not let in.
fn deny(denied: &Denied, request: &Request) -> Response {
    let kind = match denied {
        Denied::Unknown(_) => Kind::Unauthorized,
        Denied::Forbidden(_) => Kind::Forbidden,
    };
    refuse(Refusal::new(kind, denied.to_string()), is_grpc(request))
}

/// Strangers are not even told what there is not.
fn nothing_here(guard: &Guard, request: &Request) -> Response {
    match guard.check(Audience::KeyHolders, request) {
        Ok(_) => refuse(api::unknown_path(request.uri()), is_grpc(request)),
        Err(denied) => deny(&denied, request),
    }
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

/// Notes what the client says beside the request itself: its trace, and when it wants its first token.
async fn note_headers(mut request: Request, next: Next) -> Response {
    let first_token = match FirstToken::read(&request) {
        Ok(wanted) => wanted,
        Err(refusal) => return refuse(refusal, is_grpc(&request)),
    };
    let stated = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let traceparent = Traceparent(stated.map(str::to_owned));
    request.extensions_mut().insert(traceparent);
    request.extensions_mut().insert(first_token);
    next.run(request).await
}

/// Counts answers. Only paths with a route become labels, and only the names of known keys.
async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let (route, status) = (route.as_ref().map_or("other", MatchedPath::as_str), response.status());
    metrics.responses.with_label_values(&[route, status.as_str()]).inc();
    if let Some(KeyName(key)) = response.extensions().get::<KeyName>() {
        metrics.keyed.with_label_values(&[key]).inc();
        tracing::debug!(%key, route, status = status.as_u16(), "answered");
    }
    if let Some(&kind) = response.extensions().get::<Kind>() {
        metrics.refused(kind);
    }
    response
}
