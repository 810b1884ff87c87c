//! The configuration of a model: numbers of any size and nonsense of any kind are told in a sentence.

#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use model::ModelSpec;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from(format!("/dev/shm/amoe-fuzz-config-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    folder
});

fuzz_target!(|input: &[u8]| {
    fs::write(FOLDER.join("config.json"), input).expect("a file");
    match ModelSpec::read(&FOLDER) {
        Ok(spec) => {
            let shape = spec.shape();
            assert!(shape.layers > 0 && usize::from(shape.top_k) <= usize::from(shape.experts));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
