//! One lint table for all rooms; `kernels`, the only room with `unsafe`, has the same one less that ban.

use std::fs;

use toml::{Table, Value};

use crate::{assert_none, workspace};

/// The lint that bans unsafe code; whoever wants some has to name it. Split, so that this file does not.
const UNSAFE_LINT: &str = concat!("unsafe", "_code");

fn manifest(folder: &str) -> Table {
    let path = xtask::root().join(folder).join("Cargo.toml");
    fs::read_to_string(path).unwrap().parse().unwrap()
}

#[test]
fn every_room_has_the_lint_table() {
    let mut shared = manifest("")["workspace"]["lints"].as_table().unwrap().clone();
    let inherited = Table::from_iter([("workspace".to_owned(), Value::Boolean(true))]);
    let mut complaints = Vec::new();
    for room in workspace::rooms().rooms.keys().filter(|room| *room != "kernels") {
        if manifest(room).get("lints").and_then(Value::as_table) != Some(&inherited) {
            complaints.push(format!("{room}/Cargo.toml does not say [lints] workspace = true"));
        }
    }
    shared["rust"].as_table_mut().unwrap().remove(UNSAFE_LINT).expect("unsafe code is denied");
    if manifest("kernels").get("lints").and_then(Value::as_table) != Some(&shared) {
        complaints.push(
            "kernels/Cargo.toml's lints are not the workspace's less the ban on unsafe code"
                .to_owned(),
        );
    }
    assert_none(&complaints);
}

#[test]
fn only_kernels_may_be_unsafe() {
    let rooms = workspace::rooms().rooms;
    let files = rooms.keys().filter(|room| *room != "kernels").flat_map(workspace::rust_files);
    let complaints: Vec<_> = files
        .filter(|(_, text)| text.contains(UNSAFE_LINT))
        .map(|(file, _)| format!("{file} lifts the ban on unsafe code"))
        .collect();
    assert_none(&complaints);
}
