//! The library, looked for when a port is opened: its functions, its codes, its words.

use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_void};

use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclConfig_t, ncclUniqueId};

use super::error::NcclError;

/// Names of the library. The first is the only one in NVIDIA's packages; development packages add the second.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// 2.18: the first with non-blocking communicators whose blocks can be limited.
const VERSION_MIN: i32 = 21_800;

/// What NCCL's functions return. A number and no enum: a newer library may know more than these.
pub(super) type Code = c_int;
pub(super) const SUCCESS: Code = 0;
pub(super) const IN_PROGRESS: Code = 7;

/// `ncclInt8`, what rows are to NCCL.
pub(super) const BYTE: c_int = 0;

type Transfer<P> = unsafe extern "C" fn(P, usize, c_int, c_int, ncclComm_t, cudaStream_t) -> Code;

/// NCCL's functions, all found before the first is called.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> Code,
    pub(super) init_rank_config: unsafe extern "C" fn(
        *mut ncclComm_t,
        c_int,
        ncclUniqueId,
        c_int,
        *mut ncclConfig_t,
    ) -> Code,
    pub(super) get_async_error: unsafe extern "C" fn(ncclComm_t, *mut Code) -> Code,
    pub(super) abort: unsafe extern "C" fn(ncclComm_t) -> Code,
    pub(super) send: Transfer<*const c_void>,
    pub(super) recv: Transfer<*mut c_void>,
    get_version: unsafe extern "C" fn(*mut c_int) -> Code,
    get_error_string: unsafe extern "C" fn(Code) -> *const c_char,
    get_last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
    /// Keeps the functions above in memory.
    _library: libloading::Library,
}

impl Library {
    /// Loads the first of [`NAMES`] that the loader finds.
    pub(super) fn load() -> Result<Self, NcclError> {
        let library = open()?;
        // SAFETY: the types are those of nccl.h, whose ABI has not changed since 2.18.
        let library = unsafe {
            Self {
                get_unique_id: symbol(&library, "ncclGetUniqueId")?,
                init_rank_config: symbol(&library, "ncclCommInitRankConfig")?,
                get_async_error: symbol(&library, "ncclCommGetAsyncError")?,
                abort: symbol(&library, "ncclCommAbort")?,
                send: symbol(&library, "ncclSend")?,
                recv: symbol(&library, "ncclRecv")?,
                get_version: symbol(&library, "ncclGetVersion")?,
                get_error_string: symbol(&library, "ncclGetErrorString")?,
                get_last_error: symbol(&library, "ncclGetLastError")?,
                _library: library,
            }
        };
        let have = library.version()?;
        if have < VERSION_MIN {
            return Err(NcclError::Old { have, need: VERSION_MIN });
        }
        Ok(library)
    }

    /// As in 22809 for 2.28.9.
    pub(super) fn version(&self) -> Result<i32, NcclError> {
        let mut version = 0;
        // SAFETY: the pointer is valid for the one int that is written.
        let code = unsafe { (self.get_version)(&raw mut version) };
        self.check("asking NCCL for its version", code)?;
        Ok(version)
    }

    /// An error for every code but success.
    pub(super) fn check(&self, doing: &'static str, code: Code) -> Result<(), NcclError> {
        if code == SUCCESS { Ok(()) } else { Err(self.failed(doing, code)) }
    }

    /// Whether a call is over; an error for every code that says neither yes nor not yet.
    pub(super) fn settled(&self, doing: &'static str, code: Code) -> Result<bool, NcclError> {
        if code == IN_PROGRESS {
            return Ok(false);
        }
        self.check(doing, code).map(|()| true)
    }

    fn failed(&self, doing: &'static str, code: Code) -> NcclError {
        // SAFETY: both return a string that NCCL keeps; the second takes no communicator.
        let (kind, last) =
            unsafe { ((self.get_error_string)(code), (self.get_last_error)(std::ptr::null_mut())) };
        let (kind, last) = (words(kind), words(last));
        let reason = match last.is_empty() {
            true => format!("{kind} (NCCL's code {code})"),
            false => format!("{kind} (NCCL's code {code}): {last}"),
        };
        NcclError::Failed { doing, reason }
    }
}

fn open() -> Result<libloading::Library, NcclError> {
    let mut reason = String::new();
    for name in NAMES {
        // SAFETY: runs the initialisers of NVIDIA's library, as linking against it would.
        match unsafe { libloading::Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) if reason.is_empty() => {
                // The loader's own words, which name the file.
                reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            }
            Err(_) => {}
        }
    }
    Err(NcclError::Missing { reason })
}

/// # Safety
/// `F` is the type of the function called `name`.
unsafe fn symbol<F: Copy>(
    library: &libloading::Library,
    name: &'static str,
) -> Result<F, NcclError> {
    // SAFETY: the caller's promise.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|_| NcclError::Symbol { symbol: name })
}

/// NCCL's text without its line ends; empty when there is none.
fn words(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and NCCL's strings end with a zero and stay until its next call.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().split_whitespace().collect::<Vec<_>>().join(" ")
}
