//! The attention nodes: which ones take work, what this gateway has placed on each, and running
//! a sequence there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::{ClusterView, Health, Member, NodeId, Role, SequenceRequest};
use policy::assignment::{Assignment, Beginning, Candidate, Prefixes, assign, beginnings};
use tokio::sync::watch;
use transport::sequences::{SequenceError, Tokens};

use crate::cluster::Cluster;

/// Tokens per KV block, the granule in which attention nodes hold sequences.
const BLOCK_TOKENS: usize = 32;

/// Beginnings of sequences that are remembered: a few million tokens.
const BEGINNINGS_MAX: usize = 1 << 16;

/// What this gateway has placed.
#[derive(Debug)]
struct Placed {
    claims: HashMap<NodeId, Claim>,
    prefixes: Prefixes,
}

/// What this gateway has on one node.
#[derive(Clone, Copy, Debug, Default)]
struct Claim {
    blocks: u32,
    sequences: u32,
}

/// The attention nodes of the last view.
#[derive(Debug)]
pub(crate) struct Nodes {
    cluster: Cluster,
    placed: Mutex<Placed>,
    /// How long requests are held while no node takes work.
    patience: Duration,
    seen: Mutex<Seen>,
}

/// Whether nodes took work when somebody last looked.
#[derive(Clone, Copy, Debug)]
enum Seen {
    /// None ever did.
    Never,
    Ready,
    /// The last one went at this time.
    Gone(Instant),
}

/// Whether requests are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A node takes work.
    Ready,
    /// None does, and one did not long ago. When the last replica of an expert is lost, all attention
    /// nodes wait until the expert is somewhere else: requests are held for so long.
    Holding(Duration),
    /// None does.
    Away,
}

/// A place on a node; dropping it gives the claim back.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) node: Member,
    pub(crate) assignment: Assignment,
    blocks: u32,
    nodes: Arc<Nodes>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let claims = &mut self.nodes.placed().claims;
        if let Some(claim) = claims.get_mut(&self.node.id) {
            claim.blocks = claim.blocks.saturating_sub(self.blocks);
            claim.sequences = claim.sequences.saturating_sub(1);
            if claim.sequences == 0 {
                claims.remove(&self.node.id);
            }
        }
    }
}

impl Place {
    /// Runs a sequence at this place, below a span if it is traced; resolves when the node has taken it or
    /// refused it.
    pub(crate) async fn run(
        &self,
        request: SequenceRequest,
        traceparent: Option<&str>,
    ) -> Result<Tokens, SequenceError> {
        let sequences = &self.nodes.cluster.sequences;
        sequences.run(&self.node.address, request, traceparent).await
    }
}

/// KV cache of all attention nodes that take work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KvCache {
    pub(crate) blocks: u64,
    pub(crate) blocks_free: u64,
    pub(crate) nodes: usize,
}

fn ready(view: &ClusterView) -> impl Iterator<Item = &Member> {
    view.role(Role::Attention).filter(|member| member.health == Health::Ready)
}

impl Nodes {
    pub(crate) fn new(cluster: Cluster, patience: Duration) -> Arc<Self> {
        let seen = Mutex::new(Seen::Never);
        let (claims, prefixes) = (HashMap::new(), Prefixes::new(BEGINNINGS_MAX));
        let placed = Mutex::new(Placed { claims, prefixes });
        let nodes = Arc::new(Self { cluster, placed, patience, seen });
        nodes.standing();
        nodes
    }

