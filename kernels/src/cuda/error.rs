//! What can be wrong with a GPU, each with its sentence.

use cudarc::driver::DriverError;

/// Why a device cannot be opened or a launch was refused.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The machine has no `libcuda`.
    #[error("no CUDA driver on this machine: libcuda was not found")]
    DriverMissing,
    /// The driver runs no kernels as new as ours; versions as `major * 1000 + minor * 10`.
    #[error("the CUDA driver is too old: it supports CUDA {}.{}, the kernels need {}.{}", have / 1000, have % 1000 / 10, need / 1000, need % 1000 / 10)]
    DriverOld {
        /// What the driver supports.
        have: i32,
        /// What the kernels were compiled for.
        need: i32,
    },
    /// The driver has no such device.
    #[error("no CUDA device {ordinal}: {reason}")]
    NoDevice {
        /// The device that was asked for.
        ordinal: usize,
        /// The driver's words.
        reason: String,
    },
    /// The device is older than the oldest the kernels are compiled for.
    #[error("{name} has compute capability {major}.{minor}; the kernels need 8.0 or newer")]
    DeviceOld {
        /// The device's name.
        name: String,
        /// Its compute capability.
        major: i32,
        /// Its compute capability, second part.
        minor: i32,
    },
    /// This program was built without kernels.
    #[error("the CUDA kernels were not built: run cargo xtask kernels")]
    KernelsNotBuilt,
    /// An allocation found too little memory.
    #[error("out of device memory: {wanted} bytes wanted, {free} of {total} are free")]
    OutOfMemory {
        /// The size of the allocation.
        wanted: usize,
        /// What the device had left.
        free: usize,
        /// What it has.
        total: usize,
    },
    /// A kernel wants more shared memory than the device gives a thread block.
    #[error(
        "{name} does not run {kernel}: it has no {wanted} bytes of shared memory for a thread block"
    )]
    SharedMemory {
        /// The device's name.
        name: String,
        /// The kernel's.
        kernel: String,
        /// What it wants.
        wanted: u32,
    },
    /// Arguments that do not fit one another.
    #[error("{0}")]
    Shape(String),
    /// Whatever else the driver says.
    #[error("{doing}: {reason}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The driver's words.
        reason: String,
    },
}

impl CudaError {
    /// An error of the driver while device `ordinal` was opened.
    pub(super) fn no_device(ordinal: usize) -> impl Fn(DriverError) -> Self {
        move |error| Self::NoDevice { ordinal, reason: words(&error) }
    }

    /// An error of the driver during `doing`.
    pub(crate) fn driver(doing: &'static str) -> impl Fn(DriverError) -> Self {
        move |error| Self::Driver { doing, reason: words(&error) }
    }
}

/// The driver's code and sentence, without the debug dressing.
fn words(error: &DriverError) -> String {
    let name = error.error_name().ok().map(|n| n.to_string_lossy().into_owned());
    let text = error.error_string().ok().map(|t| t.to_string_lossy().into_owned());
    match (name, text) {
        (Some(name), Some(text)) => format!("{text} ({name})"),
        _ => format!("error {}", error.0 as i32),
    }
}

/// Refuses arguments with a sentence.
pub(super) fn require(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), CudaError> {
    if holds { Ok(()) } else { Err(CudaError::Shape(otherwise())) }
}

/// A size as the kernels take it.
pub(super) fn size(value: usize) -> Result<u32, CudaError> {
    u32::try_from(value).map_err(|_| CudaError::Shape(format!("{value} does not fit 32 bits")))
}
