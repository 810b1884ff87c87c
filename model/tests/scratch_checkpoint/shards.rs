//! Splits a checkpoint into shards with an index.

use std::{collections::BTreeMap, fs};

use serde_json::json;

use crate::scratch_checkpoint::{ScratchCheckpoint, write};

/// Deals the tensors of `model.safetensors` out to `count` files.
pub(crate) fn shard(checkpoint: &ScratchCheckpoint, count: usize) {
    let mut shards = vec![BTreeMap::new(); count];
    let mut map = serde_json::Map::new();
    for (number, (name, tensor)) in checkpoint.tensors().into_iter().enumerate() {
        map.insert(name.clone(), json!(format!("part-{}.safetensors", number % count)));
        shards[number % count].insert(name, tensor);
    }
    for (number, tensors) in shards.iter().enumerate() {
        write(&checkpoint.file(&format!("part-{number}.safetensors")), tensors);
    }
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(checkpoint.file("model.safetensors.index.json"), index).unwrap();
    fs::remove_file(checkpoint.file("model.safetensors")).unwrap();
}
