//! A checkpoint on disk: its configuration, and where in which file each of its tensors lies.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use kernels::{Compute, FP8_BLOCK, fp8_blocks};

use crate::{
    ModelError, ModelSpec,
    config::{CONFIG_BYTES_MAX, Config, INDEX_BYTES_MAX, read_bounded},
    fingerprint::Fingerprint,
    quantization::SCALES,
    safetensors::{TensorEntry, TensorFile},
    tensor::{Elements, Matrix, Place, Tensor},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Many more than any published checkpoint has.
const SHARDS_MAX: usize = 4096;
/// With a larger scale the largest code of its block would have no finite value.
const SCALE_MAX: f32 = f32::MAX / 448.0;

/// An opened checkpoint. Headers have been read and checked; weights are read when they are asked for.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    spec: ModelSpec,
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, (usize, TensorEntry)>,
    fingerprint: String,
}

impl Checkpoint {
    /// Opens the Hugging Face checkpoint in `dir`: `config.json`, and `model.safetensors` or
    /// `model.safetensors.index.json` with its shards.
    ///
    /// # Errors
    /// One sentence on the first thing that is missing, broken or unsupported.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let spec = ModelSpec::read(dir)?;
        let mut fingerprint = Fingerprint::new();
        for name in ["config.json", "generation_config.json"] {
            let path = dir.join(name);
            if path.exists() {
                fingerprint.add(&read_bounded(&path, CONFIG_BYTES_MAX)?);
            }
        }
        let index = dir.join(INDEX);
        let mut checkpoint = Self {
            dir: dir.to_owned(),
            spec,
            files: Vec::new(),
            tensors: BTreeMap::new(),
            fingerprint: String::new(),
        };
        // As transformers does where both are there.
        let single = dir.join(SINGLE);
        if !single.exists() && index.exists() {
            checkpoint.open_shards(&index, &mut fingerprint)?;
        } else {
            checkpoint.open_file(&single, &mut fingerprint, |_| true)?;
        }
        checkpoint.fingerprint = fingerprint.text();
        Ok(checkpoint)
    }

    /// The model this is a checkpoint of.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The folder it was opened from.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A hash over the configuration, the files' headers and samples of the weights.
    ///
    /// Nodes of one cluster must agree on it; it tells apart two fine-tunings of one model.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The fingerprint together with the precision of rows: what nodes must agree on to understand each other.
    #[must_use]
    pub fn fingerprint_in(&self, compute: Compute) -> String {
        format!("{}-{compute}", self.fingerprint)
    }

    /// Opens one file and keeps of its tensors those that `belongs` names.
    fn open_file(
        &mut self,
        path: &Path,
        fingerprint: &mut Fingerprint,
        belongs: impl Fn(&str) -> bool,
    ) -> Result<(), ModelError> {
        let (file, tensors) = TensorFile::open(path)?;
        fingerprint.add(file.header());
        fingerprint.sample(file.bytes());
        // Few bytes beside their codes, and all that tells a checkpoint from one with weights twice as large.
        let scales = tensors.iter().filter(|(name, _)| name.ends_with(SCALES));
        let scales: Vec<_> = scales.map(|(_, entry)| &file.bytes()[entry.range.clone()]).collect();
        fingerprint.sample_each(&scales);
        file.release(0..file.bytes().len());
        let number = self.files.len();
        self.files.push(file);
        for (name, entry) in tensors {
            if belongs(&name) {
                self.tensors.insert(name, (number, entry));
            }
        }
        Ok(())
    }

    /// Opens every shard the index names, and keeps of each the tensors that the index says it holds.
    fn open_shards(
        &mut self,
        index: &Path,
        fingerprint: &mut Fingerprint,
    ) -> Result<(), ModelError> {
        let config = Config::read(index, INDEX_BYTES_MAX)?;
        let map = config
            .object("weight_map")?
            .ok_or_else(|| config.expected("weight_map", "an object from tensors to files"))?;
        let mut placed = BTreeMap::new();
        for (tensor, value) in map.entries() {
            let shard = value
                .as_str()
                .filter(|name| is_file_name(name))
                .ok_or_else(|| map.expected(tensor, "the name of a file in the same folder"))?;
            placed.insert(tensor.as_str(), shard);
        }
        let shards: BTreeSet<&str> = placed.values().copied().collect();
        if shards.len() > SHARDS_MAX {
            return Err(config.expected("weight_map", format!("at most {SHARDS_MAX} files")));
        }
        for shard in shards {
            let path = self.dir.join(shard);
            if !path.exists() {
                return Err(config.unsupported(
                    "weight_map",
                    format!("names the file {shard}, which is not there"),
                ));
            }
            self.open_file(&path, fingerprint, |tensor| placed.get(tensor) == Some(&shard))?;
        }
        for (tensor, shard) in &placed {
            if !self.tensors.contains_key(*tensor) {
                let expected = format!("to find it here, as {INDEX} says");
                return Err(wrong(&self.dir.join(shard), tensor, &expected, "nothing"));
            }
        }
        Ok(())
    }

    /// The tensor `name`, which has to have `shape` and elements that mean themselves.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, ModelError> {
        let (place, entry) = self.find(name, shape, "")?;
        let Some(dtype) = entry.element() else {
            let file = place.file;
            return Err(wrong(file.path(), name, "BF16, F16 or F32", &entry.dtype));
        };
        Ok(Tensor { place, dtype })
    }

    /// The matrix `name`, `[rows, cols]`, whose elements mean themselves or are E4M3 codes with scales beside them.
    pub(crate) fn matrix(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix<'_>, ModelError> {
        let (place, entry) = self.find(name, &[rows, cols], "")?;
        let elements = match entry.element() {
            Some(dtype) => Elements::Plain(dtype),
            None if entry.is_fp8() => Elements::Fp8(self.scales(name, rows, cols)?),
            None => {
                let file = place.file;
                return Err(wrong(file.path(), name, "BF16, F16, F32 or F8_E4M3", &entry.dtype));
            }
        };
        Ok(Matrix { place, rows, cols, elements })
    }

    /// Whether all routed experts are stored in fp8.
    pub(crate) fn has_fp8_experts(&self) -> bool {
        let spec = &self.spec;
        let is_fp8 = |name: &str| self.tensors.get(name).is_some_and(|(_, entry)| entry.is_fp8());
        spec.shape().slots().all(|(layer, expert)| {
            let prefix = spec.expert_prefix(layer, expert);
            spec.names.expert_parts.iter().all(|part| is_fp8(&format!("{prefix}{part}")))
        })
    }

    /// The scales of the blocks of the matrix `name`.
    fn scales(&self, name: &str, rows: usize, cols: usize) -> Result<Vec<f32>, ModelError> {
        let shape = fp8_blocks(rows, cols);
        let name = format!("{name}{SCALES}");
        let why = format!(", a scale for each block of {FP8_BLOCK} x {FP8_BLOCK}");
        let (place, _) = self.find(&name, &shape, &why)?;
        let file = place.file;
        let scales = self.tensor(&name, &shape)?.floats(shape.iter().product());
        let fits = |scale: &f32| scale.abs() <= SCALE_MAX;
        match scales.iter().find(|scale| !fits(scale)) {
            None => Ok(scales),
            Some(scale) => {
                let expected = format!("scales of at most {SCALE_MAX:e}");
                Err(wrong(file.path(), &name, &expected, &scale.to_string()))
            }
        }
    }

    /// Where a tensor is, which has to have `shape`; `why` follows the shape where that is wrong.
    fn find(
        &self,
        name: &str,
        shape: &[usize],
        why: &str,
    ) -> Result<(Place<'_>, &TensorEntry), ModelError> {
        let expected = format!("shape {shape:?}{why}");
        let Some((number, entry)) = self.tensors.get(name) else {
            return Err(wrong(&self.dir, name, &expected, "no such tensor"));
        };
        let file = &self.files[*number];
        if entry.shape != shape {
            return Err(wrong(file.path(), name, &expected, &format!("{:?}", entry.shape)));
        }
        Ok((Place { file, range: entry.range.clone() }, entry))
    }
}

fn wrong(file: &Path, tensor: &str, expected: &str, found: &str) -> ModelError {
    ModelError::Tensor {
        file: file.display().to_string(),
        tensor: tensor.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    }
}

/// Whether a name stays in its folder.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
}
