//! The score by hand-computed examples, and the guards around it.

use super::*;

const NOW: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;

fn batcher(tuning: Tuning, tokens: &[&[u32]]) -> Batcher {
    let mut batcher = Batcher::new(tokens.len(), tokens[0].len(), tuning);
    for (stage, groups) in tokens.iter().enumerate() {
        for (group, &tokens) in groups.iter().enumerate() {
            batcher.set(stage, group, tokens, NOW);
        }
    }
    batcher
}

fn defrag(lookahead: usize, decay: f64) -> Tuning {
    Tuning { lookahead, decay, lookback: 0, ..rival(Rule::Defrag) }
}

fn rival(rule: Rule) -> Tuning {
    Tuning { rule, age_guard_ms: 10, ..Tuning::default() }
}

impl Batcher {
    /// The queue to run next, where nothing is held.
    fn pick(&mut self, now_ns: u64) -> Option<Pick> {
        match self.decide(now_ns) {
            Decision::Run(pick) => Some(pick),
            Decision::Hold { .. } | Decision::Rest => None,
        }
    }
}

fn picked(mut batcher: Batcher) -> Option<(usize, usize)> {
    batcher.pick(NOW).map(|pick| (pick.stage, pick.group))
}

#[test]
fn defrag_prefers_the_queue_behind_a_crowd() {
    // Stage 0: 4 + 0.5·3 + 0.25·5 = 6.75; stage 1: 3 + 0.5·5 = 5.5; stage 2: 5 + 0.25·4 = 6.
    let queues: &[&[u32]] = &[&[4], &[3], &[5], &[0]];
    let mut batcher = batcher(defrag(2, 0.5), queues);
    let pick = batcher.pick(NOW).unwrap();
    assert_eq!((pick.stage, pick.reason), (0, Reason::Score(6.75)));
    assert_eq!(picked(self::batcher(rival(Rule::MostTokens), queues)), Some((2, 0)));
}

#[test]
fn look_ahead_is_circular_and_shared_by_groups() {
    // Stage 2 sees stage 0 next: 1 + 0.5·(6 + 2)/2 = 3, against 6 for stage 0's own first group.
    let mut batcher = batcher(defrag(1, 0.5), &[&[6, 2], &[0, 0], &[1, 0]]);
    assert_eq!(batcher.ahead(2), 2.0);
    assert_eq!(batcher.pick(NOW).map(|pick| (pick.stage, pick.group)), Some((0, 0)));
}

#[test]
fn empty_queues_never_win() {
    let crowd_ahead: &[&[u32]] = &[&[0], &[1], &[9]];
    assert_eq!(picked(batcher(defrag(2, 0.9), crowd_ahead)), Some((2, 0)));
    for tuning in [defrag(7, 0.8), rival(Rule::MostTokens), rival(Rule::LowestLayer)] {
        assert_eq!(picked(batcher(tuning, &[&[0], &[0]])), None);
    }
}

#[test]
fn lowest_layer_takes_the_first_and_ties_go_low() {
    assert_eq!(picked(batcher(rival(Rule::LowestLayer), &[&[0], &[1], &[9]])), Some((1, 0)));
    assert_eq!(
        picked(batcher(rival(Rule::MostTokens), &[&[0, 0], &[3, 3], &[3, 0]])),
        Some((1, 0))
    );
}

#[test]
fn a_queue_that_was_passed_over_for_too_long_runs_first() {
    let mut batcher = batcher(rival(Rule::MostTokens), &[&[9], &[1], &[1]]);
    batcher.set(1, 0, 1, NOW - 12 * MS);
    batcher.set(2, 0, 1, NOW - 11 * MS);
    for _ in 0..3 {
        assert_eq!(batcher.pick(NOW).unwrap().stage, 0, "others may still have their turn");
    }
    let pick = batcher.pick(NOW).unwrap();
    assert_eq!((pick.stage, pick.reason), (1, Reason::Age(12 * MS)));
    batcher.set(1, 0, 0, 0);
    batcher.set(2, 0, 1, NOW - 10 * MS);
    assert_eq!(batcher.pick(NOW).unwrap().stage, 0, "at the guard is not past it");
    batcher.set(2, 0, 0, 0);
    batcher.set(2, 0, 1, NOW - 11 * MS);
    assert_eq!(batcher.pick(NOW).unwrap().stage, 0, "it was empty in between");
}

