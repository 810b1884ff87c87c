//! Answers that come piece by piece, as server-sent events.

use std::{collections::VecDeque, convert::Infallible};

use axum::response::{IntoResponse, Response, Sse, sse::Event};
use serde::Serialize;

use super::{answer::Usage, error::ErrorBody, fields::Fields};
use crate::{output::Piece, refusal::Refusal, requests::Running};

/// The last event of every stream.
const DONE: &str = "[DONE]";

/// `stream` and `stream_options` of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streaming {
    /// One answer.
    Off,
    /// Chunks.
    On(Told),
}

/// Where a stream tells its usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nowhere,
    /// In a chunk of its own, the last one.
    Last,
    /// As it is so far in every chunk, too.
    Always,
}

impl Streaming {
    pub(super) fn read(fields: &mut Fields) -> Result<Self, Refusal> {
        let on = fields.flag("stream")?.unwrap_or(false);
        let options = fields.object("stream_options")?;
        match (on, options) {
            (false, Some(_)) => {
                Err(Refusal::unsupported("stream_options", "only allowed when `stream` is true"))
            }
            (false, None) => Ok(Self::Off),
            (true, None) => Ok(Self::On(Told::Nowhere)),
            (true, Some(mut options)) => {
                let wanted = options.flag("include_usage")?.unwrap_or(false);
                let always = options.flag("continuous_usage_stats")?.unwrap_or(false);
                Ok(Self::On(match (wanted, always) {
                    (false, _) => Told::Nowhere,
                    (true, false) => Told::Last,
                    (true, true) => Told::Always,
                }))
            }
        }
    }
}

/// Makes one API's chunks.
pub(super) trait Chunks: Send + 'static {
    /// Adds the chunks of a choice's next piece. Their usage is absent, null, or what it is so far.
    fn piece(
        &mut self,
        choice: u32,
        piece: Piece,
        usage: Option<Option<Usage>>,
        out: &mut VecDeque<String>,
    );

    /// The chunk after the last piece, when the client wants the usage.
    fn usage(&self, usage: Usage) -> String;
}

/// A chunk's text. Our own types always serialize; were one not to, the client would see an
/// empty event in its place.
pub(super) fn json(chunk: &impl Serialize) -> String {
    serde_json::to_string(chunk).unwrap_or_else(|error| {
        tracing::error!(%error, "a chunk cannot be written");
        String::new()
    })
}

struct State<C> {
    running: Running,
    chunks: C,
    usage: Told,
    queue: VecDeque<String>,
    over: bool,
}

impl<C: Chunks> State<C> {
    async fn next(&mut self) -> Option<String> {
        while self.queue.is_empty() && !self.over {
            match self.running.next().await {
                Some(Ok((choice, piece))) => {
                    let usage = match self.usage {
                        Told::Nowhere => None,
                        Told::Last => Some(None),
                        Told::Always => Some(Some(Usage::from(&self.running))),
                    };
                    self.chunks.piece(choice, piece, usage, &mut self.queue);
                }
                Some(Err(refusal)) => {
                    self.queue.push_back(json(&ErrorBody::from(refusal)));
                    self.close();
                }
                None => {
                    if self.usage != Told::Nowhere {
                        self.queue.push_back(self.chunks.usage(Usage::from(&self.running)));
                    }
                    self.close();
                }
            }
        }
        self.queue.pop_front()
    }

    fn close(&mut self) {
        self.queue.push_back(DONE.to_string());
        self.over = true;
    }
}

/// The response. Dropping it, as the server does when the client has left, cancels the request.
pub(super) fn respond(running: Running, chunks: impl Chunks, usage: Told) -> Response {
    let state = State { running, chunks, usage, queue: VecDeque::new(), over: false };
    let events = futures::stream::unfold(state, async |mut state| {
        let data = state.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(data)), state))
    });
    Sse::new(events).into_response()
}
