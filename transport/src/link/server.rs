//! The accepting side of gRPC links: one stream per attention node.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use domain::NodeId;
use futures::{FutureExt, Stream, StreamExt};
use proto::internal::{
    self,
    expert_link_server::{ExpertLink, ExpertLinkServer},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    LocalEnd,
    wire::{self, Ending, Opening, Outgoing, Side},
};

/// The service, for `add_service`.
pub type LinkService = ExpertLinkServer<Acceptor>;

/// Accepts links for one engine.
#[derive(Clone, Debug)]
pub struct Acceptor {
    end: Arc<LocalEnd>,
    /// The newest link of each peer.
    links: Arc<Mutex<HashMap<NodeId, Accepted>>>,
}

/// A link's task, as its successor sees it.
#[derive(Clone, Debug, Default)]
struct Accepted {
    stop: CancellationToken,
    ended: CancellationToken,
}

/// What goes to the peer: frames, and at the end the error if the peer broke the rules.
#[derive(Debug)]
pub struct Answer {
    outgoing: Option<Outgoing>,
    fault: oneshot::Receiver<Status>,
}

pub(super) fn service(end: Arc<LocalEnd>) -> LinkService {
    let frame_bytes_max = end.settings.frame_bytes_max;
    let links = Arc::default();
    ExpertLinkServer::new(Acceptor { end, links })
        .max_decoding_message_size(frame_bytes_max)
        .max_encoding_message_size(frame_bytes_max)
}

#[tonic::async_trait]
impl ExpertLink for Acceptor {
    type OpenStream = Answer;

    async fn open(
        &self,
        request: Request<Streaming<internal::Frame>>,
    ) -> Result<Response<Answer>, Status> {
        let mut inbound = request.into_inner();
        let hello =
            wire::greeting(&mut inbound, &self.end).await.map_err(|ending| match ending {
                Ending::Gone(why) => Status::deadline_exceeded(why),
                Ending::Malformed(why) => Status::invalid_argument(why),
            })?;
        self.end
            .agrees(hello.node, &hello.model_fingerprint)
            .map_err(Status::failed_precondition)?;
        if self.end.inbox.is_closed() {
            return Err(Status::unavailable("the node is shutting down"));
        }
        let seat = self.end.seat().ok_or_else(|| Status::resource_exhausted(self.end.no_seat()))?;
        let (opening, outgoing) = Opening::new(Arc::clone(&self.end), Side::Expert, seat);
        let (reader, sender) = opening.greeted(&hello, inbound);
        let (fault, told) = oneshot::channel();
        let acceptor = self.clone();
        tokio::spawn(async move {
            let peer = hello.node;
            let (this, predecessor) = acceptor.enter(peer);
            if let Some(predecessor) = predecessor {
                predecessor.stop.cancel();
                predecessor.ended.cancelled().await;
            }
            tracing::info!(%peer, "link up");
            let ending = reader.run(sender, &this.stop).await;
            tracing::info!(%peer, "link lost: {ending}");
            if let Ending::Malformed(why) = ending {
                // A peer that is gone needs no telling.
                let _ = fault.send(Status::invalid_argument(why));
            }
            acceptor.leave(peer, &this);
        });
        Ok(Response::new(Answer { outgoing: Some(outgoing), fault: told }))
    }
}

// === impl Acceptor ===

impl Acceptor {
    /// Makes this the link of `peer`. A node that dials again has lost its old link, whatever this
    /// end believes; the old one has to be `Down` before the new one may be `Up`.
    fn enter(&self, peer: NodeId) -> (Accepted, Option<Accepted>) {
        let this = Accepted::default();
        let predecessor = self.links().insert(peer, this.clone());
        (this, predecessor)
    }

    fn leave(&self, peer: NodeId, this: &Accepted) {
        let mut links = self.links();
        // A successor cancels `stop` and stands in the table itself.
        if !this.stop.is_cancelled() {
            links.remove(&peer);
        }
        this.ended.cancel();
    }

    /// Every change of the table is one call, so a panic elsewhere cannot leave it half done.
    fn links(&self) -> MutexGuard<'_, HashMap<NodeId, Accepted>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Answer ===

impl Stream for Answer {
    type Item = Result<internal::Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(outgoing) = &mut self.outgoing else {
            return Poll::Ready(None);
        };
        match outgoing.poll_next_unpin(cx) {
            Poll::Ready(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => {}
        }
        // The reader ends the outgoing stream first and then says whether there was a fault.
        self.fault.poll_unpin(cx).map(|fault| {
            self.outgoing = None;
            fault.ok().map(Err)
        })
    }
}
