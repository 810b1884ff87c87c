//! One GPU: its stream, its memory, the kernels loaded on it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
    DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

use super::error::{CudaError, require};

/// The kernels' machine code; empty when they were not built.
static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/amoe.fatbin"));

/// The driver must know CUDA 13.0, whose compiler made the image.
const DRIVER_VERSION: i32 = 13_000;

/// An open GPU.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    name: String,
    capability: (i32, i32),
    multiprocessors: u32,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {:?})", self.name, self.capability)
    }
}

impl Device {
    /// Opens device `ordinal` with the kernels this program was built with.
    ///
    /// # Errors
    /// When driver, device or kernels are missing, or too old.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        Self::open_with(ordinal, IMAGE)
    }

    /// Opens device `ordinal` with kernels from elsewhere: a fatbin, a cubin or PTX.
    ///
    /// # Errors
    /// As [`Device::open`], and when the driver does not accept the image.
    pub fn open_with(ordinal: usize, image: &[u8]) -> Result<Self, CudaError> {
        let context = open_context(ordinal)?;
        let missing = CudaError::no_device(ordinal);
        // SAFETY: no buffer exists yet. All work goes to the one stream below, so that nothing
        // needs the events that order several streams.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(&missing)?;
        let capability = context.compute_capability().map_err(&missing)?;
        let (major, minor) = capability;
        if major < 8 {
            return Err(CudaError::DeviceOld { name, major, minor });
        }
        if image.is_empty() {
            return Err(CudaError::KernelsNotBuilt);
        }
        let count = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(count).map_err(missing)?.unsigned_abs();
        let stream = context.new_stream().map_err(CudaError::driver("making a stream"))?;
        let module = context.load_module(Ptx::from_binary(image.to_vec()));
        let module = module.map_err(CudaError::driver("loading the kernels"))?;
        Ok(Self { context, stream, module, name, capability, multiprocessors })
    }

    /// The device's number, as it was opened.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// The device's name, as in `NVIDIA H200`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability, as in (9, 0).
    #[must_use]
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// How many blocks run at once when each takes a whole multiprocessor.
    #[must_use]
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Bytes of device memory that are free, and that there are.
    ///
    /// # Errors
    /// When the driver does not say.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.context.mem_get_info().map_err(CudaError::driver("asking for free memory"))
    }

    /// Room for `len` values; what it holds is undefined.
    ///
    /// # Errors
    /// When the device has no memory for it.
    pub fn alloc<T: DeviceRepr>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        // SAFETY: a kernel's outputs are written before anything reads them; reads of the rest
        // are reads of numbers, which have no invalid bits.
        let slice = unsafe { self.stream.alloc(len.max(1)) };
        let slice = slice.map_err(|error| self.refusal(&error, len * size_of::<T>()))?;
        Ok(Buffer { slice, len })
    }

    /// A copy of `values` on the device.
    ///
    /// # Errors
    /// When the device has no memory for it, or the copy fails.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<Buffer<T>, CudaError> {
        let mut buffer = self.alloc(values.len())?;
        if !values.is_empty() {
            let copied = self.stream.memcpy_htod(values, &mut buffer.slice);
            copied.map_err(CudaError::driver("copying to the device"))?;
        }
        Ok(buffer)
    }

    /// Copies `values` into a buffer, from its value `at` on.
    ///
    /// # Errors
    /// When the buffer ends before, or the copy fails.
    pub fn write<T: DeviceRepr>(
        &self,
        buffer: &mut Buffer<T>,
        at: usize,
        values: &[T],
    ) -> Result<(), CudaError> {
        let end = at.saturating_add(values.len());
        require(end <= buffer.len, || format!("values {at}..{end} of {}", buffer.len))?;
        let copied = self.stream.memcpy_htod(values, &mut buffer.slice.slice_mut(at..end));
        copied.map_err(CudaError::driver("copying to the device"))
    }

    /// Waits for all work and copies a buffer back.
    ///
    /// # Errors
    /// When the copy, or work before it, failed.
    pub fn download<T: DeviceRepr + Default + Clone>(
        &self,
        buffer: &Buffer<T>,
    ) -> Result<Vec<T>, CudaError> {
        self.download_range(buffer, 0..buffer.len)
    }

    /// As [`Device::download`], of the values in `range`.
    ///
    /// # Errors
    /// When the buffer has no such range, the copy, or work before it, failed.
    pub fn download_range<T: DeviceRepr + Default + Clone>(
        &self,
        buffer: &Buffer<T>,
        range: Range<usize>,
    ) -> Result<Vec<T>, CudaError> {
        require(range.end <= buffer.len, || format!("values {range:?} of {}", buffer.len))?;
        let mut values = vec![T::default(); range.len()];
        if !range.is_empty() {
            let copied = self.stream.memcpy_dtoh(&buffer.slice.slice(range), &mut values);
            copied.map_err(CudaError::driver("copying from the device"))?;
        }
        self.synchronize()?;
        Ok(values)
    }

    /// Sets every byte of a buffer to 0xff: NaN in every float type.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn poison<T>(&self, buffer: &mut Buffer<T>) -> Result<(), CudaError> {
        let bytes = buffer.len * size_of::<T>();
        // SAFETY: the pointer is that of a live allocation of at least `bytes` bytes.
        let set = unsafe {
            sys::cuMemsetD8Async(buffer.pointer(), 0xff, bytes, self.stream.cu_stream()).result()
        };
        set.map_err(CudaError::driver("filling a buffer"))
    }

    /// Waits until the stream has done all work.
    ///
    /// # Errors
    /// When some of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(CudaError::driver("running on the device"))
    }

    /// Begins a measurement of what is launched from here on.
    ///
    /// # Errors
    /// When the driver refuses an event.
    pub fn timer(&self) -> Result<Timer<'_>, CudaError> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let start = self.stream.record_event(Some(flags));
        Ok(Timer { device: self, start: start.map_err(CudaError::driver("recording an event"))? })
    }

    /// A kernel by name, allowed `shared` bytes of dynamic shared memory.
    pub(super) fn kernel(&self, name: &str, shared: u32) -> Result<CudaFunction, CudaError> {
        let kernel = self.module.load_function(name);
        let kernel = kernel.map_err(CudaError::driver("looking up a kernel"))?;
        let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        match kernel.set_attribute(limit, shared.cast_signed()) {
            Ok(()) => Ok(kernel),
            Err(error) if error.0 == CUresult::CUDA_ERROR_INVALID_VALUE => {
                let (name, kernel) = (self.name.clone(), name.to_owned());
                Err(CudaError::SharedMemory { name, kernel, wanted: shared })
            }
            Err(error) => Err(CudaError::driver("asking for shared memory")(error)),
        }
    }

    /// How many blocks of a kernel run at once on the whole device.
    pub(super) fn resident(
        &self,
        kernel: &CudaFunction,
        threads: u32,
        shared: u32,
    ) -> Result<u32, CudaError> {
        let shared = shared as usize;
        let each = kernel.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None);
        let each = each.map_err(CudaError::driver("asking how many blocks fit"))?;
        Ok(each * self.multiprocessors)
    }

    /// Launches a kernel that takes one struct.
    ///
    /// # Safety
    /// The struct is the kernel's, its pointers are of live buffers, and the kernel stays inside them.
    pub(super) unsafe fn launch<P: DeviceRepr>(
        &self,
        kernel: &CudaFunction,
        config: LaunchConfig,
        params: &P,
    ) -> Result<(), CudaError> {
        let mut launch = self.stream.launch_builder(kernel);
        launch.arg(params);
        // SAFETY: the caller's promise.
        let launched = unsafe { launch.launch(config) };
        launched.map(drop).map_err(CudaError::driver("launching a kernel"))
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn refusal(&self, error: &DriverError, wanted: usize) -> CudaError {
        if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return CudaError::driver("allocating")(*error);
        }
        let (free, total) = self.context.mem_get_info().unwrap_or_default();
        CudaError::OutOfMemory { wanted, free, total }
    }
}

