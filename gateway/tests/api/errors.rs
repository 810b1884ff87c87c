//! What is refused, and how: status, sentence, field, code.

use axum::http::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    gateway::{keyed, start, start_trusting, start_with},
    node::saying,
};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Path, fields on top of a good request, status, `param`, and a part of the sentence.
type Case = (&'static str, Value, u16, Value, &'static str);

fn prompts() -> Vec<Case> {
    let long = "And God said. ".repeat(1000);
    vec![
        (COMPLETIONS, json!({"model": "other"}), 404, json!("model"), "served: demo, demo-2"),
        (COMPLETIONS, json!({"model": 3}), 400, json!("model"), "expected a string, found 3"),
        (COMPLETIONS, json!({"prompt": null}), 400, json!("prompt"), "found nothing"),
        (COMPLETIONS, json!({"prompt": []}), 400, json!("prompt"), "found an empty array"),
        (COMPLETIONS, json!({"prompt": ""}), 400, json!("prompt"), "at least one token"),
        (COMPLETIONS, json!({"prompt": ["a", 1]}), 400, json!("prompt"), "an array with 1"),
        (COMPLETIONS, json!({"prompt": [1, "a"]}), 400, json!("prompt"), "an array with a string"),
        (
            COMPLETIONS,
            json!({"prompt": [2048]}),
            400,
            json!("prompt"),
            "below the vocabulary's size 2048, found 2048",
        ),
        (COMPLETIONS, json!({"prompt": long}), 400, Value::Null, "maximum context length is 1024"),
        (COMPLETIONS, json!({"max_tokens": 1023}), 400, Value::Null, "1023 more are asked for"),
    ]
}

fn numbers() -> Vec<Case> {
    vec![
        (COMPLETIONS, json!({"max_tokens": 0}), 400, json!("max_tokens"), "at least 1, found 0"),
        (
            COMPLETIONS,
            json!({"max_tokens": "5"}),
            400,
            json!("max_tokens"),
            "an integer, found a string",
        ),
        (
            COMPLETIONS,
            json!({"max_tokens": 1.5}),
            400,
            json!("max_tokens"),
            "an integer, found 1.5",
        ),
        (
            COMPLETIONS,
            json!({"temperature": -1}),
            400,
            json!("temperature"),
            "at least 0, found -1",
        ),
        (
            COMPLETIONS,
            json!({"temperature": "hot"}),
            400,
            json!("temperature"),
            "a number, found a string",
        ),
        (COMPLETIONS, json!({"top_p": 1.1}), 400, json!("top_p"), "up to 1, found 1.1"),
        (COMPLETIONS, json!({"seed": 1.5}), 400, json!("seed"), "a 64-bit integer, found 1.5"),
        (COMPLETIONS, json!({"n": 129}), 400, json!("n"), "from 1 to 128"),
        (COMPLETIONS, json!({"best_of": 3}), 400, json!("best_of"), "the same as `n`, which is 1"),
        (COMPLETIONS, json!({"logit_bias": {"a": 1}}), 400, json!("logit_bias"), "the key `a`"),
        (COMPLETIONS, json!({"logprobs": true}), 400, json!("logprobs"), "an integer, found true"),
        (COMPLETIONS, json!({"suffix": "end"}), 400, json!("suffix"), "not offered"),
        (COMPLETIONS, json!({"stream": "yes"}), 400, json!("stream"), "true or false"),
        (
            COMPLETIONS,
            json!({"stream_options": {}}),
            400,
            json!("stream_options"),
            "when `stream` is true",
        ),
        (COMPLETIONS, json!({"stop": [1]}), 400, json!("stop"), "an array with 1"),
        (COMPLETIONS, json!({"stop": ""}), 400, json!("stop"), "1 to 1024 bytes"),
    ]
}

