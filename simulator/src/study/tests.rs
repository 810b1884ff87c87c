use super::*;

fn spec(text: &str) -> Spec {
    toml::from_str(text).unwrap()
}

fn found(findings: &[Finding], id: &str) -> f64 {
    findings.iter().find(|finding| finding.id == id).unwrap().measured
}

const ROUTING: &str = r#"
    id = "R"
    kind = "routing"
    hardware = { model = "qwen3-30b-a3b", device = "a100-40g", layers = 4 }
    nodes = 8
    tokens = [32]
    context = 512
    skews.zipf = { kind = "zipf", s = 1.0 }
    replicas = [1.5]
    routing = ["metro", "exact"]
    steps = 12
    paper."zipf-32-1.5x-metro-activated" = -42.3
"#;

#[test]
fn one_replica_per_expert_activates_fewer_than_an_even_split() {
    let spec = spec(ROUTING);
    let findings = spec.run(Path::new("")).unwrap();
    let metro = found(&findings, "R-zipf-32-1.5x-metro-activated");
    let exact = found(&findings, "R-zipf-32-1.5x-exact-activated");
    assert!(exact <= metro && metro < -25.0, "{exact} {metro}");
    assert_eq!(found(&findings, "R-zipf-32-1.5x-exact-gap"), 0.0);
    let paper = findings.iter().find(|finding| finding.paper.is_some()).unwrap();
    assert_eq!(paper.id, "R-zipf-32-1.5x-metro-activated");
    assert_eq!(findings, spec.run(Path::new("")).unwrap(), "equal seeds give equal findings");
}

#[test]
fn looking_at_the_whole_batch_has_its_price() {
    let cheap = spec(ROUTING.split("paper").next().unwrap());
    let dear = Spec { routing_us: 1000.0, ..cheap.clone() };
    let time = |spec: &Spec| found(&spec.run(Path::new("")).unwrap(), "R-zipf-32-1.5x-metro-time");
    assert!(time(&cheap) < 0.0 && time(&dear) > 0.0);
}

#[test]
fn a_larger_batch_at_the_same_time_per_token_is_more_throughput() {
    let mut spec = spec(ROUTING.split("paper").next().unwrap());
    spec.kind = Kind::Frontier;
    spec.tokens = vec![32, 64, 128, 256];
    let findings = spec.run(Path::new("")).unwrap();
    assert!(findings.iter().any(|finding| finding.measured > 10.0), "{findings:?}");
}

#[test]
fn placement_by_speed_is_worth_more_the_more_speeds_differ() {
    let spec = spec(
        r#"
        id = "G"
        kind = "placement"
        hardware = { model = "mixtral-8x7b", device = "h100", layers = 6 }
        nodes = 4
        tokens = [512]
        skews.correlated = { kind = "correlated" }
        placement = ["eplb", "gem"]
        spreads = [0.0, 0.277]
        "#,
    );
    let findings = spec.run(Path::new("")).unwrap();
    let far = found(&findings, "G-correlated-512-0.277-gem");
    assert!(far < -3.0, "{far}");
    let blind = found(&findings, "G-correlated-512-0.277-gem-load-only");
    assert!(far <= blind + 0.5, "{far} {blind}");
}

#[test]
fn a_paper_finding_that_nobody_makes_is_an_error() {
    let mut spec = spec(ROUTING.split("paper").next().unwrap());
    spec.paper.insert("nothing".to_owned(), 1.0);
    assert!(spec.run(Path::new("")).unwrap_err().contains("no such finding"));
    spec.tokens = vec![0];
    assert!(spec.run(Path::new("")).unwrap_err().contains("tokens: expected counts above 0"));
}
