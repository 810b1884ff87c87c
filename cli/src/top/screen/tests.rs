//! Frames of clusters that are known, empty, or shown on too little room.

use proto::v1::overview::{Expert, Layer, Model, Placement, Routing};

use super::*;

fn node(name: &str, role: &str, state: &str) -> Node {
    Node {
        name: name.to_owned(),
        role: role.to_owned(),
        state: state.to_owned(),
        since: 100,
        ..Node::default()
    }
}

fn nodes() -> Vec<Node> {
    let expert = Node {
        slots: 4,
        leased: 3,
        serving_replicas: 4,
        slowdown: 2.5,
        busy: 0.5,
        rows_per_s: 12_345.0,
        rows_per_run: 40.0,
        queued: vec![0, 17],
        ..node("expert-0", "expert", "silent")
    };
    let attention = Node {
        running: 7,
        waiting: 2,
        kv_blocks: 100,
        kv_blocks_free: 75,
        tokens_per_s: 99.5,
        queued: vec![0, 5, 1],
        ..node("attention-0", "attention", "ready")
    };
    vec![expert, node("gateway", "gateway", "ready"), attention]
}

fn layer() -> Layer {
    let expert = |nodes: &[u32], percent: &[u32], tokens_per_s| Expert {
        nodes: nodes.to_vec(),
        percent: percent.to_vec(),
        tokens_per_s,
    };
    let experts = vec![
        expert(&[1], &[], 100.0),
        expert(&[1, 2], &[25, 75], 40.0),
        expert(&[2], &[], 10.0),
        expert(&[2], &[], 0.0),
    ];
    Layer { layer: 1, experts }
}

fn overview() -> Overview {
    let sample = |tokens_per_s, running| Sample {
        tokens_per_s,
        next_token_ms: 12.5,
        first_token_ms: 80.0,
        running,
        pairs: 1234,
        ..Sample::default()
    };
    let model = Model { moe_layers: vec![1], experts: 4, top_k: 2, layers: 2, ..Model::default() };
    let placement = Placement {
        serving: 3,
        target: 4,
        adds: 5,
        removes: 1,
        waiting_for: vec![1],
        ..Placement::default()
    };
    let why = "by time".to_owned();
    let routing = Routing { leases: 2, leased_at: 158, changed: 3, why, ..Routing::default() };
    let decision = Decision {
        at: 155,
        about: "plan".to_owned(),
        level: "info".to_owned(),
        what: "plan 4 is prepared".to_owned(),
        why: "an operator wished it".to_owned(),
    };
    Overview {
        at: 160,
        leads_since: 100,
        model: Some(model),
        nodes: nodes(),
        layers: vec![layer()],
        history: vec![sample(50.0, 3), sample(99.5, 7)],
        placement: Some(placement),
        routing: Some(routing),
        decisions: vec![decision],
        ..Overview::default()
    }
}

#[test]
fn a_known_cluster_is_drawn_exactly() {
    let text = Screen::new(&overview(), None).text(120);
    assert_eq!(text, include_str!("frame.txt"), "\n{text}");
}

#[test]
fn nothing_is_too_small_or_too_little_to_be_drawn() {
    let (full, empty) = (overview(), Overview::default());
    for overview in [&full, &empty] {
        for (width, height) in [(1, 1), (20, 5), (40, 12), (79, 24), (300, 100)] {
            let area = Rect::new(0, 0, width, height);
            Screen::new(overview, None).render(area, &mut Buffer::empty(area));
            Screen::new(overview, Some("no answer")).render(area, &mut Buffer::empty(area));
        }
    }
    assert!(Screen::new(&empty, None).text(80).contains("no plan serves yet"));
}
