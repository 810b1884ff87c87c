use std::fmt::Write as _;

use domain::{CostCurve, Epoch, Expert, Health, Layer, ModelShape, NodeId, Plan, Role, Trace};
use proptest::prelude::*;

use super::{
    Facts, Grouping, Host, Input, Limits, Policy, Proposal, Spare, Violation,
    adoption::{Considered, Observed, Readiness, Reason, Situation, due, hosts, readiness},
    check, cost, place,
};

fn shape(moe_layers: u16, experts: u16) -> ModelShape {
    ModelShape {
        layers: moe_layers + 1,
        moe_layers: (1..=moe_layers).map(Layer).collect(),
        experts,
        top_k: 1,
        hidden: 64,
        expert_bytes: 1,
        vocab: 512,
        positions_max: 128,
    }
}

fn host(id: u32, slots: u32) -> Host {
    Host { id: NodeId(id), slots }
}

fn input<'a>(shape: &'a ModelShape, hosts: &'a [Host], spare: Spare) -> Input<'a> {
    Input { spare, ..Input::new(Epoch(1), shape, hosts) }
}

fn facts<'a>(shape: &'a ModelShape, hosts: &'a [Host]) -> Facts<'a> {
    Facts::new(shape, hosts)
}

/// One line per layer: which node holds which expert.
fn picture(proposal: &Proposal) -> String {
    let Proposal { plan, explanation } = proposal;
    let mut text = format!("{explanation}\n");
    for &layer in plan.moe_layers() {
        write!(text, "{layer}:").unwrap();
        for expert in 0..plan.experts() {
            let nodes = plan.replicas(layer, Expert(expert)).iter().map(|node| node.0.to_string());
            write!(text, " {}", nodes.collect::<Vec<_>>().join("+")).unwrap();
        }
        text.push('\n');
    }
    text
}

#[test]
fn plans_look_like_the_goldens() {
    let cases = [
        ("8 experts on 2 equal nodes", shape(2, 8), vec![host(1, 16), host(2, 16)], Spare::Leave),
        (
            "8 experts on 3 nodes: the odd ones rotate over the layers",
            shape(3, 8),
            vec![host(4, 24), host(7, 24), host(9, 24)],
            Spare::Leave,
        ),
        (
            "one small node gets what fits",
            shape(2, 8),
            vec![host(1, 3), host(2, 16), host(3, 16)],
            Spare::Leave,
        ),
        (
            "more nodes than experts in a layer",
            shape(3, 2),
            vec![host(1, 9), host(2, 9), host(3, 9)],
            Spare::Leave,
        ),
        (
            "spare slots hold further replicas",
            shape(2, 4),
            vec![host(1, 6), host(2, 5)],
            Spare::Fill,
        ),
    ];
    let mut text = String::new();
    for (title, shape, hosts, spare) in cases {
        let proposal = place(Policy::Linear, &input(&shape, &hosts, spare)).unwrap();
        assert_eq!(check(&proposal.plan, &facts(&shape, &hosts)), []);
        write!(text, "# {title}\n{}\n", picture(&proposal)).unwrap();
    }
    let golden = include_str!("../../goldens/placement_linear.txt");
    assert!(text == golden, "goldens/placement_linear.txt should now read:\n{text}");
}

/// Two layers: in the first, experts 0 and 1 are busy in turn and 2 all the time; in the second all alike.
fn bursts() -> Trace {
    let mut trace = Trace::new(2, 8);
    for step in 0..4 {
        let mut counts = [40; 16];
        counts[..3].copy_from_slice(if step % 2 == 0 { &[240, 0, 160] } else { &[0, 240, 160] });
        trace.push(&counts).unwrap();
    }
    trace
}

