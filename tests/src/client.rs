//! A client of a gateway: OpenAI's HTTP API and gRPC, whole answers and streams, comparable bit by bit.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::{
    client::legacy::{Client as Hyper, connect::HttpConnector},
    rt::TokioExecutor,
};
use proto::v1::{GenerateRequest, TokenLogprob, inference_client::InferenceClient};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};
use tonic::transport::Channel;

use crate::dial::Dial;

/// No answer in a test takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A request as a client sends it.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A body for a path of the OpenAI API, answered whole or as a stream as it says.
    Http {
        /// `/v1/completions`.
        path: &'static str,
        /// A JSON object.
        body: Value,
    },
    /// A call of `GenerateStream`.
    Grpc(GenerateRequest),
}

/// One choice of an answer, its pieces put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The text.
    pub text: String,
    /// The tokens.
    pub tokens: Vec<u64>,
    /// How it ended.
    pub finish: String,
    /// Per token what was said of its log-probability. JSON has the shortest digits that give the
    /// same float again, so equal values are equal bits.
    pub logprobs: Vec<Value>,
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// By their index.
    pub choices: BTreeMap<u64, Choice>,
    /// Tokens of the prompt and of all choices.
    pub usage: (u64, u64),
}

/// A client of one gateway. It counts the answers it has had.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    dial: Dial,
    http: Hyper<Dial, Full<Bytes>>,
    grpc: InferenceClient<Channel>,
    /// The value of `authorization`.
    bearer: Option<String>,
    /// The value of `traceparent`.
    parent: Option<String>,
    answered: watch::Sender<usize>,
}

impl Client {
    /// A client that connects when it is first used.
    ///
    /// # Errors
    /// None that an address can cause.
    pub fn new(address: SocketAddr) -> Result<Self> {
        Self::with(address, Dial::plain(), None)
    }

    /// The same over connections of `dial`, with a key.
    ///
    /// # Errors
    /// None that an address can cause.
    pub fn with(address: SocketAddr, dial: Dial, key: Option<&str>) -> Result<Self> {
        let endpoint = Channel::from_shared(format!("http://{address}"))?;
        Ok(Self {
            address,
            http: Hyper::builder(TokioExecutor::new()).build(dial.clone()),
            grpc: InferenceClient::new(endpoint.connect_with_connector_lazy(dial.clone())),
            dial,
            bearer: key.map(|key| format!("Bearer {key}")),
            parent: None,
            answered: watch::Sender::default(),
        })
    }

    /// A client whose requests belong to a span, as W3C writes it.
    #[must_use]
    pub fn below(mut self, traceparent: &str) -> Self {
        self.parent = Some(traceparent.to_owned());
        self
    }

    /// Where the gateway listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that have been answered.
    #[must_use]
    pub fn answers(&self) -> usize {
        *self.answered.borrow()
    }

    /// Waits until `count` requests have been answered.
    ///
    /// # Errors
    /// None: the count lives as long as the client.
    pub async fn answered(&self, count: usize) -> Result<()> {
        self.answered.subscribe().wait_for(|answered| *answered >= count).await?;
        Ok(())
    }

    /// Sends all of `asks`, `at_once` of them at a time; the answers in the same order.
    ///
    /// # Errors
    /// When one of them is not answered.
    pub async fn ask_all(&self, asks: &[Ask], at_once: usize) -> Result<Vec<Reply>> {
        let ask = async |ask| {
            let reply = timeout(PATIENCE, self.ask(ask)).await;
            reply.context("hangs").flatten().with_context(|| format!("{ask:?}"))
        };
        stream::iter(asks).map(ask).buffered(at_once).try_collect().await
    }

    /// Sends one request and reads its answer to the end.
    ///
    /// # Errors
    /// When it is refused or breaks off.
    pub async fn ask(&self, ask: &Ask) -> Result<Reply> {
        let mut reply = Reply::default();
        match ask {
            Ask::Http { path, body } => {
                let response = self.post(path, body.to_string()).await?;
                let status = response.status();
                let text = text(response).await?;
                ensure!(status == StatusCode::OK, "{status}: {text}");
                for value in values(&text)? {
                    reply.add_json(&value)?;
                }
            }
            Ask::Grpc(request) => reply = self.generate(request.clone()).await?,
        }
        ensure!(reply.choices.values().all(|choice| !choice.finish.is_empty()), "{reply:?}");
        self.answered.send_modify(|answered| *answered += 1);
        Ok(reply)
    }

    /// Posts a body, whatever it is. Dropping the response hangs up.
    ///
    /// # Errors
    /// When there is no response at all.
    pub async fn post(&self, path: &str, body: String) -> Result<Response<Incoming>> {
        self.send(Method::POST, path, body).await
    }

