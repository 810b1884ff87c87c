//! Recorded routing: lines of token counts per step, layer and expert.

use std::collections::BTreeMap;

use domain::Trace;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    step: u64,
    layer: u16,
    tokens: Vec<u32>,
}

/// Reads trace lines `{"step":t,"layer":l,"tokens":[n per expert]}`. Steps and layers may be any
/// numbers, in any order; they are put in ascending order. A step has to name every layer once.
///
/// # Errors
/// One sentence: the line and what is wrong with it.
pub fn parse(text: &str) -> Result<Trace, String> {
    let mut steps: BTreeMap<u64, BTreeMap<u16, Vec<u32>>> = BTreeMap::new();
    let mut shape: Option<usize> = None;
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = at + 1;
        let Line { step, layer, tokens } =
            serde_json::from_str(line).map_err(|error| format!("line {number}: {error}"))?;
        let experts = *shape.get_or_insert(tokens.len());
        if tokens.len() != experts || experts == 0 {
            return Err(format!(
                "line {number} counts {} experts, expected {} as in the first line",
                tokens.len(),
                experts.max(1)
            ));
        }
        if steps.entry(step).or_default().insert(layer, tokens).is_some() {
            return Err(format!("line {number} names layer {layer} of step {step} again"));
        }
    }
    let first = steps.first_key_value().ok_or("it has no lines, expected at least one step")?.1;
    let layers: Vec<u16> = first.keys().copied().collect();
    let mut trace = Trace::new(layers.len(), shape.unwrap_or(0));
    for (step, counts) in &steps {
        if !counts.keys().copied().eq(layers.iter().copied()) {
            return Err(format!("step {step} names other layers than the first step"));
        }
        let flat: Vec<u32> = counts.values().flatten().copied().collect();
        trace.push(&flat).map_err(|error| format!("step {step}: {error}"))?;
    }
    Ok(trace)
}
