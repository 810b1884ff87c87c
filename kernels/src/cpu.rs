//! A CPU backend: one instruction set, one precision and one pool of threads.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::arena::Arena;
use crate::gemm::Scratch;
use crate::isa::Isa;
use crate::pool::Pool;

/// How activations are represented inside matrix products, on the wire and in the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// bf16 operands (round to nearest even), f32 sums.
    Bf16,
    /// f32 everywhere: the exact reference.
    F32,
}

impl Compute {
    /// Bytes of one row of `hidden` elements in this wire form.
    #[must_use]
    pub fn row_bytes(self, hidden: usize) -> usize {
        match self {
            Self::Bf16 => hidden * 2,
            Self::F32 => hidden * 4,
        }
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

impl FromStr for Compute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bf16" => Ok(Self::Bf16),
            "f32" => Ok(Self::F32),
            _ => Err(format!("unknown precision {text:?}: expected bf16 or f32")),
        }
    }
}

/// How to open a [`Cpu`].
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpuOptions {
    /// Threads that compute, the caller's among them; at least 1.
    pub threads: usize,
    /// Precision of the products.
    pub compute: Compute,
    /// Instruction set; the strongest of the machine when `None`.
    pub isa: Option<Isa>,
    /// Tie helper thread `i` to the process's `i`-th allowed core. Leave it off where other
    /// processes use the same cores: threads then keep apart and lend each other their cores.
    pub pin: bool,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self {
            threads: thread::available_parallelism().map_or(1, usize::from),
            compute: Compute::Bf16,
            isa: None,
            pin: false,
        }
    }
}

/// Why a [`Cpu`] could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error("a CPU backend needs at least one thread, got 0")]
    NoThreads,
    #[error("this machine cannot run {asked} kernels: the strongest it has is {best}")]
    MissingIsa { asked: Isa, best: Isa },
    #[error("cannot start kernel thread {index}: {source}")]
    Spawn { index: usize, source: io::Error },
}

/// The CPU backend. `Send + Sync`; operators called from several threads run one after another.
#[derive(Debug)]
pub struct Cpu {
    compute: Compute,
    isa: Isa,
    pool: Pool,
    arena: Arc<Arena>,
    scratch: Mutex<Scratch>,
}

impl Cpu {
    /// Starts the helper threads (`threads - 1` of them).
    ///
    /// # Errors
    /// When `threads` is 0, the instruction set is not there or a thread cannot be started.
    pub fn new(options: &CpuOptions) -> Result<Self, CpuError> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if !isa.is_available() {
            return Err(CpuError::MissingIsa { asked: isa, best: Isa::detect() });
        }
        Ok(Self {
            compute: options.compute,
            isa,
            pool: Pool::start(options.threads, options.pin)?,
            arena: Arc::new(Arena::default()),
            scratch: Mutex::default(),
        })
    }

    /// Precision of the products, the wire and the KV cache.
    #[must_use]
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads that compute, the caller's among them.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `f(task, worker)` once for each task in `0..tasks`; returns when all are done.
    ///
    /// Workers (`0..threads`, the caller is 0) take tasks in ascending order from one counter, so
    /// put the largest first. At any moment a worker number is used by one thread only. Calls must
    /// not nest. Concurrent callers take turns.
    ///
    /// # Panics
    /// When a task panicked; the remaining tasks may then not have run.
    pub fn for_each(&self, tasks: usize, f: impl Fn(usize, usize) + Sync) {
        self.pool.for_each(tasks, &f);
    }

    /// Says that a task of `worker` has waited since then for another worker's and is about to sleep: one that has
    /// lost its core may get this one.
    pub(crate) fn wait(&self, worker: usize, since: Instant) {
        self.pool.wait(worker, since);
    }

    /// Where packed weights live.
    pub(crate) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Buffers of the operator that runs now; holding them keeps other operators waiting.
    pub(crate) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        // A panic can only leave stale numbers behind, and every operator overwrites what it reads.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
