//! Routing without looking at loads: EPLB's, where every replica of an expert gets an equal part of its tokens.

use super::{
    Instance,
    board::{Board, Measure},
};

/// Spreads each expert's tokens. What does not divide goes to replicas from one that differs from
/// expert to expert, so that low nodes are not favoured.
pub(super) fn split(board: &mut Board, instance: &Instance<'_>) {
    board.clear(instance, Measure::Count);
    for (expert, &tokens) in instance.tokens.iter().enumerate() {
        let replicas = instance.hosts.replicas(expert);
        let count = replicas.len();
        if tokens == 0 || count == 0 {
            continue;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 2^16 hosts")]
        let (each, rest) = (tokens / count as u32, (tokens % count as u32) as usize);
        for turn in 0..count {
            let replica = replicas.start + (expert + turn) % count;
            board.set_part(replica, each + u32::from(turn < rest));
        }
    }
}
