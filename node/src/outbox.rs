//! Frames that wait for their link's credit.

use std::collections::VecDeque;

use proto::frame::Frame;
use transport::link::{LinkSender, Refused};

/// Frames for one peer, in order. Its owner's own bounds bound it: the rows an attention node holds,
/// the pairs an expert node was sent.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Frame>,
}

// === impl Outbox ===

impl Outbox {
    /// Appends a frame; [`send`](Self::send) sends it.
    pub fn push(&mut self, frame: Frame) {
        self.frames.push_back(frame);
    }

    /// Drops everything: the link it was meant for is gone.
    pub fn clear(&mut self) {
        self.frames.clear();
    }

    /// Sends as much as `link` has credit for. The engine's bell rings when there is more.
    pub fn send(&mut self, link: &LinkSender) {
        while let Some(frame) = self.frames.pop_front() {
            match link.try_send(frame) {
                Ok(()) => {}
                Err(Refused::NoCredit(frame)) => {
                    self.frames.push_front(frame);
                    return;
                }
                // Its Down is on its way; what is still wanted is then sent again.
                Err(Refused::Closed(_)) => self.frames.clear(),
                Err(error @ Refused::TooLarge { .. }) => {
                    tracing::error!(%error, "rows cannot be sent: raise frame_bytes_max");
                }
            }
        }
    }
}
