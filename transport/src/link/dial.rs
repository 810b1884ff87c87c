//! Keeps a link to one peer up: dials, waits until it is lost, dials again.

use std::sync::Arc;

use domain::NodeId;
use proto::internal::expert_link_client::ExpertLinkClient;
use tokio::time;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;
use trust::Party;

use super::{
    Links, LocalEnd, NoLink, memory,
    reader::Reader,
    wire::{self, Ending, Opening, Side},
};
use crate::{
    Address,
    channel::{self, sentence},
    link::LinkSender,
};

/// A peer that is dialled again and again. Dropping it closes the link and ends the dialling.
#[derive(Debug)]
pub struct Connection {
    _stop: DropGuard,
}

struct Dialer {
    links: Links,
    peer: NodeId,
    address: Address,
    stop: CancellationToken,
}

pub(super) fn keep_linked(links: Links, peer: NodeId, address: Address) -> Connection {
    let stop = CancellationToken::new();
    let dialer = Dialer { links, peer, address, stop: stop.clone() };
    let ended = CancellationToken::new();
    let end = Arc::clone(&dialer.links.end);
    let predecessor = end.dialers().insert(peer, ended.clone());
    tokio::spawn(async move {
        let ended = ended.drop_guard();
        // The last link of a connection that was dropped has to be down before the first of this.
        if let Some(predecessor) = predecessor {
            predecessor.cancelled().await;
        }
        dialer.run().await;
        drop(ended);
        end.dialers().retain(|_, ended| !ended.is_cancelled());
    });
    Connection { _stop: stop.drop_guard() }
}

// === impl Dialer ===

impl Dialer {
    async fn run(self) {
        let end = Arc::clone(&self.links.end);
        let mut pauses = end.settings.backoff.pauses();
        let mut failures = 0_u32;
        while !self.stop.is_cancelled() && !end.inbox.is_closed() {
            let pause = match self.link().await {
                Ok(ending) => {
                    tracing::info!(peer = %self.peer, address = %self.address, "link lost: {ending}");
                    failures = 0;
                    pauses.reset();
                    pauses.next()
                }
                Err(no_link) => {
                    failures = failures.saturating_add(1);
                    self.report(&no_link, failures);
                    match no_link {
                        NoLink::Unreachable(_) => pauses.next(),
                        NoLink::Refused(_) => end.settings.refused_pause,
                    }
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = end.inbox.closed() => {}
                () = time::sleep(pause) => {}
            }
        }
    }

    /// The first failure of a row is news; the rest is counted.
    fn report(&self, no_link: &NoLink, failures: u32) {
        let (peer, address) = (self.peer, &self.address);
        self.links.end.metrics.dials_failed.inc();
        match no_link {
            NoLink::Refused(why) if failures == 1 => {
                tracing::warn!(%peer, %address, "link refused: {why}");
            }
            NoLink::Unreachable(why) if failures == 1 => {
                tracing::info!(%peer, %address, "no link yet: {why}");
            }
            NoLink::Refused(why) | NoLink::Unreachable(why) => {
                tracing::debug!(%peer, %address, failures, "no link yet: {why}");
            }
        }
    }

    /// Links up and returns when the link has ended.
    async fn link(&self) -> Result<Ending, NoLink> {
        match &self.address {
            Address::Memory(name) => {
                let Links { end, hub } = &self.links;
                let link = memory::dial(hub, name, self.peer, end)?;
                tracing::info!(peer = %self.peer, address = %self.address, "link up");
                tokio::select! {
                    () = link.closed() => {}
                    () = self.stop.cancelled() => link.close("closed by the dialing node"),
                }
                Ok(Ending::Gone("the link was closed".into()))
            }
            Address::Tcp(_) | Address::Inproc(_) => {
                let (reader, sender) = tokio::select! {
                    opened = self.open() => opened?,
                    () = self.stop.cancelled() => return Ok(Ending::Gone("never up".into())),
                };
                tracing::info!(peer = %self.peer, address = %self.address, "link up");
                Ok(reader.run(sender, &self.stop).await)
            }
        }
    }

    /// Connects and exchanges greetings. Each link has a connection of its own, so that rows never
    /// stand in the way of anything else.
    async fn open(&self) -> Result<(Reader, LinkSender), NoLink> {
        let Links { end, hub } = &self.links;
        let settings = &end.settings;
        let seat = end.seat().ok_or_else(|| NoLink::Refused(end.no_seat()))?;
        let channel = channel::connect(&self.address, Party::ExpertNode, hub, settings.keep_alive)
            .await
            .map_err(NoLink::Unreachable)?;
        let mut client = ExpertLinkClient::new(channel)
            .max_decoding_message_size(settings.frame_bytes_max)
            .max_encoding_message_size(settings.frame_bytes_max);
        let (opening, outgoing) = Opening::new(Arc::clone(end), Side::Attention, seat);
        let limit = settings.greeting_timeout;
        let answer = time::timeout(limit, client.open(outgoing))
            .await
            .map_err(|_| NoLink::Unreachable(format!("no answer came within {limit:?}")))?;
        let mut inbound = answer.map_err(|status| refusal(&status))?.into_inner();
        let hello = wire::greeting(&mut inbound, end).await.map_err(|ending| match ending {
            Ending::Gone(why) => NoLink::Unreachable(why),
            Ending::Malformed(why) => NoLink::Refused(why),
        })?;
        self.expected(end, hello.node).map_err(NoLink::Refused)?;
        end.agrees(hello.node, &hello.model_fingerprint).map_err(NoLink::Refused)?;
        Ok(opening.greeted(&hello, inbound))
    }

    fn expected(&self, end: &LocalEnd, found: NodeId) -> Result<(), String> {
        if found == self.peer {
            return Ok(());
        }
        let here = end.identity.node;
        Err(format!("{found} answers {here} at {}, expected {}", self.address, self.peer))
    }
}

/// Refusals that trying again soon will not change are told from the rest.
fn refusal(status: &tonic::Status) -> NoLink {
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unimplemented => NoLink::Refused(status.message().to_owned()),
        _ => NoLink::Unreachable(sentence(status)),
    }
}