#[test]
fn look_back_remembers_a_stage_that_refills() {
    let tuning = Tuning { lookback: 2, ..defrag(1, 0.5) };
    let mut batcher = batcher(tuning, &[&[0], &[0], &[4], &[5]]);
    assert_eq!(batcher.pick(NOW).unwrap().stage, 2, "4 + 0.5·5 beats 5");
    // Stage 3 is drained; the mean of one pick still counts 5 for it.
    batcher.set(3, 0, 0, 0);
    batcher.set(0, 0, 6, NOW);
    assert_eq!(batcher.ahead(2), 2.5);
    assert_eq!(batcher.pick(NOW).unwrap().stage, 2, "4 + 0.5·5 beats 6");
    assert_eq!(batcher.ahead(2), 1.25, "half of the remembered picks saw the 5");
    assert_eq!(batcher.pick(NOW).unwrap().stage, 0, "6 beats 4 + 0.5·2.5");
    assert_eq!(batcher.ahead(2), 0.0, "the memory is two picks long");
}

#[test]
fn bad_tuning_is_one_sentence() {
    let bad = Tuning { decay: 1.0, ..Tuning::default() };
    assert_eq!(bad.check().unwrap_err(), "decay is 1, expected above 0 and below 1");
    let bad = Tuning { drain_max: 0, ..Tuning::default() };
    assert!(bad.check().is_err() && Tuning::default().check().is_ok());
}

#[test]
fn tokens_on_their_way_count_until_the_news_are_old() {
    // Alone stage 0 wins; with 8 tokens coming to stage 2, stage 1 has them just ahead.
    let queues: &[&[u32]] = &[&[4], &[3], &[0], &[0]];
    let tuning = Tuning { digest_ms: 5, ..defrag(1, 0.5) };
    let mut batcher = batcher(tuning, queues);
    assert_eq!(batcher.pick(NOW).unwrap().stage, 0);
    batcher.hear([0, 0, 8], NOW);
    let pick = batcher.pick(NOW + 5 * MS).unwrap();
    assert_eq!((pick.stage, pick.reason), (1, Reason::Score(7.0)));
    assert_eq!(batcher.pick(NOW + 6 * MS).unwrap().stage, 0);
}

#[test]
fn a_digest_says_what_comes_to_one_expert_node() {
    let digest = Digest { rows: vec![6, 0, 1, 9], pairs: vec![10, 4, 8] };
    let own = |layer: usize| [4, 0, 8][layer];
    // Layer 0: 6 rows of 2 experts and nothing from the last layer; layer 1: 6 pairs of others from layer 0;
    // layer 2: 1 row of 2 and 4 pairs. The LM head's rows come to no expert.
    assert_eq!(pairs_coming(&digest, own, 2, 2).collect::<Vec<_>>(), [6, 3, 3]);
}

/// Stage 0 has 4 tokens with 2 behind them, stage 1 has 1 token; a run takes 10 µs.
fn held() -> Batcher {
    let mut batcher = batcher(defrag(1, 0.5), &[&[4], &[1], &[0]]);
    (0..100).for_each(|_| batcher.ran(10_000));
    batcher.follow(0, 2);
    batcher
}

