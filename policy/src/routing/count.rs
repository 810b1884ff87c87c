//! Routing by the number of activated experts: METRO, AEBS, and the exact minimum.

use super::{
    Instance,
    board::{Board, Measure},
    greedy,
    search::Search,
};

/// METRO's greedy (Algorithm 1), in ascending order of experts.
pub(super) fn metro(board: &mut Board, instance: &Instance<'_>, by: Measure) {
    board.clear(instance, by);
    greedy::place(board, instance, 0..instance.hosts.experts());
}

/// JANUS' greedy: what has no choice first, then what has the least.
pub(super) fn aebs(board: &mut Board, instance: &Instance<'_>, by: Measure) {
    board.clear(instance, by);
    greedy::place(board, instance, instance.hosts.fewest_first());
}

/// The smallest largest count (METRO, section 3.2), from `aebs` along augmenting paths.
pub(super) fn exact(board: &mut Board, search: &mut Search, instance: &Instance<'_>, by: Measure) {
    aebs(board, instance, by);
    relieve(board, search, instance);
}

/// Relieves the fullest nodes until a search proves that no other choice makes them less full.
pub(super) fn relieve(board: &mut Board, search: &mut Search, instance: &Instance<'_>) {
    search.begin(board, instance.hosts);
    while board.fullest().is_some_and(|node| search.relieve(board, instance.hosts, node)) {}
}
