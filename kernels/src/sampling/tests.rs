use super::*;
use crate::random::{backends, bits, cpu, numbers};
use crate::{Compute, Isa};

fn greedy() -> SamplingSpec {
    SamplingSpec { temperature: 0.0, ..SamplingSpec::default() }
}

/// Samples one row at a position.
fn once(cpu: &Cpu, spec: &SamplingSpec, logits: &[f32], position: u64) -> Sampled {
    let mut logits = logits.to_vec();
    let counts = TokenCounts::default();
    let draw = Draw { spec, counts: &counts, banned: &[], allowed: None, given: None, position };
    let mut out = Vec::new();
    sample(cpu, &mut logits, &[draw], &mut SamplingScratch::default(), &mut out);
    out.remove(0)
}

fn plain_cpu() -> Cpu {
    cpu(Isa::detect(), Compute::F32, 1)
}

#[test]
fn greedy_takes_the_largest_and_the_lowest_among_equals() {
    for cpu in backends() {
        for vocabulary in [1, 2, 15, 16, 17, 127, 128, 129, 1000, 4099] {
            let mut logits = numbers(vocabulary as u64, vocabulary);
            for at in [0, vocabulary / 3, vocabulary - 1] {
                logits[at] = 2.0;
                logits[vocabulary - 1] = 2.0;
                assert_eq!(once(&cpu, &greedy(), &logits, 0).token as usize, at, "{vocabulary}");
                logits[at] = -1.0;
            }
        }
    }
}

