//! How many slots of each layer a host fills: equal shares, as far as the hosts' slots allow.

use super::{Host, problem::Problem};

/// Slots to fill per host.
pub(super) type Rooms = Vec<u32>;

/// The rooms of every layer. Those of a layer add up to at least its experts, none is larger than
/// that, and no host gets more in all layers than it has slots.
pub(super) fn all(problem: &Problem<'_>) -> Vec<Rooms> {
    of_total(problem, problem.wanted())
}

/// The rooms of the first replicas only: those of a layer add up to its experts.
pub(super) fn first(problem: &Problem<'_>) -> Vec<Rooms> {
    of_total(problem, problem.needed())
}

fn of_total(problem: &Problem<'_>, total: u64) -> Vec<Rooms> {
    let mut left = quotas(total, problem.needed(), &problem.hosts);
    let layers = problem.layers as u64;
    let mut rooms = Vec::with_capacity(problem.layers);
    for layers_left in (1..=layers).rev() {
        let total = left.iter().sum::<u64>().div_ceil(layers_left);
        let shares = apportion(&left, layers_left, total);
        for (left, &share) in left.iter_mut().zip(&shares) {
            *left -= share;
        }
        rooms.push(shares.into_iter().map(narrow).collect());
    }
    rooms
}

/// How many replicas each host gets over all layers: equal shares, cut off at its slots and at
/// `each_max`; what does not divide evenly goes to the lowest numbers. Fewer than `wanted` if the
/// hosts have no room for all of them.
fn quotas(wanted: u64, each_max: u64, hosts: &[Host]) -> Vec<u64> {
    let mut quotas = vec![0; hosts.len()];
    let mut left = wanted;
    let room = |quota: u64, host: &Host| u64::from(host.slots).min(each_max) - quota;
    loop {
        let open = hosts.iter().zip(&quotas).filter(|(host, quota)| room(**quota, host) > 0);
        let Some(share) = left.checked_div(open.count() as u64) else { return quotas };
        if left == 0 {
            return quotas;
        }
        for (host, quota) in hosts.iter().zip(&mut quotas) {
            let given = share.max(1).min(room(*quota, host)).min(left);
            *quota += given;
            left -= given;
        }
    }
}

/// Cuts one layer of `total` replicas by what every host still has to get in `layers_left` layers,
/// by largest remainders (the lower number wins a tie). `total` is the mean of a layer, rounded
/// either way.
fn apportion(left: &[u64], layers_left: u64, total: u64) -> Vec<u64> {
    let mut shares: Vec<u64> = left.iter().map(|left| left / layers_left).collect();
    let missing = total - shares.iter().sum::<u64>();
    let mut by_remainder: Vec<usize> = (0..left.len()).collect();
    by_remainder.sort_by_key(|&host| std::cmp::Reverse(left[host] % layers_left));
    for &host in by_remainder.iter().take(usize::try_from(missing).unwrap_or(usize::MAX)) {
        shares[host] += 1;
    }
    shares
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).expect("a share is at most a host's slots, which are a u32")
}
