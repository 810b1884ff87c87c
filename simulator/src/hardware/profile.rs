//! Curve files: the cost curves of real nodes, as `amoe profile` writes them.

use domain::CostCurve;
use serde::Deserialize;

/// The curves of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCurves {
    /// The node's name; its number in a file of the short form.
    pub name: String,
    /// A whole MoE layer against all (token, expert) pairs.
    pub layer: CostCurve,
    /// One activated expert against its tokens.
    pub expert: CostCurve,
}

/// `{"nodes": [{"name": …, "layer": [[tokens, ns], …], "expert": …}, …]}`, or the short
/// `{"curves": [[[tokens, ns], …] per node]}`, in which one curve serves for both.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    nodes: Vec<Node>,
    #[serde(default)]
    curves: Vec<Vec<(u32, u64)>>,
}

#[derive(Deserialize)]
struct Node {
    name: String,
    layer: Vec<(u32, u64)>,
    expert: Vec<(u32, u64)>,
}

/// Reads a curve file; there is at least one node in what it returns.
///
/// # Errors
/// One sentence: what is wrong, and for which node.
pub fn parse(text: &str) -> Result<Vec<NodeCurves>, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let short = file.curves.into_iter().enumerate().map(|(at, points)| Node {
        name: at.to_string(),
        layer: points.clone(),
        expert: points,
    });
    let nodes: Vec<_> = file.nodes.into_iter().chain(short).map(node).collect::<Result<_, _>>()?;
    if nodes.is_empty() {
        return Err("it names no node, expected \"nodes\" or \"curves\"".to_owned());
    }
    Ok(nodes)
}

fn node(Node { name, layer, expert }: Node) -> Result<NodeCurves, String> {
    let curve = |which: &str, points| {
        CostCurve::new(points)
            .map_err(|error| format!("the {which} curve of node \"{name}\": {error}"))
    };
    Ok(NodeCurves { layer: curve("layer", layer)?, expert: curve("expert", expert)?, name })
}
