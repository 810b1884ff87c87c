//! The kernels on NVIDIA GPUs: a device, its memory, and one launch function for each kernel.
//!
//! The library of the driver is looked for when a [`Device`] is opened, not when the program is
//! linked: a build without CUDA runs everywhere and says in one sentence what is missing. All work
//! of a device goes to its one stream, in order; a launch returns at once.

mod attention;
mod bank;
mod device;
mod error;
mod exact;
mod experts;
mod ffn;
mod heads;
mod latent;
mod linear;
mod paged;
mod pinned;
mod probe;
mod rows;
mod stretches;
mod tensor_map;

pub use attention::{Attention, Cache, CacheShape, HeadNorms, KvSteps};
pub use bank::{BankJob, BankShape, ExpertBank};
pub(crate) use device::open_context;
pub use device::{Buffer, Device, Timer};
pub use error::CudaError;
pub use exact::{Exact, Finish};
pub use experts::{Experts, HostExpert, WeightForm};
pub use ffn::{FfnKernel, GroupedFfn, PairList, Pairs};
pub use heads::{HeadMatrices, HeadProduct, HeadsView};
pub use latent::{LatentAttention, LatentCache, LatentShape, LatentSteps, Turn};
pub use linear::{Dense, Matrix};
pub use paged::{PagedRows, Paging};
pub use pinned::Pinned;
pub(crate) use pinned::zeroed;
pub use probe::{Probe, filled};
pub use rows::{RouteSpec, Rows, Terms};
