use proptest::prelude::*;

use super::*;
use crate::{
    messages::{Load, Message},
    scenario::Scenario,
};

/// AMoE's step times, so that every time can be worked out by hand: 2.7 ms of attention and 0.8 ms
/// an expert up to 128 tokens; the head is free, a row has 8192 bytes.
const ATTENTION_NS: u64 = 2_700_000;
const EXPERT_NS: u64 = 800_000;

fn run(lines: &str) -> Run {
    let text = format!(
        "[[run]]\nid = \"only\"\nhardware = {{ model = \"mixtral-8x7b\", device = \"amoe-paper\", \
         top_k = 1 }}\nskew = {{ kind = \"uniform\" }}\n{lines}"
    );
    let mut scenario = Scenario::parse(&text, None).unwrap();
    assert_eq!(scenario.points.len(), 1);
    scenario.points.remove(0).run
}

fn outcome(run: &Run) -> Outcome {
    let engine = Engine::new(run, Path::new("")).unwrap();
    engine.run().unwrap_or_else(|violation| panic!("{violation}")).0
}

/// One sequence in flight on one attention node and one expert node.
fn tiny(schedule: &str, layers: u16) -> Run {
    let mut run = run(&format!(
        "schedule = \"{schedule}\"\nduration_s = 1.0\nwindow = [0.0, 1.0]\nbin_s = 0.1\n\
         nodes = {{ attention = 1, expert = 1 }}\n\
         links = {{ latency_us = 10.0, gbps = 8.0 }}\n\
         workload = {{ kind = \"closed\", in_flight = 1, lengths = {{ prompt = [5, 5], output = [1000, 1000] }} }}"
    ));
    run.hardware.layers = Some(layers);
    run.hardware.experts = Some(1);
    run
}

#[test]
fn one_token_on_one_pair_of_nodes_takes_exactly_its_parts() {
    // 8 Gbit/s are a byte per ns; a frame has 64 bytes, and 19 for the pair.
    let hop = 10_000 + 64 + 19 + 8192;
    for schedule in ["async", "lockstep", "lockstep-overlap"] {
        for layers in [1, 3] {
            let token = u64::from(layers) * (ATTENTION_NS + EXPERT_NS + 2 * hop);
            let outcome = outcome(&tiny(schedule, layers));
            assert_eq!(outcome.tokens_total, (1_000_000_000 - 1) / token, "{schedule}, {layers}");
            assert!((outcome.itl_ms.mean - token as f64 / 1e6).abs() < 1e-9, "{schedule}");
            assert_eq!(outcome.attention.batch, 1.0);
            assert_eq!(outcome.expert.batch, 1.0);
        }
    }
}

#[test]
fn two_tokens_in_a_pipeline_hide_the_expert_behind_attention() {
    // Free links: one sequence's 0.8 ms of experts lie within the other's 2.7 ms of attention, so a
    // token is drawn every 2.7 ms when they go alone, the first one when attention is free for it
    // after two runs, and two every 3.5 ms when they go together.
    let mut run = tiny("async", 1);
    run.workload = Spec::Closed { in_flight: 2, lengths: ten_thousand() };
    run.links = spec::Links { latency_us: 0.0, gbps: 1e9, ..spec::Links::default() };
    run.batching.attention.drain_max = 1;
    let alone = outcome(&run);
    assert_eq!(alone.attention.busy, 1.0);
    assert_eq!(alone.tokens_total, (1_000_000_000 - 1) / ATTENTION_NS - 1);
    run.schedule = Schedule::Lockstep;
    let together = outcome(&run);
    let steps = (1_000_000_000 - 1) / (ATTENTION_NS + EXPERT_NS);
    assert_eq!(together.tokens_total, 2 * steps);
    run.schedule = Schedule::LockstepOverlap;
    assert_eq!(outcome(&run).tokens_total, alone.tokens_total, "each half goes alone");
}

fn ten_thousand() -> crate::workload::Lengths {
    let ranges = crate::workload::Ranges { prompt: [5, 5], output: [10_000, 10_000] };
    crate::workload::Lengths::Uniform(ranges)
}

#[test]
fn chunks_of_a_prompt_go_through_the_layers_and_the_last_gives_a_token() {
    let mut run = tiny("async", 2);
    run.links = spec::Links { latency_us: 0.0, gbps: 1e9, ..spec::Links::default() };
    run.prefill.chunk = 2;
    // A prompt of 5 tokens is 2 + 2 + 1.
    let outcome = outcome(&run);
    let step = 2 * (ATTENTION_NS + EXPERT_NS);
    assert!((outcome.ttft_ms.mean - 3.0 * step as f64 / 1e6).abs() < 1e-9, "{:?}", outcome.ttft_ms);
    assert_eq!(outcome.tokens_total, (1_000_000_000 - 1) / step - 2);
    assert_eq!(outcome.prefill_throughput, 5.0);
    let mut lockstep = run.clone();
    lockstep.schedule = Schedule::Lockstep;
    assert_eq!(super::tests::outcome(&lockstep).tokens_total, outcome.tokens_total);
}

