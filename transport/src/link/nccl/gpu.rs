//! The backend of real GPUs: `kernels::nccl` and a stock of lanes.

use bytes::Bytes;
use kernels::nccl::{Communicator, End, Lane, NcclError, Port, UniqueId};
use proto::frame::NcclName;

use super::{RECEIVES_MAX, SENDS_MAX, backend::Backend};

/// One device.
#[derive(Debug)]
pub(super) struct Gpu {
    port: Port,
    row_bytes_max: usize,
    idle: Vec<Lane>,
    /// Lanes whose transfer did not begin: free when their communicator is gone.
    stuck: Vec<Lane>,
}

impl Gpu {
    /// Opens device `ordinal` with all lanes that may be in use.
    pub(super) fn open(ordinal: usize, row_bytes_max: usize) -> Result<Self, NcclError> {
        let port = Port::open(ordinal)?;
        let lanes = (0..SENDS_MAX + RECEIVES_MAX).map(|_| port.lane(row_bytes_max));
        let idle = lanes.collect::<Result<_, _>>()?;
        Ok(Self { port, row_bytes_max, idle, stuck: Vec::new() })
    }

    /// A transfer through a lane, begun by `begin`.
    fn begin(
        &mut self,
        begin: impl FnOnce(&mut Lane) -> Result<(), NcclError>,
    ) -> Result<Lane, String> {
        let mut lane = match self.idle.pop() {
            Some(lane) => lane,
            None => self.port.lane(self.row_bytes_max).map_err(sentence)?,
        };
        match begin(&mut lane) {
            Ok(()) => Ok(lane),
            Err(error) => {
                self.stuck.push(lane);
                Err(error.to_string())
            }
        }
    }
}

impl Backend for Gpu {
    type Channel = Communicator;
    type Transfer = Lane;

    fn major(&self) -> Result<u32, NcclError> {
        Ok(self.port.version()?.unsigned_abs() / 10_000)
    }

    fn name(&mut self) -> Result<NcclName, String> {
        self.port.unique_id().map(|id| id.0).map_err(sentence)
    }

    fn join(&mut self, name: &NcclName, end: End) -> Result<Communicator, String> {
        self.port.communicator(&UniqueId(*name), end).map_err(sentence)
    }

    fn check(&mut self, channel: &Communicator) -> Result<bool, String> {
        channel.check().map_err(sentence)
    }

    fn send(&mut self, channel: &Communicator, rows: &Bytes) -> Result<Lane, String> {
        self.begin(|lane| lane.send(channel, rows))
    }

    fn receive(&mut self, channel: &Communicator, bytes: usize) -> Result<Lane, String> {
        self.begin(|lane| lane.receive(channel, bytes))
    }

    fn poll(&mut self, channel: &Communicator, lane: &mut Lane) -> Result<Option<Bytes>, String> {
        let rows = lane.poll(channel).map_err(sentence)?;
        Ok(rows.map(|rows| match channel.end() {
            End::Sender => Bytes::new(),
            End::Receiver => Bytes::copy_from_slice(rows),
        }))
    }

    fn retire(&mut self, lane: Lane) {
        self.idle.push(lane);
    }

    fn abort(&mut self, channels: Vec<Communicator>, transfers: Vec<Lane>) {
        // Kernels of a communicator that is gone leave the device; before, waiting for them could take for ever.
        drop(channels);
        let lanes = transfers.into_iter().chain(self.stuck.drain(..));
        self.idle.extend(lanes.filter_map(|mut lane| lane.settle().is_ok().then_some(lane)));
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn sentence(error: NcclError) -> String {
    error.to_string()
}
