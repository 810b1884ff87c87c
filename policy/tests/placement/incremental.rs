//! Incremental placement stays within its limits, pays, and does nothing without a reason.

use domain::{Epoch, NodeId, Plan, Trace};
use policy::placement::{
    Basis, Host, Input, Limits, Policy, Proposal, Revision, Spare, Trigger, cost, place,
};

use crate::instances::{Instance, Sizes};

const SIZES: Sizes = Sizes { layers: 4, experts: 32, hosts: 4, steps: 16, tokens: 512, slots: 8 };

fn instance(seed: u64) -> Instance {
    Instance::new(seed, SIZES, 0.277)
}

fn gem(instance: &Instance) -> Plan {
    place(Policy::Gem, &crate::input(instance, Spare::Leave)).expect("there are slots enough").plan
}

fn revise(limits: Limits, input: &Input<'_>) -> (Proposal, Revision) {
    let proposal = place(Policy::Incremental(limits), input).expect("there are slots enough");
    let revision = proposal.explanation.revision.clone().expect("a plan serves");
    (proposal, revision)
}

/// `now`, while `serving` serves that was made for `basis`.
fn later<'a>(now: &'a Instance, serving: &'a Plan, basis: Option<&'a Basis>) -> Input<'a> {
    Input { epoch: Epoch(2), serving: Some(serving), basis, ..crate::input(now, Spare::Leave) }
}

#[test]
fn without_a_reason_the_plan_stays() {
    let instance = instance(1);
    let serving = place(Policy::Linear, &crate::input(&instance, Spare::Leave)).unwrap().plan;
    let basis = Basis::of(&crate::input(&instance, Spare::Leave));
    let (proposal, revision) = revise(Limits::default(), &later(&instance, &serving, Some(&basis)));
    assert_eq!((revision.trigger, revision.moves), (None, vec![]));
    assert!(proposal.plan.table().eq(serving.table()), "linear is bad, but nothing has changed");
}

#[test]
fn drift_is_answered_within_the_limits_and_every_swap_pays() {
    for seed in 0..20 {
        let (then, now) = (instance(seed), instance(seed + 1000));
        let now = Instance { curves: then.curves.clone(), ..now };
        let serving = gem(&then);
        let basis = Basis::of(&crate::input(&then, Spare::Leave));
        let input = later(&now, &serving, Some(&basis));
        let mut last = cost(&serving, &now.hosts, &now.curves, &now.trace);
        for swaps_max in 0..12 {
            let limits = Limits { swaps_max, gain_permille: 0, ..Limits::default() };
            let (proposal, revision) = revise(limits, &input);
            assert!(matches!(revision.trigger, Some(Trigger::Drift { .. })), "{revision}");
            assert!(revision.moves.len() <= 2 * swaps_max as usize, "{revision}");
            assert_eq!(revision.moves.len(), gained(&serving, &proposal.plan));
            let now_costs = cost(&proposal.plan, &now.hosts, &now.curves, &now.trace);
            assert_eq!(revision.cost_ns.unwrap().1, now_costs);
            assert_eq!(proposal.explanation.cost_ns, Some(now_costs));
            if revision.limited {
                assert!(now_costs < last || swaps_max == 0, "seed {seed}, swap {swaps_max}");
            }
            assert!(now_costs <= last);
            last = now_costs;
        }
    }
}

#[test]
fn bytes_are_bounded() {
    let (then, now) = (instance(3), instance(1003));
    let serving = gem(&then);
    for replicas in 0..9 {
        let bytes_max = replicas * now.shape.expert_bytes + 1;
        let limits = Limits { bytes_max, gain_permille: 0, ..Limits::default() };
        let (_, revision) = revise(limits, &later(&now, &serving, None));
        assert!(revision.bytes <= bytes_max && revision.limited, "{revision}");
        assert_eq!(revision.bytes, revision.moves.len() as u64 * now.shape.expert_bytes);
        assert!(replicas < 2 || !revision.moves.is_empty());
    }
}

