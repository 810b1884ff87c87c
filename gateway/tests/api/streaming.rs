//! Answers that come piece by piece.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::{
    gateway::start,
    node::{Act, ids, say, say_ids, saying},
};

/// The text of each choice, put together.
fn texts(chunks: &[Value], field: impl Fn(&Value) -> &Value) -> BTreeMap<u64, String> {
    let mut texts = BTreeMap::new();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let text: &mut String = texts.entry(choice["index"].as_u64().unwrap()).or_default();
        text.push_str(field(choice).as_str().unwrap_or_default());
    }
    texts
}

#[tokio::test]
async fn completions_come_in_chunks_with_the_usage_last() {
    let gateway = start(saying(" said unto him")).await;
    let body = json!({"prompt": "And God", "stream": true, "echo": true,
                      "stream_options": {"include_usage": true}});
    let chunks = gateway.client.stream("/v1/completions", body).await.chunks().await;
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(texts(chunks, |choice| &choice["text"])[&0], "And God said unto him");
    assert!(chunks.len() > 2, "in pieces");
    assert!(chunks.iter().all(|chunk| chunk["usage"] == json!(null)));
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!(last["finish_reason"], "stop");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], ids(" said unto him").len() + 1);
    assert!(chunks.iter().all(|chunk| chunk["id"] == usage["id"]));
}

#[tokio::test]
async fn the_usage_so_far_comes_with_every_chunk_if_wanted() {
    let gateway = start(saying(" said unto him")).await;
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "prompt": "And God",
                          "stream": true, "max_tokens": 3,
                          "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let counts = async |path: &str, body: &Value| -> Vec<Value> {
        let chunks = gateway.client.stream(path, body.clone()).await.chunks().await;
        chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].clone()).collect()
    };
    assert_eq!(counts("/v1/completions", &body).await, [1, 2, 3, 3]);
    // The first token's role comes in a chunk of its own.
    assert_eq!(counts("/v1/chat/completions", &body).await, [1, 1, 2, 3, 3]);
    body["stream_options"]["include_usage"] = json!(false);
    assert_eq!(counts("/v1/completions", &body).await, [json!(null), json!(null), json!(null)]);
}

#[tokio::test]
async fn chat_begins_with_the_role_and_has_no_usage_unless_asked() {
    let gateway = start(saying(" said unto him")).await;
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true});
    let chunks = gateway.client.stream("/v1/chat/completions", body).await.chunks().await;
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    let role = json!({"role": "assistant", "content": ""});
    assert_eq!(chunks[0]["choices"][0]["delta"], role);
    assert_eq!(texts(&chunks, |choice| &choice["delta"]["content"])[&0], " said unto him");
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn characters_of_several_tokens_come_whole() {
    let text = "né € 👩‍👩‍👧 end";
    let gateway = start(saying(text)).await;
    let body = json!({"prompt": "And", "stream": true, "max_tokens": 100});
    let chunks = gateway.client.stream("/v1/completions", body).await.chunks().await;
    assert_eq!(texts(&chunks, |choice| &choice["text"])[&0], text);
    assert!(chunks.iter().all(|chunk| !chunk.to_string().contains('\u{FFFD}')));
}

#[tokio::test]
async fn what_may_become_a_stop_string_is_held_back() {
    let (gate, opened) = tokio::sync::watch::channel(false);
    let script = Arc::new(move |request: &domain::SequenceRequest| {
        let mut acts = say(request, "one STOX two STOP three");
        // The node goes on only when the client has seen what it may see.
        let cut = ids("one STO").len();
        acts.insert(cut, Act::Gate(opened.clone()));
        acts
    });
    let gateway = start(script).await;
    let body = json!({"prompt": "And", "stream": true, "stop": "STOP", "max_tokens": 100});
    let mut stream = gateway.client.stream("/v1/completions", body).await;
    let mut seen = String::new();
    while !seen.ends_with(' ') {
        let chunk: Value = serde_json::from_str(&stream.next().await.unwrap()).unwrap();
        seen.push_str(chunk["choices"][0]["text"].as_str().unwrap());
    }
    assert_eq!(seen, "one ");
    gate.send(true).unwrap();
    let chunks = stream.chunks().await;
    assert_eq!(texts(&chunks, |choice| &choice["text"])[&0], "STOX two ");
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("stop"), &json!("STOP")));
}

#[tokio::test]
async fn logprobs_come_with_every_token_of_a_stream() {
    let gateway = start(saying("€ end")).await;
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "logprobs": true,
                      "stream": true, "max_tokens": 20});
    let chunks = gateway.client.stream("/v1/chat/completions", body).await.chunks().await;
    let rows: usize = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .map(Vec::len)
        .sum();
    assert_eq!(rows, ids("€ end").len() + 1);
}

#[tokio::test]
async fn many_streams_at_once_keep_to_themselves() {
    let script = Arc::new(|request: &domain::SequenceRequest| {
        // Says its own prompt again, so that a mix-up shows.
        let prompt = request.tokens[..request.prompt_len as usize].to_vec();
        say_ids(request, &prompt)
    });
    let gateway = start(script).await;
    let ask = |nth: usize| {
        let client = &gateway.client;
        async move {
            let prompt = format!("number {nth} and {}", nth * 7);
            let body = json!({"prompt": prompt, "stream": true, "n": 2, "max_tokens": 60});
            let chunks = client.stream("/v1/completions", body).await.chunks().await;
            let texts = texts(&chunks, |choice| &choice["text"]);
            assert_eq!(texts.into_values().collect::<Vec<_>>(), [prompt.clone(), prompt]);
        }
    };
    join_all((0..64).map(ask)).await;
    gateway.nodes[0].holds(0).await;
}
