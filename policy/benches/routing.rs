//! What one routing decision costs, and how good it is: every policy on two layers placed by EPLB.
//!
//! `cargo bench -p policy --bench routing`. The largest counts are printed first, as means over the
//! batches that are then timed in turn.
#![expect(clippy::print_stdout, reason = "a bench reports on the terminal")]

#[path = "../tests/routing/instances.rs"]
mod instances;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use domain::{CostCurve, Epoch, Layer, ModelShape, NodeId, Plan};
use instances::{Dice, Serving};
use policy::routing::{Demand, Hosts, Instance, Lease, Policy, Router};

const POLICIES: [Policy; 5] =
    [Policy::EvenSplit, Policy::Metro, Policy::Aebs, Policy::Exact, Policy::Time];
/// Batches that take turns, so that no branch predictor learns one of them.
const BATCHES: usize = 64;

struct Case {
    name: String,
    hosts: Hosts,
    batches: Vec<Vec<u32>>,
    curves: Vec<CostCurve>,
}

/// A layer at 1.5 replicas per expert, 256 tokens to 8 experts each, popularity Zipf 1.0, and nodes
/// whose speeds differ by up to 27.7 % (GEM's larger spread).
fn case(experts: u16, nodes: u32) -> Case {
    let mut dice = Dice(11);
    let serving = Serving { experts, nodes, replication: 1.5, zipf: 1.0, tokens: 256, top_k: 8 };
    let (hosts, batches) = serving.draw(&mut dice, BATCHES);
    let edges = [(16, 4_000), (64, 4_400), (128, 4_800), (256, 9_000), (512, 18_000)];
    let curve = CostCurve::new(edges.to_vec()).expect("edges ascend");
    let curves = (0..nodes).map(|_| curve.scaled(1.0 + 0.277 * dice.unit())).collect();
    Case { name: format!("{experts} experts on {nodes} nodes"), hosts, batches, curves }
}

impl Case {
    fn instances(&self) -> impl Iterator<Item = Instance<'_>> + Clone {
        let Self { hosts, batches, curves, .. } = self;
        batches.iter().map(move |tokens| Instance { hosts, tokens, curves, backlog_ns: &[] })
    }

    fn report(&self) {
        println!("{}, means of {BATCHES} batches:", self.name);
        for policy in POLICIES {
            let (mut count, mut ns) = (0.0, 0.0);
            for instance in self.instances() {
                let mut router = Router::new(policy);
                let assignment = router.route(&instance).expect("every expert has a host");
                count += f64::from(assignment.max_activated());
                ns += assignment.max_time_ns() as f64;
            }
            let batches = BATCHES as f64;
            println!(
                "  {:10} largest count {:5.2}, largest time {:6.1} us",
                policy.to_string(),
                count / batches,
                ns / batches / 1e3
            );
        }
    }
}

fn routing(criterion: &mut Criterion) {
    for case in [case(128, 8), case(256, 32)] {
        case.report();
        let mut group = criterion.benchmark_group(&case.name);
        for policy in POLICIES {
            let mut router = Router::new(policy);
            let mut turns = case.instances().cycle();
            group.bench_function(BenchmarkId::from_parameter(policy), |bencher| {
                bencher.iter(|| {
                    let instance = turns.next().expect("the turns never end");
                    black_box(router.route(&instance).map(|got| got.max_activated()))
                });
            });
        }
        group.finish();
    }
}

/// A lease of DeepSeek-V3's 58 layers on 32 nodes, from the counts of 32 runs of each.
fn leases(criterion: &mut Criterion) {
    const LAYERS: u16 = 58;
    let case = case(256, 32);
    let shape = ModelShape {
        layers: LAYERS,
        moe_layers: (0..LAYERS).map(Layer).collect(),
        experts: 256,
        top_k: 8,
        hidden: 7168,
        expert_bytes: 44 << 20,
        vocab: 1,
        positions_max: 1,
    };
    let nodes: Vec<NodeId> = (0..32).map(NodeId).collect();
    let replicas = |expert| case.hosts.of(expert).iter().map(|&node| nodes[usize::from(node)]);
    let layer: Vec<Vec<NodeId>> = (0..256).map(|expert| replicas(expert).collect()).collect();
    let table = vec![layer; usize::from(LAYERS)].concat();
    let plan = Plan::new(Epoch(1), None, &shape, table).expect("the table fits its shape");
    let tokens: Vec<u32> =
        case.batches.iter().cycle().take(usize::from(LAYERS)).flatten().copied().collect();
    let Case { curves, .. } = &case;
    let backlog_ns = &[0; 32];
    let demand =
        Demand { plan: &plan, nodes: &nodes, tokens: &tokens, runs: 32, curves, backlog_ns };
    let mut group = criterion.benchmark_group("lease of 58 layers, 256 experts on 32 nodes");
    for policy in POLICIES {
        let mut router = Router::new(policy);
        group.bench_function(BenchmarkId::from_parameter(policy), |bencher| {
            bencher.iter(|| Lease::routed(black_box(&demand), &mut router));
        });
    }
    group.finish();
}

criterion_group!(benches, routing, leases);
criterion_main!(benches);
