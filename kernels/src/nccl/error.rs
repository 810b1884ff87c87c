//! What can be wrong with NCCL, each with its sentence.

use crate::cuda::CudaError;

/// Why NCCL cannot be used, or a communicator is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum NcclError {
    /// The machine has no library that the loader takes.
    #[error("no NCCL on this machine: {reason}")]
    Missing {
        /// The loader's words.
        reason: String,
    },
    /// The library lacks what every version since the oldest that will do has.
    #[error("the NCCL library has no {symbol}")]
    Symbol {
        /// The function that is missing.
        symbol: &'static str,
    },
    /// The library is older than its non-blocking mode; versions as NCCL writes them.
    #[error("NCCL {}.{} is too old, {}.{} is needed", have / 10_000, have % 10_000 / 100, need / 10_000, need % 10_000 / 100)]
    Old {
        /// What there is.
        have: i32,
        /// What there should be.
        need: i32,
    },
    /// More rows than a lane has room for.
    #[error("{bytes} bytes of rows for a lane of {room}")]
    TooLarge {
        /// Bytes to be sent or received.
        bytes: usize,
        /// The lane's bytes.
        room: usize,
    },
    /// NCCL refused a call, or a communicator broke.
    #[error("{doing}: {reason}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// NCCL's words.
        reason: String,
    },
    /// The device, its driver or its memory.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}
