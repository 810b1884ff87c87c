//! What happens to sequences when clients leave, nodes die or refuse, and bounds are reached.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use axum::http::Method;
use domain::{ClusterView, SequenceRequest};
use proto::v1::inference_client::InferenceClient;
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    gateway::{start, start_with},
    grpc,
    node::{Act, Script, ids, say, saying},
};

const TEXT: &str = " said unto him, What is the man";

/// Says the first `tokens` of the text, then does `act`.
fn until(tokens: usize, act: Act) -> Script {
    Arc::new(move |request: &SequenceRequest| {
        let mut acts = say(request, TEXT);
        acts.truncate(tokens);
        acts.push(act.clone());
        acts
    })
}

fn failing(code: Code) -> Script {
    Arc::new(move |_| vec![Act::Fail(code)])
}

fn body() -> Value {
    json!({"prompt": "And God", "max_tokens": 50, "stream": true})
}

async fn whole(client: &crate::client::Client) -> String {
    let chunks = client.stream("/v1/completions", body()).await.chunks().await;
    assert!(chunks.iter().all(|chunk| chunk.get("error").is_none()), "{chunks:?}");
    chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_sequences() {
    let gateway = start(until(2, Act::Hang)).await;
    let mut body = body();
    body["n"] = json!(3);
    let mut stream = gateway.client.stream("/v1/completions", body.clone()).await;
    stream.next().await.unwrap();
    gateway.nodes[0].holds(3).await;
    drop(stream);
    gateway.nodes[0].holds(0).await;

    // The same without streaming: the client gives up waiting for the answer.
    body["stream"] = json!(false);
    let waiting = gateway.client.post("/v1/completions", body);
    tokio::select! {
        _ = waiting => panic!("the node never ends it"),
        () = gateway.nodes[0].holds(3) => {}
    }
    gateway.nodes[0].holds(0).await;
    let metrics = gateway.metrics().await;
    let aborted = "vllm:request_success_total{finished_reason=\"abort\",model_name=\"demo\"} 6";
    assert!(metrics.contains(aborted), "{metrics}");
}

#[tokio::test]
async fn a_lost_node_is_replaced_in_the_middle_of_a_stream() {
    for lost_by in [Act::Fail(Code::Unavailable), Act::Fail(Code::Internal)] {
        let gateway = start_with(vec![until(3, lost_by), saying(TEXT)], |_| {}).await;
        assert_eq!(whole(&gateway.client).await, TEXT);
        let first = gateway.nodes[0].requests()[0].clone();
        let second = gateway.nodes[1].requests()[0].clone();
        let mut tokens = ids("And God");
        tokens.extend(&ids(TEXT)[..3]);
        assert_eq!(second.tokens, tokens, "the prompt and what was generated");
        assert_eq!(second.prompt_len, first.prompt_len);
        assert_eq!(second.sampling, first.sampling, "the seed drawn once among it");
        let metrics = gateway.metrics().await;
        assert!(metrics.contains("amoe_gateway_sequences_resumed_total{model_name=\"demo\"} 1"));
    }
}

#[tokio::test]
async fn a_killed_node_is_replaced_too() {
    let gateway = start_with(vec![until(3, Act::Hang), saying(TEXT)], |_| {}).await;
    let mut stream = gateway.client.stream("/v1/completions", body()).await;
    stream.next().await.unwrap();
    gateway.nodes[0].kill();
    let rest = stream.chunks().await;
    let last = &rest.last().unwrap()["choices"][0];
    assert_eq!(last["finish_reason"], "stop", "{rest:?}");
    assert_eq!(gateway.nodes[1].requests().len(), 1);
}

#[tokio::test]
async fn a_silent_node_is_a_lost_node() {
    let impatient = |config: &mut ::gateway::Config| config.patience.next_token_s = 1;
    let gateway = start_with(vec![until(3, Act::Hang), saying(TEXT)], impatient).await;
    assert_eq!(whole(&gateway.client).await, TEXT);
    gateway.nodes[0].holds(0).await;
}

#[tokio::test]
async fn the_only_node_is_tried_again_when_it_comes_back() {
    let calls = AtomicU32::new(0);
    let script =
        Arc::new(move |request: &SequenceRequest| match calls.fetch_add(1, Ordering::Relaxed) {
            0 => [say(request, TEXT).remove(0), Act::Fail(Code::Unavailable)].to_vec(),
            1 => vec![Act::Fail(Code::Unavailable)],
            _ => say(request, TEXT),
        });
    let gateway = start(script).await;
    assert_eq!(whole(&gateway.client).await, TEXT);
    assert_eq!(gateway.nodes[0].requests().len(), 3);
}

#[tokio::test]
async fn tries_are_bounded_and_the_client_is_told() {
    let few = |config: &mut ::gateway::Config| config.patience.tries_max = 3;
    let gateway = start_with(vec![until(1, Act::Fail(Code::Unavailable)); 3], few).await;
    let chunks = gateway.client.stream("/v1/completions", body()).await.chunks().await;
    let error = &chunks.last().unwrap()["error"];
    assert_eq!(error["code"], "attention_node_lost", "{chunks:?}");
    assert!(error["message"].as_str().unwrap().contains("3 tries"), "{error}");

    let gateway = start_with(vec![failing(Code::Unavailable); 3], few).await;
    let reply = gateway.client.post("/v1/completions", body()).await;
    assert_eq!(reply.status, 503, "before the first token the status says it: {}", reply.text);
}

#[tokio::test]
async fn a_full_node_sends_the_sequence_to_the_next_one() {
    let gateway = start_with(vec![failing(Code::ResourceExhausted), saying(TEXT)], |_| {}).await;
    assert_eq!(whole(&gateway.client).await, TEXT);

    let gateway = start_with(vec![failing(Code::ResourceExhausted); 2], |_| {}).await;
    let reply = gateway.client.post("/v1/completions", body()).await;
    assert_eq!(reply.status, 429, "{}", reply.text);
    assert_eq!(reply.headers["retry-after"], "1");
    assert_eq!(reply.json()["error"]["code"], "queue_full");
}

#[tokio::test]
async fn what_a_node_finds_wrong_is_not_tried_elsewhere() {
    let scripts = vec![failing(Code::InvalidArgument), saying(TEXT)];
    let gateway = start_with(scripts, |_| {}).await;
    let reply = gateway.client.post("/v1/completions", body()).await;
    assert_eq!(reply.status, 400);
    assert!(gateway.nodes[1].requests().is_empty());
}

#[tokio::test]
async fn beyond_the_bound_requests_are_told_when_to_come_back() {
    let two = |config: &mut ::gateway::Config| config.bounds.sequences_max = 2;
    let gateway = start_with(vec![until(1, Act::Hang)], two).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = gateway.client.stream("/v1/completions", body()).await;
        stream.next().await.unwrap();
        held.push(stream);
    }
    let reply = gateway.client.post("/v1/completions", body()).await;
    assert_eq!(reply.status, 429);
    assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
    let message = reply.json()["error"]["message"].as_str().unwrap().to_string();
    assert!(message.contains("2 of 2 sequences are in flight"), "{message}");
    held.pop();
    gateway.nodes[0].holds(1).await;
    let mut stream = gateway.client.stream("/v1/completions", body()).await;
    assert!(stream.next().await.is_some(), "room again");
}

