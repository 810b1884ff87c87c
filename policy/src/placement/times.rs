//! Layer times of hosts, looked up instead of computed: a search asks for the same few over and over.

use std::collections::BTreeMap;

use domain::{CostCurve, Trace};

/// Token counts up to here are looked up; beyond, a host's curve is asked. Bounds a table to 256 KiB.
const TOKENS_MAX: u32 = 1 << 15;

/// The curves of all hosts as tables; hosts with equal curves share one.
#[derive(Debug)]
pub(super) struct Times<'a> {
    hosts: Vec<(&'a CostCurve, usize)>,
    /// Nanoseconds by tokens.
    tables: Vec<Vec<u64>>,
}

/// One host's times.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostTimes<'a> {
    curve: &'a CostCurve,
    table: &'a [u64],
}

// === impl Times ===

impl<'a> Times<'a> {
    /// Tables that reach as far as the layers of `trace` have tokens.
    pub(super) fn new(curves: &'a [CostCurve], trace: &Trace) -> Self {
        let layers =
            (0..trace.steps()).flat_map(|step| (0..trace.layers()).map(move |at| (step, at)));
        let totals = layers.map(|(step, at)| total(trace.counts(step, at)));
        let reach = totals.max().unwrap_or(0).min(TOKENS_MAX);
        let mut tables = Vec::new();
        let mut known: BTreeMap<&[(u32, u64)], usize> = BTreeMap::new();
        let hosts = curves
            .iter()
            .map(|curve| {
                let table = *known.entry(curve.edges()).or_insert_with(|| {
                    tables.push((0..=reach).map(|tokens| curve.ns(tokens)).collect());
                    tables.len() - 1
                });
                (curve, table)
            })
            .collect();
        Self { hosts, tables }
    }

    pub(super) fn of(&self, host: usize) -> HostTimes<'_> {
        let (curve, table) = self.hosts[host];
        HostTimes { curve, table: &self.tables[table] }
    }
}

impl HostTimes<'_> {
    /// Nanoseconds that `tokens` tokens take.
    #[inline]
    pub(super) fn ns(&self, tokens: u32) -> u64 {
        match self.table.get(tokens as usize) {
            Some(&ns) => ns,
            None => self.curve.ns(tokens),
        }
    }
}

/// Tokens of a layer in one step.
fn total(counts: &[u32]) -> u32 {
    counts.iter().fold(0, |sum, &count| sum.saturating_add(count))
}