#[test]
fn rivals_look_like_the_goldens() {
    let (shape, hosts, trace) = (shape(2, 8), [1, 2, 3, 4].map(|id| host(id, 6)), bursts());
    let curve =
        CostCurve::new((1..100).map(|tile| (16 * tile, 1000 + 160 * u64::from(tile))).collect());
    let curves: Vec<CostCurve> =
        [1.0, 1.0, 1.0, 1.5].map(|slower| curve.as_ref().unwrap().scaled(slower)).to_vec();
    let mut text = String::new();
    for (spare, title) in
        [(Spare::Leave, "no further replicas"), (Spare::UpTo(4), "4 further replicas")]
    {
        let input = Input { trace: Some(&trace), curves: &curves, ..input(&shape, &hosts, spare) };
        for policy in [Policy::Linear, Policy::Eplb, Policy::Gem] {
            let proposal = place(policy, &input).unwrap();
            assert_eq!(check(&proposal.plan, &facts(&shape, &hosts)), []);
            write!(text, "# {title}, n4 slow\n{}\n", picture(&proposal)).unwrap();
        }
    }
    let serving = place(Policy::Eplb, &input(&shape, &hosts, Spare::Leave)).unwrap().plan;
    let input = Input {
        epoch: Epoch(2),
        serving: Some(&serving),
        trace: Some(&trace),
        curves: &curves,
        ..input(&shape, &hosts, Spare::Leave)
    };
    let limits = Limits { swaps_max: 2, ..Limits::default() };
    let proposal = place(Policy::Incremental(limits), &input).unwrap();
    write!(text, "# two swaps at most\n{}", picture(&proposal)).unwrap();
    for one in &proposal.explanation.revision.as_ref().unwrap().moves {
        writeln!(text, "{one}").unwrap();
    }
    let golden = include_str!("../../goldens/placement_rivals.txt");
    assert!(text == golden, "goldens/placement_rivals.txt should now read:\n{text}");
}

#[test]
fn too_few_slots_are_infeasible_in_a_sentence() {
    let (shape, hosts) = (shape(2, 8), [host(1, 7), host(2, 8)]);
    let infeasible = place(Policy::Linear, &input(&shape, &hosts, Spare::Leave)).unwrap_err();
    assert_eq!(
        infeasible.to_string(),
        "the model's 16 experts need as many slots, 2 hosts have 15"
    );
    assert!(place(Policy::Linear, &input(&shape, &[], Spare::Leave)).is_err());
}

#[test]
fn the_checker_names_everything_that_is_wrong() {
    let (shape, hosts) = (shape(1, 3), [host(1, 1), host(2, 3)]);
    let table = vec![vec![NodeId(1)], vec![NodeId(1), NodeId(5)], vec![]];
    let plan = Plan::new(Epoch(4), Some(Epoch(2)), &shape, table).unwrap();
    let facts = Facts { serving: Some(Epoch(3)), newest: Epoch(4), ..facts(&shape, &hosts) };
    let violations = check(&plan, &facts);
    assert_eq!(
        violations,
        [
            Violation::StaleEpoch { epoch: Epoch(4), newest: Epoch(4) },
            Violation::OtherParent { found: Some(Epoch(2)), serving: Some(Epoch(3)) },
            Violation::NoReplica { layer: Layer(1), expert: Expert(2) },
            Violation::TooManyReplicas { host: hosts[0], replicas: 2 },
            Violation::UnknownNode { node: NodeId(5), replicas: 1 },
        ]
    );
    let sentences: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert_eq!(
        sentences,
        [
            "epoch 4 is not newer than epoch 4",
            "the parent is epoch 2, epoch 3 serves",
            "nobody holds l1 e2",
            "n1 has 1 slots, the plan gives it 2",
            "n5 may hold nothing, the plan gives it 1 replicas",
        ]
    );
}

#[test]
fn an_expert_whose_only_replica_lies_on_a_lost_node_has_none() {
    let (shape, hosts) = (shape(1, 1), [host(1, 9)]);
    let plan = Plan::new(Epoch(1), None, &shape, vec![vec![NodeId(2)]]).unwrap();
    let orphan = Violation::NoReplica { layer: Layer(1), expert: Expert(0) };
    let unknown = Violation::UnknownNode { node: NodeId(2), replicas: 1 };
    assert_eq!(check(&plan, &facts(&shape, &hosts)), [orphan, unknown]);
}

#[test]
fn the_checker_counts_the_bytes_of_what_stays_until_the_plan_serves() {
    let (mut shape, hosts) = (shape(1, 2), [host(1, 2), host(2, 2)]);
    shape.expert_bytes = 10;
    let plan = |epoch, parent, nodes: [u32; 2]| {
        let table = nodes.map(|node| vec![NodeId(node)]).to_vec();
        Plan::new(Epoch(epoch), parent, &shape, table).unwrap()
    };
    let (one, two) = (plan(1, None, [1, 2]), plan(2, Some(Epoch(1)), [2, 2]));
    let memory = [(NodeId(1), 10), (NodeId(2), 20)];
    let fits = Facts {
        serving: Some(Epoch(1)),
        newest: Epoch(1),
        staying: Some(&one),
        memory: &memory,
        ..facts(&shape, &hosts)
    };
    assert_eq!(check(&two, &fits), [], "what stays is not loaded twice");
    let back = plan(2, Some(Epoch(1)), [2, 1]);
    let wrong = check(&back, &fits);
    assert_eq!(wrong, [Violation::TooManyBytes { node: NodeId(1), needed: 20, found: 10 }]);
    assert_eq!(wrong[0].to_string(), "n1 has 10 bytes for experts, the change takes 20");
}

