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
    /// A known key that does not open this.
    Forbidden,
    /// The body is larger than the limit.
    BodyTooLarge,
    /// The body did not come in time.
    BodyTooSlow,
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
    pub(crate) const ALL: [Self; 14] = [
        Self::Invalid,
        Self::TooLong,
        Self::UnknownModel,
        Self::UnknownPath,
        Self::WrongMethod,
        Self::Unauthorized,
        Self::Forbidden,
        Self::BodyTooLarge,
        Self::BodyTooSlow,
        Self::QueueFull,
        Self::NoNode,
        Self::NodeLost,
        Self::Deadline,
        Self::Internal,
    ];

    fn form(self) -> Form {
        const ASKED: &str = "invalid_request_error";
        const LATER: &str = "rate_limit_error";
        const OURS: &str = "server_error";
        let (http, grpc, kind, code, label) = match self {
            Self::Invalid => (400, Code::InvalidArgument, ASKED, None, "invalid"),
            Self::TooLong => {
                let code = Some("context_length_exceeded");
                (400, Code::InvalidArgument, ASKED, code, "too_long")
            }
            Self::UnknownModel => {
                (404, Code::NotFound, ASKED, Some("model_not_found"), "unknown_model")
            }
            Self::UnknownPath => {
                (404, Code::Unimplemented, ASKED, Some("unknown_url"), "unknown_path")
            }
            Self::WrongMethod => {
                (405, Code::Unimplemented, ASKED, Some("method_not_allowed"), "wrong_method")
            }
            Self::Unauthorized => {
                (401, Code::Unauthenticated, ASKED, Some("invalid_api_key"), "unauthorized")
            }
            Self::Forbidden => {
                let code = Some("insufficient_permissions");
                (403, Code::PermissionDenied, ASKED, code, "forbidden")
            }
            Self::BodyTooLarge => {
                (413, Code::ResourceExhausted, ASKED, Some("body_too_large"), "body_too_large")
            }
            Self::BodyTooSlow => {
                (408, Code::DeadlineExceeded, ASKED, Some("body_too_slow"), "body_too_slow")
            }
            Self::QueueFull => {
                (429, Code::ResourceExhausted, LATER, Some("queue_full"), "queue_full")
            }
            Self::NoNode => (503, Code::Unavailable, OURS, Some("no_attention_node"), "no_node"),
            Self::NodeLost => {
                (503, Code::Unavailable, OURS, Some("attention_node_lost"), "node_lost")
            }
            Self::Deadline => (504, Code::DeadlineExceeded, OURS, Some("timeout"), "deadline"),
            Self::Internal => (500, Code::Internal, OURS, None, "internal"),
        };
        let http = StatusCode::from_u16(http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Form { http, grpc, kind, code, label }
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
