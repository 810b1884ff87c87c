//! Every rule on a request, by the sentence that it refuses with.

use super::*;

/// Wishes and the beginning of the sentence that refuses them.
fn check_all<const N: usize>(cases: [(Wishes, &str); N]) {
    for (wishes, expected) in cases {
        let message = wishes.check(100).unwrap_err().message;
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn nothing_stated_means_the_defaults_of_the_api() {
    let wishes = Wishes { seed: Some(7), ..Wishes::default() };
    let sampling = wishes.check(100).unwrap();
    let params = sampling.settle(10, 64).unwrap();
    let expected = SamplingParams { seed: 7, tokens_max: 54, ..SamplingParams::default() };
    assert_eq!(params, expected);
    assert_eq!(sampling.n, 1);
}

#[test]
fn every_rule_on_numbers_has_a_sentence() {
    let none = Wishes::default;
    check_all([
        (
            Wishes { temperature: Some(-0.1), ..none() },
            "`temperature`: expected a number of at least 0, found -0.1",
        ),
        (
            Wishes { temperature: Some(f64::NAN), ..none() },
            "`temperature`: expected a number of at least 0, found NaN",
        ),
        (
            Wishes { temperature: Some(1e300), ..none() },
            "`temperature`: expected a number of at least 0, found 1e300",
        ),
        (
            Wishes { top_p: Some(0.0), ..none() },
            "`top_p`: expected a number above 0 and up to 1, found 0",
        ),
        (
            Wishes { top_p: Some(1e-300), ..none() },
            "`top_p`: expected a number above 0 and up to 1, found 1e-300",
        ),
        (
            Wishes { top_k: Some(-2), ..none() },
            "`top_k`: expected an integer of at least 0, found -2",
        ),
        (
            Wishes { min_p: Some(1.5), ..none() },
            "`min_p`: expected a number from 0 to 1, found 1.5",
        ),
        (
            Wishes { presence_penalty: Some(2.5), ..none() },
            "`presence_penalty`: expected a number from -2 to 2, found 2.5",
        ),
        (
            Wishes { repetition_penalty: Some(0.0), ..none() },
            "`repetition_penalty`: expected a number above 0, found 0",
        ),
    ]);
}

#[test]
fn every_rule_on_tokens_and_counts_has_a_sentence() {
    let none = Wishes::default;
    check_all([
        (
            Wishes { logit_bias: vec![(100, 1.0)], ..none() },
            "`logit_bias`: expected token ids below the vocabulary's size 100, found 100",
        ),
        (
            Wishes { logit_bias: vec![(1, 101.0)], ..none() },
            "`logit_bias`: expected biases from -100 to 100, found 101",
        ),
        (
            Wishes { max_tokens: Some(0), ..none() },
            "`max_tokens`: expected an integer of at least 1, found 0",
        ),
        (
            Wishes { max_tokens: Some(2), min_tokens: Some(3), ..none() },
            "`min_tokens`: expected at most `max_tokens`, which is 2, found 3",
        ),
        (
            Wishes { stop_token_ids: vec![-1], ..none() },
            "`stop_token_ids`: expected token ids below the vocabulary's size 100, found -1",
        ),
        (
            Wishes { stop: vec![String::new()], ..none() },
            "`stop`: expected strings of 1 to 1024 bytes, found one of 0 bytes",
        ),
        (
            Wishes { stop: vec!["x".into(); 65], ..none() },
            "`stop`: expected at most 64 entries, found 65",
        ),
        (Wishes { n: Some(0), ..none() }, "`n`: expected an integer from 1 to 128, found 0"),
        (
            Wishes { logprobs: Some(21), ..none() },
            "`logprobs`: expected an integer from 0 to 20, found 21",
        ),
    ]);
}

#[test]
fn lengths_are_refused_with_both_numbers() {
    let sampling = Wishes { max_tokens: Some(20), ..Wishes::default() };
    let sampling = sampling.check(100).unwrap();
    assert_eq!(sampling.settle(44, 64).unwrap().tokens_max, 20);
    let refusal = sampling.settle(45, 64).unwrap_err();
    assert_eq!(refusal.kind, Kind::TooLong);
    assert!(refusal.message.contains("has 45 and 20 more"), "{refusal}");
    let refusal = sampling.settle(64, 64).unwrap_err();
    assert!(refusal.message.contains("the prompt has 64"), "{refusal}");
    assert!(sampling.settle(usize::MAX, 64).is_err());
}

#[test]
fn an_absent_seed_is_drawn_and_a_stated_one_kept() {
    let seed = |seed| {
        let sampling = Wishes { seed, ..Wishes::default() }.check(100).unwrap();
        sampling.settle(1, 64).unwrap().seed
    };
    assert_eq!(seed(Some(3)), 3);
    assert_ne!(seed(None), seed(None));
}
