//! Moves what other rooms decided to send: mailboxes into device threads, data links, control sessions, sequences.

mod accept;
mod address;
mod backoff;
mod channel;
pub mod control;
mod doorbell;
mod guarded;
mod hub;
pub mod link;
pub mod mailbox;
#[cfg(test)]
mod relay;
pub mod sequences;
mod server;

pub use address::{Address, AddressError};
pub use backoff::Backoff;
pub use channel::{KeepAlive, channel};
pub use doorbell::Doorbell;
pub use hub::Hub;
pub use server::{InprocListener, ListenError, Listener, Services, serve};
