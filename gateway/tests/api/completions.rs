//! `/v1/completions`, `/tokenize`, `/detokenize`, `/v1/models`: the answers, whole.

use std::sync::Arc;

use proto::v1::inference_client::InferenceClient;
use serde_json::json;

use crate::{
    gateway::{start, start_with},
    grpc::{channel, request, text},
    node::{END, ids, say, say_ids, saying},
};

#[tokio::test]
async fn a_prompt_gets_text_usage_and_an_ending() {
    let gateway = start(saying(" said unto him")).await;
    let reply =
        gateway.client.post("/v1/completions", json!({"model": "demo", "prompt": "And God"})).await;
    let answer = reply.ok();
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["model"], "demo");
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], " said unto him");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["logprobs"], json!(null));
    let (prompt, said) = (ids("And God").len(), ids(" said unto him").len() + 1);
    let usage = json!({"prompt_tokens": prompt, "completion_tokens": said,
                       "total_tokens": prompt + said,
                       "prompt_tokens_details": {"cached_tokens": 1}});
    assert_eq!(answer["usage"], usage);
    let request = &gateway.nodes[0].requests()[0];
    assert_eq!(request.tokens, ids("And God"));
    assert_eq!(request.prompt_len as usize, prompt);
    assert_eq!(request.sampling.tokens_max, 16);
}

#[tokio::test]
async fn sampling_reaches_the_node_as_stated() {
    let gateway = start(saying("x")).await;
    let body = json!({
        "prompt": "And God", "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
        "presence_penalty": 0.25, "frequency_penalty": -0.5, "repetition_penalty": 1.5,
        "logit_bias": {"7": -100}, "seed": -1, "max_tokens": 5, "min_tokens": 2,
        "stop_token_ids": [9], "ignore_eos": true, "user": "ignored",
    });
    gateway.client.post("/v1/completions", body).await.ok();
    let sampling = gateway.nodes[0].requests()[0].sampling.clone();
    assert_eq!(
        sampling,
        domain::SamplingParams {
            temperature: 0.5,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.1,
            presence_penalty: 0.25,
            frequency_penalty: -0.5,
            repetition_penalty: 1.5,
            logit_bias: vec![(7, -100.0)],
            seed: u64::MAX,
            tokens_max: 5,
            tokens_min: 2,
            stop_tokens: vec![9],
            ignore_eos: true,
            logprobs: None,
            prompt_logprobs: None,
            constraint: None,
        }
    );
}

