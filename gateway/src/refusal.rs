//! Every way in which the gateway says no, with its HTTP and gRPC forms in one table.

use std::borrow::Cow;

use axum::http::StatusCode;
use tonic::Code;

/// Why a request is not answered, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A field has a wrong type or value.
    Invalid,
    /// Prompt and wanted tokens exceed the model's longest sequence.
    TooLong,
    /// No such model here.
    UnknownModel,
    /// No such path.
    UnknownPath,
    /// The path exists, the method is another.
    WrongMethod,
    /// No key, or a wrong one.
    Unauthorized,
    /// The body is larger than the limit.
    BodyTooLarge,
    /// A bound on queued or running sequences is reached, here or on all attention nodes.
    QueueFull,
    /// No attention node takes work.
    NoNode,
    /// Attention nodes were lost more often than the gateway tries.
    NodeLost,
    /// The request's time is over.
    Deadline,
    /// Something here is broken.
    Internal,
}

/// What a kind looks like to a client.
struct Form {
    http: StatusCode,
    grpc: Code,
    /// `type` of OpenAI's error object.
    kind: &'static str,
    /// `code` of OpenAI's error object.
    code: Option<&'static str>,
    /// Name in metrics.
    label: &'static str,
}

impl Kind {
    /// All kinds, for metrics that list them from the start.
    pub(crate) const ALL: [Self; 12] = [
        Self::Invalid,
        Self::TooLong,
        Self::UnknownModel,
        Self::UnknownPath,
        Self::WrongMethod,
        Self::Unauthorized,
        Self::BodyTooLarge,
        Self::QueueFull,
        Self::NoNode,
        Self::NodeLost,
        Self::Deadline,
        Self::Internal,
    ];

    fn form(self) -> Form {
        let form = |http, grpc, kind, code, label| Form { http, grpc, kind, code, label };
        const ASKED_WRONG: &str = "invalid_request_error";
        const OURS: &str = "server_error";
        match self {
            Self::Invalid => {
                form(StatusCode::BAD_REQUEST, Code::InvalidArgument, ASKED_WRONG, None, "invalid")
            }
            Self::TooLong => form(
                StatusCode::BAD_REQUEST,
                Code::InvalidArgument,
                ASKED_WRONG,
                Some("context_length_exceeded"),
                "too_long",
            ),
            Self::UnknownModel => form(
                StatusCode::NOT_FOUND,
                Code::NotFound,
                ASKED_WRONG,
                Some("model_not_found"),
                "unknown_model",
            ),
            Self::UnknownPath => form(
                StatusCode::NOT_FOUND,
                Code::Unimplemented,
                ASKED_WRONG,
                Some("unknown_url"),
                "unknown_path",
            ),
            Self::WrongMethod => form(
                StatusCode::METHOD_NOT_ALLOWED,
                Code::Unimplemented,
                ASKED_WRONG,
                Some("method_not_allowed"),
                "wrong_method",
            ),
            Self::Unauthorized => form(
                StatusCode::UNAUTHORIZED,
                Code::Unauthenticated,
                ASKED_WRONG,
                Some("invalid_api_key"),
                "unauthorized",
            ),
            Self::BodyTooLarge => form(
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::ResourceExhausted,
                ASKED_WRONG,
                Some("body_too_large"),
                "body_too_large",
            ),
            Self::QueueFull => form(
                StatusCode::TOO_MANY_REQUESTS,
                Code::ResourceExhausted,
                "rate_limit_error",
                Some("queue_full"),
                "queue_full",
            ),
            Self::NoNode => form(
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                OURS,
                Some("no_attention_node"),
                "no_node",
            ),
            Self::NodeLost => form(
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                OURS,
                Some("attention_node_lost"),
                "node_lost",
            ),
            Self::Deadline => form(
                StatusCode::GATEWAY_TIMEOUT,
                Code::DeadlineExceeded,
                OURS,
                Some("timeout"),
                "deadline",
            ),
            Self::Internal => {
                form(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, OURS, None, "internal")
            }
        }
    }

    /// The HTTP status.
    #[must_use]
    pub(crate) fn http_status(self) -> StatusCode {
        self.form().http
    }

    /// The name in metrics.
    #[must_use]
    pub(crate) fn label(self) -> &'static str {
        self.form().label
    }
}

/// A no to a client: one sentence that says what, where and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    /// Why.
    pub(crate) kind: Kind,
    /// The sentence.
    pub(crate) message: String,
    /// The request's field it is about.
    pub(crate) param: Option<Cow<'static, str>>,
    /// When trying again may help, in seconds.
    pub(crate) retry_after_s: Option<u32>,
}

impl Refusal {
    /// A no without a field.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, retry_after_s: None }
    }

    /// A field whose value is not what was expected: `found` and `expected` are noun phrases.
    pub(crate) fn field(
        param: impl Into<Cow<'static, str>>,
        expected: impl AsRef<str>,
        found: impl AsRef<str>,
    ) -> Self {
        let param = param.into();
        Self {
            message: format!("`{param}`: expected {}, found {}", expected.as_ref(), found.as_ref()),
            param: Some(param),
            ..Self::new(Kind::Invalid, "")
        }
    }

    /// A field that asks for what is not offered; `message` says what is.
    pub(crate) fn unsupported(
        param: impl Into<Cow<'static, str>>,
        message: impl AsRef<str>,
    ) -> Self {
        let param = param.into();
        Self {
            message: format!("`{param}`: {}", message.as_ref()),
            param: Some(param),
            ..Self::new(Kind::Invalid, "")
        }
    }

    /// The same with a time after which trying again may help.
    #[must_use]
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// `type` of OpenAI's error object.
    #[must_use]
    pub(crate) fn openai_type(&self) -> &'static str {
        self.kind.form().kind
    }

    /// `code` of OpenAI's error object.
    #[must_use]
    pub(crate) fn openai_code(&self) -> Option<&'static str> {
        self.kind.form().code
    }
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        let mut status = Self::new(refusal.kind.form().grpc, refusal.message);
        if let Some(seconds) = refusal.retry_after_s {
            status.metadata_mut().insert(
                "retry-after",
                seconds.to_string().parse().unwrap_or_else(|_| unreachable!("digits are ASCII")),
            );
        }
        status
    }
}
