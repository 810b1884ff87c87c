//! The file of weights: its header may say anything, and what is not so is told.

#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use model::Checkpoint;

/// A folder in memory with the configuration of a good checkpoint.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from(format!("/dev/shm/amoe-fuzz-weights-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/config.json");
    fs::copy(config, folder.join("config.json")).expect("a configuration");
    folder
});

fuzz_target!(|input: &[u8]| {
    // A new file each time: the one before may still be mapped.
    let path = FOLDER.join("model.safetensors");
    let _ = fs::remove_file(&path);
    fs::write(&path, input).expect("a file");
    match Checkpoint::open(&FOLDER) {
        Ok(checkpoint) => assert!(!checkpoint.fingerprint().is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
