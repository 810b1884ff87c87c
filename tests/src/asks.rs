//! A fixed mix of requests: both APIs, whole and streamed, greedy and drawn, short and long.

use std::ops::Range;

use proto::v1::{GenerateRequest, SamplingParams, generate_request::Prompt};
use serde_json::{Value, json};

use crate::client::Ask;

const OPENINGS: [&str; 6] = [
    "And God said",
    "In the beginning",
    "And it came to pass, that when they had heard these words",
    "O",
    "The LORD is my",
    "Blessed are they which",
];

/// The `number`th request.
#[must_use]
pub fn ask(number: u32) -> Ask {
    match number % 5 {
        0 | 1 => Ask::Http { path: "/v1/completions", body: completion(number) },
        2 | 3 => Ask::Http { path: "/v1/chat/completions", body: chat(number) },
        _ => Ask::Grpc(generate(number)),
    }
}

/// The requests of these numbers.
#[must_use]
pub fn asks(numbers: Range<u32>) -> Vec<Ask> {
    numbers.map(ask).collect()
}

/// A request that runs for a while, to be disturbed.
#[must_use]
pub fn long_ask(number: u32) -> Ask {
    let mut request = generate(number);
    request.stop.clear();
    let sampling = request.sampling.get_or_insert_default();
    (sampling.max_tokens, sampling.ignore_eos) = (Some(300), Some(true));
    Ask::Grpc(request)
}

/// A text of up to some hundred tokens.
fn prompt(number: u32) -> String {
    let opening = OPENINGS[number as usize % OPENINGS.len()];
    let times = if number.is_multiple_of(7) { 24 } else { 1 };
    vec![opening; times].join(" ")
}

fn tokens_max(number: u32) -> u32 {
    1 + number * 13 % 40
}

fn temperature(number: u32) -> f32 {
    if number.is_multiple_of(3) { 0.0 } else { 0.9 }
}

fn stops(number: u32) -> Vec<String> {
    let stops: &[&str] = if number % 6 < 3 { &[" the", ", and"] } else { &[] };
    stops.iter().map(|&stop| stop.to_owned()).collect()
}

/// What completions and chat share.
fn body(number: u32) -> Value {
    let mut body = json!({
        "model": "demo",
        "max_tokens": tokens_max(number),
        "temperature": temperature(number),
        "seed": number,
        "n": 1 + number % 4 / 3 * 2,
        "stop": stops(number),
        "return_token_ids": true,
    });
    if number.is_multiple_of(4) {
        body["repetition_penalty"] = json!(1.2);
        body["top_p"] = json!(0.8);
    }
    if number % 5 % 2 == 1 {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

fn completion(number: u32) -> Value {
    let mut body = body(number);
    body["prompt"] = match number % 3 {
        0 => json!([prompt(number), prompt(number + 1)]),
        1 => json!((0..1 + number % 60).map(|at| (number + 97 * at) % 2048).collect::<Vec<_>>()),
        _ => json!(prompt(number)),
    };
    if number % 4 < 2 {
        body["logprobs"] = json!(number % 4 * 3);
    }
    body
}

fn chat(number: u32) -> Value {
    let mut body = body(number);
    body["messages"] = json!([
        {"role": "system", "content": "Speak as a prophet."},
        {"role": "user", "content": prompt(number)},
    ]);
    if number % 4 < 2 {
        body["logprobs"] = json!(true);
        body["top_logprobs"] = json!(2);
    }
    body
}

fn generate(number: u32) -> GenerateRequest {
    let sampling = SamplingParams {
        max_tokens: Some(tokens_max(number)),
        temperature: Some(temperature(number)),
        seed: Some(number.into()),
        logprobs: number.is_multiple_of(2).then_some(4),
        ignore_eos: Some(true),
        ..SamplingParams::default()
    };
    GenerateRequest {
        prompt: Some(Prompt::Text(prompt(number))),
        sampling: Some(sampling),
        stop: stops(number),
        ..GenerateRequest::default()
    }
}
