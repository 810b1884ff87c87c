//! The HTTP API: the only place that knows OpenAI's and vLLM's JSON.

mod answer;
mod calls;
mod chat;
mod completions;
mod constraint;
mod conversation;
mod error;
mod fields;
mod logprobs;
mod models;
mod sampling;
mod stream;
mod tokens;

use std::sync::Arc;

use axum::routing::{MethodRouter, get, post};
use chassis::routes::{Audience, Routes};
use trust::Scope;

pub(crate) use error::{Problem, unknown_path};

use crate::requests::Requests;

/// All routes of the HTTP API but those of the process itself (health, metrics).
pub(crate) fn routes(requests: &Arc<Requests>) -> Routes {
    const ASKING: Audience = Audience::Scope(Scope::Inference);
    let with = |methods: MethodRouter<Arc<Requests>>| {
        methods.fallback(error::wrong_method).with_state(Arc::clone(requests))
    };
    Routes::default()
        .add("/v1/models", ASKING, with(get(models::list)))
        .add("/v1/models/{*id}", ASKING, with(get(models::one)))
        .add("/v1/completions", ASKING, with(post(completions::create)))
        .add("/v1/chat/completions", ASKING, with(post(chat::create)))
        .add("/tokenize", ASKING, with(post(tokens::tokenize)))
        .add("/detokenize", ASKING, with(post(tokens::detokenize)))
        .add("/version", Audience::KeyHolders, with(get(models::version)))
        .add("/ping", Audience::Everybody, with(get(models::ping).post(models::ping)))
}
