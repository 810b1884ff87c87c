//! A checkpoint on disk: its configuration, and where in which file each of its tensors lies.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use kernels::{Compute, Dtype};

use crate::{
    ModelError, ModelSpec,
    config::{CONFIG_BYTES_MAX, Config, INDEX_BYTES_MAX, read_bounded},
    fingerprint::Fingerprint,
    safetensors::{TensorEntry, TensorFile},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Many more than any published checkpoint has.
const SHARDS_MAX: usize = 4096;

/// An opened checkpoint. Headers have been read and checked; weights are read when they are asked for.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    spec: ModelSpec,
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, (usize, TensorEntry)>,
    fingerprint: String,
}

/// A tensor that was found with the shape and one of the types it should have.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<'a> {
    file: &'a TensorFile,
    range: Range<usize>,
    pub(crate) dtype: Dtype,
}

impl<'a> Tensor<'a> {
    /// Its elements, row after row, little endian, of any alignment.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        &self.file.bytes()[self.range.clone()]
    }

    /// Lets the system take back its pages once it has been packed.
    pub(crate) fn release(&self) {
        self.file.release(self.range.clone());
    }
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
                return Err(ModelError::Tensor {
                    file: self.dir.join(shard).display().to_string(),
                    tensor: (*tensor).to_owned(),
                    expected: format!("to find it here, as {INDEX} says"),
                    found: "nothing".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// The tensor `name`, which has to have `shape` and a type that amoe computes with.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, ModelError> {
        let Some((number, entry)) = self.tensors.get(name) else {
            return Err(ModelError::Tensor {
                file: self.dir.display().to_string(),
                tensor: name.to_owned(),
                expected: format!("shape {shape:?}"),
                found: "no such tensor".to_owned(),
            });
        };
        let file = &self.files[*number];
        let wrong = |expected: String, found: String| ModelError::Tensor {
            file: file.path().display().to_string(),
            tensor: name.to_owned(),
            expected,
            found,
        };
        if entry.shape != shape {
            return Err(wrong(format!("shape {shape:?}"), format!("{:?}", entry.shape)));
        }
        let Some(dtype) = entry.element() else {
            return Err(wrong("BF16, F16 or F32".to_owned(), entry.dtype.clone()));
        };
        Ok(Tensor { file, range: entry.range.clone(), dtype })
    }
}

/// Whether a name stays in its folder.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
}
