//! The HTTP API: the only place that knows OpenAI's and vLLM's JSON.

mod answer;
mod chat;
mod completions;
mod conversation;
mod error;
mod fields;
mod logprobs;
mod models;
mod sampling;
mod stream;
mod tokens;

use std::sync::Arc;

use axum::{
    Router,
    routing::{get, post},
};

pub(crate) use error::{Problem, unknown_path, wrong_method};

use crate::requests::Requests;

/// All routes of the HTTP API but those of the process itself (health, metrics).
pub(crate) fn routes(requests: Arc<Requests>) -> Router {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat::create))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/version", get(models::version))
        .route("/ping", get(models::ping).post(models::ping))
        .with_state(requests)
}