    fn placed(&self) -> MutexGuard<'_, Placed> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a place for a sequence of `tokens`, on none of the `refused` nodes. What a sequence
    /// will still generate is not claimed: nobody knows how much it is.
    pub(crate) fn place(self: &Arc<Self>, tokens: &[u32], refused: &[NodeId]) -> Option<Place> {
        let view = self.cluster.view.borrow().clone();
        let beginnings = told_apart(&view, tokens);
        let mut placed = self.placed();
        let candidates: Vec<_> =
            ready(&view).map(|member| placed.candidate(member, &beginnings)).collect();
        let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let assignment = assign(&candidates, refused, count)?;
        let node = view.member(assignment.node)?.clone();
        placed.prefixes.note(node.id, &beginnings);
        let blocks = u32::try_from(tokens.len() / BLOCK_TOKENS + 1).unwrap_or(u32::MAX);
        let claim = placed.claims.entry(node.id).or_default();
        claim.blocks = claim.blocks.saturating_add(blocks);
        claim.sequences += 1;
        drop(placed);
        Some(Place { node, assignment, blocks, nodes: Arc::clone(self) })
    }

    /// A sequence of `tokens` has come to its end on a node, which has computed all but the last of them.
    pub(crate) fn note_end(&self, node: NodeId, tokens: &[u32]) {
        let view = self.cluster.view.borrow().clone();
        let beginnings = told_apart(&view, tokens);
        self.placed().prefixes.note(node, &beginnings);
    }

    /// Waits until the view has a node that takes work and is not among `refused`.
    pub(crate) async fn another(&self, refused: &[NodeId], patience: Duration) -> bool {
        let mut view = self.watch();
        let other = |view: &Arc<ClusterView>| ready(view).any(|m| !refused.contains(&m.id));
        let found = async {
            if view.wait_for(other).await.is_err() {
                // Nobody will change the view any more: keep the pace of the tries.
                std::future::pending::<()>().await;
            }
        };
        tokio::time::timeout(patience, found).await.is_ok()
    }

    /// Waits until a node is no member any more.
    pub(crate) async fn gone(&self, node: NodeId) {
        if self.watch().wait_for(|view| view.member(node).is_none()).await.is_err() {
            // Nobody will say so any more.
            std::future::pending::<()>().await;
        }
    }

    /// Whether requests are taken in. To be asked whenever the view has changed.
    pub(crate) fn standing(&self) -> Standing {
        let any = ready(&self.cluster.view.borrow()).next().is_some();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = match (any, *seen) {
            (true, _) => Seen::Ready,
            (false, Seen::Ready) => Seen::Gone(Instant::now()),
            (false, before) => before,
        };
        match *seen {
            Seen::Ready => Standing::Ready,
            Seen::Never => Standing::Away,
            Seen::Gone(at) => match self.patience.saturating_sub(at.elapsed()) {
                Duration::ZERO => Standing::Away,
                left => Standing::Holding(left),
            },
        }
    }

    /// A receiver of views, for whoever reports readiness.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.cluster.view.clone()
    }

    /// The KV cache as last reported.
    pub(crate) fn kv_cache(&self) -> KvCache {
        ready(&self.cluster.view.borrow()).fold(KvCache::default(), |sum, member| KvCache {
            blocks: sum.blocks + u64::from(member.load.kv_blocks),
            blocks_free: sum.blocks_free + u64::from(member.load.kv_blocks_free),
            nodes: sum.nodes + 1,
        })
    }
}

/// The beginnings of a sequence, where there is more than one node to send it to.
fn told_apart(view: &ClusterView, tokens: &[u32]) -> Vec<Beginning> {
    if view.role(Role::Attention).count() > 1 { beginnings(tokens) } else { Vec::new() }
}

// === impl Placed ===

impl Placed {
    /// A node as one for a sequence that begins so.
    fn candidate(&self, member: &Member, beginnings: &[Beginning]) -> Candidate {
        let claim = self.claims.get(&member.id).copied().unwrap_or_default();
        Candidate {
            node: member.id,
            kv_blocks: member.load.kv_blocks,
            kv_blocks_free: member.load.kv_blocks_free,
            sequences: member.load.running.saturating_add(member.load.waiting),
            own_blocks: claim.blocks,
            own_sequences: claim.sequences,
            cached_tokens: self.prefixes.cached(member.id, beginnings),
        }
    }
}
