//! A copy of a golden checkpoint in a folder of its own, to be changed or broken by a test.

pub(crate) mod stored;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) use stored::{Stored, write};

pub(crate) struct ScratchCheckpoint {
    dir: TempDir,
}

impl ScratchCheckpoint {
    /// Where a golden checkpoint is.
    pub(crate) fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name)
    }

    pub(crate) fn copy(golden: &str) -> Self {
        Self::copy_of(&Self::golden(golden))
    }

    pub(crate) fn copy_of(original: &Path) -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["config.json", "generation_config.json", "model.safetensors"] {
            let from = original.join(name);
            if from.exists() {
                fs::copy(from, dir.path().join(name)).unwrap();
            }
        }
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Changes `config.json`.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Value)) {
        let path = self.file("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    /// Sets one key of `config.json`.
    pub(crate) fn set(&self, key: &str, value: Value) {
        self.configure(|config| config[key] = value);
    }

    /// Changes the tensors of `model.safetensors`.
    pub(crate) fn rewrite(&self, change: impl FnOnce(&mut BTreeMap<String, Stored>)) {
        let mut tensors = self.tensors();
        change(&mut tensors);
        write(&self.file("model.safetensors"), &tensors);
    }

    pub(crate) fn tensors(&self) -> BTreeMap<String, Stored> {
        let bytes = fs::read(self.file("model.safetensors")).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
        let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
        tensors
            .map(|(name, entry)| {
                let number = |value: &Value| value.as_u64().unwrap() as usize;
                let offsets = &entry["data_offsets"];
                let stored = Stored {
                    dtype: entry["dtype"].as_str().unwrap().to_owned(),
                    shape: entry["shape"].as_array().unwrap().iter().map(number).collect(),
                    bytes: data[number(&offsets[0])..number(&offsets[1])].to_vec(),
                };
                (name, stored)
            })
            .collect()
    }
}
