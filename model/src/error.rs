//! What can be wrong with a checkpoint, each said in one sentence: which file, which key, what was expected.

use std::{io, path::Path};

use domain::{Expert, Layer};
use kernels::{CpuError, KvError, MatrixError, cuda::CudaError};
use thiserror::Error;

/// A checkpoint that cannot be served, or work it cannot do. None of these goes away by trying again.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file could not be opened or read.
    #[error("{file}: {source}")]
    Io {
        /// The file's path.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what its name promises: broken JSON, a corrupt safetensors header.
    #[error("{file}: {problem}")]
    Malformed {
        /// The file's path.
        file: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A key of a JSON file has no value or one of the wrong kind.
    #[error("{file}: key \"{key}\": expected {expected}, found {found}")]
    Key {
        /// The file's path.
        file: String,
        /// The key, with the keys of the objects around it.
        key: String,
        /// What would have been right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file is sound but asks for something that amoe does not do.
    #[error("{file}: key \"{key}\": {reason}")]
    Unsupported {
        /// The file's path.
        file: String,
        /// The key that asks for it.
        key: String,
        /// What is asked for and what is possible.
        reason: String,
    },
    /// A tensor is missing or has another shape or type than the configuration says.
    #[error("{file}: tensor {tensor}: expected {expected}, found {found}")]
    Tensor {
        /// The file's path, or the folder's when no file holds the tensor.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// What would have been right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The checkpoint has no such expert.
    #[error("{layer} {expert}: the model has no such expert")]
    NoSuchExpert {
        /// The decoder layer.
        layer: Layer,
        /// The logical expert.
        expert: Expert,
    },
    /// Work came for an expert that is not loaded here.
    #[error("{layer} {expert}: not resident on this node")]
    NotResident {
        /// The decoder layer.
        layer: Layer,
        /// The logical expert.
        expert: Expert,
    },
    /// The GPU's memory is taken by other experts.
    #[error("{layer} {expert}: all {slots} places on the GPU are taken")]
    NoRoom {
        /// The decoder layer.
        layer: Layer,
        /// The logical expert.
        expert: Expert,
        /// How many experts it holds.
        slots: usize,
    },
    /// The GPU's memory does not hold a single expert.
    #[error(
        "{bytes} bytes of GPU memory hold no expert of {each} bytes beside the rows of a launch of {pairs} pairs"
    )]
    NoRoomAtAll {
        /// What it may take.
        bytes: usize,
        /// An expert's weights.
        each: usize,
        /// Rows for experts of one launch.
        pairs: usize,
    },
    /// There are no kernels for something in the model.
    #[error("{architecture} does not run on a GPU: {reason}")]
    NotOnGpu {
        /// The name in `architectures`.
        architecture: &'static str,
        /// What there are no kernels for.
        reason: String,
    },
    /// The GPU does not compute, or not any more.
    #[error(transparent)]
    Gpu(#[from] CudaError),
    /// The processor could not be opened as asked.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The KV cache has no room or no size.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// Matrices of one projection do not belong together.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
}

impl ModelError {
    pub(crate) fn io(file: &Path, source: io::Error) -> Self {
        Self::Io { file: file.display().to_string(), source }
    }

    pub(crate) fn malformed(file: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed { file: file.display().to_string(), problem: problem.into() }
    }
}
