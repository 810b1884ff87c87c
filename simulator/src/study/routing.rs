//! Routing policies on EPLB's placements: how many experts they activate, and what a step takes (METRO).

use policy::{
    placement,
    routing::{Hosts, Policy},
};

use super::{
    Findings,
    batches::{Source, hosts},
    step::{Stepper, float, percent_above},
};

pub(super) fn run(
    skew: &str,
    source: &Source<'_>,
    findings: &mut Findings<'_>,
) -> Result<(), String> {
    let spec = source.spec;
    let factors = vec![1.0; usize::from(spec.nodes)];
    for &tokens in &spec.tokens {
        let (past, present) = source.draw(tokens)?;
        let placed = |ratio: f64| -> Result<_, String> {
            hosts(&source.place(placement::Policy::Eplb, ratio, &past, &factors)?, spec.nodes)
        };
        let route = |hosts: &[Hosts], policy: Policy| {
            Stepper::new(source, hosts, &factors).run(policy, &present, tokens)
        };
        let single = route(&placed(1.0)?, Policy::EvenSplit)?;
        for &ratio in &spec.replicas {
            let hosts = placed(ratio)?;
            let even = route(&hosts, Policy::EvenSplit)?;
            let exact = route(&hosts, Policy::Exact)?;
            let case = format!("{skew}-{tokens}-{ratio}x");
            let slower = percent_above(even.mean_ns(), single.mean_ns());
            findings.add(
                &format!("{case}-even-split-slower"),
                "step time of even split against no further replicas, %",
                slower,
            );
            for &policy in &spec.routing {
                let outcome = route(&hosts, policy)?;
                let case = format!("{case}-{policy}");
                let fewer = percent_above(float(outcome.activated), float(even.activated));
                let gap = percent_above(float(outcome.activated), float(exact.activated));
                let time = percent_above(outcome.mean_ns(), even.mean_ns());
                let gain = percent_above(single.mean_ns(), outcome.mean_ns());
                let against = "against even split, %";
                findings.add(
                    &format!("{case}-activated"),
                    &format!("largest activated count {against}"),
                    fewer,
                );
                findings.add(
                    &format!("{case}-gap"),
                    "largest activated count above the optimum, %",
                    gap,
                );
                findings.add(&format!("{case}-time"), &format!("step time {against}"), time);
                findings.add(
                    &format!("{case}-decode"),
                    "decode throughput against no further replicas, %",
                    gain,
                );
            }
        }
    }
    Ok(())
}
