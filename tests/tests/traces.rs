//! One trace shows where a request's time went: gateway, attention node, and in every layer attention, links, queues, experts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tests::{
    client::{Ask, Reply},
    processes::Processes,
};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Nothing in a test takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(30);
/// Layers of the demo model, which all have experts.
const LAYERS: i64 = 6;
/// Tokens that are asked for.
const TOKENS: usize = 3;
/// The client's own span.
const CLIENT: &str = "00f067aa0ba902b7";

/// A collector that keeps every span, with the service it is of.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for of_process in request.into_inner().resource_spans {
            let resource = of_process.resource.unwrap_or_default();
            let service = text(&resource.attributes, "service.name").unwrap_or_default();
            let all = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(all.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Opens it; its address.
    async fn open(&self) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let server = Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(address)
    }

    fn spans(&self) -> Vec<(String, Span)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The spans of a trace, when those of all processes are there.
    async fn trace(&self, id: &str) -> Result<Tree> {
        let whole = async {
            loop {
                let spans = self.spans();
                let of_trace = spans.into_iter().filter(|(_, span)| hex(&span.trace_id) == id);
                let tree = Tree(of_trace.collect());
                // The last ones of both processes.
                if tree.named("request").count() == 1 && tree.named("sequence").count() == 1 {
                    return tree;
                }
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, whole).await.with_context(|| {
            let names: Vec<_> = self.spans().into_iter().map(|(_, span)| span.name).collect();
            format!("the trace does not get whole: {names:?}")
        })
    }
}

/// All spans of a trace.
#[derive(Debug)]
struct Tree(Vec<(String, Span)>);

impl Tree {
    fn named(&self, name: &'static str) -> impl Iterator<Item = &Span> {
        self.0.iter().map(|(_, span)| span).filter(move |span| span.name == name)
    }

    /// The only span of this name below another.
    fn one(&self, parent: &Span, name: &'static str) -> Result<&Span> {
        let [span] = self.below(parent, name)[..] else { bail!("{name}: not one but {self:?}") };
        Ok(span)
    }

    fn below(&self, parent: &Span, name: &'static str) -> Vec<&Span> {
        self.named(name).filter(|span| span.parent_span_id == parent.span_id).collect()
    }

    fn service(&self, span: &Span) -> &str {
        let found = self.0.iter().find(|(_, other)| other.span_id == span.span_id);
        found.map_or("", |(service, _)| service)
    }

    /// Checks a trace of one sequence of [`TOKENS`] tokens.
    fn check(&self) -> Result<()> {
        let request = self.named("request").next().context("no request")?;
        ensure!(hex(&request.parent_span_id) == CLIENT, "{request:?} is not below the client's");
        ensure!(self.service(request) == "amoe-gateway", "{}", self.service(request));
        for part in ["tokenize", "queue", "stream"] {
            self.one(request, part)?;
        }
        let attempt = self.one(request, "attention node")?;
        ensure!(text(&attempt.attributes, "amoe.node").as_deref() == Some("attention-0"));
        let sequence = self.one(attempt, "sequence")?;
        ensure!(self.service(sequence) == "amoe-attention-node", "{}", self.service(sequence));
        self.one(sequence, "queue")?;
        let passes = [self.below(sequence, "prefill"), self.below(sequence, "decode")];
        ensure!((passes[0].len(), passes[1].len()) == (1, TOKENS - 1), "{passes:?}");
        for pass in passes.concat() {
            self.check_pass(pass).with_context(|| format!("{} of {self:?}", pass.name))?;
        }
        Ok(())
    }

