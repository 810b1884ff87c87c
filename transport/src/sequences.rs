//! Runs sequences on attention nodes: one stream of tokens per sequence, one shared connection per node.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use domain::{SequenceRequest, TokenOutput};
use futures::{Stream, StreamExt};
use proto::internal::{SequenceOutput, sequences_client::SequencesClient};
use thiserror::Error;
use tonic::{Code, Status, Streaming, transport::Channel};
use trust::Party;

use crate::{
    AddressError, Hub, KeepAlive,
    channel::{channel, sentence},
};

#[cfg(test)]
mod tests;

/// Nodes a pool keeps a connection to; the one not used for longest makes room.
const NODES_MAX: usize = 256;
/// W3C's key for the span that a call belongs to.
const TRACEPARENT: &str = "traceparent";
/// Largest request: the longest prompts, five bytes a token at most.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// A client of all attention nodes. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Sequences {
    hub: Hub,
    keep_alive: KeepAlive,
    /// By address, least recently used first.
    channels: Arc<Mutex<Vec<(String, Channel)>>>,
}

/// The tokens of one sequence, in the order they were drawn. Dropping it cancels the sequence on
/// its node. It ends after the token that has a `finish`, or after an error.
#[derive(Debug)]
pub struct Tokens {
    outputs: Streaming<SequenceOutput>,
    ended: bool,
}

/// Why a sequence was not taken or did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SequenceError {
    /// The node cannot be reached, was lost on the way, or is going.
    #[error("the attention node is not available: {0}")]
    Unavailable(String),
    /// The node has no room.
    #[error("the attention node has no room: {0}")]
    Full(String),
    /// The request is wrong; no node would take it.
    #[error("the sequence is not valid: {0}")]
    Invalid(String),
    /// The node tried and failed.
    #[error("the attention node failed: {0}")]
    Failed(String),
}

// === impl Sequences ===

impl Sequences {
    /// A client without connections.
    #[must_use]
    pub fn new(hub: Hub, keep_alive: KeepAlive) -> Self {
        Self { hub, keep_alive, channels: Arc::default() }
    }

    /// Starts a sequence on the node at `address`, `host:port` or `inproc:NAME`; if it is traced, below the span that
    /// `traceparent` names in W3C's form.
    ///
    /// # Errors
    /// When the node did not take it.
    pub async fn run(
        &self,
        address: &str,
        request: SequenceRequest,
        traceparent: Option<&str>,
    ) -> Result<Tokens, SequenceError> {
        let channel =
            self.channel(address).map_err(|error| SequenceError::Invalid(error.to_string()))?;
        let mut client = SequencesClient::new(channel).max_encoding_message_size(REQUEST_BYTES_MAX);
        let mut call = tonic::Request::new(proto::internal::SequenceRequest::from(request));
        if let Some(parent) = traceparent.and_then(|parent| parent.parse().ok()) {
            call.metadata_mut().insert(TRACEPARENT, parent);
        }
        let outputs = client.run(call).await;
        let outputs = outputs.map_err(|status| SequenceError::from(&status))?.into_inner();
        Ok(Tokens { outputs, ended: false })
    }

    fn channel(&self, address: &str) -> Result<Channel, AddressError> {
        // Every change of the list leaves it usable, so a panic elsewhere does no harm.
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let known = channels.iter().position(|(known, _)| known == address);
        let entry = match known {
            Some(at) => channels.remove(at),
            None => {
                let channel = channel(address, Party::AttentionNode, &self.hub, self.keep_alive)?;
                (address.to_owned(), channel)
            }
        };
        if channels.len() >= NODES_MAX {
            // Sequences that run over it keep the connection until they end.
            channels.remove(0);
        }
        let channel = entry.1.clone();
        channels.push(entry);
        Ok(channel)
    }
}

// === impl Tokens ===

impl Stream for Tokens {
    type Item = Result<Vec<TokenOutput>, SequenceError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let output = match ready!(self.outputs.poll_next_unpin(cx)) {
            Some(Ok(output)) => tokens(output),
            Some(Err(status)) => Err(SequenceError::from(&status)),
            None => {
                let why = "its stream ended before the sequence did";
                Err(SequenceError::Unavailable(why.into()))
            }
        };
        self.ended = match &output {
            Ok(tokens) => tokens.last().is_some_and(|token| token.finish.is_some()),
            Err(_) => true,
        };
        Poll::Ready(Some(output))
    }
}

fn tokens(output: SequenceOutput) -> Result<Vec<TokenOutput>, SequenceError> {
    let tokens: Result<_, proto::Invalid> =
        output.tokens.into_iter().map(TokenOutput::try_from).collect();
    tokens.map_err(|invalid| SequenceError::Failed(invalid.to_string()))
}

// === impl SequenceError ===

impl SequenceError {
    /// Whether another node may do better.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full(_))
    }
}

impl From<&Status> for SequenceError {
    fn from(status: &Status) -> Self {
        // Only errors of the connection have a source: the node itself did not say this.
        if std::error::Error::source(status).is_some() {
            return Self::Unavailable(sentence(status));
        }
        let message = status.message().to_owned();
        match status.code() {
            Code::ResourceExhausted => Self::Full(message),
            Code::InvalidArgument
            | Code::OutOfRange
            | Code::FailedPrecondition
            | Code::Unimplemented => Self::Invalid(message),
            Code::Unavailable | Code::Cancelled | Code::Aborted | Code::DeadlineExceeded => {
                Self::Unavailable(message)
            }
            _ => Self::Failed(sentence(status)),
        }
    }
}
