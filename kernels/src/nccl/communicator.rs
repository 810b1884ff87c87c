//! One-way communicators of two: made in the background, asked how they are, aborted when dropped.

use std::fmt;
use std::mem;
use std::ptr;
use std::rc::Rc;

use cudarc::driver::CudaStream;
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclConfig_t, ncclUniqueId};

use super::error::NcclError;
use super::library::{BYTE, Code, IN_PROGRESS, Library, SUCCESS};

/// Ranks of a communicator.
const RANKS: i32 = 2;

/// What nccl.h writes into a fresh configuration: a mark, the version of the struct, and "unset" for every int.
const MAGIC: u32 = 0xcafe_beef;
const VERSION: u32 = 23_000;
const UNSET: i32 = i32::MIN;

/// Blocks that one transfer may take from the kernels. One fills a large part of a link between two GPUs, and each more
/// costs device memory per communicator.
const BLOCKS_MAX: i32 = 2;

/// Which end of a one-way communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Rank 0.
    Sender,
    /// Rank 1.
    Receiver,
}

/// One end of a communicator through which rows go one way. Rows of one pair that go both ways would wait for one
/// another: a transfer begins on the device only when the one before it is over.
pub struct Communicator {
    library: Rc<Library>,
    handle: ncclComm_t,
    end: End,
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Communicator({:?})", self.end)
    }
}

impl Communicator {
    /// Begins to make one with whoever has the same `id` and is the other end.
    pub(super) fn begin(
        library: &Rc<Library>,
        id: ncclUniqueId,
        end: End,
    ) -> Result<Self, NcclError> {
        let mut handle: ncclComm_t = ptr::null_mut();
        let mut config = config();
        // SAFETY: both pointers are valid for the call; the caller has made the device's context current.
        let code = unsafe {
            (library.init_rank_config)(&raw mut handle, RANKS, id, end.rank(), &raw mut config)
        };
        // From here on a handle that exists is aborted when dropped.
        let communicator = Self { library: Rc::clone(library), handle, end };
        match code {
            SUCCESS | IN_PROGRESS => Ok(communicator),
            _ => {
                library.check("making a communicator", code)?;
                Ok(communicator)
            }
        }
    }

    /// Which end this is.
    #[must_use]
    pub fn end(&self) -> End {
        self.end
    }

    /// Whether it is made and its last transfer is on the device; false: not yet.
    ///
    /// # Errors
    /// It is broken: nothing but dropping it is left.
    pub fn check(&self) -> Result<bool, NcclError> {
        let mut state: Code = SUCCESS;
        // SAFETY: the handle is live, the pointer valid for the one int that is written.
        let code = unsafe { (self.library.get_async_error)(self.handle, &raw mut state) };
        self.library.check("asking how a communicator is", code)?;
        self.library.settled("exchanging rows by NCCL", state)
    }

    /// Puts a transfer on `stream`, or has NCCL do so by itself: see [`Communicator::check`].
    ///
    /// # Safety
    /// `memory` has `bytes` bytes on this communicator's device and lives, untouched by others, until the
    /// stream has done the transfer or the communicator is dropped and the stream is empty.
    pub(super) unsafe fn transfer(
        &self,
        memory: u64,
        bytes: usize,
        stream: &CudaStream,
    ) -> Result<(), NcclError> {
        let (library, handle) = (&self.library, self.handle);
        let stream = stream.cu_stream() as cudaStream_t;
        let doing = "exchanging rows by NCCL";
        let code = match self.end {
            // SAFETY: the handle is live; the rest is the caller's promise.
            End::Sender => unsafe {
                (library.send)(memory as *const _, bytes, BYTE, self.peer(), handle, stream)
            },
            // SAFETY: as above.
            End::Receiver => unsafe {
                (library.recv)(memory as *mut _, bytes, BYTE, self.peer(), handle, stream)
            },
        };
        library.settled(doing, code).map(drop)
    }

    fn peer(&self) -> i32 {
        RANKS - 1 - self.end.rank()
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if self.handle.is_null() {
            return;
        }
        // SAFETY: the handle is live and not used again. What an abort returns changes nothing.
        unsafe { (self.library.abort)(self.handle) };
    }
}

impl End {
    fn rank(self) -> i32 {
        match self {
            Self::Sender => 0,
            Self::Receiver => 1,
        }
    }
}

fn config() -> ncclConfig_t {
    // SAFETY: integers and pointers, for which zero is a value.
    let zeroed: ncclConfig_t = unsafe { mem::zeroed() };
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: MAGIC,
        version: VERSION,
        blocking: 0,
        cgaClusterSize: UNSET,
        minCTAs: 1,
        maxCTAs: BLOCKS_MAX,
        splitShare: UNSET,
        trafficClass: UNSET,
        collnetEnable: UNSET,
        CTAPolicy: UNSET,
        shrinkShare: UNSET,
        nvlsCTAs: UNSET,
        nChannelsPerNetPeer: UNSET,
        nvlinkCentricSched: UNSET,
        graphUsageMode: UNSET,
        numRmaCtx: UNSET,
        maxP2pPeers: UNSET,
        ..zeroed
    }
}
