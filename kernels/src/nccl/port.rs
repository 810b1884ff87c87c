//! One device's way out: its context, the library, and what is made of both.

use std::ffi::c_char;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::nccl::sys::ncclUniqueId;

use super::communicator::{Communicator, End};
use super::error::NcclError;
use super::lane::Lane;
use super::library::Library;
use crate::cuda::{CudaError, open_context};

/// Bytes of a [`UniqueId`].
pub const UNIQUE_ID_BYTES: usize = size_of::<ncclUniqueId>();

/// Names one communicator: who has it can become an end of it. One end makes it and tells the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; UNIQUE_ID_BYTES]);

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It holds an address and a secret, which belong in no log.
        f.write_str("UniqueId")
    }
}

/// A device as NCCL sees it. Stays on the thread that opened it.
pub struct Port {
    context: Arc<CudaContext>,
    library: Rc<Library>,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port(device {})", self.context.ordinal())
    }
}

impl Port {
    /// Opens device `ordinal` for this thread. Its context is the one that kernels run in.
    ///
    /// # Errors
    /// When driver, device or NCCL are missing, or too old.
    pub fn open(ordinal: usize) -> Result<Self, NcclError> {
        let context = open_context(ordinal)?;
        let library = Rc::new(Library::load()?);
        context.bind_to_thread().map_err(CudaError::driver("using the device"))?;
        Ok(Self { context, library })
    }

    /// The library's version, as in 22809 for 2.28.9.
    ///
    /// # Errors
    /// When NCCL does not say.
    pub fn version(&self) -> Result<i32, NcclError> {
        self.library.version()
    }

    /// A name for a new communicator, good as long as this process lives.
    ///
    /// # Errors
    /// When NCCL finds no network interface to be reached by.
    pub fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = ncclUniqueId { internal: [0; UNIQUE_ID_BYTES] };
        // SAFETY: the pointer is valid for what is written.
        let code = unsafe { (self.library.get_unique_id)(&raw mut id) };
        self.library.check("naming a communicator", code)?;
        Ok(UniqueId(id.internal.map(c_char::cast_unsigned)))
    }

    /// Begins to make a communicator; it is there when [`Communicator::check`] says so.
    ///
    /// # Errors
    /// When NCCL refuses at once.
    pub fn communicator(&self, id: &UniqueId, end: End) -> Result<Communicator, NcclError> {
        let id = ncclUniqueId { internal: id.0.map(u8::cast_signed) };
        Communicator::begin(&self.library, id, end)
    }

    /// A lane for up to `bytes` bytes of rows: that much memory of the device, and of the host.
    ///
    /// # Errors
    /// When there is no such memory.
    pub fn lane(&self, bytes: usize) -> Result<Lane, NcclError> {
        Ok(Lane::new(&self.context, bytes)?)
    }
}