/// The context that all of a device's work in this process shares.
pub(crate) fn open_context(ordinal: usize) -> Result<Arc<CudaContext>, CudaError> {
    check_driver()?;
    CudaContext::new(ordinal).map_err(CudaError::no_device(ordinal))
}

/// The library is there and new enough; the first call of any other function may otherwise panic.
fn check_driver() -> Result<(), CudaError> {
    // SAFETY: looks for the library and runs its initialisers, as every later call would.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::DriverMissing);
    }
    let mut have = 0;
    // SAFETY: the pointer is valid for the one i32 that is written; the call needs no context.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut have).result() };
    asked.map_err(CudaError::driver("asking the driver for its version"))?;
    if have < DRIVER_VERSION {
        return Err(CudaError::DriverOld { have, need: DRIVER_VERSION });
    }
    Ok(())
}

/// An array in device memory.
#[derive(Debug)]
pub struct Buffer<T> {
    slice: CudaSlice<T>,
    len: usize,
}

impl<T> Buffer<T> {
    /// How many values it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Holds `len` values from here on, in the memory it has; what was never written is undefined.
    ///
    /// # Errors
    /// When it was made for fewer.
    pub fn resize(&mut self, len: usize) -> Result<(), CudaError> {
        let most = self.slice.len();
        require(len <= most, || format!("{len} values where there is room for {most}"))?;
        self.len = len;
        Ok(())
    }

    /// The address on the device.
    pub(super) fn pointer(&self) -> u64 {
        // The guard orders streams by events, of which there are none: see `open_with`.
        self.slice.device_ptr(self.slice.stream()).0
    }
}

/// A running measurement of the stream's time.
#[derive(Debug)]
pub struct Timer<'a> {
    device: &'a Device,
    start: CudaEvent,
}

impl Timer<'_> {
    /// Waits for all work and returns the milliseconds since the start.
    ///
    /// # Errors
    /// When the work failed.
    pub fn stop(self) -> Result<f32, CudaError> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let end = self.device.stream.record_event(Some(flags));
        let end = end.map_err(CudaError::driver("recording an event"))?;
        self.start.elapsed_ms(&end).map_err(CudaError::driver("running on the device"))
    }
}

/// A one-dimensional launch.
pub(super) fn grid(count: u32, threads: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (count, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: shared }
}
