use super::*;

fn chooser(spec: &Spec, layers: u16, experts: u16) -> Chooser {
    Chooser::new(spec, layers, experts, 7, Path::new("")).unwrap()
}

/// Shares of the experts of layer 0 over `tokens` draws of the first, by position 0, descending.
fn shares(spec: &Spec, experts: u16, tokens: u64) -> Vec<f64> {
    let mut chooser = chooser(spec, 1, experts);
    let mut counts = vec![0.0; usize::from(experts)];
    let mut out = [0];
    for sequence in 0..tokens {
        chooser.choose(0, sequence, 0, &mut out);
        counts[usize::from(out[0])] += 1.0 / popularity::weight(tokens);
    }
    counts.sort_by(|a, b| f64::total_cmp(b, a));
    counts
}

fn assert_close(found: &[f64], expected: &[f64]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 0.01, "{found} is not about {expected}");
    }
}

#[test]
fn draws_follow_the_weights() {
    assert_close(&shares(&Spec::Uniform {}, 4, 40_000), &[0.25; 4]);
    let harmonic = 1.0 + 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0;
    let zipf = [1.0, 2.0, 3.0, 4.0].map(|rank| 1.0 / (rank * harmonic));
    assert_close(&shares(&Spec::Zipf { s: 1.0 }, 4, 40_000), &zipf);
    let hot = Spec::KHot { hot: 1, share: 0.7 };
    assert_close(&shares(&hot, 4, 40_000), &[0.7, 0.1, 0.1, 0.1]);
    let exponential = shares(&Spec::Exponential { steepness: 4.0 }, 8, 40_000);
    let half = (-0.5f64).exp();
    let total: f64 = (0..8).map(|rank| half.powi(rank)).sum();
    assert_close(&exponential, &[1.0 / total, half / total, half * half / total]);
}

#[test]
fn the_experts_of_a_token_are_distinct_even_when_nearly_all_weight_is_on_one() {
    for spec in [Spec::KHot { hot: 1, share: 1.0 }, Spec::Zipf { s: 8.0 }, Spec::Uniform {}] {
        let mut chooser = chooser(&spec, 2, 8);
        for sequence in 0..200 {
            let mut out = [0; 8];
            chooser.choose(1, sequence, 3, &mut out);
            out.sort_unstable();
            assert_eq!(out, [0, 1, 2, 3, 4, 5, 6, 7], "{spec:?}");
        }
    }
}

#[test]
fn second_choices_follow_what_is_left() {
    let mut chooser = chooser(&Spec::KHot { hot: 1, share: 0.9 }, 1, 3);
    let mut chosen = [0; 3];
    for sequence in 0..10_000 {
        let mut out = [0; 2];
        chooser.choose(0, sequence, 0, &mut out);
        out.iter().for_each(|&expert| chosen[usize::from(expert)] += 1);
    }
    let with_hot = chosen.into_iter().max().unwrap();
    // 1 − (first a cold one) · (then the other cold one) = 1 − 0.1 · 0.05 / 0.95.
    assert!((9_925..9_970).contains(&with_hot), "{with_hot}");
}

#[test]
fn a_choice_depends_on_what_is_asked_and_not_on_when() {
    let spec = Spec::Correlated(Correlated::default());
    let (mut forward, mut backward) = (chooser(&spec, 3, 16), chooser(&spec, 3, 16));
    let asked: Vec<_> = (0..60).map(|n| (n as u16 % 3, u64::from(n) / 7, n)).collect();
    let draw = |chooser: &mut Chooser, &(layer, sequence, position): &(u16, u64, u32)| {
        let mut out = [0; 3];
        chooser.choose(layer, sequence, position, &mut out);
        out
    };
    let there: Vec<_> = asked.iter().map(|ask| draw(&mut forward, ask)).collect();
    let mut back: Vec<_> = asked.iter().rev().map(|ask| draw(&mut backward, ask)).collect();
    back.reverse();
    assert_eq!(there, back);
}

#[test]
fn layers_have_their_own_favourites() {
    let mut chooser = chooser(&Spec::Zipf { s: 3.0 }, 32, 8);
    let mut favourites = [0; 8];
    for layer in 0..32 {
        let mut counts = [0; 8];
        for sequence in 0..200 {
            let mut out = [0];
            chooser.choose(layer, sequence, 0, &mut out);
            counts[usize::from(out[0])] += 1;
        }
        favourites[(0..8).max_by_key(|&expert| counts[expert]).unwrap()] += 1;
    }
    assert!(favourites.iter().all(|&layers| layers < 12), "{favourites:?}");
}

#[test]
fn temporal_experts_come_seldom_together_and_with_many_tokens() {
    let spec = Correlated { s: 0.0, temporal: 0.25, group: 2, window: 1, ..Correlated::default() };
    let mut chooser = chooser(&Spec::Correlated(spec), 1, 16);
    let mut active = [0.0; 16];
    let mut together = 0.0;
    let steps = 2_000;
    for position in 0..steps {
        let mut counts = [0; 16];
        for sequence in 0..200 {
            let mut out = [0; 1];
            chooser.choose(0, sequence, position, &mut out);
            counts[usize::from(out[0])] += 1;
        }
        for (active, count) in active.iter_mut().zip(counts) {
            *active += f64::from(u8::from(count > 0)) / f64::from(steps);
        }
        together += f64::from(u8::from((counts[0] > 0) == (counts[1] > 0))) / f64::from(steps);
    }
    assert!(active[..4].iter().all(|&part| (0.05..0.32).contains(&part)), "{active:?}");
    assert!(active[4..].iter().all(|&part| (0.7..0.97).contains(&part)), "{active:?}");
    assert!(together > 0.99, "{together}");
}

#[test]
fn a_recorded_trace_comes_back_step_by_step() {
    let text =
        "{\"step\":5,\"layer\":3,\"tokens\":[0,9]}\n{\"step\":2,\"layer\":3,\"tokens\":[4,0]}\n";
    let trace = parse_trace(text).unwrap();
    let mut chooser = Chooser::recorded(&trace, 1).unwrap();
    for position in 0..6 {
        let mut out = [9];
        chooser.choose(0, 77, position, &mut out);
        assert_eq!(u32::from(out[0]), position % 2);
    }
}

#[test]
fn bad_traces_and_parameters_are_named() {
    let complaint = |text: &str| parse_trace(text).unwrap_err();
    assert!(complaint("").contains("no lines"));
    assert!(complaint("{\"step\":1}").starts_with("line 1: missing field"));
    let first = "{\"step\":1,\"layer\":0,\"tokens\":[1,2]}\n";
    assert!(complaint(&format!("{first}{first}")).contains("line 2 names layer 0 of step 1 again"));
    let short = "{\"step\":1,\"layer\":1,\"tokens\":[1]}";
    assert!(complaint(&format!("{first}{short}")).contains("line 2 counts 1 experts, expected 2"));
    let other = "{\"step\":2,\"layer\":1,\"tokens\":[1,1]}";
    assert!(complaint(&format!("{first}{other}")).contains("step 2 names other layers"));
    let bad = Chooser::new(&Spec::KHot { hot: 8, share: 0.5 }, 1, 8, 0, Path::new(""));
    assert!(bad.unwrap_err().contains("skew.hot is 8, expected 1 to 7"));
}
