//! What placement promises, shown on many random traces.

mod exhaustive;
mod incremental;
mod instances;
mod legal;

use domain::Epoch;
use exhaustive::optimum;
use instances::{Instance, Sizes};
use policy::placement::{Input, Policy, Spare, cost, place};

/// What an instance says to a policy.
pub(crate) fn input(instance: &Instance, spare: Spare) -> Input<'_> {
    Input {
        spare,
        trace: Some(&instance.trace),
        curves: &instance.curves,
        ..Input::new(Epoch(1), &instance.shape, &instance.hosts)
    }
}

/// What each policy's plan costs.
fn costs<const N: usize>(policies: [Policy; N], instance: &Instance, spare: Spare) -> [u64; N] {
    let input = input(instance, spare);
    policies.map(|policy| {
        let plan = place(policy, &input).expect("there are slots enough").plan;
        cost(&plan, &instance.hosts, &instance.curves, &instance.trace)
    })
}

#[test]
fn gem_with_replicas_costs_no_more_than_eplb_with_as_many() {
    for seed in 0..40 {
        let hosts = [2_u32, 4, 8][seed as usize % 3];
        let sizes = Sizes {
            layers: 2,
            experts: 32,
            hosts,
            steps: 16,
            tokens: 96 * hosts,
            slots: 48 / hosts,
        };
        let instance = Instance::new(seed, sizes, 0.277);
        let [gem, eplb] = costs([Policy::Gem, Policy::Eplb], &instance, Spare::Fill);
        assert!(gem <= eplb, "seed {seed}: gem {gem}, eplb {eplb}");
    }
}

#[test]
fn gem_costs_no_more_than_eplb_or_linear_on_any_of_200_traces() {
    for seed in 0..200 {
        let hosts = [2_u32, 4, 8, 16][seed as usize % 4];
        let experts = [16_u16, 30, 32, 64, 128][seed as usize % 5];
        let slots = u32::from(experts).div_ceil(hosts);
        let sizes = Sizes { layers: 1, experts, hosts, steps: 16, tokens: 96 * hosts, slots };
        let instance = Instance::new(seed, sizes, 0.277);
        let [gem, eplb, linear] =
            costs([Policy::Gem, Policy::Eplb, Policy::Linear], &instance, Spare::Leave);
        assert!(gem <= eplb && gem <= linear, "seed {seed}: gem {gem} eplb {eplb} linear {linear}");
    }
}

/// gem's cost over the least possible one, on average and at worst, over 20 seeds.
fn over_optimum(hosts: u32, experts: u16, slots: u32) -> (f64, f64) {
    let (mut mean, mut worst) = (0.0, 1.0_f64);
    for seed in 0..20 {
        let tokens = 64 * hosts;
        let sizes = Sizes { layers: 1, experts, hosts, steps: 12, tokens, slots };
        let instance = Instance::new(seed, sizes, 0.277);
        let [gem] = costs([Policy::Gem], &instance, Spare::Fill);
        let ratio = gem as f64 / optimum(&instance, slots) as f64;
        assert!(ratio >= 1.0, "{hosts} hosts, seed {seed}: below the optimum");
        mean += ratio / 20.0;
        worst = worst.max(ratio);
    }
    (mean, worst)
}

#[test]
fn gem_is_within_3_percent_of_the_optimum_where_all_tables_can_be_tried() {
    for (hosts, experts) in [(2, 8), (3, 9), (4, 8), (2, 12), (3, 6)] {
        let (_, worst) = over_optimum(hosts, experts, u32::from(experts) / hosts);
        assert!(worst <= 1.03, "{experts} experts on {hosts} hosts: {worst}");
    }
}

#[test]
fn gem_with_replicas_is_within_1_percent_of_the_optimum_on_average() {
    for (hosts, experts, slots) in [(3, 6, 3), (3, 7, 3), (3, 6, 4), (4, 6, 2)] {
        let (mean, worst) = over_optimum(hosts, experts, slots);
        assert!(mean <= 1.01 && worst <= 1.05, "{experts} on {hosts} x {slots}: {mean}, {worst}");
    }
}
