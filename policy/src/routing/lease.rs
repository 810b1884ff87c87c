//! A lease names who runs each (layer, expert), for attention nodes to look up.

use domain::{Epoch, Expert, Holder, Layer, Leased, NodeId, Plan};

/// Who runs every (layer, expert) under one plan, and whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    epoch: Epoch,
    /// Row of each layer in `starts`; none for a layer without experts.
    rows: Vec<Option<usize>>,
    experts: usize,
    /// `[moe layer][expert]`, flattened: where its shares begin, and where the last one's end.
    starts: Vec<u32>,
    shares: Vec<Portion>,
    /// `[moe layer][expert]`, flattened: the draw of the last token.
    draws: Vec<u32>,
}

/// A holder and the draws that are its own: those up to `last` that are not the holder's before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Portion {
    node: NodeId,
    last: u32,
}

/// Multiples of 2³² divided by the golden ratio fall evenly on 2³² however few are taken, so that
/// holders get their parts of any number of tokens.
const GOLDEN: u32 = 0x9E37_79B9;

impl Lease {
    /// Leases the first live replica of every expert, in ascending node order.
    ///
    /// All attention nodes that see the same plan and the same live nodes agree on the result, so
    /// an expert's tokens meet in one queue instead of being spread over its replicas.
    pub fn first_live(plan: &Plan, alive: impl Fn(NodeId) -> bool) -> Self {
        let live = |&node: &NodeId| alive(node);
        Self::new(plan, plan.table().map(|replicas| whole(replicas.iter().copied().find(live))))
    }

    /// Leases every expert to all of its live replicas, in equal parts: EPLB's even split.
    pub fn even(plan: &Plan, alive: impl Fn(NodeId) -> bool) -> Self {
        let equal = |replicas: &[NodeId]| {
            let live = replicas.iter().copied().filter(|&node| alive(node));
            live.map(|node| Holder { node, part: 1 }).collect::<Vec<_>>()
        };
        Self::new(plan, plan.table().map(equal))
    }

    /// Leases as the coordinator advises, to those who are alive and hold the expert, and to the first
    /// live replica where none of them is. Advice for another plan is not followed.
    pub fn advised(plan: &Plan, advice: &Leased, alive: impl Fn(NodeId) -> bool) -> Self {
        let advised: &[Vec<Holder>] =
            if advice.epoch == plan.epoch() { &advice.holders } else { &[] };
        let choose = |(slot, replicas): (usize, &[NodeId])| {
            let usable = |holder: &Holder| {
                holder.part > 0 && replicas.contains(&holder.node) && alive(holder.node)
            };
            let holders = advised.get(slot).into_iter().flatten().copied();
            let mut holders: Vec<Holder> = holders.filter(usable).collect();
            if holders.is_empty() {
                holders = whole(replicas.iter().copied().find(|&node| alive(node)));
            }
            holders
        };
        Self::new(plan, plan.table().enumerate().map(choose))
    }

    /// A lease from the holders of every expert, `[moe layer][expert]`.
    pub(super) fn new(plan: &Plan, slots: impl Iterator<Item = Vec<Holder>>) -> Self {
        let mut rows = Vec::new();
        for (row, layer) in plan.moe_layers().iter().enumerate() {
            rows.resize(layer.index(), None);
            rows.push(Some(row));
        }
        let (mut starts, mut shares) = (vec![0], Vec::new());
        for holders in slots {
            share(&holders, &mut shares);
            starts.push(u32::try_from(shares.len()).expect("replicas are counted in u32"));
        }
        let experts = usize::from(plan.experts());
        let draws = vec![0; starts.len() - 1];
        Self { epoch: plan.epoch(), rows, experts, starts, shares, draws }
    }

    /// The plan whose replicas these are.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The node that runs the next token of `expert` of `layer`; none if no replica is alive.
    pub fn next(&mut self, layer: Layer, expert: Expert) -> Option<NodeId> {
        let row = self.rows.get(layer.index()).copied().flatten()?;
        debug_assert!(expert.index() < self.experts, "{expert} is not of this model");
        let slot = row * self.experts + expert.index();
        match self.shares(slot) {
            [] => None,
            [only] => Some(only.node),
            _ => {
                let draw = self.draws[slot].wrapping_add(GOLDEN);
                self.draws[slot] = draw;
                self.shares(slot).iter().find(|share| draw <= share.last).map(|share| share.node)
            }
        }
    }

    /// Whether the same nodes hold the same parts under the same plan.
    pub(super) fn holds_as(&self, other: &Self) -> bool {
        (self.epoch, &self.starts, &self.shares) == (other.epoch, &other.starts, &other.shares)
    }

    fn shares(&self, slot: usize) -> &[Portion] {
        &self.shares[self.starts[slot] as usize..self.starts[slot + 1] as usize]
    }

    /// The holders of every expert, `[moe layer][expert]`.
    pub fn holders(&self) -> impl Iterator<Item = impl Iterator<Item = Holder> + '_> + '_ {
        (0..self.starts.len() - 1).map(|slot| {
            let shares = self.shares(slot);
            let before = std::iter::once(0).chain(shares.iter().map(|share| share.last));
            let holder = |(share, before): (&Portion, u32)| Holder {
                node: share.node,
                part: share.last - before,
            };
            shares.iter().zip(before).map(holder)
        })
    }