/// Somebody waits and is not served; others are, and each takes longer than a client in haste allows.
#[tokio::test]
async fn who_would_wait_too_long_is_told_so_at_the_door() {
    let asked = AtomicU32::new(0);
    let script: Script =
        Arc::new(move |request: &SequenceRequest| match asked.fetch_add(1, Ordering::Relaxed) {
            0 => vec![Act::Hang],
            _ => say(request, TEXT),
        });
    let gateway = start_with(vec![script], |_| {}).await;
    let waiting = gateway.client.post("/v1/completions", body());
    let others = async {
        gateway.nodes[0].holds(1).await;
        let post = async |haste: &[(&str, &str)]| {
            let body = body().to_string();
            gateway.client.send(Method::POST, "/v1/completions", haste, body).await
        };
        let refused = loop {
            let reply = post(&[("x-slo-ttft-ms", "1")]).await;
            if reply.status != 200 {
                break reply;
            }
        };
        assert_eq!(
            (refused.status.as_u16(), &refused.headers["retry-after"]),
            (429, &"1".parse().unwrap())
        );
        let message = refused.json()["error"]["message"].as_str().unwrap().to_string();
        assert!(message.contains("ms where 1 ms are wanted"), "{message}");
        // A client that does not say so is not in haste, and none may wait longer than all may.
        assert_eq!(post(&[]).await.status, 200);
        assert_eq!(post(&[("x-slo-ttft-ms", "1e300")]).await.status, 400);
        assert_eq!(post(&[("x-slo-ttft-ms", "600000")]).await.status, 200);

        let mut client = InferenceClient::new(grpc::channel(&gateway).await);
        let mut call = tonic::Request::new(grpc::request(grpc::text("And God")));
        call.metadata_mut().insert("x-slo-ttft-ms", "1".parse().unwrap());
        assert_eq!(client.generate(call).await.unwrap_err().code(), Code::ResourceExhausted);
    };
    tokio::select! {
        _ = waiting => panic!("the node says nothing"),
        () = others => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_its_answer_finds_room_for_the_next_request() {
    let one = |config: &mut ::gateway::Config| config.bounds.sequences_max = 1;
    let gateway = start_with(vec![saying(TEXT)], one).await;
    for _ in 0..50 {
        assert_eq!(whole(&gateway.client).await, TEXT);
    }
}

#[tokio::test]
async fn without_a_node_requests_get_503_and_health_says_why() {
    let at_once = |config: &mut ::gateway::Config| config.patience.node_s = 0;
    let gateway = start_with(vec![saying("x")], at_once).await;
    assert_eq!(gateway.client.get("/health").await.status, 200);
    gateway.view.send_replace(Arc::new(ClusterView::default()));
    let reply = gateway.client.post("/v1/completions", body()).await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["error"]["code"], "no_attention_node");
    assert_eq!(gateway.client.get("/ping").await.status, 503);
    // Readiness follows the view, in a task of its own.
    loop {
        let health = gateway.client.get("/health").await;
        if health.status == 503 {
            assert!(health.text.contains("attention nodes"), "{}", health.text);
            break;
        }
        tokio::task::yield_now().await;
    }
}

/// A node that hangs keeps its connections. The coordinator knows better.
#[tokio::test]
async fn a_silent_node_that_the_coordinator_has_lost_is_left_before_its_time() {
    let gateway = start_with(vec![until(3, Act::Hang), saying(TEXT)], |_| {}).await;
    let leave = async {
        gateway.nodes[0].holds(1).await;
        let mut view = (**gateway.view.borrow()).clone();
        view.members.remove(0);
        gateway.view.send_replace(Arc::new(view));
    };
    assert_eq!(tokio::join!(whole(&gateway.client), leave).0, TEXT);
}

/// All attention nodes wait while an expert has no replica: then so do requests, and not their clients' next tries.
#[tokio::test]
async fn requests_are_held_while_all_nodes_are_away_for_a_moment() {
    let gateway = start(saying(TEXT)).await;
    let there = gateway.view.borrow().clone();
    gateway.view.send_replace(Arc::new(ClusterView::default()));
    let held = whole(&gateway.client);
    let back = async {
        // It waits at the door, and the gateway goes on saying that it takes requests.
        while !gateway.metrics().await.contains("vllm:num_requests_waiting{model_name=\"demo\"} 1")
        {
            tokio::task::yield_now().await;
        }
        assert_eq!(gateway.client.get("/health").await.status, 200);
        assert_eq!(gateway.client.get("/ping").await.status, 200);
        gateway.view.send_replace(there);
    };
    assert_eq!(tokio::join!(held, back).0, TEXT);
}

#[tokio::test]
async fn held_requests_are_refused_when_no_node_comes_back() {
    let soon = |config: &mut ::gateway::Config| config.patience.node_s = 1;
    let gateway = start_with(vec![saying("x")], soon).await;
    gateway.view.send_replace(Arc::new(ClusterView::default()));
    let reply = gateway.client.post("/v1/completions", body()).await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    while gateway.client.get("/health").await.status != 503 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn sequences_spread_over_the_nodes_by_what_is_placed_there() {
    let gateway = start_with(vec![until(1, Act::Hang), until(1, Act::Hang)], |_| {}).await;
    let mut body = body();
    body["n"] = json!(8);
    let mut stream = gateway.client.stream("/v1/completions", body).await;
    stream.next().await.unwrap();
    gateway.nodes[0].holds(4).await;
    gateway.nodes[1].holds(4).await;
}

#[tokio::test]
async fn a_conversation_stays_with_the_node_that_has_computed_it() {
    let script: Script = Arc::new(|request: &SequenceRequest| match request.tokens.len() {
        ..64 => vec![Act::Hang],
        _ => say(request, TEXT),
    });
    let gateway = start_with(vec![script.clone(), script], |_| {}).await;
    let ask = async |tokens: &[u32]| {
        let body = json!({"prompt": tokens, "max_tokens": 50, "stream": true});
        gateway.client.stream("/v1/completions", body).await
    };
    let asked = || [0, 1].map(|node: usize| gateway.nodes[node].requests().len());

    // Somebody's short prompt makes the first node the busier one.
    let somebody = ask(&[7; 8]).await;
    gateway.nodes[0].holds(1).await;
    let mut conversation: Vec<u32> = (0..100).collect();
    ask(&conversation).await.chunks().await;
    assert_eq!(asked(), [1, 1]);
    drop(somebody);
    gateway.nodes[0].holds(0).await;

    let stranger: Vec<u32> = (1..101).collect();
    ask(&stranger).await.chunks().await;
    assert_eq!(asked(), [2, 1], "the first node has more to spare");
    conversation.extend(200..230);
    ask(&conversation).await.chunks().await;
    assert_eq!(asked(), [2, 2], "the second one has computed most of it");
}
