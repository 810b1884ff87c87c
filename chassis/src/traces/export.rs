//! Sends spans to a collector, batch by batch, by OTLP over gRPC. What cannot be sent is dropped and counted.

use std::time::Duration;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as WireSpan, span::SpanKind},
};
use prometheus::IntCounter;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};

use super::{Anchor, Item, Kind, Span, SpanRef, TracingError, Value};

/// Spans of one message.
const BATCH_MAX: usize = 1024;
/// How long a batch that is not full waits for more.
const GATHER: Duration = Duration::from_millis(200);
/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A collector's address. It is dialled when there is something to send, and again whenever it was lost.
pub(super) fn endpoint(at: &str) -> Result<Endpoint, TracingError> {
    let wrong = || TracingError::Endpoint { found: at.to_owned() };
    let endpoint = Endpoint::from_shared(at.to_owned()).map_err(|_| wrong())?;
    let uri = endpoint.uri();
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        return Err(wrong());
    }
    Ok(endpoint.connect_timeout(PATIENCE))
}

/// Sends what comes until nobody can send more.
pub(super) async fn run(
    endpoint: Endpoint,
    role: String,
    mut waiting: mpsc::Receiver<Item>,
    anchor: Anchor,
    [sent, dropped]: [IntCounter; 2],
) {
    let mut client = TraceServiceClient::new(endpoint.connect_lazy());
    let (mut items, mut reached) = (Vec::with_capacity(BATCH_MAX), true);
    while waiting.recv_many(&mut items, BATCH_MAX).await > 0 {
        let urged = items.iter().any(|item| matches!(item, Item::Flush(_)));
        if items.len() < BATCH_MAX && !urged {
            sleep(GATHER).await;
            while items.len() < BATCH_MAX
                && let Ok(item) = waiting.try_recv()
            {
                items.push(item);
            }
        }
        let (spans, asked) = sort(items.drain(..), anchor);
        let count = spans.len() as u64;
        match send(&mut client, &role, spans).await {
            Ok(()) => {
                sent.inc_by(count);
                reached = true;
            }
            Err(why) => {
                dropped.inc_by(count);
                // Once for as long as it lasts.
                if std::mem::replace(&mut reached, false) {
                    tracing::warn!(why, "the collector of traces takes no spans; they are dropped");
                }
            }
        }
        // Whoever asked may have gone meanwhile.
        for done in asked {
            let _ = done.send(());
        }
    }
}

fn sort(
    items: impl Iterator<Item = Item>,
    anchor: Anchor,
) -> (Vec<WireSpan>, Vec<oneshot::Sender<()>>) {
    let (mut spans, mut asked) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Span(span) => spans.push(wire(*span, anchor)),
            Item::Flush(done) => asked.push(done),
        }
    }
    (spans, asked)
}

async fn send(
    client: &mut TraceServiceClient<Channel>,
    role: &str,
    spans: Vec<WireSpan>,
) -> Result<(), String> {
    if spans.is_empty() {
        return Ok(());
    }
    let attributes = vec![
        attribute("service.name", Value::Text(format!("amoe-{role}"))),
        attribute("service.version", crate::VERSION.into()),
    ];
    let resource = Resource { attributes, ..Resource::default() };
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let all = ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() };
    let request = ExportTraceServiceRequest { resource_spans: vec![all] };
    match timeout(PATIENCE, client.export(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(status.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn wire(span: Span, anchor: Anchor) -> WireSpan {
    let kind = match span.kind {
        Kind::Internal => SpanKind::Internal,
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
    };
    let id = |of: SpanRef| of.span.to_be_bytes().to_vec();
    WireSpan {
        trace_id: span.own.trace.to_be_bytes().to_vec(),
        span_id: id(span.own),
        parent_span_id: span.parent.map(id).unwrap_or_default(),
        name: span.name.into_owned(),
        kind: kind.into(),
        start_time_unix_nano: anchor.unix_ns(span.began),
        end_time_unix_nano: anchor.unix_ns(span.ended),
        attributes: span.attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
        ..WireSpan::default()
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text),
        Value::Number(number) => any_value::Value::IntValue(number),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}
