//! NCCL between two GPUs: the library found at run time, one-way communicators that are polled, lanes for rows.
//!
//! A [`Port`] is one device's way out. Everything of it stays on the thread that opened it, because NCCL forbids calls
//! for the same device from several threads at once. No call here blocks: communicators are made in
//! NCCL's non-blocking mode, and work is asked for with [`Communicator::check`] and [`Lane::poll`].
//!
//! There is no `ncclCommDestroy`: it waits for the peer, who may be dead. Dropping a communicator aborts it.

mod communicator;
mod error;
mod lane;
mod library;
mod port;

pub use communicator::{Communicator, End};
pub use error::NcclError;
pub use lane::Lane;
pub use port::{Port, UNIQUE_ID_BYTES, UniqueId};
