//! A lane: the stream, and the memory on device and host, that one transfer at a time goes through.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdeviceptr, CUresult};
use cudarc::driver::{CudaContext, CudaStream, PinnedHostSlice};

use super::communicator::{Communicator, End};
use super::error::NcclError;
use crate::cuda::{CudaError, zeroed};

/// Carries one transfer at a time between memory of the host and a communicator.
///
/// Rows that lie on the device already need no lane's buffers: they would be handed to the communicator where `send`
/// hands over the lane's, behind an event of the stream that made them.
pub struct Lane {
    host: PinnedHostSlice<u8>,
    device: DeviceMemory,
    stream: Arc<CudaStream>,
    bytes: usize,
    work: Work,
}

/// How far a lane's transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// None is under way.
    Idle,
    /// NCCL may not have put it on the stream yet.
    Launching { bytes: usize },
    /// Everything is on the stream.
    Running { bytes: usize },
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({} bytes, {:?})", self.bytes, self.work)
    }
}

impl Lane {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, CudaError> {
        let stream = context.new_stream().map_err(CudaError::driver("making a stream"))?;
        let (host, device) = (zeroed(context, bytes)?, DeviceMemory::new(bytes)?);
        Ok(Self { host, device, stream, bytes, work: Work::Idle })
    }

    /// Begins to send `rows`, which are copied before this returns.
    ///
    /// # Errors
    /// When they do not fit, or the device or the communicator is broken.
    ///
    /// # Panics
    /// While another transfer is under way, or when `to` is no sender.
    pub fn send(&mut self, to: &Communicator, rows: &[u8]) -> Result<(), NcclError> {
        assert_eq!(to.end(), End::Sender, "rows go out of the sending end");
        self.begin(rows.len())?;
        let staged =
            self.host.as_mut_slice().map_err(CudaError::driver("copying to the device"))?;
        let staged = &mut staged[..rows.len()];
        staged.copy_from_slice(rows);
        // SAFETY: both sides have that many bytes and are not freed before the stream is empty (`drop`).
        let copied =
            unsafe { result::memcpy_htod_async(self.device.0, staged, self.stream.cu_stream()) };
        copied.map_err(CudaError::driver("copying to the device"))?;
        // SAFETY: the memory is this lane's, large enough, and used again only after `settle` or `poll` saw the end.
        unsafe { to.transfer(self.device.0, rows.len(), &self.stream) }
    }

    /// Begins to receive `bytes` bytes. Do so only when they are known to come: it keeps part of the device busy.
    ///
    /// # Errors
    /// When they do not fit, or the device or the communicator is broken.
    ///
    /// # Panics
    /// While another transfer is under way, or when `from` is no receiver.
    pub fn receive(&mut self, from: &Communicator, bytes: usize) -> Result<(), NcclError> {
        assert_eq!(from.end(), End::Receiver, "rows come in at the receiving end");
        self.begin(bytes)?;
        // SAFETY: as in `send`.
        unsafe { from.transfer(self.device.0, bytes, &self.stream) }
    }

    /// The rows, once the transfer through `by` is over; the lane is free again then.
    ///
    /// # Errors
    /// When the device or the communicator is broken.
    pub fn poll(&mut self, by: &Communicator) -> Result<Option<&[u8]>, NcclError> {
        if let Work::Launching { bytes } = self.work {
            // Before this a copy would overtake what NCCL has not put on the stream yet.
            if !by.check()? {
                return Ok(None);
            }
            if by.end() == End::Receiver {
                self.fetch(bytes)?;
            }
            self.work = Work::Running { bytes };
        }
        by.check()?;
        let Work::Running { bytes } = self.work else { return Ok(None) };
        // SAFETY: the stream is live.
        match unsafe { sys::cuStreamQuery(self.stream.cu_stream()) } {
            CUresult::CUDA_ERROR_NOT_READY => return Ok(None),
            code => code.result().map_err(CudaError::driver("exchanging rows by NCCL"))?,
        }
        self.work = Work::Idle;
        let rows = self.host.as_slice().map_err(CudaError::driver("copying from the device"))?;
        Ok(Some(&rows[..bytes]))
    }

    /// Waits until the stream is empty, which it soon is once its communicator was dropped. The lane is free again.
    ///
    /// # Errors
    /// When the device failed.
    pub fn settle(&mut self) -> Result<(), NcclError> {
        self.stream.synchronize().map_err(CudaError::driver("emptying a stream"))?;
        self.work = Work::Idle;
        Ok(())
    }

    fn begin(&mut self, bytes: usize) -> Result<(), NcclError> {
        assert_eq!(self.work, Work::Idle, "one transfer at a time");
        if bytes > self.bytes {
            return Err(NcclError::TooLarge { bytes, room: self.bytes });
        }
        self.work = Work::Launching { bytes };
        Ok(())
    }

    fn fetch(&mut self, bytes: usize) -> Result<(), CudaError> {
        let failed = CudaError::driver("copying from the device");
        let staged = &mut self.host.as_mut_slice().map_err(&failed)?[..bytes];
        // SAFETY: as the copy in `send`.
        let copied =
            unsafe { result::memcpy_dtoh_async(staged, self.device.0, self.stream.cu_stream()) };
        copied.map_err(failed)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The memory must outlive the stream's work; a stream that failed has none left.
        let _ = self.stream.synchronize();
    }
}

/// Memory of the device. Not from the stream's pool: NCCL may map it into the peer's address space.
struct DeviceMemory(CUdeviceptr);

impl DeviceMemory {
    fn new(bytes: usize) -> Result<Self, CudaError> {
        // SAFETY: the context is current on this thread.
        let memory = unsafe { result::malloc_sync(bytes.max(1)) };
        memory.map(Self).map_err(CudaError::driver("allocating for NCCL"))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; the lane has seen its stream empty. A refusal changes nothing.
        let _ = unsafe { result::free_sync(self.0) };
    }
}