#[tokio::test]
async fn constraints_reach_the_node_in_one_form_each() {
    use domain::Constraint::{JsonSchema, Lark, Regex};
    let gateway = start(saying("x")).await;
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let written = || JsonSchema(r#"{"type":"object","properties":{"b":{},"a":{}}}"#.into());
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
    let any = || JsonSchema(r#"{"type": "object"}"#.into());
    let either = || Lark(r#"start: "yes" | "a \"no\"""#.into());
    for (field, value, expected) in [
        ("response_format", json!({"type": "text"}), None),
        ("response_format", json!({"type": "json_object"}), Some(any())),
        ("response_format", format, Some(written())),
        ("structured_outputs", json!({"json": schema}), Some(written())),
        ("structured_outputs", json!({"json": "{}", "regex": null}), Some(JsonSchema("{}".into()))),
        ("structured_outputs", json!({"json_object": true}), Some(any())),
        ("structured_outputs", json!({"regex": "a|b"}), Some(Regex("a|b".into()))),
        ("structured_outputs", json!({"choice": ["yes", "a \"no\""]}), Some(either())),
        (
            "structured_outputs",
            json!({"grammar": "start: \"x\""}),
            Some(Lark("start: \"x\"".into())),
        ),
        ("guided_json", schema.clone(), Some(written())),
        ("guided_regex", json!("a|b"), Some(Regex("a|b".into()))),
        ("guided_choice", json!(["yes", "a \"no\""]), Some(either())),
        ("guided_grammar", json!("start: \"x\""), Some(Lark("start: \"x\"".into()))),
        ("guided_json", json!(null), None),
    ] {
        let mut body = json!({"prompt": "And God"});
        body[field] = value;
        gateway.client.post("/v1/completions", body.clone()).await.ok();
        let last = gateway.nodes[0].requests().last().unwrap().sampling.constraint.clone();
        assert_eq!(last, expected, "{body}");
    }
}

#[tokio::test]
async fn what_a_request_leaves_open_is_as_the_model_recommends() {
    let recommend = |config: &mut gateway::Config| {
        let file = config.model.path.join("generation_config.json");
        std::fs::write(file, r#"{"temperature": 0.5, "top_k": 20, "eos_token_id": 0}"#).unwrap();
    };
    let gateway = start_with(vec![saying("x")], recommend).await;
    for body in [json!({"prompt": "And God"}), json!({"prompt": "And God", "temperature": 0})] {
        gateway.client.post("/v1/completions", body).await.ok();
    }
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "top_k": -1});
    gateway.client.post("/v1/chat/completions", chat).await.ok();
    let mut client = InferenceClient::new(channel(&gateway).await);
    client.generate(request(text("And God"))).await.unwrap();
    let asked: Vec<_> = gateway.nodes[0]
        .requests()
        .iter()
        .map(|request| (request.sampling.temperature, request.sampling.top_k))
        .collect();
    assert_eq!(asked, [(0.5, 20), (0.0, 20), (0.5, 0), (0.5, 20)]);
}

#[tokio::test]
async fn the_length_ends_a_choice_and_its_last_token_is_shown() {
    let gateway = start(saying(" said unto him")).await;
    let body = json!({"prompt": "And God", "max_tokens": 2, "return_token_ids": true});
    let answer = gateway.client.post("/v1/completions", body).await.ok();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["token_ids"], json!(ids(" said unto him")[..2]));
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn prompts_may_be_strings_or_tokens_one_or_many() {
    let gateway = start(saying(" x")).await;
    let (a, b) = (ids("And God"), ids("In the"));
    let cases = [
        (json!("And God"), vec![a.clone()]),
        (json!(["And God", "In the"]), vec![a.clone(), b.clone()]),
        (json!(a), vec![a.clone()]),
        (json!([a, b]), vec![a.clone(), b.clone()]),
    ];
    for (prompt, expected) in cases {
        let before = gateway.nodes[0].requests().len();
        let body = json!({"prompt": prompt, "echo": true, "temperature": 0});
        let answer = gateway.client.post("/v1/completions", body).await.ok();
        let mut asked: Vec<_> =
            gateway.nodes[0].requests().drain(before..).map(|request| request.tokens).collect();
        asked.sort();
        let mut sorted = expected.clone();
        sorted.sort();
        assert_eq!(asked, sorted);
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(choices.len(), expected.len());
        for (choice, text) in choices.iter().zip(["And God x", "In the x"]) {
            assert_eq!(choice["text"], text, "echoed");
        }
    }
}

#[tokio::test]
async fn n_choices_draw_with_seeds_of_their_own() {
    let script = Arc::new(|request: &domain::SequenceRequest| {
        say(request, ["a", "b", "c", "d"][(request.sampling.seed - 40) as usize])
    });
    let gateway = start(script).await;
    let body = json!({"prompt": ["And", "In"], "n": 2, "best_of": 2, "seed": 40});
    let answer = gateway.client.post("/v1/completions", body.clone()).await.ok();
    let texts: Vec<_> =
        answer["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["a", "b", "a", "b"]);
    let again = gateway.client.post("/v1/completions", body).await.ok();
    assert_eq!(again["choices"], answer["choices"], "the same request, the same answer");
}

#[tokio::test]
async fn stop_strings_across_tokens_end_the_text_and_the_sequence() {
    let gateway = start(saying(" said unto him, What is")).await;
    let body = json!({"prompt": "And God", "stop": ["to hi", "never"]});
    let answer = gateway.client.post("/v1/completions", body).await.ok();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], " said un");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["stop_reason"], "to hi");
    gateway.nodes[0].holds(0).await;
}

#[tokio::test]
async fn a_text_ends_with_what_stopped_it_if_wanted() {
    let gateway = start(saying(" said unto him, What is")).await;
    let body = json!({"prompt": "And God", "stop": "to hi", "include_stop_str_in_output": true});
    let answer = gateway.client.post("/v1/completions", body).await.ok();
    assert_eq!(answer["choices"][0]["text"], " said unto hi");
    assert_eq!(answer["choices"][0]["stop_reason"], "to hi");
}

#[tokio::test]
async fn special_tokens_are_spelled_out_if_wanted() {
    let script = Arc::new(|request: &domain::SequenceRequest| say_ids(request, &[END, 72]));
    let gateway = start(script).await;
    let mut body = json!({"prompt": "And God", "max_tokens": 2});
    let silent = gateway.client.post("/v1/completions", body.clone()).await.ok();
    assert_eq!(silent["choices"][0]["text"], "h");
    body["skip_special_tokens"] = json!(false);
    let spelled = gateway.client.post("/v1/completions", body).await.ok();
    assert_eq!(spelled["choices"][0]["text"], "<|endoftext|>h");
}

