//! Every policy's plan is legal, whatever the hosts look like, and as equal as promised.

use domain::{Epoch, Expert, Layer, NodeId, Plan};
use policy::placement::{Facts, Grouping, Host, Input, Limits, Policy, Spare, check, place};
use proptest::prelude::*;

use crate::instances::{Instance, Sizes};

const POLICIES: [Policy; 4] =
    [Policy::Linear, Policy::Eplb, Policy::Gem, Policy::Incremental(DEFAULTS)];

const DEFAULTS: Limits = Limits {
    drift_permille: 0,
    slower_permille: 0,
    gain_permille: 0,
    swaps_max: 8,
    bytes_max: 1 << 30,
};

fn any_policy() -> impl Strategy<Value = Policy> {
    prop::sample::select(&POLICIES[..])
}

fn any_spare() -> impl Strategy<Value = Spare> {
    prop_oneof![Just(Spare::Leave), Just(Spare::Fill), (0_u32..20).prop_map(Spare::UpTo)]
}

/// Hosts of very different room.
fn any_hosts() -> impl Strategy<Value = Vec<Host>> {
    prop::collection::btree_map(0_u32..100, 0_u32..60, 1..9).prop_map(|hosts| {
        hosts.into_iter().map(|(id, slots)| Host { id: NodeId(id), slots }).collect()
    })
}

fn instance(seed: u64, layers: u16, experts: u16, hosts: Vec<Host>) -> Instance {
    let sizes =
        Sizes { layers, experts, hosts: hosts.len() as u32, steps: 3, tokens: 200, slots: 1 };
    Instance { hosts, ..Instance::new(seed, sizes, 0.277) }
}

/// Everything that is wrong with a plan, with the promise that its policy makes.
fn complaints(plan: &Plan, policy: Policy, input: &Input<'_>) -> Vec<String> {
    let facts = Facts {
        serving: input.serving.map(Plan::epoch),
        newest: input.serving.map_or(Epoch(0), Plan::epoch),
        equal_slots: policy.equal_slots(),
        ..Facts::new(input.shape, input.hosts)
    };
    check(plan, &facts).iter().map(ToString::to_string).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_plan_passes_the_checker(
        seed in any::<u64>(), hosts in any_hosts(), layers in 1_u16..4, experts in 1_u16..24,
        policy in any_policy(), spare in any_spare(), machines in 1_u16..4, with_trace in any::<bool>(),
    ) {
        let instance = instance(seed, layers, experts, hosts);
        let input = Input {
            grouping: Grouping { groups: 2 * machines, machines },
            trace: with_trace.then_some(&instance.trace),
            ..crate::input(&instance, spare)
        };
        let slots: u32 = input.hosts.iter().map(|host| host.slots).sum();
        match place(policy, &input) {
            Err(_) => prop_assert!(slots < u32::from(layers * experts)),
            Ok(proposal) => {
                prop_assert_eq!(complaints(&proposal.plan, policy, &input), Vec::<String>::new());
                let held: u32 = proposal.explanation.shares.iter().map(|share| share.first + share.further).sum();
                prop_assert_eq!(held as usize, proposal.plan.iter().count());
                prop_assert!(wished(&input, layers, experts) >= held as usize);
            }
        }
    }

    #[test]
    fn revisions_pass_the_checker_whatever_happens_to_the_hosts(
        seed in any::<u64>(), before in any_hosts(), after in any_hosts(), layers in 1_u16..4,
        experts in 1_u16..24, first in any_policy(), spare in any_spare(), swaps_max in 0_u32..9,
    ) {
        let then = instance(seed, layers, experts, before);
        let Ok(serving) = place(first, &crate::input(&then, spare)) else { return Ok(()) };
        let now = instance(seed ^ 1, layers, experts, after);
        let input = Input {
            epoch: Epoch(2),
            serving: Some(&serving.plan),
            ..crate::input(&now, spare)
        };
        let policy = Policy::Incremental(Limits { swaps_max, ..DEFAULTS });
        if let Ok(proposal) = place(policy, &input) {
            prop_assert_eq!(complaints(&proposal.plan, policy, &input), Vec::<String>::new());
        }
    }
}

/// Replicas that a plan may have at most.
fn wished(input: &Input<'_>, layers: u16, experts: u16) -> usize {
    let needed = usize::from(layers * experts);
    match input.spare {
        Spare::Leave => needed,
        Spare::UpTo(further) => needed + usize::from(layers) * further as usize,
        Spare::Fill => needed * input.hosts.len(),
    }
}

#[test]
fn spare_slots_are_filled_as_far_as_wished() {
    let sizes = Sizes { layers: 3, experts: 16, hosts: 4, steps: 4, tokens: 400, slots: 6 };
    let instance = Instance::new(1, sizes, 0.277);
    for policy in POLICIES {
        for (spare, further) in [(Spare::Leave, 0), (Spare::UpTo(4), 12), (Spare::Fill, 24)] {
            let plan = place(policy, &crate::input(&instance, spare)).unwrap().plan;
            assert_eq!(plan.iter().count(), 48 + further, "{policy} {spare:?}");
        }
    }
}

#[test]
fn grouped_experts_stay_on_one_machine() {
    let sizes = Sizes { layers: 2, experts: 16, hosts: 4, steps: 4, tokens: 400, slots: 6 };
    let instance = Instance::new(3, sizes, 0.0);
    let input = Input {
        grouping: Grouping { groups: 4, machines: 2 },
        ..crate::input(&instance, Spare::Fill)
    };
    let plan = place(Policy::Eplb, &input).unwrap().plan;
    for layer in [Layer(0), Layer(1)] {
        let mut groups = [0; 2];
        for group in 0..4 {
            let experts = (0..4).map(|at| Expert(group * 4 + at));
            let mut machines: Vec<u32> = experts
                .flat_map(|expert| plan.replicas(layer, expert).iter().map(|id| (id.0 - 1) / 2))
                .collect();
            machines.dedup();
            assert_eq!(machines.len(), 1, "{layer}, group {group}");
            groups[machines[0] as usize] += 1;
        }
        assert_eq!(groups, [2, 2], "{layer}");
    }
}

#[test]
fn equal_input_gives_an_equal_plan_and_seeds_count() {
    let sizes = Sizes { layers: 2, experts: 32, hosts: 4, steps: 8, tokens: 800, slots: 12 };
    let instance = Instance::new(5, sizes, 0.277);
    let input = crate::input(&instance, Spare::Fill);
    assert_eq!(place(Policy::Gem, &input), place(Policy::Gem, &input));
    let seeds: Vec<_> = (0..8)
        .map(|seed| place(Policy::Gem, &Input { seed, ..input.clone() }).unwrap().plan)
        .collect();
    assert!(seeds.iter().any(|plan| *plan != seeds[0]), "random changes never mattered");
}