#[test]
fn a_queue_is_held_while_tokens_are_right_behind_it() {
    let mut batcher = held();
    assert_eq!(batcher.pick(NOW).map(|pick| pick.stage), Some(1), "stage 0 waits for 2 more");
    batcher.set(1, 0, 0, 0);
    let Decision::Hold { until_ns } = batcher.decide(NOW) else { panic!("nothing else waits") };
    assert!((9_000..=10_000).contains(&(until_ns - NOW)), "as long as a run takes");
    assert_eq!(batcher.decide(NOW + 1), Decision::Hold { until_ns }, "patience does not grow");
    batcher.set(0, 0, 6, NOW);
    batcher.follow(0, 0);
    assert_eq!(batcher.pick(NOW + 2).map(|pick| pick.stage), Some(0), "they came");
}

#[test]
fn a_crowd_does_not_wait_for_a_straggler() {
    let mut batcher = held();
    batcher.set(0, 0, 128, NOW);
    assert_eq!(batcher.pick(NOW).map(|pick| pick.stage), Some(0), "2 behind 128");
    batcher.set(0, 0, 127, NOW);
    batcher.set(1, 0, 0, 0);
    assert!(matches!(batcher.decide(NOW), Decision::Hold { .. }));
}

#[test]
fn a_full_queue_waits_for_nobody() {
    let mut batcher = held();
    batcher.tuning.drain_max = 4;
    assert_eq!(batcher.pick(NOW).map(|pick| pick.stage), Some(0));
}

#[test]
fn patience_ends_and_shrinks_and_grows_again() {
    let mut batcher = held();
    batcher.set(1, 0, 0, 0);
    let mut now = NOW;
    let mut hold = |batcher: &mut Batcher| {
        now += MS;
        let Decision::Hold { until_ns } = batcher.decide(now) else { panic!("more is behind") };
        let waited = until_ns - now;
        now = until_ns;
        (waited, now)
    };
    let (first, end) = hold(&mut batcher);
    assert!(batcher.pick(end).is_some(), "in vain");
    let (second, end) = hold(&mut batcher);
    assert_eq!(second, first / 2);
    assert!(batcher.pick(end).is_some());
    let (third, end) = hold(&mut batcher);
    assert_eq!(third, first / 4);
    batcher.follow(0, 0);
    assert!(batcher.pick(end).is_some());
    batcher.follow(0, 1);
    assert_eq!(hold(&mut batcher).0, second, "the last wait was not in vain");
}

#[test]
fn nobody_waits_without_patience_or_tokens() {
    let mut impatient = batcher(Tuning { hold_runs: 0.0, ..defrag(1, 0.5) }, &[&[4], &[0]]);
    impatient.ran(10_000);
    impatient.follow(0, 2);
    assert_eq!(impatient.pick(NOW).map(|pick| pick.stage), Some(0));
    impatient.set(0, 0, 0, 0);
    assert_eq!(impatient.decide(NOW), Decision::Rest);
    let mut rival = batcher(rival(Rule::MostTokens), &[&[4], &[0]]);
    rival.ran(10_000);
    rival.follow(0, 2);
    assert_eq!(rival.pick(NOW).map(|pick| pick.stage), Some(0), "the papers' rules never wait");
}

#[test]
fn rows_behind_are_those_ready_and_those_that_come_back_first() {
    let told: Vec<u32> = rows_behind([3, 0, 5].into_iter(), [7, 2, 0].into_iter()).collect();
    assert_eq!(told, [3, 7, 7]);
    let mut behind = Behind::new(3);
    behind.hear(NodeId(1), &told);
    behind.hear(NodeId(2), &[1, 1, 1, 9]);
    let pairs = |behind: &Behind| behind.pairs(1, 1).collect::<Vec<_>>();
    assert_eq!(pairs(&behind), [4, 8, 8]);
    assert_eq!(behind.pairs(3, 2).collect::<Vec<_>>(), [2, 5, 5], "an even share of twice as many");
    behind.hear(NodeId(1), &[0, 2]);
    assert_eq!(pairs(&behind), [1, 3, 1], "what it told before is replaced");
    behind.forget(NodeId(2));
    assert_eq!(pairs(&behind), [0, 2, 0]);
}
