//! What placement promises, shown on many random traces.

mod instances;

use domain::Epoch;
use instances::{Instance, Sizes};
use policy::placement::{Input, Policy, Spare, cost, place};

/// What each policy's plan costs.
fn costs<const N: usize>(policies: [Policy; N], instance: &Instance, spare: Spare) -> [u64; N] {
    let input = Input {
        spare,
        trace: Some(&instance.trace),
        curves: &instance.curves,
        ..Input::new(Epoch(1), &instance.shape, &instance.hosts)
    };
    policies.map(|policy| {
        let plan = place(policy, &input).expect("there are slots enough").plan;
        cost(&plan, &instance.hosts, &instance.curves, &instance.trace)
    })
}

#[test]
fn gem_costs_no_more_than_eplb_or_linear_on_any_of_200_traces() {
    let (mut of_eplb, mut of_linear) = (0.0, 0.0);
    for seed in 0..200 {
        let hosts = [2_u32, 4, 8, 16][seed as usize % 4];
        let experts = [16_u16, 30, 32, 64, 128][seed as usize % 5];
        let slots = u32::from(experts).div_ceil(hosts);
        let sizes = Sizes { layers: 1, experts, hosts, steps: 16, tokens: 96 * hosts, slots };
        let instance = Instance::new(seed, sizes, 0.277);
        let [gem, eplb, linear] =
            costs([Policy::Gem, Policy::Eplb, Policy::Linear], &instance, Spare::Leave);
        assert!(gem <= eplb && gem <= linear, "seed {seed}: gem {gem} eplb {eplb} linear {linear}");
        of_eplb += gem as f64 / eplb as f64 / 200.0;
        of_linear += gem as f64 / linear as f64 / 200.0;
    }
    println!("gem / eplb {of_eplb:.3}, gem / linear {of_linear:.3}");
}