#[test]
fn rows_without_a_distribution_still_give_a_token() {
    for cpu in backends() {
        for spec in [greedy(), SamplingSpec { top_k: 3, top_p: 0.9, ..SamplingSpec::default() }] {
            for fill in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
                assert_eq!(once(&cpu, &spec, &[fill; 40], 1).token, 0);
            }
            let mut logits = [f32::NAN; 40];
            logits[33] = -5.0;
            assert_eq!(once(&cpu, &spec, &logits, 1).token, 33);
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_raw_logits() {
    let vocabulary = 3001;
    let mut logits = numbers(2, vocabulary);
    logits.iter_mut().for_each(|x| *x *= 9.0);
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let want = |id: u32| f64::from(logits[id as usize]) - total.ln();
    let mut order: Vec<u32> = (0..vocabulary as u32).collect();
    order.sort_by(|&a, &b| want(b).total_cmp(&want(a)).then(a.cmp(&b)));
    let bias = (order[7], 100.0);
    for cpu in backends() {
        for alternatives in [0, 1, 5, 40] {
            let logprobs = Some(alternatives);
            let spec = SamplingSpec { logprobs, logit_bias: vec![bias], ..greedy() };
            let got = once(&cpu, &spec, &logits, 0);
            assert_eq!(got.token, order[7]);
            assert!((f64::from(got.logprob.unwrap()) - want(order[7])).abs() < 2e-6);
            let ids: Vec<u32> = got.top.iter().map(|(id, _)| *id).collect();
            assert_eq!(ids, order[..alternatives]);
            for (id, logprob) in got.top {
                assert!((f64::from(logprob) - want(id)).abs() < 2e-6);
            }
        }
    }
    let all = SamplingSpec { logprobs: Some(vocabulary + 5), ..greedy() };
    assert_eq!(once(&plain_cpu(), &all, &logits, 0).top.len(), vocabulary);
}

#[test]
fn only_allowed_tokens_come_and_logits_stay() {
    let counts = TokenCounts::new(&[3]);
    for cpu in backends() {
        for vocabulary in [5_usize, 32, 33, 100, 4099] {
            let logits = numbers(vocabulary as u64, vocabulary);
            for step in [1, 2, 7] {
                let is_allowed = |id: usize| id % step == step / 2;
                let mut allowed = vec![0; vocabulary.div_ceil(32)];
                (0..vocabulary)
                    .filter(|&id| is_allowed(id))
                    .for_each(|id| allowed[id / 32] |= 1 << (id % 32));
                let best = (0..vocabulary).filter(|&id| is_allowed(id));
                let best = best.max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                let warm = SamplingSpec {
                    top_k: 40,
                    top_p: 0.9,
                    logit_bias: vec![(4, 100.0)],
                    ..SamplingSpec::default()
                };
                let plain = SamplingSpec { logprobs: Some(2), ..greedy() };
                for (at, spec) in [plain, warm].iter().enumerate() {
                    for position in 0..20 {
                        let draw = Draw {
                            spec,
                            counts: &counts,
                            banned: &[],
                            allowed: Some(&allowed),
                            given: None,
                            position,
                        };
                        let (mut row, mut out) = (logits.clone(), Vec::new());
                        sample(&cpu, &mut row, &[draw], &mut SamplingScratch::default(), &mut out);
                        assert_eq!(row, logits);
                        let token = out[0].token as usize;
                        assert!(is_allowed(token), "{token} of {vocabulary} by {step}");
                        assert!(at == 1 || token == best);
                    }
                }
            }
            // Nothing is beyond the last word.
            let draw = Draw {
                spec: &greedy(),
                counts: &counts,
                banned: &[],
                allowed: Some(&[2]),
                given: None,
                position: 0,
            };
            let mut out = Vec::new();
            sample(&cpu, &mut logits.clone(), &[draw], &mut SamplingScratch::default(), &mut out);
            assert_eq!(out[0].token, 1);
        }
    }
}

#[test]
fn a_given_token_is_told_as_a_drawn_one() {
    let logits = numbers(5, 1000);
    let counts = TokenCounts::default();
    for cpu in backends() {
        let spec = SamplingSpec { logprobs: Some(3), ..greedy() };
        let drawn = once(&cpu, &spec, &logits, 0);
        for given in [drawn.token, 17, 5000] {
            let draw = Draw {
                spec: &spec,
                counts: &counts,
                banned: &[given],
                allowed: None,
                given: Some(given),
                position: 0,
            };
            let (mut row, mut out) = (logits.clone(), Vec::new());
            sample(&cpu, &mut row, &[draw], &mut SamplingScratch::default(), &mut out);
            assert_eq!((row, out[0].token, &out[0].top), (logits.clone(), given, &drawn.top));
            let expected = logits.get(given as usize).map_or(f32::NEG_INFINITY, |logit| {
                let biased = SamplingSpec { logit_bias: vec![(given, 100.0)], ..spec.clone() };
                assert!(logit.is_finite());
                once(&cpu, &biased, &logits, 0).logprob.unwrap()
            });
            assert_eq!(out[0].logprob, Some(expected));
        }
    }
}

#[test]
fn penalties_bias_and_bans_change_the_named_logits() {
    let spec = SamplingSpec {
        repetition_penalty: 2.0,
        presence_penalty: 0.25,
        frequency_penalty: 0.5,
        logit_bias: vec![(5, 3.0), (99, 1.0)],
        ..greedy()
    };
    let mut counts = TokenCounts::new(&[1, 2, 2, 98]);
    for token in [2, 3, 3, 3, 5] {
        counts.record(token);
    }
    let before = [1.0, 4.0, -4.0, 8.0, 6.0, 1.0, 7.0];
    let draw = Draw {
        spec: &spec,
        counts: &counts,
        banned: &[6, 97],
        allowed: None,
        given: None,
        position: 0,
    };
    let mut logits = before;
    change(&draw, &mut logits, &mut Vec::new());
    // Prompt only: repetition. Output: frequency and presence as well, after bias.
    let want = [
        1.0,
        4.0 / 2.0,
        -4.0 * 2.0 - 0.5 - 0.25,
        8.0 / 2.0 - 3.0 * 0.5 - 0.25,
        6.0,
        (1.0 + 3.0) / 2.0 - 0.5 - 0.25,
        f32::NEG_INFINITY,
    ];
    assert_eq!(logits, want);

    let mut logits = before;
    let mut out = Vec::new();
    sample(&plain_cpu(), &mut logits, &[draw], &mut SamplingScratch::default(), &mut out);
    assert_eq!(out[0].token, 4);
    assert_eq!(logits, before, "logits are restored");
}

#[test]
fn a_token_that_is_biased_penalised_and_banned_is_banned_and_restored() {
    let spec = SamplingSpec { repetition_penalty: 0.5, logit_bias: vec![(1, 9.0)], ..greedy() };
    let counts = TokenCounts::new(&[1]);
    let draw = Draw {
        spec: &spec,
        counts: &counts,
        banned: &[1],
        allowed: None,
        given: None,
        position: 0,
    };
    let mut logits = [0.5, 0.75, 0.25];
    let mut out = Vec::new();
    sample(&plain_cpu(), &mut logits, &[draw], &mut SamplingScratch::default(), &mut out);
    assert_eq!((out[0].token, logits), (0, [0.5, 0.75, 0.25]));
}

/// Probabilities after temperature and filters, by sorting, in f64.
fn distribution(spec: &SamplingSpec, logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let weight = |x: f32| (f64::from(x - max) / f64::from(spec.temperature)).exp();
    let mut weights: Vec<f64> = logits.iter().map(|&x| weight(x)).collect();
    weights.iter_mut().filter(|w| **w < f64::from(spec.min_p)).for_each(|w| *w = 0.0);
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    if spec.top_k > 0 {
        order.iter().skip(spec.top_k).for_each(|&i| weights[i] = 0.0);
    }
    let total: f64 = weights.iter().sum();
    let mut before = 0.0;
    for &i in &order {
        let weight = weights[i];
        if before >= f64::from(spec.top_p) * total {
            weights[i] = 0.0;
        }
        before += weight;
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

#[test]
fn draws_follow_the_filtered_distribution() {
    let plain = SamplingSpec::default();
    let specs = [
        plain.clone(),
        SamplingSpec { temperature: 0.5, ..plain.clone() },
        SamplingSpec { top_k: 7, ..plain.clone() },
        SamplingSpec { top_p: 0.6, ..plain.clone() },
        SamplingSpec { min_p: 0.2, temperature: 1.5, ..plain.clone() },
        SamplingSpec { min_p: 0.05, top_p: 0.7, top_k: 12, seed: 9, ..plain },
    ];
    const DRAWS: u64 = 20_000;
    let mut logits = numbers(4, 300);
    logits.iter_mut().for_each(|x| *x *= 6.0);
    let cpu = plain_cpu();
    for spec in specs {
        let want = distribution(&spec, &logits);
        let mut seen = vec![0_u32; logits.len()];
        for position in 0..DRAWS {
            seen[once(&cpu, &spec, &logits, position).token as usize] += 1;
        }
        for (token, (&seen, &p)) in seen.iter().zip(&want).enumerate() {
            if p == 0.0 {
                assert_eq!(seen, 0, "{token} is filtered out by {spec:?}");
            }
            let expected = p * DRAWS as f64;
            let five_sigma = 5.0 * (expected * (1.0 - p)).sqrt() + 3.0;
            assert!((f64::from(seen) - expected).abs() < five_sigma, "{token}: {seen}, {expected}");
        }
    }
}

#[test]
fn the_nucleus_is_the_smallest_set_that_reaches_its_mass() {
    let logits = numbers(5, 50_000);
    let cpu = plain_cpu();
    for top_p in [0.05, 0.5, 0.99] {
        let spec = SamplingSpec { top_p, ..SamplingSpec::default() };
        let kept = distribution(&spec, &logits).iter().filter(|&&p| p > 0.0).count();
        let mut worker = Worker::default();
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let cut =
            lanes::run(cpu.isa(), Nucleus { logits: &logits, max, top_p, worker: &mut worker });
        let got = worker.weights.iter().filter(|&&w| w >= cut).count();
        assert!(got.abs_diff(kept) <= 2, "{got} for {kept}: only rounding may differ");
    }
}

struct Nucleus<'a> {
    logits: &'a [f32],
    max: f32,
    top_p: f32,
    worker: &'a mut Worker,
}

impl Kernel for Nucleus<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> f32 {
        let weights = &mut self.worker.weights;
        weights.resize(self.logits.len(), 0.0);
        let how = (self.max, std::f32::consts::LOG2_E, f32::NEG_INFINITY);
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            scan::weights::<L>(self.logits, how, weights);
            self.worker.scan.nucleus::<L>(weights, 0.0, self.top_p)
        }
    }
}

#[test]
fn a_token_depends_neither_on_its_batch_nor_on_the_machine() {
    let vocabulary = 2000;
    let rows = 9;
    let logits = numbers(6, rows * vocabulary);
    let specs: Vec<SamplingSpec> = (0..rows)
        .map(|i| SamplingSpec {
            temperature: i as f32 * 0.3,
            top_k: i * 20 % 80,
            top_p: 1.0 - 0.03 * i as f32,
            seed: i as u64,
            logprobs: (i % 2 == 0).then_some(3),
            ..SamplingSpec::default()
        })
        .collect();
    let counts = TokenCounts::default();
    let draws: Vec<Draw<'_>> = specs
        .iter()
        .map(|spec| Draw {
            spec,
            counts: &counts,
            banned: &[],
            allowed: None,
            given: None,
            position: 5,
        })
        .collect();
    let alone: Vec<Sampled> = specs
        .iter()
        .zip(logits.chunks(vocabulary))
        .map(|(spec, row)| once(&plain_cpu(), spec, row, 5))
        .collect();
    for cpu in backends() {
        let (mut logits, mut out) = (logits.clone(), Vec::new());
        sample(&cpu, &mut logits, &draws, &mut SamplingScratch::default(), &mut out);
        for (got, alone) in out.iter().zip(&alone) {
            assert_eq!((got.token, &got.top), (alone.token, &alone.top), "{}", cpu.isa());
            assert_eq!(got.logprob.map(|x| bits(&[x])), alone.logprob.map(|x| bits(&[x])));
        }
    }
}

#[test]
fn the_generator_is_fixed_uniform_and_a_function_of_seed_and_position() {
    let drawn: Vec<f64> = (0..10_000).map(|i| draw::uniform(i % 100, i / 100)).collect();
    assert!(drawn.iter().all(|u| (0.0..1.0).contains(u)));
    let mean = drawn.iter().sum::<f64>() / 10_000.0;
    assert!((mean - 0.5).abs() < 0.015, "{mean}");
    for tenth in 0..10 {
        let low = f64::from(tenth) / 10.0;
        let inside = drawn.iter().filter(|&&u| u >= low && u < low + 0.1).count();
        assert!((850..1150).contains(&inside), "{inside} from {low}");
    }
    let distinct: std::collections::HashSet<u64> = drawn.iter().map(|u| u.to_bits()).collect();
    assert_eq!(distinct.len(), 10_000);
    // A restart on another version must go on with the same text.
    assert_eq!(draw::uniform(0, 0).to_bits(), FIRST);
}

/// The first number of seed 0.
const FIRST: u64 = 0x3fe4_e0db_a5e9_a32f;