#[test]
fn the_checker_holds_policies_to_equal_slots() {
    let (shape, hosts) = (shape(1, 4), [host(1, 4), host(2, 1), host(3, 4)]);
    let of = |nodes: [u32; 4]| {
        let table = nodes.map(|node| vec![NodeId(node)]).to_vec();
        let plan = Plan::new(Epoch(1), None, &shape, table).unwrap();
        check(&plan, &Facts { equal_slots: true, ..facts(&shape, &hosts) })
    };
    assert_eq!(of([1, 1, 2, 3]), []);
    assert_eq!(of([1, 1, 3, 3]).len(), 1, "n2 has a free slot");
    let unequal = of([1, 1, 1, 2]);
    let expected = Violation::UnequalSlots { fewer: (NodeId(3), 0), most: (NodeId(1), 3) };
    assert_eq!(unequal, [expected]);
    assert_eq!(unequal[0].to_string(), "n3 has a free slot and gets 0 replicas, n1 gets 3");
}

#[test]
fn policies_are_named() {
    for name in ["linear", "eplb", "gem", "incremental"] {
        assert_eq!(name.parse::<Policy>().unwrap().to_string(), name);
    }
    assert_eq!(
        "gems".parse::<Policy>().unwrap_err().to_string(),
        "`gems` is no placement policy, expected one of linear, eplb, gem, incremental"
    );
}

#[test]
fn cost_is_the_slowest_nodes_time_summed_over_steps_and_layers() {
    let (shape, hosts) = (shape(2, 3), [host(1, 9), host(2, 9)]);
    let node = |ids: &[u32]| ids.iter().map(|&id| NodeId(id)).collect::<Vec<_>>();
    let table = [node(&[1]), node(&[2]), node(&[1, 2]), node(&[2]), node(&[2]), node(&[1])];
    let plan = Plan::new(Epoch(1), None, &shape, table.to_vec()).unwrap();
    let mut trace = Trace::new(2, 3);
    trace.push(&[5, 1, 3, 0, 0, 0]).unwrap();
    trace.push(&[0, 0, 0, 1, 2, 4]).unwrap();
    // Step 0, layer 0: 5 + ceil(3 / 2) and 1 + ceil(3 / 2). Step 1, layer 1: 4 and 1 + 2.
    assert_eq!(cost(&plan, &hosts, &[], &trace), 7 + 4);
    let twice = CostCurve::new(vec![(1, 2)]).unwrap();
    let curves = [CostCurve::new(vec![(1, 1)]).unwrap(), twice];
    assert_eq!(cost(&plan, &hosts, &curves, &trace), 7 + 6);
    assert_eq!(cost(&plan, &hosts[..1], &[], &trace), u64::MAX, "n2's experts have no host");
}

#[test]
fn eplb_replicates_and_packs_as_published() {
    // The example of EPLB's README: 12 experts in 4 groups, 16 replicas, 2 machines, 8 GPUs.
    let loads = [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ];
    let shape = shape(2, 12);
    let hosts: Vec<Host> = (0..8).map(|id| host(id, 4)).collect();
    let mut trace = Trace::new(2, 12);
    trace.push(&loads.concat()).unwrap();
    let input = Input {
        spare: Spare::Fill,
        trace: Some(&trace),
        grouping: Grouping { groups: 4, machines: 2 },
        ..Input::new(Epoch(1), &shape, &hosts)
    };
    let plan = place(Policy::Eplb, &input).unwrap().plan;
    let published = [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ];
    for (layer, published) in [Layer(1), Layer(2)].into_iter().zip(published) {
        for (gpu, pair) in published.chunks(2).enumerate() {
            let node = NodeId(u32::try_from(gpu).unwrap());
            let mut held: Vec<u16> = plan
                .resident_on(node)
                .filter(|(other, _)| *other == layer)
                .map(|(_, expert)| expert.0)
                .collect();
            let mut pair = pair.to_vec();
            held.sort_unstable();
            pair.sort_unstable();
            assert_eq!(held, pair, "{layer} {node}");
        }
    }
}

#[test]
fn the_checker_refuses_a_plan_for_another_model() {
    let (mine, other, hosts) = (shape(1, 2), shape(1, 3), [host(1, 9)]);
    let plan = place(Policy::Linear, &input(&other, &hosts, Spare::Leave)).unwrap().plan;
    assert_eq!(check(&plan, &facts(&mine, &hosts)), [Violation::OtherModel]);
}