#[tokio::test]
async fn logprobs_come_in_columns() {
    let gateway = start(saying(" said")).await;
    let body = json!({"prompt": "And God", "logprobs": 2, "max_tokens": 1});
    let answer = gateway.client.post("/v1/completions", body).await.ok();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 1);
    assert_eq!(logprobs["token_logprobs"], json!([-0.5]));
    assert_eq!(logprobs["text_offset"], json!([0]));
    let top = logprobs["top_logprobs"][0].as_object().unwrap();
    assert_eq!(top.len(), 2);
    assert!(top.contains_key(logprobs["tokens"][0].as_str().unwrap()));
}

#[tokio::test]
async fn texts_become_tokens_and_come_back() {
    let gateway = start(saying("x")).await;
    let body = json!({"model": "demo", "prompt": "And €", "return_token_strs": true});
    let tokens = gateway.client.post("/tokenize", body).await.ok();
    assert_eq!(tokens["tokens"], json!(ids("And €")));
    assert_eq!(tokens["count"], ids("And €").len());
    assert_eq!(tokens["max_model_len"], 1024);
    assert_eq!(tokens["token_strs"].as_array().unwrap().len(), ids("And €").len());
    let body = json!({"model": "demo", "tokens": tokens["tokens"]});
    let text = gateway.client.post("/detokenize", body).await.ok();
    assert_eq!(text, json!({"prompt": "And €"}));
    let body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let chat = gateway.client.post("/tokenize", body).await.ok();
    assert_eq!(chat["tokens"], json!(ids("<user>Hi<assistant>")));
}

#[tokio::test]
async fn what_is_served_is_listed() {
    let gateway = start(saying("x")).await;
    let list = gateway.client.get("/v1/models").await.ok();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "demo");
    assert_eq!(list["data"][1]["id"], "demo-2");
    assert_eq!(list["data"][0]["max_model_len"], 1024);
    let one = gateway.client.get("/v1/models/demo-2").await.ok();
    assert_eq!((&one["id"], &one["object"]), (&json!("demo-2"), &json!("model")));
    let version = gateway.client.get("/version").await.ok();
    assert_eq!(version, json!({"version": chassis::VERSION}));
}

#[tokio::test]
async fn an_echo_may_be_all_that_is_wanted() {
    let gateway = start(saying(" said")).await;
    let mut body = json!({"prompt": "And God", "max_tokens": 0, "echo": true, "logprobs": 1,
                          "return_token_ids": true});
    let answer = gateway.client.post("/v1/completions", body.clone()).await.ok();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("And God"), &json!("length")));
    let columns = choice["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!((columns.len(), &choice["token_ids"]), (ids("And God").len(), &json!([])));
    body["stream"] = json!(true);
    let chunks = gateway.client.stream("/v1/completions", body.clone()).await.chunks().await;
    assert_eq!((chunks.len(), &chunks[0]["choices"][0]["text"]), (1, &json!("And God")));
    (body["stream"], body["echo"]) = (json!(false), json!(false));
    assert_eq!(gateway.client.post("/v1/completions", body).await.status, 400);
}

#[tokio::test]
async fn an_echoed_prompt_has_log_probabilities_too() {
    let gateway = start(saying(" said unto him")).await;
    let mut body = json!({"prompt": ["And God", "In the"], "n": 2, "max_tokens": 2, "echo": true, "logprobs": 1});
    let answer = gateway.client.post("/v1/completions", body.clone()).await.ok();
    let said = &ids(" said unto him")[..2];
    for (index, prompt) in ["And God", "And God", "In the", "In the"].iter().enumerate() {
        let logprobs = &answer["choices"][index]["logprobs"];
        let all = ids(prompt).len() + said.len();
        assert_eq!(logprobs["tokens"].as_array().unwrap().len(), all);
        assert_eq!(
            (&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]),
            (&json!(null), &json!(null))
        );
        assert!((1..all).all(|at| logprobs["token_logprobs"][at] == -0.5), "{logprobs}");
        assert!((1..all).all(|at| logprobs["top_logprobs"][at].is_object()), "{logprobs}");
        let text = answer["choices"][index]["text"].as_str().unwrap();
        let spelled: String = logprobs["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|token| token.as_str())
            .collect();
        assert!(text.starts_with(prompt) && text == spelled, "{text} is not {spelled}");
    }
    // A stream says the same, the prompt first.
    (body["prompt"], body["n"], body["stream"]) = (json!("And God"), json!(1), json!(true));
    let chunks = gateway.client.stream("/v1/completions", body.clone()).await.chunks().await;
    let tokens = |chunk: &serde_json::Value| {
        chunk["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len()
    };
    assert_eq!(chunks.iter().map(tokens).collect::<Vec<_>>(), [ids("And God").len() + 1, 1]);

    // Nobody computes what is not asked for.
    body["echo"] = json!(false);
    gateway.client.stream("/v1/completions", body).await.chunks().await;
    assert_eq!(gateway.nodes[0].requests().last().unwrap().sampling.prompt_logprobs, None);
}
