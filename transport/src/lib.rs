//! Moves what other rooms decided to send: mailboxes into device threads, data links, control sessions, sequences.

mod address;
mod backoff;
mod channel;
pub mod control;
mod doorbell;
mod hub;
pub mod link;
pub mod mailbox;
#[cfg(test)]
mod relay;
pub mod sequences;

pub use address::{Address, AddressError};
pub use backoff::Backoff;
pub use channel::{InprocListener, KeepAlive, ListenError, Listener, channel, serve, server};
pub use doorbell::Doorbell;
pub use hub::Hub;
