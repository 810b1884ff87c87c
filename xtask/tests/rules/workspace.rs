//! What the rules look at: the rooms as cargo sees them, their files, and the map in ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Room → the names of what it depends on.
pub(crate) type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Every room with its direct dependencies: other rooms, and crates from outside. Tests may know more, so
/// dev-dependencies do not count.
pub(crate) struct Rooms {
    pub(crate) rooms: Arrows,
    pub(crate) outside: Arrows,
}

pub(crate) fn rooms() -> Rooms {
    let manifest = xtask::root().join("Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let names: BTreeSet<_> = metadata.packages.iter().map(|room| room.name.to_string()).collect();
    let mut found = Rooms { rooms: Arrows::new(), outside: Arrows::new() };
    for room in &metadata.packages {
        let known =
            room.dependencies.iter().filter(|known| known.kind != DependencyKind::Development);
        let (inside, outside) =
            known.map(|known| known.name.clone()).partition(|name| names.contains(name));
        found.rooms.insert(room.name.to_string(), inside);
        found.outside.insert(room.name.to_string(), outside);
    }
    found
}

/// The rows of ARCHITECTURE.md's table of rooms: `` | `room/` | … | may know | … | ``.
pub(crate) fn map() -> BTreeMap<String, String> {
    let text = fs::read_to_string(xtask::root().join("ARCHITECTURE.md")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let room = cells.get(1)?.strip_prefix('`')?.strip_suffix("/`")?;
        Some((room.to_owned(), (*cells.get(3)?).to_owned()))
    });
    rows.collect()
}

/// Every Rust file of `folder`, by its path from the root; generated code left out.
pub(crate) fn rust_files(folder: impl AsRef<Path>) -> Vec<(String, String)> {
    let root = xtask::root();
    let mut files = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
            if path.is_dir() && !hidden && !path.ends_with("generated") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// A file's text up to its inline tests.
pub(crate) fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod tests {").map_or(text, |tests| &text[..tests])
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}
