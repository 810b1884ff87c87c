//! Traces of single requests: W3C trace context in and out, and spans on their way to a collector, off every path of tokens.

use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use prometheus::{IntCounter, Registry};
use serde::Deserialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::metrics::TraceMetrics;

mod export;

#[cfg(test)]
mod tests;

/// The header, and the key of gRPC's metadata, that says to which trace a request belongs.
pub const TRACEPARENT: &str = "traceparent";
/// Spans that may wait for the collector; more are dropped and counted.
const SPANS_MAX: usize = 16_384;
/// How long the end of a process waits for the collector.
const FLUSH: Duration = Duration::from_secs(1);

/// Section `[tracing]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingConfig {
    /// Where spans go: `http://HOST:PORT` of a collector that speaks OTLP over gRPC. Nothing is traced without it.
    pub otlp_endpoint: Option<String>,
    /// Share of requests that are traced among those whose clients do not say, 0 to 1.
    pub ratio: f64,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, ratio: 0.01 }
    }
}

/// Why nothing can be traced.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    #[error("key `tracing.otlp_endpoint`: {found:?} is no address, expected http://HOST:PORT")]
    Endpoint { found: String },
    #[error("key `tracing.ratio` is {found}, expected 0 to 1")]
    Ratio { found: f64 },
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A span of a sampled trace, as its children and other processes know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanRef {
    trace: u128,
    span: u64,
}

/// What a request says of its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parent {
    Sampled(SpanRef),
    Unsampled,
}

/// Which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Internal,
    Server,
    Client,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Number(i64),
}

/// Something that took time.
#[derive(Clone, Debug)]
pub struct Span {
    pub own: SpanRef,
    /// None for the first span of a trace.
    pub parent: Option<SpanRef>,
    pub name: Cow<'static, str>,
    pub kind: Kind,
    pub began: Instant,
    pub ended: Instant,
    pub attributes: Vec<(&'static str, Value)>,
}

/// Decides what is traced and takes spans; cheap to clone. The default traces nothing.
#[derive(Clone, Debug, Default)]
pub struct Tracer {
    shared: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    queue: mpsc::Sender<Item>,
    dropped: IntCounter,
    ratio: f64,
    key: RandomState,
    next: AtomicU64,
}

/// What waits for the exporter.
#[derive(Debug)]
enum Item {
    Span(Box<Span>),
    /// Everything before it is to be sent now.
    Flush(oneshot::Sender<()>),
}

/// The same moment on both clocks; spans are told in the time of day.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    instant: Instant,
    unix_ns: u64,
}

// === impl TracingConfig ===

impl TracingConfig {
    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// Names the key and what was expected.
    pub fn check(&self) -> Result<(), TracingError> {
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(TracingError::Ratio { found: self.ratio });
        }
        self.otlp_endpoint.as_deref().map_or(Ok(()), |at| export::endpoint(at).map(drop))
    }
}

// === impl SpanRef ===

impl fmt::Display for SpanRef {
    /// As the value of [`TRACEPARENT`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.trace, self.span)
    }
}

// === impl Parent ===

impl Parent {
    /// Reads the value of [`TRACEPARENT`]; what is none counts as absent, as W3C wants it.
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |part: &str, digits: usize| {
            let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            (part.len() == digits && part.bytes().all(lower))
                .then(|| u128::from_str_radix(part, 16).ok())?
        };
        // A later version may say more at the end.
        let version = hex(version, 2).filter(|&version| version != 0xff)?;
        if version == 0 && parts.next().is_some() {
            return None;
        }
        let trace = hex(trace, 32).filter(|&id| id != 0)?;
        let span = u64::try_from(hex(span, 16)?).ok().filter(|&id| id != 0)?;
        let sampled = hex(flags, 2)? & 1 == 1;
        Some(if sampled { Self::Sampled(SpanRef { trace, span }) } else { Self::Unsampled })
    }
}

// === impl Tracer ===

