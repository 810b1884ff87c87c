//! The client against a node that does what each test says.

use std::time::Duration;

use domain::{FinishReason, SamplingParams};
use futures::stream::BoxStream;
use proto::internal::{
    self,
    sequences_server::{Sequences as SequencesService, SequencesServer},
};
use tokio::{sync::mpsc, time};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response};
use trust::Callers;

use super::*;
use crate::server::{Listener, Services, serve};

/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

type Answer = Result<SequenceOutput, Status>;
type Started = (internal::SequenceRequest, mpsc::Sender<Answer>);

/// A node that hands every sequence to the test; a sequence named "no" is refused.
struct Node {
    sequences: mpsc::Sender<Started>,
}

#[tonic::async_trait]
impl SequencesService for Node {
    type RunStream = BoxStream<'static, Answer>;

    async fn run(
        &self,
        request: Request<internal::SequenceRequest>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let request = request.into_inner();
        if request.id == "no" {
            return Err(Status::resource_exhausted("40 sequences wait"));
        }
        let (answers, stream) = mpsc::channel(1);
        let started = self.sequences.send((request, answers)).await;
        started.map_err(|_| Status::unavailable("test over"))?;
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }
}

/// Serves a node on a runtime of its own, so that it can be killed.
fn node(address: &str, hub: &Hub) -> (tokio::runtime::Runtime, String, mpsc::Receiver<Started>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (sequences, started) = mpsc::channel(16);
    let (bound, address) = std::thread::scope(|scope| {
        let listen = || runtime.block_on(Listener::bind(address, hub)).unwrap();
        let listener = scope.spawn(listen).join().unwrap();
        let address = listener.address().unwrap();
        (listener, address)
    });
    let services = Services::new(KeepAlive::default())
        .add(SequencesServer::new(Node { sequences }), Callers::Everybody);
    runtime.spawn(serve(bound, services, std::future::pending()));
    (runtime, address, started)
}

fn request(id: &str) -> SequenceRequest {
    let sampling = SamplingParams::default();
    SequenceRequest { id: id.into(), tokens: vec![1, 2], prompt_len: 2, sampling }
}

fn token(token: u32, finish: Option<FinishReason>) -> TokenOutput {
    TokenOutput { token, logprobs: None, finish, cached_tokens: 16, prompt_logprobs: Vec::new() }
}

fn output(tokens: &[TokenOutput]) -> SequenceOutput {
    SequenceOutput { tokens: tokens.iter().cloned().map(Into::into).collect() }
}

async fn next(tokens: &mut Tokens) -> Option<Result<Vec<TokenOutput>, SequenceError>> {
    time::timeout(PATIENCE, tokens.next()).await.expect("no tokens")
}

#[tokio::test]
async fn tokens_stream_until_the_last_and_the_connection_is_shared() {
    let hub = Hub::new();
    let (runtime, address, mut started) = node("inproc:a", &hub);
    let client = Sequences::new(hub, KeepAlive::default());
    let mut running = Vec::new();
    for id in ["a", "b"] {
        let tokens = client.run(&address, request(id), None).await.unwrap();
        let (asked, answers) = started.recv().await.unwrap();
        assert_eq!(SequenceRequest::try_from(asked), Ok(request(id)));
        running.push((tokens, answers));
    }
    assert_eq!(client.channels.lock().unwrap().len(), 1);
    for (tokens, answers) in &mut running {
        let last = [token(6, None), token(7, Some(FinishReason::Stop))];
        answers.send(Ok(output(&[token(5, None)]))).await.unwrap();
        answers.send(Ok(output(&last))).await.unwrap();
        assert_eq!(next(tokens).await, Some(Ok(vec![token(5, None)])));
        assert_eq!(next(tokens).await, Some(Ok(last.to_vec())));
        assert_eq!(next(tokens).await, None);
    }
    runtime.shutdown_background();
}

#[tokio::test]
async fn dropping_the_tokens_cancels_the_sequence() {
    let hub = Hub::new();
    let (runtime, address, mut started) = node("127.0.0.1:0", &hub);
    let client = Sequences::new(hub, KeepAlive::default());
    let tokens = client.run(&address, request("a"), None).await.unwrap();
    let (_, answers) = started.recv().await.unwrap();
    drop(tokens);
    time::timeout(PATIENCE, answers.closed()).await.expect("not cancelled");
    runtime.shutdown_background();
}

#[tokio::test]
async fn errors_say_whether_another_node_may_do_better() {
    let hub = Hub::new();
    let (runtime, address, mut started) = node("127.0.0.1:0", &hub);
    let client = Sequences::new(hub, KeepAlive::default());
    let full = client.run(&address, request("no"), None).await.unwrap_err();
    assert_eq!(full, SequenceError::Full("40 sequences wait".into()));
    assert!(full.is_retryable());
    for (status, expected, retryable) in [
        (Status::invalid_argument("bad"), SequenceError::Invalid("bad".into()), false),
        (Status::unavailable("going"), SequenceError::Unavailable("going".into()), true),
        (Status::internal("bug"), SequenceError::Failed("Internal: bug".into()), false),
    ] {
        let mut tokens = client.run(&address, request("a"), None).await.unwrap();
        let (_, answers) = started.recv().await.unwrap();
        answers.send(Err(status)).await.unwrap();
        assert_eq!(next(&mut tokens).await, Some(Err(expected.clone())));
        assert_eq!(expected.is_retryable(), retryable);
        assert_eq!(next(&mut tokens).await, None);
    }
    let memory = client.run("memory:a", request("a"), None).await.unwrap_err();
    assert!(matches!(memory, SequenceError::Invalid(_)));
    runtime.shutdown_background();
}

#[tokio::test]
async fn a_lost_node_is_unavailable_and_found_again() {
    let hub = Hub::new();
    let client = Sequences::new(hub.clone(), KeepAlive::default());
    let (runtime, address, mut started) = node("127.0.0.1:0", &hub);
    let mut cut_short = client.run(&address, request("a"), None).await.unwrap();
    drop(started.recv().await.unwrap());
    let why = "its stream ended before the sequence did";
    let expected = SequenceError::Unavailable(why.into());
    assert_eq!(next(&mut cut_short).await, Some(Err(expected)));

    let mut lost = client.run(&address, request("b"), None).await.unwrap();
    let (_, _answers) = started.recv().await.unwrap();
    let killed = std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE));
    killed.join().unwrap();
    let error = next(&mut lost).await.unwrap().unwrap_err();
    assert!(matches!(error, SequenceError::Unavailable(_)), "{error}");
    let error = client.run(&address, request("c"), None).await.unwrap_err();
    assert!(matches!(error, SequenceError::Unavailable(_)), "{error}");

    let (runtime, _, _started) = node(&address, &hub);
    client.run(&address, request("d"), None).await.unwrap();
    runtime.shutdown_background();
}

#[tokio::test]
async fn connections_are_bounded() {
    let client = Sequences::new(Hub::new(), KeepAlive::default());
    for node in 0..NODES_MAX + 3 {
        client.channel("inproc:favourite").unwrap();
        client.channel(&format!("inproc:{node}")).unwrap();
    }
    let channels = client.channels.lock().unwrap();
    assert_eq!(channels.len(), NODES_MAX);
    assert!(channels.iter().any(|(address, _)| address == "inproc:favourite"));
    assert!(channels.iter().all(|(address, _)| address != "inproc:0"));
}
