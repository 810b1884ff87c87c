//! Refusals as OpenAI's error objects.

use axum::{
    Json,
    http::{HeaderValue, Method, Uri, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{
    model::shorten,
    refusal::{Kind, Refusal},
};

/// A refusal on its way to an HTTP client.
#[derive(Debug)]
pub(crate) struct Problem(pub(crate) Refusal);

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

/// `{"error": {…}}`.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody {
    error: ErrorObject,
}

#[derive(Debug, Serialize)]
struct ErrorObject {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl From<Refusal> for ErrorBody {
    fn from(refusal: Refusal) -> Self {
        Self {
            error: ErrorObject {
                kind: refusal.openai_type(),
                code: refusal.openai_code(),
                param: refusal.param.map(std::borrow::Cow::into_owned),
                message: refusal.message,
            },
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self(refusal) = self;
        let (status, kind, retry) =
            (refusal.kind.http_status(), refusal.kind, refusal.retry_after_s);
        let mut response = (status, Json(ErrorBody::from(refusal))).into_response();
        if let Some(seconds) = retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if kind == Kind::Unauthorized {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For the layer that counts.
        response.extensions_mut().insert(kind);
        response
    }
}

pub(crate) fn unknown_path(uri: &Uri) -> Refusal {
    let path = shorten(uri.path());
    Refusal::new(Kind::UnknownPath, format!("there is nothing at {path}"))
}

pub(crate) async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let path = shorten(uri.path());
    Problem(Refusal::new(Kind::WrongMethod, format!("{path} does not answer {method}")))
}
