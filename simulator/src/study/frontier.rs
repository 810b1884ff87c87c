//! Throughput at a fixed time per token: how much larger a batch a routing policy affords (METRO, section 5).

use policy::{placement, routing::Policy};

use super::{
    Findings,
    batches::{Source, hosts},
    step::{Stepper, percent_above},
};

/// Times per token that are looked at: the best there is, divided by these.
const SPEEDS: [f64; 4] = [0.9, 0.8, 0.7, 0.5];

pub(super) fn run(
    skew: &str,
    source: &Source<'_>,
    findings: &mut Findings<'_>,
) -> Result<(), String> {
    let spec = source.spec;
    let factors = vec![1.0; usize::from(spec.nodes)];
    for &ratio in &spec.replicas {
        let policies = std::iter::once(Policy::EvenSplit).chain(spec.routing.iter().copied());
        let mut curves: Vec<(Policy, Vec<(u32, f64)>)> =
            policies.map(|policy| (policy, Vec::new())).collect();
        for &tokens in &spec.tokens {
            let (past, present) = source.draw(tokens)?;
            let plan = source.place(placement::Policy::Eplb, ratio, &past, &factors)?;
            let hosts = hosts(&plan, spec.nodes)?;
            let stepper = Stepper::new(source, &hosts, &factors);
            for (policy, points) in &mut curves {
                points.push((tokens, stepper.run(*policy, &present, tokens)?.mean_ns()));
            }
        }
        let best = curves.iter().flat_map(|(_, points)| points).map(|&(_, ns)| ns);
        let best = best.fold(f64::INFINITY, f64::min);
        let even = &curves[0].1;
        for (policy, points) in &curves[1..] {
            for speed in SPEEDS {
                let (Some(ours), Some(theirs)) =
                    (throughput(points, best / speed), throughput(even, best / speed))
                else {
                    continue;
                };
                findings.add(
                    &format!("{skew}-{ratio}x-{policy}-at-{speed}"),
                    "decode throughput against even split at a fixed time per token, %",
                    percent_above(ours, theirs),
                );
            }
        }
    }
    Ok(())
}

/// Tokens per nanosecond of the largest batch whose step takes at most `limit_ns`; between two
/// batches that were timed, time is taken to rise evenly. None if even the smallest takes longer.
fn throughput(points: &[(u32, f64)], limit_ns: f64) -> Option<f64> {
    let fits = points.iter().rposition(|&(_, ns)| ns <= limit_ns)?;
    let (tokens, ns) = points[fits];
    let Some(&(more, later)) = points.get(fits + 1) else {
        return Some(f64::from(tokens) / ns);
    };
    let part = (limit_ns - ns) / (later - ns);
    Some((f64::from(tokens) + f64::from(more - tokens) * part) / limit_ns)
}