/// 4 attention nodes and 4 expert nodes with more than enough to do, which wait for nothing, as the
/// paper's.
fn busy(schedule: &str, skew: &str) -> Run {
    let mut run = run(&format!(
        "schedule = \"{schedule}\"\nduration_s = 6.0\nbin_s = 1.0\nnodes = {{ attention = 4, expert = 4 }}\n\
         bounds = {{ sequences_max = 4000, kv_tokens = 134217728 }}\n\
         batching.attention = {{ age_guard_ms = 5000, hold_runs = 0 }}\n\
         batching.expert = {{ age_guard_ms = 5000, hold_runs = 0 }}\n\
         workload = {{ kind = \"closed\", in_flight = 4000, lengths = \"medium\" }}"
    ));
    run.hardware.layers = Some(4);
    run.skew = toml::from_str(skew).unwrap();
    // Attention must not be what both wait for.
    run.speed.factors = vec![0.2; 4];
    run
}

use crate::{spec, workload::Spec};

#[test]
fn a_hot_expert_holds_lockstep_up_and_not_the_others() {
    let hot = "kind = \"k-hot\"\nhot = 1\nshare = 0.6";
    let (lockstep, free) = (outcome(&busy("lockstep", hot)), outcome(&busy("async", hot)));
    let ratio = free.throughput / lockstep.throughput;
    assert!(ratio > 1.5, "{} against {}", free.throughput, lockstep.throughput);
    assert!(lockstep.expert.stall > 0.4 && free.expert.stall < 0.2, "{lockstep:?} {free:?}");
}

#[test]
fn under_equal_load_neither_is_far_ahead() {
    // Every device does both, so that nobody waits for the other kind of node by design.
    let run = |schedule| {
        let mut run = busy(schedule, "kind = \"uniform\"");
        run.layout = spec::Layout::Colocated;
        run.nodes.both = 8;
        run.speed.factors.clear();
        // Enough for full batches wherever they are scattered.
        run.workload = Spec::Closed { in_flight: 16_000, lengths: ten_thousand() };
        outcome(&run)
    };
    let (lockstep, free) = (run("lockstep"), run("async"));
    let ratio = free.throughput / lockstep.throughput;
    assert!((0.9..1.2).contains(&ratio), "{} against {}", free.throughput, lockstep.throughput);
}

#[test]
fn overlap_hides_attention_behind_experts() {
    let even = "kind = \"uniform\"";
    let (plain, halves) =
        (outcome(&busy("lockstep", even)), outcome(&busy("lockstep-overlap", even)));
    assert!(
        halves.throughput > plain.throughput * 1.05,
        "{} {}",
        halves.throughput,
        plain.throughput
    );
}

#[test]
fn metro_activates_fewer_experts_than_even_split() {
    let mut run = busy("lockstep", "kind = \"zipf\"\ns = 1.0");
    run.hardware.experts = Some(64);
    run.hardware.top_k = Some(4);
    run.duration_s = 4.0;
    run.placement.policy = "eplb".parse().unwrap();
    run.placement.replicas = 1.5;
    run.workload = Spec::Closed { in_flight: 32, lengths: ten_thousand() };
    run.routing.policy = policy::routing::Policy::EvenSplit;
    let even = outcome(&run);
    run.routing.policy = policy::routing::Policy::Exact;
    let exact = outcome(&run);
    assert!(exact.activated_max < even.activated_max * 0.9, "{exact:?} {even:?}");
    assert!(exact.throughput > even.throughput);
}

#[test]
fn experts_move_while_serving_and_nothing_is_lost() {
    let mut run = busy("async", "kind = \"zipf\"\ns = 1.2");
    run.duration_s = 5.0;
    run.hardware.experts = Some(16);
    // The first plan knows nothing of the skew.
    run.placement.online =
        Some(spec::Online { policy: "gem".parse().unwrap(), every_ms: 500.0, bytes_per_s: 5e9 });
    let outcome = outcome(&run);
    assert!(outcome.plans > 1 && outcome.replicas_moved > 0, "{outcome:?}");
}

#[test]
fn an_output_that_comes_twice_ends_the_run() {
    let run = tiny("async", 1);
    let mut engine = Engine::new(&run, Path::new("")).unwrap();
    engine.begin();
    let mut twice = false;
    let outcome = std::iter::from_fn(|| {
        let (now_ns, event) = engine.agenda.take()?;
        engine.judge.time(now_ns).unwrap();
        let result = engine.on(event);
        engine.wake();
        if let (false, Event::Finished(1)) = (twice, event) {
            twice = true;
            let message = engine.messages.iter().next().unwrap();
            let (from, to, bytes) = (message.from, message.to, message.bytes);
            let (load, pairs) = (Load::Outputs, message.pairs.clone());
            engine.send(Message { from, to, bytes, load, behind: None, pairs });
        }
        Some(result)
    });
    let violation = outcome.take(1000).find_map(Result::err).expect("the second output is noticed");
    assert!(matches!(violation.what, Wrong::Unasked { .. }), "{violation}");
}