#[test]
fn what_saves_too_little_is_left_alone() {
    let (then, now) = (instance(3), instance(1003));
    let serving = gem(&then);
    let limits = Limits { gain_permille: 900, ..Limits::default() };
    let (proposal, revision) = revise(limits, &later(&now, &serving, None));
    assert_eq!(revision.trigger, Some(Trigger::Unknown));
    assert!(proposal.plan.table().eq(serving.table()), "{revision}");
}

#[test]
fn a_node_that_slows_down_loses_load() {
    let then = instance(4);
    let serving = gem(&then);
    let basis = Basis::of(&crate::input(&then, Spare::Leave));
    let mut now = then.clone();
    now.curves[2] = now.curves[2].scaled(1.8);
    let (proposal, revision) = revise(Limits::default(), &later(&now, &serving, Some(&basis)));
    let Some(Trigger::Slower { node: NodeId(3), permille: 790..810 }) = revision.trigger else {
        panic!("{revision}");
    };
    let before = tokens(&serving, NodeId(3), &now.trace);
    let after = tokens(&proposal.plan, NodeId(3), &now.trace);
    assert!(after * 10 < before * 9, "{before} -> {after}: {revision}");
}

#[test]
fn a_lost_nodes_experts_find_new_hosts_and_a_new_node_gets_its_share() {
    let mut before = instance(5);
    before.hosts.iter_mut().for_each(|host| host.slots *= 2);
    let serving = gem(&before);
    let lost = Instance {
        hosts: before.hosts[1..].to_vec(),
        curves: before.curves[1..].to_vec(),
        ..before.clone()
    };
    let limits = Limits { swaps_max: 0, bytes_max: 0, ..Limits::default() };
    let (repaired, revision) = revise(limits, &later(&lost, &serving, None));
    assert_eq!(revision.trigger, Some(Trigger::Lost(vec![NodeId(1)])));
    assert_eq!(revision.moves.len(), 32, "an expert moves only if it has to");
    assert!(revision.moves.iter().all(|one| one.from == Some(NodeId(1))));
    let held = |plan: &Plan, id| plan.resident_on(NodeId(id)).count();
    for id in 2..5 {
        assert!((42..=43).contains(&held(&repaired.plan, id)), "equal shares of 128");
    }
    let mut joined = lost.clone();
    joined.hosts.push(Host { id: NodeId(9), slots: 64 });
    joined.curves.push(lost.curves[0].clone());
    let limits = Limits { swaps_max: 1000, bytes_max: u64::MAX, ..Limits::default() };
    let (shared, revision) = revise(limits, &later(&joined, &repaired.plan, None));
    assert_eq!(revision.trigger, Some(Trigger::Joined(vec![NodeId(9)])));
    assert!((12..=32).contains(&held(&shared.plan, 9)), "{revision}");
    let (before, after) = revision.cost_ns.unwrap();
    assert!(after * 10 < before * 9, "{revision}");
}

#[test]
fn replicas_that_were_lost_are_made_up_for() {
    let sizes = Sizes { slots: 16, ..SIZES };
    let before = Instance::new(6, sizes, 0.277);
    let serving = place(Policy::Gem, &crate::input(&before, Spare::UpTo(8))).unwrap().plan;
    let lost = Instance {
        hosts: before.hosts[1..].to_vec(),
        curves: before.curves[1..].to_vec(),
        ..before
    };
    let input =
        Input { epoch: Epoch(2), serving: Some(&serving), ..crate::input(&lost, Spare::UpTo(8)) };
    let (proposal, _) = revise(Limits { bytes_max: u64::MAX, ..Limits::default() }, &input);
    assert_eq!(proposal.plan.iter().count(), 4 * (32 + 8));
}

/// Replicas that `after` has and `before` has not.
fn gained(before: &Plan, after: &Plan) -> usize {
    let rows = before.table().zip(after.table());
    rows.map(|(before, after)| after.iter().filter(|id| !before.contains(id)).count()).sum()
}

/// Tokens that `node` gets, where every expert has one replica.
fn tokens(plan: &Plan, node: NodeId, trace: &Trace) -> u64 {
    let resident = plan.resident_on(node);
    resident.map(|(layer, expert)| trace.totals(layer.index())[expert.index()]).sum()
}
