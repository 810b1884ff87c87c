//! Texts that are held to a form keep it, whatever runs beside them and whichever node is lost.

use anyhow::{Context, Result, ensure};
use hyper::StatusCode;
use serde_json::{Value, json};
use tests::{
    asks,
    client::{Ask, Reply, text},
    processes::Processes,
};

/// Requests with a constraint in one round.
const CONSTRAINED: u32 = 12;

fn point() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 20, "maxLength": 40},
            "x": {"type": "integer", "minimum": 0, "maximum": 9},
            "signs": {"type": "array", "items": {"enum": ["sun", "moon"]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "x", "signs"],
        "additionalProperties": false,
    })
}

/// The `number`th request, whole or streamed, by each API that brings constraints.
fn constrained(number: u32) -> Ask {
    let mut body = json!({
        "model": "demo", "max_tokens": 200, "temperature": 0.9, "seed": number, "stream": number.is_multiple_of(2),
        "return_token_ids": true,
    });
    if number.is_multiple_of(3) {
        body["messages"] = json!([{"role": "user", "content": "Who are you?"}]);
        body["response_format"] =
            json!({"type": "json_schema", "json_schema": {"name": "point", "schema": point()}});
        return Ask::Http { path: "/v1/chat/completions", body };
    }
    body["prompt"] = json!("And it came to pass");
    body["structured_outputs"] = match number % 3 {
        1 => json!({"regex": "[A-Z][a-z]{2,9}( [a-z]{1,9}){7,12}\\."}),
        _ => json!({"choice": ["The sun shall be turned into darkness.", "Let there be light."]}),
    };
    Ask::Http { path: "/v1/completions", body }
}

/// Whether an answer is what was asked for.
fn check(number: u32, reply: &Reply) -> Result<()> {
    let choice = reply.choices.get(&0).context("no choice")?;
    let said = &choice.text;
    let good = choice.finish == "stop"
        && match number % 3 {
            0 => {
                let value: Value = serde_json::from_str(said).with_context(|| said.clone())?;
                let object = value.as_object().context("not an object")?;
                let signs = object["signs"].as_array().context("no signs")?;
                object.len() == 3
                    && (20..=40)
                        .contains(&object["name"].as_str().context("no name")?.chars().count())
                    && object["x"].as_u64().is_some_and(|x| x < 10)
                    && (1..=3).contains(&signs.len())
                    && signs.iter().all(|sign| sign == "sun" || sign == "moon")
            }
            1 => {
                let words: Vec<_> = said.strip_suffix('.').context("no stop")?.split(' ').collect();
                (8..=13).contains(&words.len())
                    && said.starts_with(|first: char| first.is_ascii_uppercase())
            }
            _ => ["The sun shall be turned into darkness.", "Let there be light."]
                .contains(&said.as_str()),
        };
    ensure!(good, "{number}: {choice:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn constrained_texts_keep_their_form_and_their_tokens() -> Result<()> {
    let mut cluster = Processes::cluster(2, 2).await?;
    let client = cluster.client()?;
    let all: Vec<_> = (0..CONSTRAINED).map(constrained).collect();
    let alone = client.ask_all(&all, 1).await?;
    for (number, reply) in (0..).zip(&alone) {
        check(number, reply)?;
    }

    // Amid others, of which they change nothing either.
    let others = asks(0..20);
    let undisturbed = client.ask_all(&others, 1).await?;
    let mixed: Vec<_> = all.iter().chain(&others).cloned().collect();
    ensure!(client.ask_all(&mixed, mixed.len()).await? == [&alone[..], &undisturbed[..]].concat());

    // A node dies in the middle: its sequences go on on the other one where they were.
    let generated = "vllm:generation_tokens_total";
    let before = cluster.read("gateway", generated).await?.context("the gateway is away")?;
    let kill = async {
        cluster.until("gateway", generated, |count| count > before + 100.0).await?;
        cluster.kill("attention-0").await
    };
    let (replies, ()) = tokio::try_join!(client.ask_all(&all, all.len()), kill)?;
    ensure!(replies == alone);
    let resumed = cluster.read("gateway", "amoe_gateway_sequences_resumed_total").await?;
    ensure!(resumed > Some(0.0), "nothing ran on attention-0");
    cluster.start("attention-0")?;
    cluster.ready("attention-0").await?;
    cluster.terminate(&["gateway"]).await?;
    cluster.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_cannot_be_kept_is_a_sentence_to_its_client() -> Result<()> {
    let mut cluster = Processes::cluster(1, 1).await?;
    let client = cluster.client()?;
    let post = async |outputs: Value| -> Result<_> {
        let body = json!({"model": "demo", "prompt": "And", "structured_outputs": outputs, "max_tokens": 50});
        let reply = client.post("/v1/completions", body.to_string()).await?;
        let status = reply.status();
        let reply: Value = serde_json::from_str(&text(reply).await?)?;
        Ok((status, reply["error"]["message"].as_str().unwrap_or_default().to_owned()))
    };
    let many: Vec<_> = (0..2500).map(|number| format!("/[a-z]*{number}/ word")).collect();
    for (outputs, sentence) in [
        (json!({"json": {"type": "point"}}), "JSON schema: Invalid type: point"),
        (json!({"regex": "a("}), "regular expression: "),
        (json!({"grammar": "start: word"}), "grammar: "),
        // One that is right, and gets out of hand after its first token.
        (
            json!({"grammar": format!("start: word\nword: {}", many.join(" | "))}),
            "grammar: Parser Error",
        ),
    ] {
        let (status, message) = post(outputs).await?;
        ensure!(
            status == StatusCode::BAD_REQUEST && message.contains(sentence),
            "{status}: {message}"
        );
    }
    client.ask_all(&asks(0..5), 5).await?;
    cluster.terminate(&["gateway"]).await?;
    cluster.ended().await
}
