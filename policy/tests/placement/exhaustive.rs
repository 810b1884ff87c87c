//! The cheapest table of one layer by trying them all, and what a table costs, counted once more.

use crate::instances::Instance;

/// Experts as bits, per host.
type Sets = Vec<u32>;

/// The least cost of any table that gives every host `slots` different experts and every expert a
/// host. `slots * hosts` may be more than there are experts: replicas share tokens evenly.
pub(crate) fn optimum(instance: &Instance, slots: u32) -> u64 {
    let experts = u32::from(instance.shape.experts);
    let sets: Sets = (0..1_u32 << experts).filter(|set| set.count_ones() == slots).collect();
    let mut chosen = Vec::new();
    let mut best = u64::MAX;
    choose(instance, &sets, &mut chosen, &mut best);
    best
}

fn choose(instance: &Instance, sets: &[u32], chosen: &mut Sets, best: &mut u64) {
    let (experts, hosts) = (u32::from(instance.shape.experts), instance.hosts.len());
    let covered = chosen.iter().fold(0, |all, set| all | set);
    if chosen.len() == hosts {
        if covered.count_ones() == experts {
            *best = (*best).min(cost(instance, chosen));
        }
        return;
    }
    let slots = sets[0].count_ones();
    let left = slots * (hosts - chosen.len()) as u32;
    if experts - covered.count_ones() > left {
        return;
    }
    // Without spare slots an expert that is placed cannot be placed again.
    let exact = slots * hosts as u32 == experts;
    for &set in sets.iter().filter(|&&set| !exact || set & covered == 0) {
        chosen.push(set);
        choose(instance, sets, chosen, best);
        chosen.pop();
    }
}

fn cost(instance: &Instance, chosen: &[u32]) -> u64 {
    let mut total = 0;
    for step in 0..instance.trace.steps() {
        let counts = instance.trace.counts(step, 0);
        let finish = chosen.iter().zip(&instance.curves).map(|(&set, curve)| {
            let tokens = counts.iter().enumerate().filter(|(expert, _)| set >> expert & 1 == 1);
            let shares = tokens.map(|(expert, &tokens)| {
                let replicas = chosen.iter().filter(|set| **set >> expert & 1 == 1).count();
                tokens.div_ceil(replicas as u32)
            });
            curve.ns(shares.sum())
        });
        total += finish.max().unwrap_or(0);
    }
    total
}
