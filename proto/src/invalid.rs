//! The one error of reading a message: what was wrong, where, and what was expected.

use thiserror::Error;

/// A message that cannot be understood. Its text is one sentence.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The message's field, dotted from its root.
    pub field: &'static str,
    /// What was found and what was expected.
    pub problem: String,
}

impl Invalid {
    /// An error about `field`.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }

    pub(crate) fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }
}

impl From<Invalid> for tonic::Status {
    fn from(invalid: Invalid) -> Self {
        Self::invalid_argument(invalid.to_string())
    }
}
