//! Trace files: one line of JSON per step and layer, in any order.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use domain::{Layer, Trace};
use serde::Deserialize;

/// What a trace file says.
#[derive(Debug)]
pub(super) struct Read {
    /// Ascending.
    pub(super) layers: Vec<Layer>,
    pub(super) experts: u16,
    pub(super) trace: Trace,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    step: u64,
    layer: u16,
    /// Per expert.
    tokens: Vec<u32>,
}

/// Reads a trace file. A layer that a step does not name had no tokens in it.
pub(super) fn read(file: &Path) -> Result<Read> {
    parse(&super::read(file)?).with_context(|| format!("{} is no trace", file.display()))
}

fn parse(text: &str) -> Result<Read> {
    let mut counts: BTreeMap<(u64, u16), Vec<u32>> = BTreeMap::new();
    let mut experts = 0;
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let Line { step, layer, tokens } =
            crate::route::parse(line).with_context(|| format!("line {number}"))?;
        if counts.is_empty() {
            experts = u16::try_from(tokens.len()).unwrap_or(u16::MAX);
        }
        ensure!(
            !tokens.is_empty() && tokens.len() == usize::from(experts),
            "line {number}: key `tokens` has {} numbers, expected {} as in the first line",
            tokens.len(),
            experts.max(1)
        );
        let sum: u64 = tokens.iter().map(|&tokens| u64::from(tokens)).sum();
        ensure!(
            sum <= u64::from(u32::MAX),
            "line {number}: key `tokens` adds up to {sum}, expected at most {}",
            u32::MAX
        );
        let known = counts.insert((step, layer), tokens);
        ensure!(known.is_none(), "line {number}: step {step}, layer {layer} was there before");
    }
    ensure!(!counts.is_empty(), "it has no line, expected one per step and layer");
    let mut steps: Vec<u64> = counts.keys().map(|&(step, _)| step).collect();
    steps.dedup();
    let mut layers: Vec<u16> = counts.keys().map(|&(_, layer)| layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let mut trace = Trace::new(layers.len(), experts.into());
    let none = vec![0; experts.into()];
    for step in steps {
        let of = |&layer: &u16| counts.get(&(step, layer)).unwrap_or(&none).iter().copied();
        trace.push(&layers.iter().flat_map(of).collect::<Vec<u32>>())?;
    }
    Ok(Read { layers: layers.into_iter().map(Layer).collect(), experts, trace })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_any_order_and_missing_ones_are_zeros() {
        let text = "{\"step\":7,\"layer\":3,\"tokens\":[1,2]}\n\n{\"step\":5,\"layer\":1,\"tokens\":[3,4]}\n\
                    {\"layer\":3,\"step\":5,\"tokens\":[5,6]}\n";
        let Read { layers, experts, trace } = parse(text).unwrap();
        assert_eq!((layers, experts), (vec![Layer(1), Layer(3)], 2));
        let counts = |step, layer| trace.counts(step, layer).to_vec();
        assert_eq!([counts(0, 0), counts(0, 1), counts(1, 0)], [[3, 4], [5, 6], [0, 0]]);
        assert_eq!(counts(1, 1), [1, 2]);
    }

    #[test]
    fn bad_lines_are_named_with_key_and_expectation() {
        let good = "{\"step\":0,\"layer\":0,\"tokens\":[1,2]}\n";
        for (line, expected) in [
            ("{\"step\":0", "line 2: EOF while parsing an object"),
            ("{\"step\":0,\"layer\":1}", "line 2: missing field `tokens`"),
            (
                "{\"step\":0,\"layer\":-1,\"tokens\":[1,2]}",
                "line 2: layer: invalid value: integer `-1`, expected u16",
            ),
            (
                "{\"step\":1,\"layer\":0,\"tokens\":[1,\"2\"]}",
                "line 2: tokens[1]: invalid type: string \"2\", expected u32",
            ),
            (
                "{\"step\":1,\"layer\":0,\"tokens\":[1]}",
                "line 2: key `tokens` has 1 numbers, expected 2 as in the first line",
            ),
            (
                "{\"step\":0,\"layer\":0,\"tokens\":[1,2]}",
                "line 2: step 0, layer 0 was there before",
            ),
            ("{\"step\":1,\"layer\":0,\"token\":[1,2]}", "line 2: token: unknown field `token`"),
        ] {
            let error = format!("{:#}", parse(&format!("{good}{line}\n")).unwrap_err());
            assert!(error.starts_with(expected), "{error}");
        }
        let empty = parse("\n").unwrap_err().to_string();
        assert_eq!(empty, "it has no line, expected one per step and layer");
    }
}
