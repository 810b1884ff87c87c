//! A warm router allocates nothing, so that it may run on the path of every layer.

#[path = "routing/instances.rs"]
mod instances;

use allocation_counter::measure;
use domain::CostCurve;
use instances::{Dice, Serving};
use policy::routing::{Instance, Policy, Router};

/// What routing `batches` takes from the allocator after one batch has warmed the router up.
fn allocations(policy: Policy, instances: &[Instance<'_>]) -> u64 {
    let mut router = Router::new(policy);
    let mut route = |instance| router.route(instance).expect("a good instance").max_activated();
    route(&instances[0]);
    measure(|| {
        for instance in instances {
            assert!(route(instance) > 0);
        }
    })
    .count_total
}

#[test]
fn a_warm_router_allocates_nothing() {
    let mut dice = Dice(5);
    let serving =
        Serving { experts: 128, nodes: 8, replication: 1.5, zipf: 1.0, tokens: 512, top_k: 8 };
    let (hosts, mut batches) = serving.draw(&mut dice, 20);
    // The first batch is small: room must not depend on what is activated.
    batches[0].fill(0);
    batches[0][0] = 1;
    let curve = CostCurve::new(vec![(16, 1_000), (64, 4_000)]).expect("edges ascend");
    let curves: Vec<_> = (0..8).map(|_| curve.scaled(1.0 + dice.unit())).collect();
    let instance =
        |tokens| Instance { hosts: &hosts, tokens, curves: &curves, backlog_ns: &[7; 8] };
    let instances: Vec<_> = batches.iter().map(|tokens| instance(tokens)).collect();
    for policy in [Policy::EvenSplit, Policy::Metro, Policy::Aebs, Policy::Exact, Policy::Time] {
        assert_eq!(allocations(policy, &instances), 0, "{policy}");
    }
}
