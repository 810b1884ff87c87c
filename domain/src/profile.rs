//! Profiles: the cost curves of named nodes, and the JSON file they are kept in.

use serde::{Deserialize, Serialize};

use crate::{CostCurve, Curves};

/// What was measured on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeProfile {
    /// The node's name.
    pub name: String,
    /// The node's whole part of a MoE layer, against all its (token, expert) pairs.
    pub layer: CostCurve,
    /// One activated expert's share of a launch, against its tokens.
    pub expert: CostCurve,
}

/// A curve file: `{"nodes": [{"name": …, "layer": [[tokens, ns], …], "expert": …}, …]}`.
///
/// The short form `{"curves": [[[tokens, ns], …] per node]}` is read too; there one curve serves for
/// both and nodes are named by their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct Profile {
    /// At least one node.
    pub nodes: Vec<NodeProfile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    nodes: Vec<NodeProfile>,
    #[serde(default)]
    curves: Vec<CostCurve>,
}

impl TryFrom<Written> for Profile {
    type Error = &'static str;

    fn try_from(Written { mut nodes, curves }: Written) -> Result<Self, Self::Error> {
        nodes.extend(curves.into_iter().enumerate().map(|(number, curve)| NodeProfile {
            name: number.to_string(),
            layer: curve.clone(),
            expert: curve,
        }));
        if nodes.is_empty() {
            return Err("a curve file names no node, expected \"nodes\" or \"curves\"");
        }
        Ok(Self { nodes })
    }
}

impl From<NodeProfile> for Curves {
    fn from(NodeProfile { layer, expert, .. }: NodeProfile) -> Self {
        Self { expert, layer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Profile, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_are_read_and_the_long_one_is_written() {
        let long = r#"{"nodes":[{"name":"e0","layer":[[1,5],[16,9]],"expert":[[1,2]]}]}"#;
        let profile = read(long).unwrap();
        assert_eq!(serde_json::to_string(&profile).unwrap(), long);
        assert_eq!(profile.nodes[0].layer.ns(2), 9);
        let short = read(r#"{"curves":[[[1,5]],[[1,7]]]}"#).unwrap();
        assert_eq!((short.nodes[1].name.as_str(), short.nodes[1].expert.ns(1)), ("1", 7));
    }

    #[test]
    fn bad_files_are_told_why() {
        let complaint = |text| read(text).unwrap_err();
        assert!(complaint("{}").contains("names no node"));
        assert!(complaint(r#"{"curves":[[]]}"#).contains("at least one point"));
        assert!(complaint(r#"{"curves":[[[2,5],[1,6]]]}"#).contains("point 1"));
        assert!(complaint(r#"{"node":[]}"#).contains("unknown field `node`"));
    }
}