    /// The lease as advice to those who follow [`Lease::advised`].
    #[must_use]
    pub fn advice(&self) -> Leased {
        Leased { epoch: self.epoch, holders: self.holders().map(Iterator::collect).collect() }
    }
}

/// One holder for all tokens, or nobody.
pub(super) fn whole(node: Option<NodeId>) -> Vec<Holder> {
    node.into_iter().map(|node| Holder { node, part: 1 }).collect()
}

/// Divides the draws among holders by their parts.
fn share(holders: &[Holder], shares: &mut Vec<Portion>) {
    let all: u64 = holders.iter().map(|holder| u64::from(holder.part)).sum();
    let mut given = 0_u64;
    for holder in holders {
        given += u64::from(holder.part);
        // The last one gets u32::MAX, and with it every draw that is left.
        let last = u64::from(u32::MAX) * given / all.max(1);
        shares.push(Portion { node: holder.node, last: u32::try_from(last).unwrap_or(u32::MAX) });
    }
}

#[cfg(test)]
mod tests {
    use domain::{Epoch, ModelShape};

    use super::*;

    /// Layers 1 and 3 of two experts, which these nodes hold.
    fn plan(table: [&[u32]; 4]) -> Plan {
        let shape = ModelShape {
            layers: 4,
            moe_layers: vec![Layer(1), Layer(3)],
            experts: 2,
            top_k: 1,
            hidden: 8,
            expert_bytes: 1,
            vocab: 1,
            positions_max: 1,
        };
        let nodes = |ids: &[u32]| ids.iter().map(|&id| NodeId(id)).collect();
        Plan::new(Epoch(1), None, &shape, table.map(nodes).to_vec()).unwrap()
    }

    #[test]
    fn leases_the_first_live_replica() {
        let plan = plan([&[1, 2], &[2], &[3], &[1, 3]]);
        let mut lease = Lease::first_live(&plan, |node| node != NodeId(1));
        let mut leased =
            |layer, expert| lease.next(Layer(layer), Expert(expert)).map(|node| node.0);
        assert_eq!(
            [leased(1, 0), leased(1, 1), leased(3, 0), leased(3, 1)],
            [2, 2, 3, 3].map(Some)
        );
        assert_eq!(leased(0, 0), None, "a dense layer has no experts");
        let mut none = Lease::first_live(&plan, |_| false);
        assert_eq!(none.next(Layer(1), Expert(0)), None);
        let holders = [2, 1, 3, 3].map(|id| whole(Some(NodeId(id))));
        let advice = |epoch| Leased { epoch: Epoch(epoch), holders: holders.to_vec() };
        let leased =
            |lease: &Lease| lease.holders().flatten().map(|holder| holder.node.0).collect();
        let lease: Vec<_> = leased(&Lease::advised(&plan, &advice(1), |_| true));
        assert_eq!(lease, [2, 2, 3, 3], "node 1 has no replica of the second");
        let lease: Vec<_> = leased(&Lease::advised(&plan, &advice(1), |node| node != NodeId(2)));
        assert_eq!(lease, [1, 3, 3], "node 2 is not alive");
        let lease: Vec<_> = leased(&Lease::advised(&plan, &advice(2), |_| true));
        assert_eq!(lease, [1, 2, 3, 1], "another plan's advice");
    }

    #[test]
    fn holders_get_their_parts_of_any_number_of_tokens() {
        let plan = plan([&[1, 2, 3], &[2], &[3], &[1]]);
        let part = |node, part| Holder { node: NodeId(node), part };
        let mut holders = vec![vec![part(1, 3), part(2, 6), part(3, 1)]];
        holders.extend([2, 3, 1].map(|id| whole(Some(NodeId(id)))));
        let advice = Leased { epoch: Epoch(1), holders };
        let mut lease = Lease::advised(&plan, &advice, |_| true);
        for tokens in [10, 100] {
            let mut got = [0; 3];
            for _ in 0..tokens {
                let node = lease.next(Layer(1), Expert(0)).unwrap();
                got[node.0 as usize - 1] += 1;
            }
            let near = |node: usize, part: i32| (got[node] * 10 - part * tokens).abs() <= 10;
            assert!(near(0, 3) && near(1, 6) && near(2, 1), "of {tokens} tokens: {got:?}");
        }
        let mut lease = Lease::advised(&plan, &advice, |node| node != NodeId(2));
        let nodes: Vec<_> = (0..40).filter_map(|_| lease.next(Layer(1), Expert(0))).collect();
        let third = nodes.iter().filter(|&&node| node == NodeId(3)).count();
        assert!(nodes.len() == 40 && third.abs_diff(10) <= 1, "3 to 1, but {third} of 40");
        let gone = Lease::advised(&plan, &advice, |node| node == NodeId(2));
        let first: Vec<_> = gone.holders().next().into_iter().flatten().collect();
        assert_eq!(first, [part(2, u32::MAX)]);
    }
}
