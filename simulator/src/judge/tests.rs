use super::*;

fn judge() -> Judge {
    let mut judge = Judge::default();
    judge.time(7).unwrap();
    judge
}

fn wrong(result: Result<(), Violation>) -> Wrong {
    let violation = result.unwrap_err();
    assert_eq!(violation.at_ns, 7);
    violation.what
}

fn span(sequence: u32, missing: u32) -> Span {
    Span { sequence, start: 0, rows: 1, missing, layer: 0, home: 0 }
}

/// Span 1 of sequence 0 is ready; span 4 of sequence 2 waits for two outputs.
fn sound() -> Census {
    Census {
        spans: vec![(1, span(0, 0)), (4, span(2, 2))],
        pairs: vec![(4, 1), (4, 1)],
        ready: vec![1],
        running: vec![(0, 10), (2, 12)],
    }
}

#[test]
fn time_does_not_go_back() {
    let mut judge = judge();
    judge.time(7).unwrap();
    assert_eq!(wrong(judge.time(6)), Wrong::TimeWentBack { from_ns: 7, to_ns: 6 });
}

#[test]
fn epochs_only_grow() {
    let mut judge = judge();
    judge.epoch(Epoch(1)).unwrap();
    judge.epoch(Epoch(2)).unwrap();
    let fell = Wrong::EpochFell { from: Epoch(2), to: Epoch(2) };
    assert_eq!(wrong(judge.epoch(Epoch(2))), fell);
}

#[test]
fn a_token_is_served_once() {
    judge().served(3, 20, 20).unwrap();
    let twice = Wrong::ServedTwice { sequence: 3, position: 19, expected: 20 };
    assert_eq!(wrong(judge().served(3, 19, 20)), twice);
}

#[test]
fn queues_are_bounded() {
    judge().bounded("ready rows", 2, 8, 8).unwrap();
    let over = Wrong::Overfull { queue: "ready rows", node: 2, found: 9, max: 8 };
    assert_eq!(wrong(judge().bounded("ready rows", 2, 9, 8)), over);
}

#[test]
fn kv_blocks_are_not_lost() {
    judge().kv(0, 3, 5, 8).unwrap();
    let lost = Wrong::KvBlocks { node: 0, held: 3, free: 4, total: 8 };
    assert_eq!(wrong(judge().kv(0, 3, 4, 8)), lost);
}

#[test]
fn a_sound_cluster_passes() {
    judge().census(&sound()).unwrap();
    judge().census(&Census::default()).unwrap();
}

#[test]
fn a_lost_output_is_found() {
    let mut census = sound();
    census.pairs.pop();
    assert_eq!(wrong(judge().census(&census)), Wrong::Lost { span: 4, missing: 2, found: 1 });
}

#[test]
fn an_output_that_exists_twice_is_found() {
    let mut census = sound();
    census.pairs.push((4, 1));
    assert_eq!(wrong(judge().census(&census)), Wrong::Lost { span: 4, missing: 2, found: 3 });
}

#[test]
fn an_output_of_nobody_is_found() {
    let mut census = sound();
    census.pairs.push((9, 1));
    assert_eq!(wrong(judge().census(&census)), Wrong::Unasked { span: 9 });
}

#[test]
fn a_lost_span_is_found() {
    let mut census = sound();
    census.ready.clear();
    assert_eq!(wrong(judge().census(&census)), Wrong::Astray { span: 1, places: 0 });
}

#[test]
fn a_span_in_two_places_is_found() {
    let mut census = sound();
    census.ready.push(1);
    assert_eq!(wrong(judge().census(&census)), Wrong::Astray { span: 1, places: 2 });
    census = sound();
    census.ready.push(4);
    assert_eq!(wrong(judge().census(&census)), Wrong::Astray { span: 4, places: 1 });
}

#[test]
fn a_sequence_without_a_span_is_found() {
    let mut census = sound();
    census.running.push((3, 13));
    assert_eq!(wrong(judge().census(&census)), Wrong::Ownerless { sequence: 13, spans: 0 });
}

#[test]
fn a_sequence_with_two_spans_is_found() {
    let mut census = sound();
    census.spans.push((5, span(2, 0)));
    census.ready.push(5);
    assert_eq!(wrong(judge().census(&census)), Wrong::Ownerless { sequence: 12, spans: 2 });
}

#[test]
fn a_violation_says_when_and_what() {
    let violation = judge().served(3, 19, 20).unwrap_err();
    let said = "at 7 ns: sequence 3 was served position 19, its next one is 20";
    assert_eq!(violation.to_string(), said);
}
