//! The score by hand-computed examples, and the guards around it.

use super::*;

const NOW: u64 = 1_000_000_000;

fn batcher(rule: Rule, tokens: &[&[u32]]) -> Batcher {
    let tuning = Tuning {
        rule,
        age_guard_ns: 10,
        drain_max: 8,
    };
    let mut batcher = Batcher::new(tokens.len(), tokens[0].len(), tuning);
    for (stage, groups) in tokens.iter().enumerate() {
        for (group, &tokens) in groups.iter().enumerate() {
            batcher.set(stage, group, tokens, NOW);
        }
    }
    batcher
}

fn defrag(lookahead: usize, decay: f64) -> Rule {
    Rule::Defrag {
        lookahead,
        decay,
        lookback: 0,
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
    assert_eq!(
        picked(self::batcher(Rule::MostTokens, queues)),
        Some((2, 0))
    );
}

#[test]
fn look_ahead_is_circular_and_shared_by_groups() {
    // Stage 2 sees stage 0 next: 1 + 0.5·(6 + 2)/2 = 3, against 6 for stage 0's own first group.
    let mut batcher = batcher(defrag(1, 0.5), &[&[6, 2], &[0, 0], &[1, 0]]);
    assert_eq!(batcher.ahead(2), 2.0);
    assert_eq!(
        batcher.pick(NOW).map(|pick| (pick.stage, pick.group)),
        Some((0, 0))
    );
}

#[test]
fn empty_queues_never_win() {
    let crowd_ahead: &[&[u32]] = &[&[0], &[1], &[9]];
    assert_eq!(picked(batcher(defrag(2, 0.9), crowd_ahead)), Some((2, 0)));
    for rule in [defrag(7, 0.8), Rule::MostTokens, Rule::LowestLayer] {
        assert_eq!(picked(batcher(rule, &[&[0], &[0]])), None);
    }
}

#[test]
fn lowest_layer_takes_the_first_and_ties_go_low() {
    assert_eq!(
        picked(batcher(Rule::LowestLayer, &[&[0], &[1], &[9]])),
        Some((1, 0))
    );
    assert_eq!(
        picked(batcher(Rule::MostTokens, &[&[0, 0], &[3, 3], &[3, 0]])),
        Some((1, 0))
    );
}

#[test]
fn an_overdue_queue_runs_first() {
    let mut batcher = batcher(Rule::MostTokens, &[&[9], &[1], &[1]]);
    batcher.set(1, 0, 1, NOW - 12);
    batcher.set(2, 0, 1, NOW - 11);
    let pick = batcher.pick(NOW).unwrap();
    assert_eq!((pick.stage, pick.reason), (1, Reason::Age(12)));
    batcher.set(1, 0, 0, 0);
    batcher.set(2, 0, 1, NOW - 10);
    assert_eq!(
        batcher.pick(NOW).unwrap().stage,
        0,
        "at the guard is not past it"
    );
}

#[test]
fn look_back_remembers_a_stage_that_refills() {
    let rule = Rule::Defrag { lookahead: 1, decay: 0.5, lookback: 2 };
    let mut batcher = batcher(rule, &[&[0], &[0], &[4], &[5]]);
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
fn rules_have_names() {
    assert_eq!("most-tokens".parse(), Ok(Rule::MostTokens));
    assert!(
        "fullest"
            .parse::<Rule>()
            .unwrap_err()
            .contains("expected defrag")
    );
}
