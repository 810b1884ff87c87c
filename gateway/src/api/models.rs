//! `/v1/models`, `/version`, `/ping`: what is served here, and whether it answers.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Serialize;

use super::Problem;
use crate::{model::ServedModel, nodes::Standing, requests::Requests, sequence::no_node};

#[derive(Debug, Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    parent: Option<String>,
    max_model_len: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Debug, Serialize)]
pub(super) struct Version {
    version: &'static str,
}

fn card(model: &ServedModel, name: &str) -> Model {
    Model {
        id: name.to_string(),
        object: "model",
        created: model.created_s,
        owned_by: "amoe",
        root: model.name().to_string(),
        parent: None,
        max_model_len: model.positions_max,
    }
}

pub(super) async fn list(State(requests): State<Arc<Requests>>) -> Json<List> {
    let model = &requests.model;
    Json(List {
        object: "list",
        data: model.names().iter().map(|name| card(model, name)).collect(),
    })
}

pub(super) async fn one(
    State(requests): State<Arc<Requests>>,
    Path(name): Path<String>,
) -> Result<Json<Model>, Problem> {
    requests.model.check_name(&name)?;
    Ok(Json(card(&requests.model, &name)))
}

pub(super) async fn version() -> Json<Version> {
    Json(Version { version: chassis::VERSION })
}

/// What SageMaker asks: 200 when a request would be taken.
pub(super) async fn ping(State(requests): State<Arc<Requests>>) -> Result<StatusCode, Problem> {
    match requests.nodes.standing() {
        Standing::Ready | Standing::Holding(_) => Ok(StatusCode::OK),
        Standing::Away => Err(no_node().into()),
    }
}
