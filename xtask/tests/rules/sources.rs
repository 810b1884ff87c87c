//! How source files look: they say what they are for, stay short, and are named after something.

use std::{fs, path::Path};

use crate::{assert_none, workspace};

/// Lines of a file, its inline tests not counted.
const LINES_MAX: usize = 600;

/// Names of rooms and modules that say nothing, so that everything ends up in them.
const BANNED: [&str; 8] =
    ["utils", "util", "helpers", "common", "misc", "core", "manager", "context"];

fn files() -> Vec<(String, String)> {
    workspace::rooms().rooms.keys().flat_map(workspace::rust_files).collect()
}

#[test]
fn every_file_says_what_it_is_for() {
    let complaints: Vec<_> = files()
        .into_iter()
        .filter(|(file, text)| !file.ends_with("/tests.rs") && !text.starts_with("//! "))
        .map(|(file, _)| format!("{file} does not open with a `//!` sentence"))
        .collect();
    assert_none(&complaints);
}

#[test]
fn no_file_is_too_long() {
    let complaints: Vec<_> = files()
        .into_iter()
        .map(|(file, text)| (file, workspace::without_tests(&text).lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(file, lines)| format!("{file} has {lines} lines, at most {LINES_MAX} are read"))
        .collect();
    assert_none(&complaints);
}

#[test]
fn modules_are_named_after_something() {
    let complaints: Vec<_> = files()
        .into_iter()
        .filter(|(file, _)| {
            let path = Path::new(file).with_extension("");
            path.iter().any(|part| BANNED.iter().any(|banned| part == *banned))
        })
        .map(|(file, _)| format!("{file}: name it after what it holds; banned are {BANNED:?}"))
        .collect();
    assert_none(&complaints);
}

#[test]
fn paths_in_documents_exist() {
    let root = xtask::root();
    let sources: Vec<_> =
        workspace::rooms().rooms.keys().map(|room| root.join(room).join("src")).collect();
    let exists = |path: &str| {
        root.join(path).exists() || sources.iter().any(|source| source.join(path).exists())
    };
    let mut complaints = Vec::new();
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        // What stands between backquotes and can only be a path, from the root or from a room's `src`.
        let path = |code: &&str| {
            let letters = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
            code.contains('/') && !code.starts_with('/') && code.chars().all(letters)
        };
        let paths = text.split('`').skip(1).step_by(2).filter(path);
        complaints.extend(
            paths
                .filter(|path| !exists(path))
                .map(|path| format!("{document} names {path}, which does not exist")),
        );
    }
    assert_none(&complaints);
}
