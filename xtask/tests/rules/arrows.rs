//! Who may know whom: the arrows between rooms are those of ARCHITECTURE.md, and the pure rooms stay pure.

use std::collections::BTreeSet;

use crate::{assert_none, workspace};

/// Rooms that may know every other.
const KNOWS_ALL: [&str; 2] = ["cli", "tests"];

/// What the pure rooms may use from outside: nothing with a clock, a random number, a task or a log in it.
const PURE: [(&str, &[&str]); 2] =
    [("domain", &["serde", "thiserror"]), ("policy", &["serde", "thiserror"])];

#[test]
fn the_map_lists_every_room() {
    let on_disk: BTreeSet<_> = workspace::rooms().rooms.into_keys().collect();
    let on_map: BTreeSet<_> = workspace::map().into_keys().collect();
    let complaints: Vec<_> = on_disk
        .symmetric_difference(&on_map)
        .map(|room| {
            format!("{room} is in only one of Cargo.toml and ARCHITECTURE.md's table of rooms")
        })
        .collect();
    assert_none(&complaints);
}

#[test]
fn arrows_are_those_of_the_map() {
    let (rooms, map) = (workspace::rooms().rooms, workspace::map());
    let mut complaints = Vec::new();
    for (room, knows) in rooms.iter().filter(|(room, _)| !KNOWS_ALL.contains(&room.as_str())) {
        let drawn: BTreeSet<_> = map[room]
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| name != "–")
            .collect();
        complaints.extend(
            knows
                .difference(&drawn)
                .map(|other| format!("{room} knows {other}, which ARCHITECTURE.md does not allow")),
        );
        complaints.extend(drawn.difference(knows).map(|other| {
            format!("ARCHITECTURE.md draws an arrow from {room} to {other} that does not exist")
        }));
    }
    assert_none(&complaints);
}

#[test]
fn pure_rooms_use_nothing_impure() {
    let outside = workspace::rooms().outside;
    let complaints: Vec<_> = PURE
        .into_iter()
        .flat_map(|(room, allowed)| {
            let used = outside[room].iter().filter(|name| !allowed.contains(&name.as_str()));
            used.map(move |name| format!("{room} is pure but uses {name}")).collect::<Vec<_>>()
        })
        .collect();
    assert_none(&complaints);
}
