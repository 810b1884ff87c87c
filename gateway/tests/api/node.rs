//! An attention node without a model: the internal service over a real port, its tokens from a script.

use std::{
    collections::VecDeque,
    sync::{Arc, LazyLock, Mutex},
};

use domain::{FinishReason, SequenceRequest, TokenLogprobs, TokenOutput};
use futures::{StreamExt, stream::BoxStream};
use proto::internal::{
    self as wire,
    sequences_server::{Sequences, SequencesServer},
};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

/// The demo model's end token.
pub(crate) const END: u32 = 0;

/// What the node does next for a sequence.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// One message.
    Tokens(Vec<TokenOutput>),
    /// Refuse before the first message, break after it.
    Fail(Code),
    /// Say nothing more and keep the sequence.
    Hang,
    /// Take the sequence only when the gate is opened.
    Gate(watch::Receiver<bool>),
}

pub(crate) type Script = Arc<dyn Fn(&SequenceRequest) -> Vec<Act> + Send + Sync>;

/// The demo model's folder.
pub(crate) fn demo() -> &'static std::path::Path {
    std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo"))
}

/// Token ids of a text, by the demo model's tokenizer.
pub(crate) fn ids(text: &str) -> Vec<u32> {
    static TOKENIZER: LazyLock<tokenizers::Tokenizer> =
        LazyLock::new(|| tokenizers::Tokenizer::from_file(demo().join("tokenizer.json")).unwrap());
    TOKENIZER.encode(text, false).unwrap().get_ids().to_vec()
}

/// A token of log-probability -0.5, with the asked number of alternatives.
fn token(id: u32, alternatives: Option<u32>) -> TokenOutput {
    let top = |count: u32| (0..count).map(|nth| (id + nth, -0.5 - nth as f32)).collect();
    TokenOutput {
        token: id,
        logprobs: alternatives.map(|count| TokenLogprobs { logprob: -0.5, top: top(count) }),
        finish: None,
        cached_tokens: 0,
        prompt_logprobs: Vec::new(),
    }
}

/// The text, one message per token; within the asked length, which then ends it.
pub(crate) fn say(request: &SequenceRequest, text: &str) -> Vec<Act> {
    say_ids(request, &ids(text))
}

/// The same with given tokens. What was generated before is not said again. One token of every prompt
/// needs no computing.
pub(crate) fn say_ids(request: &SequenceRequest, ids: &[u32]) -> Vec<Act> {
    let done = request.tokens.len() - request.prompt_len as usize;
    let max = request.sampling.tokens_max as usize;
    let mut acts: Vec<_> = ids
        .iter()
        .take(max)
        .skip(done)
        .map(|&id| vec![token(id, request.sampling.logprobs)])
        .collect();
    if let Some(first) = acts.first_mut().filter(|_| done == 0) {
        first[0].cached_tokens = 1;
        if let Some(alternatives) = request.sampling.prompt_logprobs {
            let rest = &request.tokens[1..request.prompt_len as usize];
            let logprobs = rest.iter().filter_map(|&id| token(id, Some(alternatives)).logprobs);
            first[0].prompt_logprobs = logprobs.collect();
        }
    }
    if ids.len() >= max {
        acts.last_mut().unwrap()[0].finish = Some(FinishReason::Length);
    } else {
        let mut end = token(END, request.sampling.logprobs);
        end.finish = Some(FinishReason::Stop);
        acts.push(vec![end]);
    }
    acts.into_iter().map(Act::Tokens).collect()
}

/// Always the same text.
pub(crate) fn saying(text: &'static str) -> Script {
    Arc::new(move |request| say(request, text))
}

/// A scripted attention node on a port of its own.
pub(crate) struct Node {
    pub(crate) address: String,
    state: Arc<State>,
    /// Its own, so that it can die with all its connections.
    runtime: Mutex<Option<Runtime>>,
}

struct State {
    script: Script,
    requests: Mutex<Vec<SequenceRequest>>,
    live: watch::Sender<usize>,
}

impl Node {
    pub(crate) fn start(script: Script) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state =
            Arc::new(State { script, requests: Mutex::default(), live: watch::Sender::new(0) });
        let service = SequencesServer::new(Service(Arc::clone(&state)));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { address, state, runtime: Mutex::new(Some(runtime)) }
    }

    /// What it was asked so far.
    pub(crate) fn requests(&self) -> Vec<SequenceRequest> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Waits until it holds `count` sequences.
    pub(crate) async fn holds(&self, count: usize) {
        let mut live = self.state.live.subscribe();
        live.wait_for(|&live| live == count).await.unwrap();
    }

    /// The process is gone, with its port and connections.
    pub(crate) fn kill(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Service(Arc<State>);

/// Counts a sequence for as long as it is held.
struct Held(Arc<State>);

impl Held {
    fn new(state: &Arc<State>) -> Self {
        state.live.send_modify(|live| *live += 1);
        Self(Arc::clone(state))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.live.send_modify(|live| *live -= 1);
    }
}

#[tonic::async_trait]
impl Sequences for Service {
    type RunStream = BoxStream<'static, Result<wire::SequenceOutput, Status>>;

    async fn run(
        &self,
        request: Request<wire::SequenceRequest>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let request = SequenceRequest::try_from(request.into_inner())
            .map_err(|invalid| Status::invalid_argument(invalid.to_string()))?;
        let acts = VecDeque::from((self.0.script)(&request));
        self.0.requests.lock().unwrap().push(request);
        if let Some(Act::Fail(code)) = acts.front() {
            return Err(Status::new(*code, "refused by the script"));
        }
        let held = Held::new(&self.0);
        let outputs = futures::stream::unfold((acts, held), async |(mut acts, held)| {
            loop {
                match acts.pop_front()? {
                    Act::Tokens(tokens) => {
                        let tokens = tokens.into_iter().map(Into::into).collect();
                        return Some((Ok(wire::SequenceOutput { tokens }), (acts, held)));
                    }
                    Act::Fail(code) => {
                        acts.clear();
                        return Some((
                            Err(Status::new(code, "broken by the script")),
                            (acts, held),
                        ));
                    }
                    Act::Hang => std::future::pending::<()>().await,
                    Act::Gate(mut gate) => {
                        gate.wait_for(|open| *open).await.ok()?;
                    }
                }
            }
        });
        Ok(Response::new(outputs.boxed()))
    }
}