fn any_hosts() -> impl Strategy<Value = Vec<Host>> {
    prop::collection::btree_map(0_u32..1000, 0_u32..200, 1..24)
        .prop_map(|hosts| hosts.into_iter().map(|(id, slots)| host(id, slots)).collect())
}

proptest! {
    #[test]
    fn every_linear_plan_passes_the_checker(
        hosts in any_hosts(), layers in 1_u16..9, experts in 1_u16..65, fill in any::<bool>(),
    ) {
        let shape = shape(layers, experts);
        let spare = if fill { Spare::Fill } else { Spare::Leave };
        let slots: u64 = hosts.iter().map(|host| u64::from(host.slots)).sum();
        let needed = u64::from(layers) * u64::from(experts);
        match place(Policy::Linear, &input(&shape, &hosts, spare)) {
            Err(_) => prop_assert!(slots < needed),
            Ok(Proposal { plan, explanation }) => {
                prop_assert_eq!(check(&plan, &facts(&shape, &hosts)), []);
                for share in &explanation.shares {
                    let held = plan.resident_on(share.host.id).count();
                    prop_assert_eq!(held, (share.first + share.further) as usize);
                }
                // A slot stays empty only where its node holds every expert, or none was asked for.
                if fill {
                    for share in &explanation.shares {
                        let held = u64::from(share.first + share.further);
                        prop_assert!(held == u64::from(share.host.slots).min(needed));
                    }
                }
            }
        }
    }

    #[test]
    fn shares_are_equal_and_contiguous_where_slots_allow(
        ids in prop::collection::btree_set(0_u32..1000, 1..16), layers in 1_u16..9, experts in 1_u16..65,
    ) {
        let hosts: Vec<Host> = ids.into_iter().map(|id| host(id, 10_000)).collect();
        let shape = shape(layers, experts);
        let plan = place(Policy::Linear, &input(&shape, &hosts, Spare::Leave)).unwrap().plan;
        let held: Vec<usize> = hosts.iter().map(|host| plan.resident_on(host.id).count()).collect();
        prop_assert!(held.iter().max().unwrap() - held.iter().min().unwrap() <= 1);
        for layer in &shape.moe_layers {
            let nodes: Vec<NodeId> =
                (0..experts).map(|expert| plan.replicas(*layer, Expert(expert))[0]).collect();
            prop_assert!(nodes.is_sorted());
        }
    }

    #[test]
    fn the_order_of_hosts_does_not_matter(mut hosts in any_hosts(), turn in 0_usize..24) {
        let shape = shape(2, 8);
        let first = place(Policy::Linear, &input(&shape, &hosts, Spare::Fill));
        let turn = turn % hosts.len();
        hosts.rotate_left(turn);
        prop_assert_eq!(first, place(Policy::Linear, &input(&shape, &hosts, Spare::Fill)));
    }
}

// === when to plan and when to serve ===

fn observed(id: u32, role: Role, health: Health, epoch_ready: u64) -> Observed {
    Observed {
        id: NodeId(id),
        role,
        health,
        slots: 8,
        experts_max: None,
        epoch_ready: Epoch(epoch_ready),
    }
}

fn plan_of(epoch: u64, nodes: &[u32]) -> Plan {
    let shape = shape(1, 4);
    let hosts: Vec<Host> = nodes.iter().map(|&id| host(id, 8)).collect();
    let input = Input { epoch: Epoch(epoch), ..input(&shape, &hosts, Spare::Leave) };
    place(Policy::Linear, &input).unwrap().plan
}

fn considered(hosts: &[Host], newest: u64) -> Considered {
    Considered { hosts: hosts.to_vec(), newest: Epoch(newest) }
}

fn situation<'a>(
    serving: Option<&'a Plan>,
    target: Option<&'a Plan>,
    considered: &'a Considered,
    hosts: &'a [Host],
) -> Situation<'a> {
    let newest = target.or(serving).map_or(Epoch(0), Plan::epoch);
    Situation { serving, target, newest, considered, hosts, hosts_min: 2 }
}

#[test]
fn the_first_plan_waits_for_enough_hosts() {
    let (never, [a, b]) = (considered(&[], 0), [host(1, 8), host(2, 8)]);
    assert_eq!(due(&situation(None, None, &never, &[a])), None);
    let first = due(&situation(None, None, &never, &[a, b]));
    assert_eq!(first, Some(Reason::First));
    let tried = considered(&[a, b], 0);
    assert_eq!(due(&situation(None, None, &tried, &[a, b])), None);
}

