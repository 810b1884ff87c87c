use super::*;
use crate::spec::{Layout, Schedule};

/// A short run of three nodes, and what a test adds.
fn text(added: &str) -> String {
    format!(
        "[base]
duration_s = 2.0
hardware = {{ model = \"mixtral-8x7b\", device = \"h100\", layers = 2 }}
workload = {{ kind = \"poisson\", rate = 20.0, lengths = \"short\" }}
skew = {{ kind = \"zipf\", s = 1.0 }}
nodes = {{ attention = 1, expert = 2 }}
{added}"
    )
}

fn error(added: &str) -> String {
    Scenario::parse(&text(added), None).unwrap_err()
}

#[test]
fn runs_are_laid_over_the_base_and_swept() {
    let scenario = Scenario::parse(
        &text(
            "[[run]]\nid = \"a\"\nnodes.expert = 4\n\
             sweep = { \"workload.rate\" = [10, 30.5], schedule = [\"lockstep\", \"async\"] }\n\
             [[run]]\nid = \"b\"\nlayout = \"colocated\"\n\
             workload = { kind = \"closed\", in_flight = 7, lengths = \"medium\" }",
        ),
        Some(9),
    )
    .unwrap();
    let names: Vec<String> = scenario.points.iter().map(Point::name).collect();
    // Keys of a table have no order of their own but the alphabet's.
    assert_eq!(
        names,
        [
            "a schedule=lockstep workload.rate=10",
            "a schedule=lockstep workload.rate=30.5",
            "a schedule=async workload.rate=10",
            "a schedule=async workload.rate=30.5",
            "b",
        ]
    );
    let [first, .., last] = &scenario.points[..] else { panic!("five runs") };
    assert_eq!((first.run.nodes.attention, first.run.nodes.expert), (1, 4));
    assert_eq!(first.run.schedule, Schedule::Lockstep);
    assert_eq!((last.run.layout, last.run.nodes.expert), (Layout::Colocated, 2));
    assert_eq!(last.run.workload.in_flight(), Some(7), "another kind replaces the table");
    assert!(scenario.points.iter().all(|point| point.run.seed == 9));
}

#[test]
fn tables_can_be_swept_too() {
    let swept =
        "[[run]]\nid = \"a\"\nsweep = { nodes = [{ attention = 1, expert = 1 }, { expert = 3 }] }";
    let scenario = Scenario::parse(&text(swept), None).unwrap();
    let nodes: Vec<_> = scenario.points.iter().map(|point| point.run.nodes.expert).collect();
    assert_eq!(nodes, [1, 3]);
    assert_eq!(scenario.points[0].name(), "a nodes=attention:1,expert:1");
}

#[test]
fn mistakes_are_named() {
    assert_eq!(error(""), "there is neither a [[run]] nor a [[study]]");
    let twice = "[[run]]\nid = \"a\"\n[[run]]\nid = \"a\"";
    assert_eq!(error(twice), "run a: there are two of this id");
    let unknown = error("[[run]]\nid = \"a\"\nnodes.experts = 3");
    assert!(unknown.starts_with("run a: nodes.experts: unknown field `experts`"), "{unknown}");
    let word = error("[[run]]\nid = \"a\"\nschedule = \"sync\"");
    assert!(word.starts_with("run a: schedule: unknown variant `sync`"), "{word}");
    let empty = error("[[run]]\nid = \"a\"\nsweep = { seed = [] }");
    assert_eq!(empty, "run a: sweep.seed: expected a list of values");
    let bounds = error("[[run]]\nid = \"a\"\nsweep = { window = [[0.5, 0.5]] }");
    assert_eq!(
        bounds,
        "run a window=[0.5,0.5]: window: expected two ascending shares of the run, 0 to 1"
    );
    let result = "[[run]]\nid = \"a\"\n[[result]]\nid = \"r\"\nquantity = \"q\"\n\
                  value = { kind = \"measured\", of = \"throughput\", run = \"b\" }";
    assert_eq!(error(result), "result r: there is no run `b`");
    let key = Scenario::parse("[base]\n[[runs]]\nid = \"a\"", None).unwrap_err();
    assert!(key.contains("unknown field `runs`"), "{key}");
    let syntax = Scenario::parse("[base\n", None).unwrap_err();
    assert!(!syntax.contains('\n') && syntax.contains("line 1"), "{syntax}");
}

#[test]
fn a_scenario_comes_to_the_same_on_any_number_of_threads() {
    let scenario = Scenario::parse(
        &text(
            "[[run]]\nid = \"a\"\nsweep = { seed = [1, 2, 3] }\n\
             [[result]]\nid = \"r\"\nquantity = \"q\"\npaper = 2.5\n\
             value = { kind = \"measured\", of = \"throughput\", run = \"a\", reduce = \"mean\" }",
        ),
        None,
    )
    .unwrap();
    let one = scenario.run(1).unwrap();
    let three = scenario.run(3).unwrap();
    assert_eq!((&one.results, &one.runs), (&three.results, &three.runs));
    assert!(one.runs[0].outcome != one.runs[1].outcome, "seeds differ");
    let json: serde_json::Value = serde_json::to_value(&one).unwrap();
    assert_eq!(json["results"][0]["id"], "r");
    assert_eq!(json["results"][0]["paper"], 2.5);
    assert!(json["results"][0]["measured"].as_f64().unwrap() > 0.0);
    assert_eq!(json["runs"][2]["at"][0], "seed=3");
    let pictures: Vec<String> = one.pictures().into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        pictures,
        ["load.svg", "timeline-a_seed=1.svg", "timeline-a_seed=2.svg", "timeline-a_seed=3.svg"]
    );
    assert!(one.to_string().contains("r: "), "{one}");
}

#[test]
fn one_run_can_be_picked_for_a_replay() {
    let scenario = Scenario::parse(&text("[[run]]\nid = \"a\"\nsweep = { seed = [1, 2] }"), None);
    let picked = scenario.clone().unwrap().only("a seed=2").unwrap();
    assert_eq!(picked.points.len(), 1);
    assert_eq!(scenario.clone().unwrap().only("a").unwrap().points.len(), 2);
    let unknown = scenario.unwrap().only("b").unwrap_err().to_string();
    assert!(unknown.ends_with("there is no run or study `b`"), "{unknown}");
}

#[test]
fn a_run_that_breaks_a_rule_says_how_to_replay_it() {
    let violation =
        crate::Violation { at_ns: 5, what: crate::Wrong::TimeWentBack { from_ns: 6, to_ns: 5 } };
    let error = ScenarioError::Violated {
        path: "x.toml".to_owned(),
        point: "a workload.rate=10".to_owned(),
        seed: 3,
        violation,
    };
    assert_eq!(
        error.to_string(),
        "scenario x.toml, run a workload.rate=10: at 5 ns: time went back from 6 to 5 ns; \
         `amoe simulate x.toml --run 'a workload.rate=10' --seed 3` replays it"
    );
}
