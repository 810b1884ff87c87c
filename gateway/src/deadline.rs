//! A request's body that has to come in time.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;

/// The body, and when its time is over.
#[derive(Debug)]
pub(crate) struct Deadlined {
    body: Body,
    over: Pin<Box<Sleep>>,
    patience: Duration,
}

impl Deadlined {
    /// `body` if all of it comes within `patience` from now.
    pub(crate) fn body(body: Body, patience: Duration) -> Body {
        Body::new(Self { body, over: Box::pin(sleep(patience)), patience })
    }
}

impl HttpBody for Deadlined {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        self.over.as_mut().poll(cx).map(|()| {
            let message = format!("the body did not come within {:?}", self.patience);
            Some(Err(Status::deadline_exceeded(message).into()))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
