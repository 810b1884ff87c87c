use super::*;
use crate::random::{backends, bits, cpu, numbers};

fn softmax(experts: usize, top_k: usize, normalize: bool) -> RouterSpec {
    RouterSpec { experts, top_k, scoring: Scoring::Softmax, normalize, groups: None, scale: 1.0 }
}

fn deepseek() -> RouterSpec {
    RouterSpec {
        experts: 32,
        top_k: 6,
        scoring: Scoring::Sigmoid { bias: numbers(9, 32) },
        normalize: true,
        groups: Some(Groups { count: 8, kept: 3 }),
        scale: 2.5,
    }
}

/// Experts and weights of one row by the definition: sort everything, in f64.
fn reference(spec: &RouterSpec, logits: &[f32]) -> Vec<(u32, f64)> {
    let scores: Vec<f64> = match spec.scoring {
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let e: Vec<f64> = logits.iter().map(|&x| f64::from(x - max).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.iter().map(|e| e / sum).collect()
        }
        Scoring::Sigmoid { .. } => {
            logits.iter().map(|&x| 1.0 / (1.0 + f64::from(-x).exp())).collect()
        }
    };
    let mut choice = scores.clone();
    if let Scoring::Sigmoid { bias } = &spec.scoring {
        choice.iter_mut().zip(bias).for_each(|(c, &b)| *c += f64::from(b));
    }
    let descending = |x: &[f64]| {
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| x[b].total_cmp(&x[a]).then(a.cmp(&b)));
        order
    };
    if let Some(Groups { count, kept }) = spec.groups {
        let size = spec.experts / count;
        let group_scores: Vec<f64> = choice
            .chunks(size)
            .map(|group| descending(group).iter().take(2).map(|&i| group[i]).sum())
            .collect();
        for &group in &descending(&group_scores)[kept..] {
            choice[group * size..(group + 1) * size].fill(f64::NEG_INFINITY);
        }
    }
    let mut chosen = descending(&choice)[..spec.top_k].to_vec();
    chosen.sort_unstable();
    let sum: f64 = chosen.iter().map(|&e| scores[e]).sum();
    let by = if spec.normalize { sum } else { 1.0 };
    chosen.iter().map(|&e| (e as u32, scores[e] / by * f64::from(spec.scale))).collect()
}

fn specs() -> Vec<RouterSpec> {
    let plain_sigmoid = RouterSpec { groups: None, ..deepseek() };
    let unbiased = Scoring::Sigmoid { bias: Vec::new() };
    vec![
        softmax(8, 2, true),
        softmax(128, 8, true),
        softmax(60, 4, false),
        deepseek(),
        RouterSpec { normalize: false, ..plain_sigmoid.clone() },
        RouterSpec { scoring: unbiased, ..plain_sigmoid },
    ]
}

#[test]
fn agrees_with_the_definition() {
    for cpu in backends() {
        for spec in specs() {
            let mut logits = numbers(3, 50 * spec.experts);
            logits.iter_mut().for_each(|x| *x *= 4.0);
            let mut routing = Routing::default();
            top_k_route(&cpu, &spec, &logits, &mut routing);
            assert_eq!((routing.rows(), routing.top_k()), (50, spec.top_k));
            for (row, logits) in logits.chunks(spec.experts).enumerate() {
                let want = reference(&spec, logits);
                let experts: Vec<u32> = want.iter().map(|(expert, _)| *expert).collect();
                assert_eq!(routing.experts(row), experts, "{spec:?}");
                for (&got, (_, want)) in routing.weights(row).iter().zip(want) {
                    assert!((f64::from(got) - want).abs() < 1e-6 * want.abs(), "{got} for {want}");
                }
            }
        }
    }
}

#[test]
fn equal_scores_go_to_the_lower_expert() {
    let cpu = cpu(crate::Isa::Portable, crate::Compute::F32, 1);
    let mut routing = Routing::default();
    let logits = [1.0, 3.0, 2.0, 3.0, 2.0, 2.0, 0.0, 2.0];
    top_k_route(&cpu, &softmax(8, 4, true), &logits, &mut routing);
    assert_eq!(routing.experts(0), [1, 2, 3, 4]);
    // All groups equal: the first ones are kept.
    let unbiased = RouterSpec { scoring: Scoring::Sigmoid { bias: Vec::new() }, ..deepseek() };
    top_k_route(&cpu, &unbiased, &[0.5; 32], &mut routing);
    assert_eq!(routing.experts(0), [0, 1, 2, 3, 4, 5]);
    assert!(routing.weights(0).iter().all(|w| (w - 2.5 / 6.0).abs() < 1e-6));
}

#[test]
fn a_row_that_is_not_a_number_still_names_distinct_experts() {
    let cpu = cpu(crate::Isa::detect(), crate::Compute::F32, 1);
    let mut routing = Routing::default();
    for spec in specs() {
        top_k_route(&cpu, &spec, &vec![f32::NAN; spec.experts], &mut routing);
        assert!(routing.experts(0).windows(2).all(|pair| pair[0] < pair[1]), "{spec:?}");
    }
    let mut logits = [0.0; 8];
    logits[2] = f32::NAN;
    top_k_route(&cpu, &softmax(8, 7, true), &logits, &mut routing);
    assert!(!routing.experts(0).contains(&2));
}

#[test]
fn extreme_logits_give_finite_weights() {
    let mut routing = Routing::default();
    for cpu in backends() {
        for spec in specs() {
            for extreme in [1e30, -1e30] {
                top_k_route(&cpu, &spec, &vec![extreme; spec.experts], &mut routing);
                assert!(routing.weights(0).iter().all(|w| w.is_finite()), "{spec:?} {extreme}");
            }
        }
    }
}

#[test]
fn bits_depend_neither_on_the_batch_nor_on_the_machine() {
    for spec in specs() {
        let logits = numbers(8, 700 * spec.experts);
        let route = |cpu: &Cpu, logits: &[f32]| {
            let mut routing = Routing::default();
            top_k_route(cpu, &spec, logits, &mut routing);
            (routing.experts, bits(&routing.weights))
        };
        let first = route(&backends()[0], &logits);
        for two in backends() {
            assert!(route(&two, &logits) == first, "{}", two.isa());
            let one = cpu(two.isa(), two.compute(), 1);
            let (mut experts, mut weights) = (Vec::new(), Vec::new());
            for row in logits.chunks(spec.experts) {
                let alone = route(&one, row);
                experts.extend(alone.0);
                weights.extend(alone.1);
            }
            assert!((experts, weights) == first, "{}", two.isa());
        }
    }
}

#[test]
#[should_panic(expected = "eligible")]
fn more_experts_than_the_groups_hold_is_refused() {
    let spec = RouterSpec { top_k: 13, ..deepseek() };
    let cpu = cpu(crate::Isa::Portable, crate::Compute::F32, 1);
    top_k_route(&cpu, &spec, &[0.0; 32], &mut Routing::default());
}
