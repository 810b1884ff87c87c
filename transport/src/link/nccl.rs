//! Rows that go by NCCL from GPU to GPU, beside the link that carries their frames.
//!
//! A gRPC link stays what it is. When both greetings offer NCCL, the ends make a *pair* beside it, in the background:
//! two one-way communicators, because rows of both ways in one would wait for each other. Then:
//!
//! - A frame is sent as before, less its rows: the *header*. It says how many bytes of rows come apart. The sender asks for
//!   the transfer and sends the header in one step, and the receiver asks for its part only when the header has come, since
//!   a transfer keeps part of a GPU busy until its other end takes part too.
//! - Frames reach the engine in the order of their headers, whichever way their rows came. So a link may change
//!   between gRPC and NCCL from one frame to the next, and does: small rows, rows above what a transfer takes, and rows
//!   that find the thread's queue full stay in their frames.
//! - A device's NCCL calls are made by one thread ([`Nccl`]), which never blocks on any of them. At most [`SENDS_MAX`] of its
//!   transfers are on their way out and [`RECEIVES_MAX`] in. A header goes only with a transfer that has its place, so all that is
//!   received is being sent: no ring of nodes can wait for one another.
//! - A pair that cannot be made is tried again after a pause, while all rows stay with gRPC. A pair that
//!   breaks with rows in it takes its link along: both engines see `Down`, as when a connection breaks, and
//!   dispatch again what was lost. The link comes back by gRPC, and the pair is tried again after a pause.

use std::{
    fmt,
    sync::{Arc, OnceLock, mpsc::sync_channel},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kernels::nccl::NcclError;
use proto::frame::{NcclOffer, NcclWord};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::{
    backend::Backend,
    gpu::Gpu,
    machine::{Machine, PairId},
    pair::Newcomer,
};
use crate::{
    Backoff, Doorbell,
    mailbox::{self, Mailbox},
};

mod backend;
mod ends;
mod gpu;
mod machine;
mod pair;
#[cfg(test)]
pub(super) mod tests;
mod way;

pub(super) use self::ends::{Inlet, Outlet, Unpaired};

/// Transfers of one device that may be on their way out. Each has a lane: a stream, and memory for its rows.
const SENDS_MAX: usize = 8;
/// How many of them may be for the same peer, so that one who is slow does not take all.
const SENDS_TO_PEER_MAX: usize = 2;
/// Transfers that may be coming in.
const RECEIVES_MAX: usize = 8;
/// Commands that may wait for the thread. Rows that find no place go by gRPC.
const COMMANDS_MAX: usize = 1024;
/// Words of one pair that its link may not have sent yet: an attempt has at most three.
const WORDS_MAX: usize = 8;

/// One GPU's way to other GPUs: the thread that makes all its NCCL calls. Clones are the same; it ends with the last.
#[derive(Clone)]
pub struct Nccl {
    commands: mailbox::Sender<Command>,
    /// Places for transfers on their way out.
    sends: Arc<Semaphore>,
    major: u32,
    bounds: Bounds,
}

/// Sizes and times of all pairs of a device.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Frames with fewer bytes of rows keep them. Their header takes the way by gRPC in any case, so few rows in it cost
    /// little, where a transfer costs two copies and a launch at both ends.
    row_bytes_min: usize,
    /// So do frames with more: what a lane has room for.
    row_bytes_max: usize,
    /// How long the making of a pair may take.
    join: Duration,
    /// How long a transfer may take from when it was asked for. GPUs may be busy, but not that long.
    transfer: Duration,
    /// Pauses between attempts to make a pair with a peer.
    backoff: Backoff,
}

/// What the thread is asked for.
#[derive(Debug)]
enum Command {
    /// Make a pair beside a new link.
    Open(Box<Newcomer>),
    /// The peer said something about a pair.
    Hear { pair: PairId, word: NcclWord },
    /// Send rows whose header is on its way.
    Send { pair: PairId, parcel: Parcel },
    /// Receive rows whose header has come.
    Receive { pair: PairId, awaited: Awaited },
}

