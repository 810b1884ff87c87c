//! Reads the sampling fields that completions and chat share.

use serde_json::Value;

use super::{
    constraint,
    fields::{Fields, found, is_empty, whole},
};
use crate::{refusal::Refusal, request::Wishes};

/// Fields of either API that change the answer and are not offered: name, whether a value is
/// harmless, and what to tell the client otherwise.
type Unoffered = (&'static str, fn(&Value) -> bool, &'static str);
const UNOFFERED: [Unoffered; 8] = [
    ("prompt_logprobs", Value::is_null, "log-probabilities of the prompt are not offered"),
    ("use_beam_search", is_false, "beam search is not offered"),
    ("allowed_token_ids", Value::is_null, "use `logit_bias`"),
    ("bad_words", is_empty, "use `logit_bias`"),
    ("prompt_embeds", Value::is_null, "a prompt is text or token ids"),
    ("truncate_prompt_tokens", Value::is_null, "a prompt is never cut: send what shall be read"),
    ("return_tokens_as_token_ids", is_false, "use `return_token_ids`"),
    ("logits_processors", is_empty, "a request cannot bring its own code"),
];

fn is_false(value: &Value) -> bool {
    value == &Value::Bool(false)
}

/// Reads everything but `logprobs`, which the two APIs state differently.
pub(super) fn wishes(fields: &mut Fields) -> Result<Wishes, Refusal> {
    for (name, harmless, message) in UNOFFERED {
        fields.refuse(name, harmless, message)?;
    }
    let n = fields.integer("n")?;
    best_of(fields, n)?;
    Ok(Wishes {
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        top_k: fields.integer("top_k")?,
        min_p: fields.number("min_p")?,
        presence_penalty: fields.number("presence_penalty")?,
        frequency_penalty: fields.number("frequency_penalty")?,
        repetition_penalty: fields.number("repetition_penalty")?,
        logit_bias: logit_bias(fields)?,
        seed: seed(fields)?,
        max_tokens: fields.integer("max_tokens")?,
        max_completion_tokens: fields.integer("max_completion_tokens")?,
        min_tokens: fields.integer("min_tokens")?,
        stop_token_ids: fields.integers("stop_token_ids")?.unwrap_or_default(),
        stop: fields.strings("stop")?.unwrap_or_default(),
        ignore_eos: fields.flag("ignore_eos")?,
        constraint: constraint::read(fields)?,
        stop_shown: fields.flag("include_stop_str_in_output")?,
        special_shown: fields.flag("skip_special_tokens")?.map(|skipped| !skipped),
        n,
        ..Wishes::default()
    })
}

fn best_of(fields: &mut Fields, n: Option<i64>) -> Result<(), Refusal> {
    let n = n.unwrap_or(1);
    match fields.integer("best_of")? {
        Some(best_of) if best_of != n => Err(Refusal::field(
            "best_of",
            format!("the same as `n`, which is {n}"),
            best_of.to_string(),
        )),
        _ => Ok(()),
    }
}

/// Any integer of 64 bits, with or without a sign.
fn seed(fields: &mut Fields) -> Result<Option<u64>, Refusal> {
    match fields.take("seed") {
        Some(Value::Number(number)) if number.is_u64() => Ok(number.as_u64()),
        Some(other) => match whole(&other) {
            Some(seed) => Ok(Some(seed.cast_unsigned())),
            None => Err(Refusal::field("seed", "a 64-bit integer", found(&other))),
        },
        None => Ok(None),
    }
}

/// An object of token id, as a string, to bias.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(u64, f64)>, Refusal> {
    const NAME: &str = "logit_bias";
    const EXPECTED: &str = "an object of token ids and biases";
    let Some(object) = fields.object(NAME)? else {
        return Ok(Vec::new());
    };
    object
        .into_map()
        .into_iter()
        .map(|(key, bias)| {
            let wrong = |found: &str| Refusal::field(NAME, EXPECTED, found);
            let id = key
                .parse()
                .map_err(|_| wrong(&format!("the key `{}`", crate::model::shorten(&key))))?;
            let bias = bias.as_f64().ok_or_else(|| wrong(&found(&bias)))?;
            Ok((id, bias))
        })
        .collect()
}