    /// A pass has all layers, one after the other, and each of them its parts.
    fn check_pass(&self, pass: &Span) -> Result<()> {
        self.one(pass, "head")?;
        let mut layers = BTreeMap::new();
        for layer in self.below(pass, "layer") {
            let number =
                number(&layer.attributes, "amoe.layer").context("a layer without number")?;
            ensure!(layers.insert(number, layer).is_none(), "layer {number} twice");
        }
        ensure!(layers.keys().copied().eq(0..LAYERS), "{:?}", layers.keys());
        let mut time = pass.start_time_unix_nano;
        for layer in layers.values() {
            ensure!(layer.start_time_unix_nano >= time, "layers overlap");
            time = layer.end_time_unix_nano;
            let attention = self.one(layer, "attention")?;
            ensure!(attention.start_time_unix_nano >= layer.start_time_unix_nano);
            self.check_nodes(layer)?;
        }
        ensure!(time <= pass.end_time_unix_nano, "a layer is longer than its pass");
        Ok(())
    }

    /// At least one expert node was asked; each has a way there, a queue, a run and a way back, in this order.
    fn check_nodes(&self, layer: &Span) -> Result<()> {
        let mut nodes: BTreeMap<String, Vec<&Span>> = BTreeMap::new();
        for part in ["link", "queue", "expert", "link back"] {
            for span in self.below(layer, part) {
                let node = text(&span.attributes, "amoe.node").context("no node")?;
                ensure!(["expert-0", "expert-1"].contains(&&*node), "{node}");
                nodes.entry(node).or_default().push(span);
            }
        }
        ensure!(!nodes.is_empty(), "no expert node in {layer:?}");
        for parts in nodes.values() {
            let names: Vec<_> = parts.iter().map(|span| &*span.name).collect();
            ensure!(names == ["link", "queue", "expert", "link back"], "{names:?}");
            for pair in parts.windows(2) {
                ensure!(pair[0].end_time_unix_nano == pair[1].start_time_unix_nano, "{parts:?}");
            }
            let run = parts[2].end_time_unix_nano - parts[2].start_time_unix_nano;
            ensure!(run > 0, "an expert takes time");
        }
        Ok(())
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn number(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match value(attributes, key)? {
        Value::IntValue(number) => Some(*number),
        _ => None,
    }
}

fn http() -> Ask {
    let body = serde_json::json!({
        "model": "demo", "prompt": "And it came to pass", "max_tokens": TOKENS,
        "temperature": 0, "ignore_eos": true, "stream": true,
    });
    Ask::Http { path: "/v1/completions", body }
}

fn grpc() -> Ask {
    use proto::v1::{GenerateRequest, SamplingParams, generate_request::Prompt};
    let sampling = SamplingParams {
        temperature: Some(0.0),
        max_tokens: u32::try_from(TOKENS).ok(),
        ignore_eos: Some(true),
        ..SamplingParams::default()
    };
    Ask::Grpc(GenerateRequest {
        prompt: Some(Prompt::Text("And it came to pass".to_owned())),
        sampling: Some(sampling),
        ..GenerateRequest::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_shows_a_request_through_every_layer() -> Result<()> {
    let collector = Collector::default();
    let mut cluster = Processes::traced(1, 2, &collector.open().await?).await?;
    let ask = async |ask: &Ask, trace: char, flags: &str| -> Result<Reply> {
        let parent = format!("00-{}-{CLIENT}-{flags}", trace.to_string().repeat(32));
        cluster.client()?.below(&parent).ask(ask).await
    };
    // Whoever does not want to be traced is not, whatever comes after.
    let expected = ask(&http(), 'a', "00").await?;
    assert_eq!(ask(&http(), 'b', "01").await?, expected, "being traced changes nothing");
    ask(&grpc(), 'c', "01").await?;
    collector.trace(&"b".repeat(32)).await?.check().context("over HTTP")?;
    collector.trace(&"c".repeat(32)).await?.check().context("over gRPC")?;
    let traces: Vec<_> = collector.spans().iter().map(|(_, span)| hex(&span.trace_id)).collect();
    assert!(traces.iter().all(|id| id.starts_with(['b', 'c'])), "{traces:?}");
    let dropped = cluster.read("attention-0", "amoe_trace_spans_dropped_total").await?;
    assert_eq!(dropped, Some(0.0));
    cluster.terminate(&[]).await?;
    cluster.ended().await
}