/// Rows on their way out. They lie in memory of the host; where an engine leaves them on its device, this is the
/// place for them to stay there, and a lane's copies fall away.
#[derive(Debug)]
struct Parcel {
    rows: Bytes,
    /// One of [`SENDS_TO_PEER_MAX`], and one of [`SENDS_MAX`].
    _places: [OwnedSemaphorePermit; 2],
}

/// Rows on their way in.
#[derive(Debug)]
struct Awaited {
    bytes: usize,
    /// Dropped when they do not come.
    done: oneshot::Sender<Bytes>,
}

// === impl Bounds ===

impl Default for Bounds {
    fn default() -> Self {
        Self {
            row_bytes_min: 32 << 10,
            row_bytes_max: 4 << 20,
            join: Duration::from_secs(30),
            transfer: Duration::from_secs(5),
            backoff: Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60) },
        }
    }
}

// === impl Nccl ===

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nccl(version {})", self.major)
    }
}

impl Nccl {
    /// Opens GPU `ordinal` for rows that go to other GPUs, with memory of the device for all transfers that may be under way.
    ///
    /// # Errors
    /// When driver, device, NCCL or memory are missing.
    pub fn open(ordinal: usize) -> Result<Self, NcclError> {
        let bounds = Bounds::default();
        Self::start(bounds, move || Gpu::open(ordinal, bounds.row_bytes_max))
    }

    /// Starts the thread of a backend, which is opened on it and stays there.
    fn start<B: Backend>(
        bounds: Bounds,
        open: impl FnOnce() -> Result<B, NcclError> + Send + 'static,
    ) -> Result<Self, NcclError> {
        let bell = Doorbell::new();
        let (commands, mailbox) = mailbox::bounded(COMMANDS_MAX, bell.clone());
        let (opened, outcome) = sync_channel(1);
        let spawned = thread::Builder::new().name("nccl".into()).spawn(move || {
            let backend = open().and_then(|backend| Ok((backend.major()?, backend)));
            let (major, machine) = match backend {
                Ok((major, backend)) => (Ok(major), Some(Machine::new(backend, bounds))),
                Err(error) => (Err(error), None),
            };
            // The opener waits for this.
            let _ = opened.send(major);
            if let Some(machine) = machine {
                drive(machine, mailbox, &bell);
            }
        });
        let no_thread = |reason: String| NcclError::Failed { doing: "starting a thread", reason };
        spawned.map_err(|error| no_thread(error.to_string()))?;
        let major = outcome.recv().map_err(|_| no_thread("it died".to_owned()))??;
        Ok(Self { commands, sends: Arc::new(Semaphore::new(SENDS_MAX)), major, bounds })
    }

    /// What a greeting says of this end.
    pub(super) fn offer(&self) -> NcclOffer {
        NcclOffer { major: self.major, row_bytes_max: self.bounds.row_bytes_max }
    }

    /// Both halves of a new link's way to a pair.
    pub(super) fn beside(&self) -> (Unpaired, Outlet) {
        let (said, words) = mpsc::channel(WORDS_MAX);
        let route = Arc::new(OnceLock::new());
        let unpaired = Unpaired::new(self.clone(), said, Arc::clone(&route));
        (unpaired, Outlet::new(self.clone(), words, route))
    }
}

/// The thread: takes commands, has the machine turn, sleeps until there is something to do.
fn drive<B: Backend>(mut machine: Machine<B>, mut mailbox: Mailbox<Command>, bell: &Doorbell) {
    while !mailbox.is_finished() {
        while let Some(command) = mailbox.try_recv() {
            machine.take(command, Instant::now());
        }
        let next = machine.turn(Instant::now());
        bell.wait(Some(next));
    }
    machine.close();
}
