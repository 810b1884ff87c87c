//! What the machine needs of NCCL: six calls that return at once.

use bytes::Bytes;
use kernels::nccl::NcclError;
use proto::frame::NcclName;

pub(super) use kernels::nccl::End;

/// NCCL on one device, used by one thread. No call blocks; errors are sentences.
pub(super) trait Backend: 'static {
    /// One end of a one-way communicator, there or being made.
    type Channel;
    /// A transfer under way.
    type Transfer;

    /// First part of the library's version.
    fn major(&self) -> Result<u32, NcclError>;

    /// A name for a new communicator.
    fn name(&mut self) -> Result<NcclName, String>;

    /// Begins to make a communicator.
    fn join(&mut self, name: &NcclName, end: End) -> Result<Self::Channel, String>;

    /// Whether a communicator is there; an error if it broke.
    fn check(&mut self, channel: &Self::Channel) -> Result<bool, String>;

    /// Begins to send. Asked for only when the transfer before it is over.
    fn send(&mut self, channel: &Self::Channel, rows: &Bytes) -> Result<Self::Transfer, String>;

    /// Begins to receive. Asked for only when the transfer before it is over.
    fn receive(&mut self, channel: &Self::Channel, bytes: usize) -> Result<Self::Transfer, String>;

    /// The rows of a transfer that is over.
    fn poll(
        &mut self,
        channel: &Self::Channel,
        transfer: &mut Self::Transfer,
    ) -> Result<Option<Bytes>, String>;

    /// Takes back a transfer that is over.
    fn retire(&mut self, transfer: Self::Transfer);

    /// Gives up communicators, and then the transfers that were under way in them.
    fn abort(&mut self, channels: Vec<Self::Channel>, transfers: Vec<Self::Transfer>);
}
