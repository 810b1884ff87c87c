//! How long placements take: Qwen3-30B's 48 layers of 128 experts on 16 nodes over 64 steps.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

#[path = "../tests/placement/instances.rs"]
mod instances;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use domain::Epoch;
use instances::{Instance, Sizes};
use policy::placement::{Input, Policy, Spare, place};

fn placements(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("placement");
    group.sample_size(10);
    for (name, slots) in [("48x128 on 16", 8), ("48x128 on 16, 1.5x replicas", 12)] {
        let sizes = Sizes { layers: 48, experts: 128, hosts: 16, steps: 64, tokens: 2048, slots };
        let instance = Instance::new(7, sizes, 0.277);
        let input = Input {
            spare: Spare::Fill,
            trace: Some(&instance.trace),
            curves: &instance.curves,
            ..Input::new(Epoch(1), &instance.shape, &instance.hosts)
        };
        for policy in [Policy::Linear, Policy::Eplb, Policy::Gem] {
            let cost = place(policy, &input)
                .expect("there are slots enough")
                .explanation
                .cost_ns
                .unwrap_or(0);
            println!("{name}: {policy} costs {cost} ns");
            group.bench_function(format!("{name}/{policy}"), |bench| {
                bench.iter(|| place(policy, black_box(&input)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, placements);
criterion_main!(benches);