impl Tracer {
    /// Starts to export as `config` says, for a process of this role. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The configuration names no collector, or another component has the metric.
    pub fn start(
        role: &str,
        config: &TracingConfig,
        registry: &Registry,
    ) -> Result<Self, TracingError> {
        config.check()?;
        let Some(at) = &config.otlp_endpoint else { return Ok(Self::default()) };
        let endpoint = export::endpoint(at)?;
        let TraceMetrics { sent, dropped } = TraceMetrics::register(registry)?;
        let (queue, waiting) = mpsc::channel(SPANS_MAX);
        let (role, lost) = (role.to_owned(), dropped.clone());
        tokio::spawn(export::run(endpoint, role, waiting, Anchor::now(), [sent, lost]));
        let (key, next) = (RandomState::new(), AtomicU64::new(0));
        let shared = Shared { queue, dropped, ratio: config.ratio, key, next };
        Ok(Self { shared: Some(Arc::new(shared)) })
    }

    /// Whether a request that came from outside is traced: as its `traceparent` says, or by chance. What it gets is
    /// its own span and that of whoever sent it.
    #[must_use]
    pub fn sample(&self, traceparent: Option<&str>) -> Option<(SpanRef, Option<SpanRef>)> {
        let shared = self.shared.as_ref()?;
        match traceparent.and_then(Parent::read) {
            Some(Parent::Sampled(parent)) => Some((shared.child(parent), Some(parent))),
            Some(Parent::Unsampled) => None,
            None => {
                // 53 bits are what a float counts without gaps.
                let drawn = (shared.draw() >> 11) as f64 / (1_u64 << 53) as f64;
                let trace = || u128::from(shared.draw()) << 64 | u128::from(shared.draw());
                let span = || SpanRef { trace: trace(), span: shared.draw() };
                (drawn < shared.ratio).then(|| (span(), None))
            }
        }
    }

    /// The caller's span, if it is one that is traced here.
    #[must_use]
    pub fn follow(&self, traceparent: Option<&str>) -> Option<SpanRef> {
        self.shared.as_ref()?;
        match Parent::read(traceparent?)? {
            Parent::Sampled(parent) => Some(parent),
            Parent::Unsampled => None,
        }
    }

    /// A new span below another.
    #[must_use]
    pub fn child(&self, of: SpanRef) -> SpanRef {
        self.shared.as_ref().map_or(of, |shared| shared.child(of))
    }

    /// Hands a span over, or drops it when the collector cannot keep up.
    pub fn emit(&self, span: Span) {
        let Some(shared) = &self.shared else { return };
        if shared.queue.try_send(Item::Span(Box::new(span))).is_err() {
            shared.dropped.inc();
        }
    }

    /// Tells of something within a span of this process; its own span.
    pub fn tell(
        &self,
        parent: SpanRef,
        name: &'static str,
        [began, ended]: [Instant; 2],
        attributes: Vec<(&'static str, Value)>,
    ) -> SpanRef {
        let own = self.child(parent);
        let (parent, name, kind) = (Some(parent), name.into(), Kind::Internal);
        self.emit(Span { own, parent, name, kind, began, ended, attributes });
        own
    }

    /// Waits until the spans so far are sent, but not for long.
    pub async fn flush(&self) {
        let Some(shared) = &self.shared else { return };
        let (done, sent) = oneshot::channel();
        let flushed = async {
            if shared.queue.send(Item::Flush(done)).await.is_ok() {
                // An exporter that is gone has nothing left to send.
                let _ = sent.await;
            }
        };
        if timeout(FLUSH, flushed).await.is_err() {
            tracing::debug!("the last spans are not sent");
        }
    }
}

// === impl Shared ===

impl Shared {
    /// 64 bits that nobody can foresee, not 0: a counter hashed under a key of this process.
    fn draw(&self) -> u64 {
        self.key.hash_one(self.next.fetch_add(1, Ordering::Relaxed)).max(1)
    }

    fn child(&self, of: SpanRef) -> SpanRef {
        SpanRef { trace: of.trace, span: self.draw() }
    }
}

// === impl Anchor ===

impl Anchor {
    fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ns = u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX);
        Self { instant: Instant::now(), unix_ns }
    }

    fn unix_ns(self, at: Instant) -> u64 {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        match at.checked_duration_since(self.instant) {
            Some(after) => self.unix_ns.saturating_add(ns(after)),
            None => self.unix_ns.saturating_sub(ns(self.instant - at)),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}
