//! `/v1/chat/completions`: the answers, whole.

use serde_json::json;

use crate::{
    gateway::start,
    node::{ids, saying},
};

#[tokio::test]
async fn a_conversation_is_rendered_and_answered() {
    let gateway = start(saying(" said unto him")).await;
    let body = json!({
        "model": "demo",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be"},
                                           {"type": "text", "text": "brief"}]},
            {"role": "user", "content": "Hi"},
        ],
        "max_completion_tokens": 50, "max_tokens": 3,
    });
    let answer = gateway.client.post("/v1/chat/completions", body).await.ok();
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], " said unto him");
    assert_eq!(choice["finish_reason"], "stop");
    let request = &gateway.nodes[0].requests()[0];
    assert_eq!(request.tokens, ids("<system>Be\nbrief<user>Hi<assistant>"));
    assert_eq!(request.sampling.tokens_max, 50);
}

#[tokio::test]
async fn what_clients_say_in_other_words_is_understood() {
    let gateway = start(saying("x")).await;
    let messages = json!([
        {"role": "developer", "content": "Be"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
    ]);
    let body = json!({"messages": messages, "documents": [], "echo": false, "logprobs": false,
                      "top_logprobs": 0, "seed": 7.0, "max_tokens": 3.0});
    gateway.client.post("/v1/chat/completions", body).await.ok();
    let request = &gateway.nodes[0].requests()[0];
    assert_eq!(request.tokens, ids("<system>Be<user>Hi<assistant><assistant>No<assistant>"));
    assert_eq!((request.sampling.seed, request.sampling.tokens_max), (7, 3));
}

#[tokio::test]
async fn the_last_message_is_gone_on_with() {
    let gateway = start(saying("x")).await;
    let mut body = json!({"messages": [{"role": "assistant", "content": "Hi, "}],
                          "continue_final_message": true});
    gateway.client.post("/v1/chat/completions", body.clone()).await.ok();
    assert_eq!(gateway.nodes[0].requests()[0].tokens, ids("<assistant>Hi, "));
    body["add_generation_prompt"] = json!(true);
    let both = gateway.client.post("/v1/chat/completions", body).await;
    assert_eq!(
        (both.status.as_u16(), &both.json()["error"]["param"]),
        (400, &json!("continue_final_message"))
    );
}

#[tokio::test]
async fn without_a_length_the_model_s_own_is_the_bound() {
    let gateway = start(saying("x")).await;
    let body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    gateway.client.post("/v1/chat/completions", body).await.ok();
    let request = &gateway.nodes[0].requests()[0];
    assert_eq!(request.sampling.tokens_max + request.prompt_len, 1024);
}

#[tokio::test]
async fn logprobs_come_in_rows_with_exact_bytes() {
    let gateway = start(saying("€")).await;
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "logprobs": true,
                      "top_logprobs": 2, "max_tokens": 3});
    let answer = gateway.client.post("/v1/chat/completions", body).await.ok();
    let rows = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(rows.len(), ids("€").len());
    let bytes: Vec<u8> = rows
        .iter()
        .flat_map(|row| row["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "€");
    assert_eq!(rows[0]["logprob"], -0.5);
    assert_eq!(rows[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(rows[0]["top_logprobs"][0]["token"], rows[0]["token"]);
}

#[tokio::test]
async fn logprobs_without_alternatives_have_none() {
    let gateway = start(saying(" said")).await;
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "logprobs": true,
                      "max_tokens": 1});
    let answer = gateway.client.post("/v1/chat/completions", body).await.ok();
    let row = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!(row["top_logprobs"], json!([]));
}
