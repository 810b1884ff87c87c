use super::*;

fn excerpt(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/traces").join(name)
}

fn requests(spec: &Spec, seed: u64, count: usize) -> Vec<Request> {
    spec.arrivals(Path::new(""), seed).unwrap().take(count).collect()
}

#[test]
fn poisson_arrivals_have_their_rate_and_lengths() {
    let lengths = Lengths::Named(Named::Medium);
    let spec = Spec::Poisson { rate: 200.0, lengths };
    let drawn = requests(&spec, 1, 20_000);
    let seconds = seconds(drawn[drawn.len() - 1].at_ns);
    assert!((95.0..105.0).contains(&seconds), "20000 arrivals took {seconds} s");
    assert!(drawn.is_sorted_by_key(|request| request.at_ns));
    let bounds = |of: fn(&Request) -> u32| {
        (drawn.iter().map(of).min().unwrap(), drawn.iter().map(of).max().unwrap())
    };
    assert_eq!(bounds(|request| request.prompt), (50, 150));
    assert_eq!(bounds(|request| request.output), (50, 250));
    assert_eq!(drawn[..100], requests(&spec, 1, 100));
    assert_ne!(drawn[..100], requests(&spec, 2, 100));
}

fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

#[test]
fn a_closed_population_is_always_there() {
    let lengths = Lengths::Uniform(Ranges { prompt: [5, 5], output: [7, 7] });
    let spec = Spec::Closed { in_flight: 3, lengths };
    assert_eq!(spec.in_flight(), Some(3));
    assert_eq!(requests(&spec, 1, 2), [Request { at_ns: 0, prompt: 5, output: 7 }; 2]);
    assert_eq!(spec.at(12.0).in_flight(), Some(12));
}

#[test]
fn published_traces_are_read() {
    let spec = Spec::Mooncake { file: excerpt("mooncake_conversation.jsonl"), speed: 2.0 };
    let read = requests(&spec, 0, usize::MAX);
    assert_eq!(read[0], Request { at_ns: 0, prompt: 6758, output: 500 });
    assert_eq!(read.len(), 200);
    let spec = Spec::Azure { file: excerpt("azure_conv_2023.csv"), speed: 1.0 };
    let read = requests(&spec, 0, usize::MAX);
    // 18:15:50.9951690 − 18:15:46.6805900.
    assert_eq!(read[1], Request { at_ns: 4_314_579_000, prompt: 396, output: 109 });
    assert_eq!(read.len(), 300);
}

#[test]
fn time_stamps_go_over_midnight_and_leap_days() {
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
        2024-02-28 23:59:59.5,1,1\n2024-02-29 00:00:00,1,1\n2024-03-01 00:00:00.25,1,1\n";
    let read = recorded::azure(text).unwrap();
    let day = 86_400_000_000_000;
    assert_eq!(
        read.iter().map(|request| request.at_ns).collect::<Vec<_>>(),
        [0, 500_000_000, day + 750_000_000]
    );
}

#[test]
fn bad_lines_are_named() {
    let azure = |rows: &str| {
        recorded::azure(&format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")).unwrap_err()
    };
    assert!(azure("2023-11-16 18:15:46.68,374").starts_with("line 2 is \"2023-11-16"));
    assert!(azure("2023-13-16 18:15:46.68,374,1").starts_with("line 2 is"));
    assert!(
        azure("2023-11-16 18:15:46,374,0").contains("line 2: a prompt of 374 and an output of 0")
    );
    assert!(azure("").contains("no requests"));
    let back = "2023-11-16 18:15:46,1,1\n2023-11-16 18:15:45,1,1";
    assert!(azure(back).contains("line 3 is earlier"));
    assert!(recorded::azure("a,b").unwrap_err().contains("line 1 is \"a,b\""));
    let good = "{\"timestamp\": 1, \"input_length\": 3, \"output_length\": 4}";
    assert!(
        recorded::mooncake(&format!("{good}\n{{}}")).unwrap_err().starts_with("line 2: missing")
    );
}

#[test]
fn bad_parameters_are_named() {
    let complaint = |text: &str| match toml::from_str::<Spec>(text) {
        Ok(spec) => spec.arrivals(Path::new(""), 0).unwrap_err(),
        Err(error) => error.to_string(),
    };
    let rate = "kind = \"poisson\"\nrate = 0.0\nlengths = \"short\"";
    assert!(complaint(rate).contains("workload.rate is 0"));
    let lengths = "kind = \"poisson\"\nrate = 1.0\nlengths = \"long\"";
    assert!(complaint(lengths).contains("lengths are \"short\""));
    let order = "kind = \"closed\"\nin_flight = 1\nlengths = { prompt = [3, 2], output = [1, 1] }";
    assert!(complaint(order).contains("workload.lengths.prompt is [3, 2]"));
}
