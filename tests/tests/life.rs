//! The life of requests that do not go as planned: clients that leave, waiting lines that are full, input that is bad.

use anyhow::{Context, Result, ensure};
use domain::SequenceRequest;
use futures::{StreamExt, future::try_join_all};
use http_body_util::BodyExt;
use hyper::StatusCode;
use proto::v1::{GenerateRequest, SamplingParams, generate_request::Prompt};
use serde_json::{Value, json};
use tests::{
    Cluster, Layout, LinkKind, ask, checkpoint,
    client::{Ask, Client, text},
    sequence,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, try_join};
use tonic::Code;

const MODEL: &str = "../models/demo";
const VOCAB: u32 = 2048;
const COMPLETIONS: &str = "/v1/completions";
/// Nobody asks for so many tokens and waits for them in these tests.
const ENDLESS: u32 = 900;

async fn start(layout: &Layout) -> Result<(Cluster, Client)> {
    let mut cluster = Cluster::start(&checkpoint(MODEL), layout).await?;
    let gateway = cluster.open_gateway(&checkpoint(MODEL)).await?;
    Ok((cluster, Client::new(gateway)?))
}

/// Nothing is held for anybody any more.
async fn assert_empty(cluster: &Cluster) -> Result<()> {
    let blocks = cluster.read("amoe_attention_kv_blocks")?;
    cluster.until("amoe_attention_kv_blocks_free", |free| free == blocks).await?;
    for name in [
        "amoe_attention_sequences_running",
        "amoe_attention_sequences_waiting",
        "amoe_attention_ready_rows",
        "amoe_expert_queued_pairs",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
    ] {
        cluster.until(name, |held| held == 0.0).await?;
    }
    Ok(())
}

fn endless(number: u32, prompt_len: u32) -> SequenceRequest {
    let mut request = sequence(number, VOCAB);
    request.tokens = (0..prompt_len).map(|at| (number + 31 * at) % VOCAB).collect();
    request.prompt_len = prompt_len;
    request.sampling.tokens_max = ENDLESS;
    request
}

fn stream_of(number: u32) -> String {
    let prompt = format!("Chapter {number}");
    json!({"prompt": prompt, "max_tokens": ENDLESS, "ignore_eos": true, "stream": true}).to_string()
}