#[test]
fn a_message_that_is_lost_fails_the_census() {
    let run = tiny("async", 1);
    let mut engine = Engine::new(&run, Path::new("")).unwrap();
    engine.begin();
    while engine.messages.iter().next().is_none() {
        let (_, event) = engine.agenda.take().unwrap();
        engine.on(event).unwrap();
        engine.wake();
    }
    engine.census().unwrap();
    engine.messages = Messages::default();
    let violation = engine.census().unwrap_err();
    assert!(matches!(violation.what, Wrong::Lost { missing: 1, found: 0, .. }), "{violation}");
}

#[test]
fn sequences_beyond_the_waiting_line_are_refused_and_counted() {
    let mut run = tiny("async", 1);
    run.workload = Spec::Poisson { rate: 1000.0, lengths: ten_thousand() };
    run.bounds.sequences_max = 2;
    run.bounds.waiting_max = 3;
    let outcome = outcome(&run);
    let counts = outcome.sequences;
    assert_eq!(counts.unfinished, 5);
    assert_eq!(counts.arrived, counts.refused + counts.unfinished + counts.ended);
    run.bounds.kv_tokens = 1600;
    assert_eq!(super::tests::outcome(&run).sequences.unfinished, 0, "none ever fits");
}

fn schedules() -> impl Strategy<Value = (Schedule, spec::Layout)> {
    use spec::Layout::{Colocated, Split};
    let schedules = [Schedule::Async, Schedule::Lockstep, Schedule::LockstepOverlap];
    let all: Vec<_> = schedules
        .into_iter()
        .flat_map(|schedule| [(schedule, Split), (schedule, Colocated)])
        .collect();
    proptest::sample::select(all)
}

fn runs() -> impl Strategy<Value = Run> {
    let sizes = (1_u16..4, 1_u16..5, 1_u16..5, 2_u16..9, 1_u8..3);
    let load = (1_u32..200, 0_u16..40, 1_u32..64, any::<u64>(), any::<bool>());
    let routing = proptest::sample::select(vec!["even-split", "metro", "aebs", "exact", "time"]);
    let caps = (1_usize..64, 1_usize..64, 1.0_f64..2.5, proptest::option::of(1.0_f64..50.0));
    let online = proptest::option::of(proptest::sample::select(vec!["gem", "eplb", "incremental"]));
    (schedules(), sizes, load, (routing, online), caps).prop_map(|(schedule, sizes, load, (routing, online), caps)| {
        let mut run = run("workload = { kind = \"closed\", in_flight = 1, lengths = { prompt = [1, 90], output = [1, 40] } }");
        (run.schedule, run.layout) = schedule;
        let (attention, expert, layers, experts, top_k) = sizes;
        run.nodes = spec::Nodes { attention, expert, both: expert, per_box: 3 };
        run.hardware.layers = Some(layers);
        run.hardware.experts = Some(experts);
        run.hardware.top_k = Some(top_k);
        let (rate, chunk, sequences_max, seed, grouped) = load;
        if let Spec::Closed { lengths, .. } = run.workload {
            run.workload = Spec::Poisson { rate: rate.into(), lengths };
        }
        run.prefill.chunk = chunk;
        run.bounds = spec::Bounds { sequences_max, waiting_max: 20, kv_tokens: 2000 };
        run.seed = seed >> 1;
        run.duration_s = 1.5;
        run.bin_s = 0.5;
        run.routing.policy = routing.parse().unwrap();
        run.batching.attention.drain_max = caps.0;
        run.batching.expert.drain_max = caps.1;
        run.batching.queues =
            if grouped || run.layout == spec::Layout::Colocated { Queues::Layer } else { Queues::Expert };
        run.placement.policy = "eplb".parse().unwrap();
        run.batching.digest_every_ms = caps.3;
        run.placement.online = online.map(|name: &str| spec::Online {
            policy: name.parse().unwrap(),
            every_ms: 150.0,
            bytes_per_s: 1e10,
        });
        run.routing.lease_ms = 40.0;
        run.placement.replicas = caps.2.min(f64::from(expert));
        run.skew = crate::skew::Spec::Zipf { s: 0.8 };
        run.speed.spread = 0.3;
        run.check().unwrap();
        run
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the cluster, no checker finds anything, and the same run again comes to the same.
    #[test]
    fn any_run_keeps_the_rules_and_is_repeatable(run in runs()) {
        let first = outcome(&run);
        prop_assert_eq!(&first, &outcome(&run));
        let counts = first.sequences;
        prop_assert_eq!(counts.arrived, counts.refused + counts.ended + counts.unfinished);
        if run.placement.replicas > 1.0 || counts.arrived == counts.refused {
            return Ok(());
        }
        prop_assert!(first.tokens_total > 0, "{:?}", first);
    }
}