#[test]
fn joining_waits_for_the_target_and_leaving_does_not() {
    let (one, two) = (plan_of(1, &[1, 2]), plan_of(2, &[1, 2]));
    let [a, b, c] = [host(1, 8), host(2, 8), host(3, 8)];
    let (for_one, for_two) = (considered(&[a, b], 1), considered(&[a, b], 2));
    let joined = due(&situation(Some(&one), None, &for_one, &[a, b, c]));
    let expected = Reason::Hosts { joined: vec![c.id], left: vec![] };
    assert_eq!(joined, Some(expected));
    let joined = due(&situation(Some(&one), Some(&two), &for_two, &[a, b, c]));
    assert_eq!(joined, None, "the target is on its way");
    let left = due(&situation(Some(&one), Some(&two), &for_two, &[a, c]));
    assert_eq!(left.unwrap().to_string(), "expert nodes changed: +n3 -n2");
    let gone = due(&situation(Some(&one), None, &for_one, &[]));
    assert_eq!(gone, None, "nowhere to go");
}

#[test]
fn a_node_that_knows_a_newer_epoch_makes_a_plan_due_once() {
    let (one, a) = (plan_of(1, &[1]), [host(1, 8)]);
    let known = considered(&a, 1);
    let situation = Situation { newest: Epoch(7), ..situation(Some(&one), None, &known, &a) };
    assert_eq!(due(&situation), Some(Reason::Behind { newest: Epoch(7) }));
    let tried = considered(&a, 7);
    let again = Situation { considered: &tried, ..situation };
    assert_eq!(due(&again), None);
}

#[test]
fn draining_nodes_and_nodes_without_room_hold_nothing() {
    let mut full = observed(3, Role::Expert, Health::Ready, 0);
    full.slots = 0;
    let nodes = [
        observed(2, Role::Expert, Health::Joining, 0),
        observed(1, Role::Expert, Health::Draining, 0),
        full,
        observed(4, Role::Attention, Health::Ready, 0),
    ];
    assert_eq!(hosts(&nodes), [host(2, 8)]);
}

#[test]
fn a_target_waits_for_its_holders_and_for_attention_nodes_at_work() {
    let (one, two) = (plan_of(1, &[1, 2]), plan_of(2, &[1, 2]));
    let mut nodes = [
        observed(1, Role::Expert, Health::Ready, 2),
        observed(2, Role::Expert, Health::Ready, 1),
        observed(3, Role::Attention, Health::Ready, 1),
        observed(4, Role::Attention, Health::Joining, 0),
        observed(5, Role::Gateway, Health::Ready, 0),
        observed(6, Role::Expert, Health::Ready, 0),
    ];
    let waiting = |nodes: &[Observed]| readiness(Some(&one), &two, Epoch(1), nodes);
    assert_eq!(waiting(&nodes), Readiness::Waiting(vec![NodeId(2), NodeId(3)]));
    nodes[1].epoch_ready = Epoch(2);
    nodes[2].epoch_ready = Epoch(2);
    assert_eq!(waiting(&nodes), Readiness::Ready);
}

#[test]
fn a_stranded_cluster_waits_for_one_replica_of_each_expert_only() {
    let (one, two) = (plan_of(1, &[1, 2]), plan_of(2, &[1, 3]));
    let mut nodes = [
        observed(1, Role::Expert, Health::Ready, 2),
        observed(3, Role::Expert, Health::Ready, 1),
        observed(4, Role::Attention, Health::Ready, 1),
    ];
    let waiting = |nodes: &[Observed]| readiness(Some(&one), &two, Epoch(1), nodes);
    assert_eq!(waiting(&nodes), Readiness::Waiting(vec![NodeId(3), NodeId(4)]));
    nodes[1].epoch_ready = Epoch(2);
    assert_eq!(waiting(&nodes), Readiness::Ready, "the attention node is not waited for");
}

#[test]
fn a_target_serves_at_once_where_nodes_know_a_newer_plan_than_the_coordinator() {
    let (one, eight) = (plan_of(1, &[1, 2]), plan_of(8, &[1, 2]));
    let nodes = [observed(1, Role::Expert, Health::Ready, 7)];
    for serving in [None, Some(&one)] {
        let with = |served| readiness(serving, &eight, Epoch(served), &nodes);
        assert_eq!(with(7), Readiness::Ready);
        assert!(matches!(with(0), Readiness::Waiting(_)));
    }
}
