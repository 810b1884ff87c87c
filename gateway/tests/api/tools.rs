//! Tool calls: what the template is given, what the node is held to, and what comes back.

use domain::Constraint;
use serde_json::{Value, json};

use crate::{
    gateway::{Started, start_with},
    node::{ids, saying},
};

/// A template that shows names of tools, and has calls written between marks.
const TEMPLATE: &str = "{% for tool in tools or [] %}<can {{ tool.function.name }}>{% endfor %}\
                        {% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
                        {% if tools %}<tool_call>?{% endif %}";
const CHAT: &str = "/v1/chat/completions";

/// A gateway whose model always writes `text`.
async fn start(text: &'static str) -> Started {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tools.jinja");
    std::fs::write(&file, TEMPLATE).unwrap();
    start_with(vec![saying(text)], |config| config.model.chat_template = Some(file)).await
}

fn body(choice: &Value) -> Value {
    let tool = |name: &str| {
        let parameters = json!({"type": "object", "properties": {"hour": {"type": "integer"}}});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    json!({"messages": [{"role": "user", "content": "Look"}], "tools": [tool("sky"), tool("sea")],
           "tool_choice": choice, "max_tokens": 200})
}

/// The only choice's message and finish reason, whole.
async fn whole(gateway: &Started, body: Value) -> (Value, Value) {
    let answer = gateway.client.post(CHAT, body).await.ok();
    let choice = &answer["choices"][0];
    (choice["message"].clone(), choice["finish_reason"].clone())
}

/// The same as a stream says it, put together: the text, and each call's name and arguments.
async fn streamed(gateway: &Started, mut body: Value) -> (String, Vec<(String, String)>, Value) {
    body["stream"] = json!(true);
    let (mut text, mut calls, mut finish) =
        (String::new(), Vec::<(String, String)>::new(), json!(null));
    for chunk in gateway.client.stream(CHAT, body).await.chunks().await {
        let choice = &chunk["choices"][0];
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if let Some(name) = function["name"].as_str() {
                assert_eq!(call["index"], calls.len());
                assert_eq!(call["type"], "function");
                assert!(call["id"].as_str().unwrap().starts_with("call_"));
                calls.push((name.to_owned(), String::new()));
            }
            calls.last_mut().unwrap().1.push_str(function["arguments"].as_str().unwrap());
        }
        finish = choice["finish_reason"].clone();
    }
    (text, calls, finish)
}

fn called(name: &str, arguments: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), arguments.to_owned())]
}

/// Names and arguments of a message's calls, all of which have an id.
fn calls(message: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let call = |call: &Value| {
        assert!(call["type"] == "function" && text(&call["id"]).starts_with("call_"), "{call}");
        (text(&call["function"]["name"]), text(&call["function"]["arguments"]))
    };
    message["tool_calls"].as_array().into_iter().flatten().map(call).collect()
}

#[tokio::test]
async fn a_model_that_calls_by_itself_is_understood() {
    let gateway = start(
        "I look.\n<tool_call>\n{\"name\": \"sky\", \"arguments\": {\"hour\": 3}}\n</tool_call>",
    )
    .await;
    let (message, finish) = whole(&gateway, body(&json!("auto"))).await;
    assert_eq!((&message["content"], finish), (&json!("I look.\n"), json!("tool_calls")));
    assert_eq!(calls(&message), called("sky", r#"{"hour":3}"#));
    let (text, parts, finish) = streamed(&gateway, body(&json!(null))).await;
    assert_eq!(
        (&*text, parts, finish),
        ("I look.\n", called("sky", r#"{"hour":3}"#), json!("tool_calls"))
    );
    let request = gateway.nodes[0].requests().pop().unwrap();
    assert_eq!(request.tokens, ids("<can sky><can sea><user>Look<tool_call>?"));
    assert_eq!(request.sampling.constraint, None);

    // Who wants no calls gets none, and text as it is.
    let (message, finish) = whole(&gateway, body(&json!("none"))).await;
    assert!(message["content"].as_str().unwrap().contains("<tool_call>"), "{message}");
    assert_eq!((&message["tool_calls"], finish), (&json!(null), json!("stop")));
    assert_eq!(gateway.nodes[0].requests().pop().unwrap().tokens, ids("<user>Look"));
}

#[tokio::test]
async fn a_call_of_any_tool_is_forced() {
    let gateway = start(r#"[{"name": "sea", "parameters": {"hour": 4}}]"#).await;
    let (message, finish) = whole(&gateway, body(&json!("required"))).await;
    assert_eq!((&message["content"], finish), (&json!(null), json!("tool_calls")));
    assert_eq!(calls(&message), called("sea", r#"{"hour":4}"#));
    let (text, parts, finish) = streamed(&gateway, body(&json!("required"))).await;
    assert_eq!((&*text, parts, finish), ("", called("sea", r#"{"hour":4}"#), json!("tool_calls")));
    let Some(Constraint::JsonSchema(schema)) =
        gateway.nodes[0].requests()[0].sampling.constraint.clone()
    else {
        panic!("nothing is forced");
    };
    let schema: Value = serde_json::from_str(&schema).unwrap();
    assert_eq!(schema["items"]["anyOf"][1]["properties"]["name"]["const"], "sea");
}

#[tokio::test]
async fn a_call_of_one_tool_is_forced() {
    let gateway = start(r#"{"hour": 5}"#).await;
    let sky = json!({"type": "function", "function": {"name": "sky"}});
    let (message, finish) = whole(&gateway, body(&sky)).await;
    assert_eq!((&message["content"], finish), (&json!(null), json!("stop")));
    assert_eq!(calls(&message), called("sky", r#"{"hour": 5}"#));
    let (text, parts, finish) = streamed(&gateway, body(&sky)).await;
    assert_eq!((&*text, parts, finish), ("", called("sky", r#"{"hour": 5}"#), json!("stop")));
}

#[tokio::test]
async fn what_cannot_be_forced_is_refused() {
    let gateway = start("x").await;
    let mut both = body(&json!("required"));
    both["response_format"] = json!({"type": "json_object"});
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    for (body, sentence) in [
        (both, "where the text has to be something else"),
        (body(&json!("always")), "found `always`"),
        (body(&json!(3)), "found 3"),
        (body(&named("land")), "a function among `tools`, found `land`"),
    ] {
        let reply = gateway.client.post(CHAT, body).await;
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status.as_u16(), &error["param"]),
            (400, &json!("tool_choice")),
            "{error}"
        );
        assert!(error["message"].as_str().unwrap().contains(sentence), "{error}");
    }
}
