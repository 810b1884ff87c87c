//! What counts as a trace's parent, and what happens to spans that nobody takes.

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

#[test]
fn a_parent_is_what_w3c_says() {
    let sampled = format!("00-{TRACE}-{SPAN}-01");
    let Some(Parent::Sampled(parent)) = Parent::read(&sampled) else { panic!("{sampled}") };
    assert_eq!(parent.to_string(), sampled);
    let unsampled = format!("00-{TRACE}-{SPAN}-00");
    assert_eq!(Parent::read(&unsampled), Some(Parent::Unsampled));
    let later = format!("01-{TRACE}-{SPAN}-03-more");
    assert_eq!(Parent::read(&later), Some(Parent::Sampled(parent)));
    for wrong in [
        String::new(),
        format!("00-{TRACE}-{SPAN}"),
        format!("00-{TRACE}-{SPAN}-01-more"),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{}-{SPAN}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-+{}-{SPAN}-01", &TRACE[1..]),
    ] {
        assert_eq!(Parent::read(&wrong), None, "{wrong}");
    }
}

fn tracer(ratio: f64) -> (Tracer, Registry) {
    let registry = Registry::new();
    // Nobody listens there.
    let otlp_endpoint = Some("http://127.0.0.1:1".to_owned());
    let config = TracingConfig { otlp_endpoint, ratio };
    (Tracer::start("test", &config, &registry).unwrap(), registry)
}

#[tokio::test]
async fn clients_decide_and_chance_does_for_those_that_do_not() {
    let (never, _) = tracer(0.0);
    let (always, _) = tracer(1.0);
    let sampled = format!("00-{TRACE}-{SPAN}-01");
    let (own, parent) = never.sample(Some(&sampled)).unwrap();
    assert_eq!(parent.map(|parent| parent.to_string()), Some(sampled.clone()));
    assert_eq!(own.trace, parent.unwrap().trace);
    assert_ne!(own.span, parent.unwrap().span);
    assert_eq!(always.sample(Some(&format!("00-{TRACE}-{SPAN}-00"))), None);
    assert_eq!((never.sample(None), never.sample(Some("nonsense"))), (None, None));
    let (first, second) = (always.sample(None).unwrap().0, always.sample(None).unwrap().0);
    assert_ne!(first.trace, second.trace);
    assert_eq!(
        Tracer::default().sample(Some(&sampled)),
        None,
        "nothing is traced without a collector"
    );
    assert_eq!(Tracer::default().follow(Some(&sampled)), None);
}

#[tokio::test]
async fn spans_that_nobody_takes_are_counted() {
    let (tracer, registry) = tracer(1.0);
    let (own, parent) = tracer.sample(None).unwrap();
    let (began, ended) = (Instant::now(), Instant::now());
    let span = Span {
        own,
        parent,
        name: "lost".into(),
        kind: Kind::Internal,
        began,
        ended,
        attributes: Vec::new(),
    };
    tracer.emit(span);
    tracer.flush().await;
    let text = crate::metrics::encode(&registry).unwrap();
    assert!(text.contains("amoe_trace_spans_dropped_total 1"), "{text}");
}

#[test]
fn wrong_settings_are_a_sentence() {
    let check = |at: &str, ratio| {
        let config = TracingConfig { otlp_endpoint: Some(at.to_owned()), ratio };
        config.check().unwrap_err().to_string()
    };
    let expected = "is no address, expected http://HOST:PORT";
    assert_eq!(
        check("collector:4317", 0.5),
        format!("key `tracing.otlp_endpoint`: \"collector:4317\" {expected}")
    );
    assert_eq!(check("http://collector:4317", 2.0), "key `tracing.ratio` is 2, expected 0 to 1");
}