    /// Asks for a path in any way.
    ///
    /// # Errors
    /// When there is no response at all.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}://{}{path}", self.dial.scheme(), self.address))
            .header("content-type", "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", bearer);
        }
        if let Some(parent) = &self.parent {
            request = request.header("traceparent", parent);
        }
        Ok(self.http.request(request.body(Full::new(Bytes::from(body)))?).await?)
    }

    /// Calls `GenerateStream`; a refusal is a [`tonic::Status`] in the error.
    ///
    /// # Errors
    /// When it is refused or breaks off.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Reply> {
        let mut request = tonic::Request::new(request);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.parse()?);
        }
        if let Some(parent) = &self.parent {
            request.metadata_mut().insert("traceparent", parent.parse()?);
        }
        let mut stream = self.grpc.clone().generate_stream(request).await?.into_inner();
        let mut reply = Reply::default();
        let choice = reply.choices.entry(0).or_default();
        while let Some(part) = stream.message().await? {
            choice.text += &part.text;
            choice.tokens.extend(part.token_ids.iter().copied().map(u64::from));
            choice.logprobs.extend(part.logprobs.iter().map(bits));
            if let Some(usage) = part.usage {
                choice.finish = part.finish_reason().as_str_name().to_owned();
                reply.usage = (usage.prompt_tokens.into(), usage.completion_tokens.into());
            }
        }
        Ok(reply)
    }
}

/// Gets a page of any server, with a key or without one.
///
/// # Errors
/// When there is no answer.
pub async fn get(url: &str, key: Option<&str>) -> Result<(StatusCode, String)> {
    let http: Hyper<HttpConnector, Full<Bytes>> = Hyper::builder(TokioExecutor::new()).build_http();
    let mut request = Request::get(url);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = http.request(request.body(Full::default())?).await?;
    Ok((response.status(), text(response).await?))
}

/// The body of a response as text.
///
/// # Errors
/// When it breaks off or is none.
pub async fn text(response: Response<Incoming>) -> Result<String> {
    let bytes = response.into_body().collect().await.context("the answer breaks off")?.to_bytes();
    Ok(String::from_utf8(bytes.into())?)
}

/// The JSON of a body: one value, or those of its server-sent events.
fn values(text: &str) -> Result<Vec<Value>> {
    if !text.starts_with("data: ") {
        return Ok(vec![serde_json::from_str(text)?]);
    }
    let events = text.trim_end().strip_suffix("data: [DONE]");
    let events = events.with_context(|| format!("a stream does not end with [DONE]: {text}"))?;
    events
        .split_terminator("\n\n")
        .map(|event| Ok(serde_json::from_str(event.strip_prefix("data: ").unwrap_or(event))?))
        .collect()
}

fn bits(logprob: &TokenLogprob) -> Value {
    let top = logprob.top.iter().map(|top| json!([top.token_id, top.logprob.to_bits()]));
    json!([logprob.token_id, logprob.logprob.to_bits(), top.collect::<Vec<_>>()])
}

impl Reply {
    /// Adds a whole answer or one chunk of a stream.
    fn add_json(&mut self, value: &Value) -> Result<()> {
        if !value["error"].is_null() {
            bail!("{}", value["error"]);
        }
        for part in value["choices"].as_array().context("an answer has choices")? {
            let index = part["index"].as_u64().context("a choice has an index")?;
            let choice = self.choices.entry(index).or_default();
            let texts = [&part["text"], &part["message"]["content"], &part["delta"]["content"]];
            choice.text.extend(texts.into_iter().filter_map(Value::as_str));
            choice.tokens.extend(elements(&part["token_ids"]).filter_map(Value::as_u64));
            choice.finish += part["finish_reason"].as_str().unwrap_or_default();
            choice.logprobs.extend(elements(&part["logprobs"]["content"]).cloned());
            choice.logprobs.extend(columns(&part["logprobs"]));
        }
        if let usage @ Value::Object(_) = &value["usage"] {
            let count = |name: &str| usage[name].as_u64().context("a usage counts tokens");
            self.usage = (count("prompt_tokens")?, count("completion_tokens")?);
        }
        Ok(())
    }
}

fn elements(array: &Value) -> impl Iterator<Item = &Value> {
    array.as_array().into_iter().flatten()
}

/// The four columns of `/v1/completions`, turned into one row per token.
fn columns(logprobs: &Value) -> impl Iterator<Item = Value> {
    let names = ["text_offset", "tokens", "token_logprobs", "top_logprobs"];
    (0..elements(&logprobs["tokens"]).count())
        .map(move |at| names.iter().map(|name| logprobs[*name][at].clone()).collect())
}
