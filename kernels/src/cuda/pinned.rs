//! Page-locked memory of the host: what goes to a device and comes back without a copy in between.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaEvent, DeviceRepr, PinnedHostSlice, ValidAsZeroBits, result,
};

use super::device::{Buffer, Device};
use super::error::{CudaError, require};

/// An array in page-locked memory of the host. Copies return at once; whoever looks into it waits for them.
pub struct Pinned<T> {
    slice: PinnedHostSlice<T>,
    /// Recorded behind the last copy.
    copied: CudaEvent,
}

impl<T> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} values)", self.slice.len())
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // A copy that failed is over, too.
        let _ = self.copied.synchronize();
    }
}

impl<T: DeviceRepr + ValidAsZeroBits + Default + Clone> Pinned<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// When the host has no such memory left to lock.
    pub fn new(device: &Device, len: usize) -> Result<Self, CudaError> {
        let context = device.stream().context();
        let copied = context.new_event(None).map_err(CudaError::driver("making an event"))?;
        Ok(Self { slice: zeroed(context, len)?, copied })
    }

    /// The values, once no copy is under way.
    ///
    /// # Errors
    /// When a copy, or work before it, failed.
    pub fn values(&self) -> Result<&[T], CudaError> {
        self.settle()?;
        self.slice.as_slice().map_err(CudaError::driver("running on the device"))
    }

    /// The values to be changed, once no copy is under way.
    ///
    /// # Errors
    /// When a copy, or work before it, failed.
    pub fn values_mut(&mut self) -> Result<&mut [T], CudaError> {
        self.settle()?;
        self.slice.as_mut_slice().map_err(CudaError::driver("running on the device"))
    }

    /// Has the first `count` values copied to the beginning of `to`, behind the work that was launched before.
    ///
    /// # Errors
    /// When one of the two is shorter, or the driver refuses.
    pub fn send(&self, device: &Device, count: usize, to: &mut Buffer<T>) -> Result<(), CudaError> {
        let values = self.first(count, to.len())?;
        // SAFETY: both sides have `count` values and live on: this memory until `copied`, for which its drop and every
        // look into it wait; the buffer's is freed behind the stream's work.
        let copied =
            unsafe { result::memcpy_htod_async(to.pointer(), values, device.stream().cu_stream()) };
        copied.map_err(CudaError::driver("copying to the device"))?;
        self.mark(device)
    }

    /// Has the first `count` values of `from` copied here, behind the work that was launched before.
    ///
    /// # Errors
    /// When one of the two is shorter, or the driver refuses.
    pub fn fetch(
        &mut self,
        device: &Device,
        count: usize,
        from: &Buffer<T>,
    ) -> Result<(), CudaError> {
        self.first(count, from.len())?;
        let values = &mut self.values_mut()?[..count];
        // SAFETY: as for `send`.
        let copied = unsafe {
            result::memcpy_dtoh_async(values, from.pointer(), device.stream().cu_stream())
        };
        copied.map_err(CudaError::driver("copying from the device"))?;
        self.mark(device)
    }

    fn first(&self, count: usize, room: usize) -> Result<&[T], CudaError> {
        let have = self.slice.len();
        require(count <= have && count <= room, || {
            format!("{count} values to copy between {have} on the host and {room} on the device")
        })?;
        Ok(&self.values()?[..count])
    }

    fn mark(&self, device: &Device) -> Result<(), CudaError> {
        self.copied.record(device.stream()).map_err(CudaError::driver("recording an event"))
    }

    fn settle(&self) -> Result<(), CudaError> {
        self.copied.synchronize().map_err(CudaError::driver("running on the device"))
    }
}

/// `len` zeros, one at least, in page-locked memory.
pub(crate) fn zeroed<T: DeviceRepr + ValidAsZeroBits + Default + Clone>(
    context: &Arc<CudaContext>,
    len: usize,
) -> Result<PinnedHostSlice<T>, CudaError> {
    let refused = CudaError::driver("locking memory of the host");
    // SAFETY: every value is written right below.
    let slice = unsafe { context.alloc_pinned_with_flags(len.max(1), 0) };
    let mut slice = slice.map_err(&refused)?;
    slice.as_mut_slice().map_err(&refused)?.fill(T::default());
    Ok(slice)
}