fn constraints() -> Vec<Case> {
    let case =
        |body: Value, param: &str, sentence| (COMPLETIONS, body, 400, json!(param), sentence);
    let format = |format: Value| json!({"response_format": format});
    let outputs = |outputs: Value| json!({"structured_outputs": outputs});
    vec![
        case(format(json!("json")), "response_format", "an object, found a string"),
        case(format(json!({"type": "xml"})), "response_format", "found `xml`"),
        case(format(json!({"type": "json_schema"})), "response_format", "found none"),
        case(
            format(json!({"type": "json_schema", "json_schema": {"schema": 1}})),
            "schema",
            "found 1",
        ),
        case(outputs(json!({})), "structured_outputs", "found none of them"),
        case(
            outputs(json!({"regex": "a", "json": {}})),
            "structured_outputs",
            "one constraint at most",
        ),
        case(outputs(json!({"structural_tag": "x"})), "structural_tag", "not offered"),
        case(outputs(json!({"choice": []})), "choice", "at least one text"),
        case(outputs(json!({"choice": [1]})), "choice", "an array with 1"),
        case(
            outputs(json!({"regex": "a".repeat(300_000)})),
            "structured_outputs",
            "at most 262144 bytes",
        ),
        case(
            json!({"guided_regex": "a", "guided_json": {}}),
            "structured_outputs",
            "one constraint at most",
        ),
        case(
            json!({"guided_regex": "a+", "min_tokens": 2}),
            "min_tokens",
            "says where the text ends",
        ),
    ]
}

fn conversations() -> Vec<Case> {
    let hi = || json!([{"role": "user", "content": "Hi"}]);
    vec![
        (CHAT, json!({"messages": []}), 400, json!("messages"), "at least one message"),
        (CHAT, json!({"messages": "Hi"}), 400, json!("messages"), "an array, found a string"),
        (CHAT, json!({"messages": ["Hi"]}), 400, json!("messages[0]"), "an object, found a string"),
        (
            CHAT,
            json!({"messages": [{"content": "Hi"}]}),
            400,
            json!("messages[0].role"),
            "found null",
        ),
        (
            CHAT,
            json!({"messages": [{"role": "user"}]}),
            400,
            json!("messages[0].content"),
            "found null",
        ),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            json!("messages[0].content"),
            "a part of type `image_url`",
        ),
        (
            CHAT,
            json!({"messages": hi(), "tool_choice": "required"}),
            400,
            json!("tools"),
            "a tool to call",
        ),
        (
            CHAT,
            json!({"messages": hi(), "tools": [{}]}),
            400,
            json!("tools"),
            "does not render tools",
        ),
        (
            CHAT,
            json!({"messages": hi(), "top_logprobs": 2}),
            400,
            json!("top_logprobs"),
            "when `logprobs` is true",
        ),
        (
            CHAT,
            json!({"messages": hi(), "logprobs": true, "top_logprobs": 21}),
            400,
            json!("top_logprobs"),
            "from 0 to 20",
        ),
        ("/tokenize", json!({"model": "other"}), 404, json!("model"), "does not exist"),
        ("/detokenize", json!({"tokens": [9999]}), 400, json!("tokens"), "found 9999"),
    ]
}

/// Fields that would change the answer and are not offered.
fn unoffered() -> Vec<Case> {
    let hi = || json!([{"role": "user", "content": "Hi"}]);
    vec![
        (COMPLETIONS, json!({"allowed_token_ids": [1]}), 400, json!("allowed_token_ids"), "use"),
        (COMPLETIONS, json!({"bad_words": ["a"]}), 400, json!("bad_words"), "`logit_bias`"),
        (
            COMPLETIONS,
            json!({"truncate_prompt_tokens": 5}),
            400,
            json!("truncate_prompt_tokens"),
            "never cut",
        ),
        (
            COMPLETIONS,
            json!({"return_tokens_as_token_ids": true}),
            400,
            json!("return_tokens_as_token_ids"),
            "`return_token_ids`",
        ),
        (
            CHAT,
            json!({"messages": hi(), "documents": [{"text": "a"}]}),
            400,
            json!("documents"),
            "into a message",
        ),
        (CHAT, json!({"messages": hi(), "echo": true}), 400, json!("echo"), "/v1/completions"),
    ]
}

