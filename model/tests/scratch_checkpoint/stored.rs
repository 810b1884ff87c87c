//! Safetensors files of tensors that a test has changed or drawn.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

/// A tensor as it is stored.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// Writes a safetensors file.
pub(crate) fn write(path: &Path, tensors: &BTreeMap<String, Stored>) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = json!({
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()],
        });
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length, header.as_bytes(), &data].concat()).unwrap();
}
