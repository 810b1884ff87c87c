//! What operators are shown of a known cluster, to the last figure.

use proto::control::{Drawn, Report, Response, Work};
use serde_json::{Value, json};

use super::*;
use crate::console::overview;

const MS: u64 = 1_000_000;
const EXPECTED: &str = include_str!("overview.json");

/// `e1` and `e2` hold all four experts each, `a1` routes to them, and `e3` has just come.
fn world() -> World {
    let mut world = World::new();
    let intent = Intent { spare: Spare::Fill, ..rules().intent };
    let rules = Rules { intent, ..rules() };
    world.cluster = Cluster::restore(rules, Record::default(), Vec::new(), world.now, 1_000);
    for name in ["e1", "e2", "a1", "g1"] {
        let effects = world.join_with(registration(name));
        world.cluster.note(world.now, &effects);
    }
    world.ready(&["e1", "e2", "a1"], 1);
    let (e1, e2) = (world.id("e1"), world.id("e2"));
    for _ in 0..10 {
        world.now += Duration::from_millis(200);
        let report = Report {
            queued: vec![0, 5, 1],
            routed: vec![6, 2, 0, 2],
            work: Work { runs: 4, tokens: 40, busy_ns: 50 * MS, ..Work::default() },
            responses: vec![
                Response { node: e1, answers: 10, ns: 30 * MS },
                Response { node: e2, answers: 5, ns: 10 * MS },
            ],
            drawn: Drawn { first: 1, first_ns: 70 * MS, next: 9, next_ns: 45 * MS },
        };
        say(&mut world, "a1", report);
        let ran = |queued| Report {
            queued: vec![0, queued],
            work: Work { runs: 2, tokens: 5, experts: 2, busy_ns: 20 * MS, predicted_ns: 20 * MS },
            ..Report::default()
        };
        say(&mut world, "e1", ran(7));
        say(&mut world, "e2", ran(0));
        world.cluster.end_step(world.now);
    }
    for name in ["e1", "e2", "g1"] {
        world.beat(name, Health::Ready, 1);
    }
    let (session, id) = world.nodes["a1"];
    let load = Load { running: 12, waiting: 3, kv_blocks: 64, kv_blocks_free: 16, queued_pairs: 0 };
    let beat = Beat { health: Health::Ready, load, epoch_ready: Epoch(1) };
    world.on(Event::Beat { session, id, beat });
    world.cluster.advise(world.now);
    let effects = world.join_with(registration("e3"));
    world.cluster.note(world.now, &effects);
    world
}

fn say(world: &mut World, name: &str, report: Report) {
    let (session, id) = world.nodes[name];
    world.on(Event::Report { session, id, report });
}

#[test]
fn a_known_cluster_is_shown_exactly() {
    let world = world();
    let shown = serde_json::to_string(&overview(&world.cluster, world.now)).unwrap();
    let (shown, expected): (Value, Value) =
        (serde_json::from_str(&shown).unwrap(), serde_json::from_str(EXPECTED).unwrap());
    assert_eq!(shown, expected, "{shown:#}");
}

#[test]
fn a_cluster_without_nodes_is_shown_too() {
    let world = World::new();
    let shown = serde_json::to_value(overview(&world.cluster, world.now)).unwrap();
    assert_eq!(
        (&shown["model"], &shown["nodes"], &shown["layers"]),
        (&Value::Null, &json!([]), &json!([]))
    );
    assert_eq!((&shown["at"], &shown["placement"]["serving"]), (&json!(1050), &json!(0)));
}