#[tokio::test]
async fn bad_requests_get_a_sentence_and_disturb_nobody() {
    let gateway = start(saying("x")).await;
    for (path, change, status, param, sentence) in
        [prompts(), numbers(), constraints(), conversations(), unoffered()].concat()
    {
        let mut body = json!({"model": "demo"});
        if path != CHAT {
            body["prompt"] = json!("And God");
        }
        for (field, value) in change.as_object().unwrap() {
            body[field] = value.clone();
        }
        let reply = gateway.client.post(path, body).await;
        assert_eq!(reply.status, status, "{change}: {}", reply.text);
        let error = &reply.json()["error"];
        assert_eq!(error["type"], "invalid_request_error", "{change}");
        assert_eq!(error["param"], param, "{change}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(sentence), "{change}: {message}");
        assert!(reply.headers.contains_key("x-request-id"));
    }
    assert!(gateway.nodes[0].requests().is_empty(), "no sequence was started");
    let metrics = gateway.metrics().await;
    assert!(metrics.contains("vllm:num_requests_waiting{model_name=\"demo\"} 0"), "{metrics}");
}

#[tokio::test]
async fn malformed_json_is_shown_its_place() {
    let gateway = start(saying("x")).await;
    for (body, sentence) in [
        ("{\"prompt\": ", "line 1 column 11"),
        ("{\"temperature\": NaN}", "line 1 column 17"),
        ("{\"temperature\": 1e999}", "number out of range at line 1"),
        ("[]", "expected a JSON object, found an array"),
        ("", "EOF"),
    ] {
        let reply = gateway.client.send(Method::POST, COMPLETIONS, &[], body).await;
        assert_eq!(reply.status, 400);
        let message = reply.json()["error"]["message"].as_str().unwrap().to_string();
        assert!(message.contains(sentence), "{body}: {message}");
    }
}

#[tokio::test]
async fn wrong_paths_methods_and_sizes_have_their_own_status() {
    let gateway = start_with(vec![saying("x")], |config| config.server.body_bytes_max = 1000).await;
    let client = &gateway.client;
    let missing = client.get("/v1/nothing").await;
    assert_eq!(
        (missing.status.as_u16(), &missing.json()["error"]["code"]),
        (404, &json!("unknown_url"))
    );
    let method = client.get(COMPLETIONS).await;
    assert_eq!(method.status, 405);
    let model = client.get("/v1/models/other").await;
    assert_eq!(
        (model.status.as_u16(), &model.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    let large = client.post(COMPLETIONS, json!({"prompt": "x".repeat(1000)})).await;
    assert_eq!(large.status, 413, "{}", large.text);
    assert!(large.text.contains("at most 1000 bytes"), "{}", large.text);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let impatient = |config: &mut ::gateway::Config| config.server.receive_timeout_s = 1;
    let gateway = start_with(vec![saying("x")], impatient).await;
    let mut stream = TcpStream::connect(gateway.authority()).await.unwrap();
    let half = "POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(half.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn a_key_is_wanted_everywhere_but_at_the_probes() {
    let keys = keyed();
    let gateway = start_trusting(keys.trust, vec![saying("x")], |_| {}).await;
    let client = &gateway.client;
    let get = async |path: &str, key: &str| {
        client.send(Method::GET, path, &[("authorization", &format!("Bearer {key}"))], "").await
    };
    // Path, and the status with a key for inference and with one for metrics.
    for (path, asks, scrapes) in [
        ("/v1/models", 200, 403),
        ("/v1/models/demo", 200, 403),
        ("/v1/completions", 405, 403),
        ("/metrics", 403, 200),
        ("/routes", 403, 200),
        ("/version", 200, 200),
        ("/v1/nothing", 404, 404),
    ] {
        let reply = client.get(path).await;
        assert_eq!(reply.status, 401, "{path}");
        assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
        assert_eq!(get(path, &keys.inference[1..]).await.status, 401, "{path}");
        for (key, expected) in [(&keys.inference, asks), (&keys.metrics, scrapes)] {
            let reply = get(path, key).await;
            assert_eq!(reply.status, expected, "{path}: {}", reply.text);
            if expected == 403 {
                assert_eq!(reply.json()["error"]["code"], "insufficient_permissions");
            }
        }
    }
    for path in ["/health", "/livez", "/readyz", "/ping"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
    let metrics = get("/metrics", &keys.metrics).await.text;
    // Four were let in; that one may not do a thing is no answer to it.
    let counted = "amoe_gateway_keyed_responses_total{key=\"alice\",model_name=\"demo\"} 4";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn only_pages_of_allowed_origins_may_ask() {
    let keyed = keyed();
    let gateway = start_trusting(keyed.trust, vec![saying("x")], |config| {
        config.server.allowed_origins = vec!["https://chat.example.org".into()];
    })
    .await;
    let preflight = async |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        gateway.client.send(Method::OPTIONS, COMPLETIONS, &headers, "").await
    };
    let allowed = preflight("https://chat.example.org").await;
    assert_eq!(allowed.status, 204);
    assert_eq!(allowed.headers["access-control-allow-origin"], "https://chat.example.org");
    assert_eq!(allowed.headers["access-control-allow-headers"], "authorization,content-type");
    let stranger = preflight("https://evil.example.org").await;
    assert_eq!(stranger.status, 401);
    assert!(!stranger.headers.contains_key("access-control-allow-origin"));
    // Leave to ask is no key, and a page can read what it is refused by.
    let origin = ("origin", "https://chat.example.org");
    let keyless = gateway.client.send(Method::GET, "/v1/models", &[origin], "").await;
    assert_eq!(keyless.status, 401);
    assert_eq!(keyless.headers["access-control-allow-origin"], "https://chat.example.org");
    let key = format!("Bearer {}", keyed.inference);
    let asked = [origin, ("authorization", key.as_str())];
    assert_eq!(gateway.client.send(Method::GET, "/v1/models", &asked, "").await.status, 200);
}

#[tokio::test]
async fn a_prompt_longer_than_configured_is_refused() {
    let short = |config: &mut ::gateway::Config| config.bounds.prompt_tokens_max = Some(4);
    let gateway = start_with(vec![saying("x")], short).await;
    let ask = async |tokens: &[u32]| {
        gateway.client.post(COMPLETIONS, json!({"prompt": tokens, "max_tokens": 1})).await
    };
    assert_eq!(ask(&[1, 2, 3, 4]).await.status, 200);
    let refused = ask(&[1, 2, 3, 4, 5]).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text.contains("the prompt has 5 tokens, at most 4"), "{}", refused.text);
    assert_eq!(refused.json()["error"]["code"], "context_length_exceeded");
}

#[tokio::test]
async fn a_client_s_request_id_comes_back_and_a_bad_one_is_replaced() {
    let gateway = start(saying("x")).await;
    let body = json!({"prompt": "And"}).to_string();
    let mine = [("x-request-id", "mine-1")];
    let reply = gateway.client.send(Method::POST, COMPLETIONS, &mine, body.clone()).await;
    assert_eq!(reply.headers["x-request-id"], "mine-1");
    assert_eq!(reply.ok()["id"], "cmpl-mine-1");
    assert_eq!(gateway.nodes[0].requests()[0].id, "mine-1-0");
    let bad = [("x-request-id", "not mine")];
    let reply = gateway.client.send(Method::POST, COMPLETIONS, &bad, body).await;
    assert_eq!(reply.headers["x-request-id"].len(), 32);
}
