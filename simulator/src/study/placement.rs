//! Placement policies on nodes of different speed: what a step takes against linear placement (GEM).

use policy::{placement::Policy, routing};

use super::{
    Findings,
    batches::{Source, hosts},
    step::{Outcome, Stepper, float, percent_above},
};

pub(super) fn run(
    skew: &str,
    source: &Source<'_>,
    findings: &mut Findings<'_>,
) -> Result<(), String> {
    let spec = source.spec;
    for &tokens in &spec.tokens {
        let (past, present) = source.draw(tokens)?;
        for &spread in &spec.spreads {
            let factors = factors(spec.nodes, spread);
            let known = vec![1.0; usize::from(spec.nodes)];
            let step = |policy: Policy, believed: &[f64]| -> Result<Outcome, String> {
                let plan = source.place(policy, 1.0, &past, believed)?;
                let hosts = hosts(&plan, spec.nodes)?;
                let stepper = Stepper::new(source, &hosts, &factors);
                stepper.run(routing::Policy::EvenSplit, &present, tokens)
            };
            let linear = step(Policy::Linear, &factors)?;
            let case = format!("{skew}-{tokens}-{spread}");
            let mut add = |name: &str, outcome: &Outcome| {
                let mean = percent_above(outcome.mean_ns(), linear.mean_ns());
                let p90 = percent_above(float(outcome.p90_ns()), float(linear.p90_ns()));
                findings.add(&format!("{case}-{name}"), "mean step time against linear, %", mean);
                findings.add(&format!("{case}-{name}-p90"), "p90 step time against linear, %", p90);
            };
            for &policy in &spec.placement {
                add(&policy.to_string(), &step(policy, &factors)?);
            }
            if spec.placement.contains(&Policy::Gem) {
                add("gem-load-only", &step(Policy::Gem, &known)?);
            }
        }
    }
    Ok(())
}

/// How long nodes take, the slowest `spread` longer than the fastest, evenly in between; the mean is 1.
fn factors(nodes: u16, spread: f64) -> Vec<f64> {
    let last = f64::from(nodes.max(2) - 1);
    let raw = (0..nodes).map(|node| 1.0 + spread * f64::from(node) / last);
    raw.map(|factor| factor / (1.0 + spread / 2.0)).collect()
}
