use super::*;

/// A run with this throughput and inter-token latency.
fn run(id: &str, throughput: f64, itl_ms: f64) -> Measured {
    let text = "[[run]]\nid = \"a\"\nduration_s = 0.1\nnodes = { attention = 1, expert = 1 }\n\
         hardware = { model = \"mixtral-8x7b\", device = \"h100\", layers = 1 }\n\
         workload = { kind = \"closed\", in_flight = 1, lengths = \"short\" }\nskew = { kind = \"uniform\" }";
    let scenario = crate::scenario::Scenario::parse(text, None).unwrap();
    let mut run = scenario.run(1).unwrap().runs.remove(0);
    run.id = id.to_owned();
    run.outcome.throughput = throughput;
    run.outcome.itl_ms.mean = itl_ms;
    run
}

fn work_out(value: &str) -> Option<f64> {
    let runs = [
        run("fast", 100.0, 10.0),
        run("fast", 300.0, 30.0),
        run("fast", 200.0, 80.0),
        run("slow", 50.0, 10.0),
        run("slow", 60.0, 40.0),
        run("slow", 80.0, 90.0),
    ];
    let wanted: Wanted = toml::from_str(&format!(
        "id = \"r\"\nquantity = \"q\"\npaper = 3.0\nvalue = {{ {value} }}"
    ))
    .unwrap();
    let finding = wanted.work_out(&runs)?;
    assert_eq!((finding.id.as_str(), finding.paper), ("r", Some(3.0)));
    Some(finding.measured)
}

#[test]
fn a_sweep_is_reduced_to_its_best_point_or_as_asked() {
    let measured = |reduce| {
        work_out(&format!("kind = \"measured\", of = \"throughput\", run = \"fast\"{reduce}"))
    };
    assert_eq!(measured(""), Some(300.0));
    assert_eq!(measured(", reduce = \"min\""), Some(100.0));
    assert_eq!(measured(", reduce = \"mean\""), Some(200.0));
    assert_eq!(measured(", reduce = \"first\""), Some(100.0));
    assert_eq!(measured(", reduce = \"last\""), Some(200.0));
}

#[test]
fn runs_are_compared_side_by_side_or_point_by_point() {
    let pair = "of = \"throughput\", numerator = \"fast\", denominator = \"slow\"";
    assert_eq!(work_out(&format!("kind = \"ratio\", {pair}")), Some(300.0 / 80.0));
    assert_eq!(work_out(&format!("kind = \"ratio\", {pair}, pairs = true")), Some(5.0));
    let least = format!("kind = \"change\", {pair}, pairs = true, reduce = \"min\"");
    assert_eq!(work_out(&least), Some(100.0), "per cent");
}

#[test]
fn a_bound_on_another_measurement_is_kept() {
    let at = |max: f64| {
        work_out(&format!(
            "kind = \"measured\", of = \"throughput\", run = \"slow\", at = {{ metric = \"itl-mean-ms\", max = {max:?} }}"
        ))
    };
    assert_eq!(at(40.0), Some(60.0));
    assert_eq!(at(65.0), Some(70.0), "half-way between two points");
    assert_eq!(at(1000.0), Some(80.0));
    assert_eq!(at(5.0), None, "no point keeps it");
}

#[test]
fn what_does_not_exist_is_left_out() {
    let ratio =
        "kind = \"ratio\", of = \"activated-max\", numerator = \"fast\", denominator = \"slow\"";
    assert_eq!(work_out(ratio), None, "0 ÷ 0");
}
