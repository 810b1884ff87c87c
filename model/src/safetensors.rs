//! Reads the header of a safetensors file and checks every offset and length in it against the file.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use kernels::{Dtype, FileMap};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ModelError;

/// The format's own bound on a header.
const HEADER_BYTES_MAX: usize = 100_000_000;
/// The header's name for E4M3 without infinities.
const FP8: &str = "F8_E4M3";
/// No weight has more dimensions than this.
const RANK_MAX: usize = 8;

/// A mapped safetensors file whose header has been checked.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    map: FileMap,
    /// Where the header lies.
    header: Range<usize>,
}

/// Where a tensor lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorEntry {
    /// The element type's name in the header, such as `BF16`.
    pub(crate) dtype: String,
    /// Dimensions, outermost first.
    pub(crate) shape: Vec<usize>,
    /// Its bytes, from the beginning of the file; within the file.
    pub(crate) range: Range<usize>,
}

impl TensorEntry {
    /// The element type, if its elements mean themselves.
    pub(crate) fn element(&self) -> Option<Dtype> {
        match self.dtype.as_str() {
            "BF16" => Some(Dtype::Bf16),
            "F16" => Some(Dtype::F16),
            "F32" => Some(Dtype::F32),
            _ => None,
        }
    }

    /// Whether its elements are E4M3 codes.
    pub(crate) fn is_fp8(&self) -> bool {
        self.dtype == FP8
    }
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl TensorFile {
    /// Maps `path` and checks its header; returns the tensors it holds by name.
    pub(crate) fn open(path: &Path) -> Result<(Self, BTreeMap<String, TensorEntry>), ModelError> {
        let map = FileMap::open(path).map_err(|error| ModelError::io(path, error))?;
        let mut file = Self { path: path.to_owned(), map, header: 0..0 };
        file.header = file.find_header()?;
        let tensors = file.entries()?;
        Ok((file, tensors))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    pub(crate) fn header(&self) -> &[u8] {
        &self.bytes()[self.header.clone()]
    }

    /// Lets the system take back the pages inside `range` of the file.
    pub(crate) fn release(&self, range: Range<usize>) {
        self.map.release(range);
    }

    fn find_header(&self) -> Result<Range<usize>, ModelError> {
        let Some((length, rest)) = self.bytes().split_first_chunk::<8>() else {
            return Err(self.malformed(format!(
                "expected a safetensors file of at least 8 bytes, found {}",
                self.bytes().len()
            )));
        };
        let length = u64::from_le_bytes(*length);
        let room = rest.len().min(HEADER_BYTES_MAX);
        match usize::try_from(length) {
            Ok(length) if length <= room => Ok(8..8 + length),
            _ => Err(self.malformed(format!(
                "expected a safetensors header of at most {room} bytes, found a length of {length}"
            ))),
        }
    }

    fn entries(&self) -> Result<BTreeMap<String, TensorEntry>, ModelError> {
        let raw: BTreeMap<String, &RawValue> =
            serde_json::from_slice(self.header()).map_err(|error| {
                self.malformed(format!("expected a safetensors header in JSON, found {error}"))
            })?;
        raw.into_iter()
            .filter(|(name, _)| name != "__metadata__")
            .map(|(name, raw)| {
                let entry = self.entry(&name, raw)?;
                Ok((name, entry))
            })
            .collect()
    }

    fn entry(&self, name: &str, raw: &RawValue) -> Result<TensorEntry, ModelError> {
        let raw: RawEntry = serde_json::from_str(raw.get()).map_err(|error| {
            self.malformed(format!(
                "header entry of tensor {name}: expected dtype, shape and data_offsets, found {error}"
            ))
        })?;
        let data = self.header.end;
        let room = self.bytes().len() - data;
        let (begin, end) = raw.data_offsets;
        if begin > end || end > room {
            return Err(self.malformed(format!(
                "tensor {name}: expected data within {room} bytes, found offsets {begin} to {end}"
            )));
        }
        if raw.shape.len() > RANK_MAX {
            return Err(self.malformed(format!(
                "tensor {name}: expected at most {RANK_MAX} dimensions, found {}",
                raw.shape.len()
            )));
        }
        if let Some(size) = element_bytes(&raw.dtype) {
            let expected = raw.shape.iter().try_fold(size, |bytes, &dim| bytes.checked_mul(dim));
            if expected != Some(end - begin) {
                return Err(self.malformed(format!(
                    "tensor {name}: expected the {} bytes of {} {:?}, found {}",
                    expected.map_or_else(|| "too many".to_owned(), |bytes| bytes.to_string()),
                    raw.dtype,
                    raw.shape,
                    end - begin
                )));
            }
        }
        Ok(TensorEntry { dtype: raw.dtype, shape: raw.shape, range: data + begin..data + end })
    }

    fn malformed(&self, problem: String) -> ModelError {
        ModelError::malformed(&self.path, problem)
    }
}

/// Bytes of one element; none for types whose size we need not know, as nothing of them is read.
fn element_bytes(dtype: &str) -> Option<usize> {
    match dtype {
        "BF16" | "F16" => Some(2),
        "F32" => Some(4),
        FP8 => Some(1),
        _ => None,
    }
}
