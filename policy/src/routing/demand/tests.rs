use domain::{Epoch, Layer, ModelShape};

use super::*;

const NODES: [NodeId; 3] = [NodeId(4), NodeId(7), NodeId(9)];

/// MoE layers of `experts` experts that all nodes hold.
fn everywhere(layers: u16, experts: u16) -> Plan {
    let table = vec![NODES.to_vec(); usize::from(layers * experts)];
    plan(1, layers, experts, table)
}

fn plan(epoch: u64, layers: u16, experts: u16, table: Vec<Vec<NodeId>>) -> Plan {
    let shape = ModelShape {
        layers,
        moe_layers: (0..layers).map(Layer).collect(),
        experts,
        top_k: 1,
        hidden: 8,
        expert_bytes: 1,
        vocab: 1,
        positions_max: 1,
    };
    Plan::new(Epoch(epoch), None, &shape, table).unwrap()
}

fn demand<'a>(plan: &'a Plan, tokens: &'a [u32]) -> Demand<'a> {
    Demand { plan, nodes: &NODES, tokens, runs: 1, curves: &[], backlog_ns: &[] }
}

fn flat(ns: u64) -> CostCurve {
    CostCurve::new(vec![(64, ns)]).unwrap()
}

/// Experts that each of the nodes was leased.
fn counts(lease: &Lease) -> [usize; 3] {
    NODES.map(|node| lease.holders().flatten().filter(|holder| holder.node == node).count())
}

#[test]
fn layers_even_out_between_them() {
    // Four experts on three nodes: one node has two in each layer, and not always the same one.
    let plan = everywhere(3, 4);
    for policy in [Policy::Metro, Policy::Aebs, Policy::Exact, Policy::Time] {
        let lease = Lease::routed(&demand(&plan, &[1; 12]), &mut Router::new(policy)).unwrap();
        assert_eq!(counts(&lease), [4, 4, 4], "{policy}");
    }
}

#[test]
fn slow_nodes_and_those_behind_get_less() {
    let plan = everywhere(1, 12);
    let curves = [flat(100), flat(200), flat(100)];
    let asked = Demand { curves: &curves, backlog_ns: &[0, 0, 300], ..demand(&plan, &[5; 12]) };
    let lease = Lease::routed(&asked, &mut Router::default()).unwrap();
    assert_eq!(counts(&lease), [6, 3, 3]);
}

#[test]
fn what_nobody_asked_for_is_spread_and_what_nobody_holds_is_left() {
    let mut table = vec![NODES.to_vec(); 6];
    table.push(vec![NodeId(1)]);
    let plan = plan(1, 1, 7, table);
    let tokens = [9, 0, 0, 0, 0, 0, 9];
    let lease = Lease::routed(&demand(&plan, &tokens), &mut Router::default()).unwrap();
    assert_eq!(counts(&lease), [2, 2, 2]);
    assert_eq!(lease.holders().last().map(Iterator::count), Some(0));
}

#[test]
fn cold_experts_count_by_how_often_they_are_activated() {
    // In 100 runs the hot expert is activated in all, the cold ones in about ten each.
    let plan = everywhere(1, 21);
    let mut tokens = [10; 21];
    tokens[0] = 1000;
    let curves = [flat(100), flat(100), flat(100)];
    let asked = Demand { runs: 100, curves: &curves, ..demand(&plan, &tokens) };
    let lease = Lease::routed(&asked, &mut Router::default()).unwrap();
    assert_eq!(counts(&lease), [1, 10, 10]);
}

#[test]
fn a_lease_stays_until_another_is_clearly_better() {
    let plan = everywhere(1, 12);
    let mut router = Router::default();
    let equal = [flat(100), flat(100), flat(100)];
    let asked = Demand { curves: &equal, ..demand(&plan, &[5; 12]) };
    let lease = Lease::routed(&asked, &mut router).unwrap();
    let mut renewed = |asked: &Demand<'_>| lease.renewed(asked, &mut router).unwrap();
    assert_eq!(renewed(&asked), None);
    let little = [flat(100), flat(103), flat(100)];
    assert_eq!(renewed(&Demand { curves: &little, ..asked }), None);
    let slow = [flat(100), flat(300), flat(100)];
    let next = renewed(&Demand { curves: &slow, ..asked }).unwrap();
    assert!(counts(&next)[1] <= 2, "{:?}", counts(&next));
    let lost = renewed(&Demand { nodes: &NODES[..2], curves: &[], ..asked }).unwrap();
    assert_eq!(counts(&lost), [6, 6, 0]);
    let other = self::plan(2, 1, 12, vec![NODES.to_vec(); 12]);
    let next = renewed(&Demand { plan: &other, ..asked }).unwrap();
    assert_eq!(next.epoch(), Epoch(2));
}

#[test]
fn even_split_shares_everything_for_as_long_as_the_nodes_stay() {
    let plan = everywhere(1, 4);
    let mut router = Router::new(Policy::EvenSplit);
    let lease = Lease::routed(&demand(&plan, &[9, 0, 1, 2]), &mut router).unwrap();
    assert_eq!(counts(&lease), [4, 4, 4]);
    let mut renewed = |asked: &Demand<'_>| lease.renewed(asked, &mut router).unwrap();
    assert_eq!(renewed(&demand(&plan, &[1, 7, 0, 0])), None);
    let lost = renewed(&Demand { nodes: &NODES[..2], ..demand(&plan, &[1; 4]) }).unwrap();
    assert_eq!(counts(&lost), [4, 4, 0]);
}

#[test]
fn a_lease_survives_the_way_to_those_who_follow_it() {
    let plan = everywhere(2, 5);
    let lease = Lease::routed(&demand(&plan, &[3; 10]), &mut Router::default()).unwrap();
    assert_eq!(Lease::advised(&plan, &lease.advice(), |_| true), lease);
}

#[test]
fn lengths_must_fit() {
    let plan = everywhere(1, 2);
    let error =
        |asked: Demand<'_>| Lease::routed(&asked, &mut Router::default()).unwrap_err().to_string();
    assert_eq!(error(demand(&plan, &[1])), "hosts are listed for 2 experts, tokens for 1");
    let curves = [flat(1)];
    assert_eq!(
        error(Demand { curves: &curves, ..demand(&plan, &[1, 1]) }),
        "3 nodes need as many cost curves or none, found 1"
    );
    assert_eq!(
        error(Demand { backlog_ns: &[1], ..demand(&plan, &[1, 1]) }),
        "3 nodes need as many backlogs or none, found 1"
    );
}

#[test]
fn an_interval_costs_what_its_runs_do() {
    let curve = CostCurve::new(vec![(16, 100), (32, 200)]).unwrap();
    let over = over_runs(&curve, 50);
    assert_eq!(over.ns(1), 99, "one run of fifty");
    let hot = over.ns(50 * 16);
    assert!((5000..=5100).contains(&hot), "sixteen tokens in every run take 50 x 100, got {hot}");
    let cold = over.ns(50);
    assert!((3100..3400).contains(&cold), "63 % of the runs have a token, got {cold}");
    assert_eq!(over_runs(&curve, 1), curve);
}
