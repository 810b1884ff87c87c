//! The scenarios of this repository can be read.

#![expect(clippy::unwrap_used, reason = "a test that cannot see its files fails")]

use std::path::{Path, PathBuf};

use simulator::scenario::Scenario;

/// Every scenario file, by folder and name.
fn scenarios() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let files = ["papers", "beyond"].into_iter().flat_map(|folder| {
        let entries = std::fs::read_dir(root.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path())
    });
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    files.sort();
    files
}

#[test]
fn every_scenario_is_read() {
    let files = scenarios();
    assert!(files.len() >= 10, "{files:?}");
    for file in files {
        if let Err(error) = Scenario::read(&file, None) {
            panic!("{error}");
        }
    }
}