/// Reads the first tokens of a stream, which is then surely running.
async fn begin(client: &Client, number: u32) -> Result<hyper::Response<hyper::body::Incoming>> {
    let mut response = client.post(COMPLETIONS, stream_of(number)).await?;
    ensure!(response.status() == StatusCode::OK, "{}", text(response).await?);
    response.body_mut().frame().await.context("a stream begins")??;
    Ok(response)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_free_what_they_held() -> Result<()> {
    let layout = Layout { experts: 2, links: LinkKind::Grpc, ..Layout::default() };
    let (cluster, client) = start(&layout).await?;
    let expected = cluster.run(0, sequence(1, VOCAB)).await?;
    let blocks = cluster.read("amoe_attention_kv_blocks")?;

    // Some leave in the middle of their prompts, with rows in the experts' queues …
    let prefilling: Vec<_> = (0..12).map(|number| cluster.open(0, endless(number, 100))).collect();
    let prefilling = try_join_all(prefilling).await?;
    // … and some while they decode.
    let mut decoding = Vec::new();
    for number in 12..18 {
        let mut tokens = cluster.open(0, endless(number, 20)).await?;
        tokens.next().await.context("a sequence begins")??;
        decoding.push(tokens);
    }
    let streaming = [begin(&client, 0).await?, begin(&client, 1).await?];
    cluster.until("amoe_attention_kv_blocks_free", |free| free < blocks).await?;
    drop((prefilling, decoding, streaming));

    cluster.until("vllm:request_success_total", |count| count == 2.0).await?;
    assert_empty(&cluster).await?;
    assert_eq!(cluster.read("amoe_attention_cancelled_total")?, 20.0);
    let tokens = cluster.read("amoe_attention_tokens_total")?;
    assert!(tokens < f64::from(5 * ENDLESS), "{tokens} tokens: some of 20 sequences ran on");
    assert_eq!(cluster.run(0, sequence(1, VOCAB)).await?, expected);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_waiting_line_refuses_whoever_comes_next() -> Result<()> {
    let layout = Layout { sequences_max: 1, waiting_max: 2, ..Layout::default() };
    let (cluster, client) = start(&layout).await?;
    let mut streams = vec![begin(&client, 0).await?];
    for number in 1..3 {
        let waiting = client.post(COMPLETIONS, stream_of(number)).await?;
        assert_eq!(waiting.status(), StatusCode::OK);
        streams.push(waiting);
    }

    let refused = client.post(COMPLETIONS, stream_of(3)).await?;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
    let refused = client.generate(generate("And God said", 4)).await.unwrap_err();
    assert_eq!(code(&refused), Some(Code::ResourceExhausted), "{refused:?}");

    drop(streams);
    assert_empty(&cluster).await?;
    client.generate(generate("And God said", 4)).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_disturbs_nobody() -> Result<()> {
    let layout = Layout { attention: 2, experts: 2, ..Layout::default() };
    let (cluster, client) = start(&layout).await?;
    // The demo model has no chat template.
    let asks: Vec<_> = (0..60).map(ask).filter(|ask| !is_chat(ask)).collect();
    let expected = client.ask_all(&asks, 1).await?;

    let bad = async {
        for _ in 0..3 {
            refused_over_http(&client).await?;
            refused_over_grpc(&client).await?;
            refused_by_the_node(&cluster).await?;
            noise(&client).await?;
        }
        anyhow::Ok(())
    };
    let (replies, ()) = try_join!(client.ask_all(&asks, 8), bad)?;
    assert_eq!(replies, expected);
    assert_empty(&cluster).await?;
    cluster.stop().await
}

fn is_chat(ask: &Ask) -> bool {
    matches!(ask, Ask::Http { path, .. } if *path != COMPLETIONS)
}

async fn refused_over_http(client: &Client) -> Result<()> {
    let long = "And God said. ".repeat(2000);
    for (body, status, word) in [
        ("{".to_owned(), 400, "JSON"),
        ("[1]".to_owned(), 400, "object"),
        (json!({"prompt": []}).to_string(), 400, "prompt"),
        (json!({"prompt": [VOCAB]}).to_string(), 400, "vocabulary"),
        (json!({"prompt": [-1]}).to_string(), 400, "vocabulary"),
        (json!({"prompt": long}).to_string(), 400, "maximum context length"),
        (json!({"prompt": "x", "max_tokens": 0}).to_string(), 400, "max_tokens"),
        (json!({"prompt": "x", "temperature": "hot"}).to_string(), 400, "temperature"),
        (json!({"prompt": "x", "n": 1_000_000}).to_string(), 400, "n"),
        (json!({"prompt": "x", "model": "none"}).to_string(), 404, "none"),
    ] {
        let response = client.post(COMPLETIONS, body.clone()).await?;
        let found = response.status();
        let text = text(response).await?;
        let message = serde_json::from_str::<Value>(&text)?["error"]["message"].to_string();
        ensure!(found == status && message.contains(word), "{body:.80}: {found}: {text}");
    }
    Ok(())
}

async fn refused_over_grpc(client: &Client) -> Result<()> {
    for (request, expected) in [
        (GenerateRequest::default(), Code::InvalidArgument),
        (generate("x", 0), Code::InvalidArgument),
        (generate("x", 1 << 30), Code::InvalidArgument),
        (GenerateRequest { model: "none".into(), ..generate("x", 1) }, Code::NotFound),
    ] {
        let error = client.generate(request.clone()).await.err();
        let found = error.as_ref().and_then(code);
        ensure!(found == Some(expected), "{request:?}: {error:?}");
    }
    Ok(())
}

/// What no gateway would send.
async fn refused_by_the_node(cluster: &Cluster) -> Result<()> {
    let mut unknown = sequence(0, VOCAB);
    unknown.tokens[0] = VOCAB;
    let mut empty = sequence(0, VOCAB);
    (empty.tokens, empty.prompt_len) = (Vec::new(), 0);
    for (request, word) in [(unknown, "vocabulary"), (endless(0, 5000), "room"), (empty, "tokens")]
    {
        let error = cluster.run(0, request).await.err().context("a bad sequence is run")?;
        ensure!(error.to_string().contains(word), "{error}");
    }
    Ok(())
}

/// Bytes that are neither HTTP nor gRPC, and half of a request.
async fn noise(client: &Client) -> Result<()> {
    for bytes in [&b"\0\xff\xfe nothing\r\n\r\n"[..], b"POST /v1/completions HTTP/1.1\r\nContent-"]
    {
        let mut stream = TcpStream::connect(client.address()).await?;
        stream.write_all(bytes).await?;
    }
    Ok(())
}

fn generate(prompt: &str, max_tokens: u32) -> GenerateRequest {
    let sampling = SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() };
    GenerateRequest {
        prompt: Some(Prompt::Text(prompt.to_owned())),
        sampling: Some(sampling),
        ..GenerateRequest::default()
    }
}

fn code(error: &anyhow::Error) -> Option<Code> {
    Some(error.downcast_ref::<tonic::Status>()?.code())
}
