//! What work costs on a node: time against tokens, a staircase as wide as the kernels' tiles.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Time against tokens, measured at tile edges and held in between (GEM, profiling).
///
/// What one call covers is said by whoever holds the curve: one expert of a launch, or a whole MoE
/// layer. `n` tokens cost what the next edge costs; past the last edge the cost goes on in
/// proportion to its tokens. No tokens cost nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u32, u64)>", into = "Vec<(u32, u64)>")]
pub struct CostCurve {
    /// (tokens, nanoseconds), tokens ascending, nanoseconds not descending; never empty.
    edges: Vec<(u32, u64)>,
}

/// What work costs on one expert node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Curves {
    /// One activated expert's share of a launch, against its tokens.
    pub expert: CostCurve,
    /// The node's whole part of a MoE layer, against all its (token, expert) pairs.
    pub layer: CostCurve,
}

/// Points that make no curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CurveError {
    /// There are none.
    #[error("a cost curve needs at least one point [tokens, ns]")]
    Empty,
    /// A point is for no tokens or takes no time.
    #[error("point {at} of a cost curve is [{tokens}, {ns}], expected both above 0")]
    Zero {
        /// Which point, counted from 0.
        at: usize,
        /// Its tokens.
        tokens: u32,
        /// Its time.
        ns: u64,
    },
    /// Tokens do not ascend, or more tokens take less time.
    #[error(
        "point {at} of a cost curve does not follow the one before it: tokens must ascend and time must not fall"
    )]
    Order {
        /// Which point, counted from 0.
        at: usize,
    },
}

impl CostCurve {
    /// A curve through (tokens, nanoseconds) points at ascending tile edges.
    pub fn new(edges: Vec<(u32, u64)>) -> Result<Self, CurveError> {
        if edges.is_empty() {
            return Err(CurveError::Empty);
        }
        for (at, &(tokens, ns)) in edges.iter().enumerate() {
            if tokens == 0 || ns == 0 {
                return Err(CurveError::Zero { at, tokens, ns });
            }
            if at > 0 && (edges[at - 1].0 >= tokens || edges[at - 1].1 > ns) {
                return Err(CurveError::Order { at });
            }
        }
        Ok(Self { edges })
    }

    /// Nanoseconds that `tokens` tokens take.
    #[must_use]
    pub fn ns(&self, tokens: u32) -> u64 {
        if tokens == 0 {
            return 0;
        }
        let next = self.edges.partition_point(|&(edge, _)| edge < tokens);
        match self.edges.get(next) {
            Some(&(_, ns)) => ns,
            None => {
                let (edge, ns) = self.last();
                let scaled = u128::from(ns) * u128::from(tokens) / u128::from(edge);
                u64::try_from(scaled).unwrap_or(u64::MAX)
            }
        }
    }

    /// The most tokens that cost at most a quarter more than one: up to here reading the weights
    /// rules, and more tokens are nearly free; past it the work may be worth sharing.
    #[must_use]
    pub fn ridge(&self) -> u32 {
        let (first, floor) = self.edges[0];
        let flat = self.edges.iter().take_while(|&&(_, ns)| ns <= floor + floor / 4);
        flat.last().map_or(first, |&(tokens, _)| tokens)
    }

    /// The same work on a node that takes `factor` times as long; at least 1 ns a point.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "times are far below 2^52 ns and a negative or huge factor saturates"
        )]
        let scale = |ns: u64| ((ns as f64 * factor).round() as u64).max(1);
        Self { edges: self.edges.iter().map(|&(tokens, ns)| (tokens, scale(ns))).collect() }
    }

    /// The points, tokens ascending.
    #[must_use]
    pub fn edges(&self) -> &[(u32, u64)] {
        &self.edges
    }

    fn last(&self) -> (u32, u64) {
        self.edges[self.edges.len() - 1]
    }
}

impl TryFrom<Vec<(u32, u64)>> for CostCurve {
    type Error = CurveError;

    fn try_from(edges: Vec<(u32, u64)>) -> Result<Self, CurveError> {
        Self::new(edges)
    }
}

impl From<CostCurve> for Vec<(u32, u64)> {
    fn from(curve: CostCurve) -> Self {
        curve.edges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_holds_between_edges_and_goes_on_past_the_last() {
        let curve = CostCurve::new(vec![(1, 100), (16, 110), (32, 200)]).unwrap();
        let asked = [0, 1, 2, 16, 17, 32, 64].map(|tokens| curve.ns(tokens));
        assert_eq!(asked, [0, 100, 110, 110, 200, 200, 400]);
        assert_eq!(curve.ridge(), 16);
        assert_eq!(curve.scaled(1.5).ns(16), 165);
    }

    #[test]
    fn bad_points_are_named() {
        let error = |points| CostCurve::new(points).unwrap_err();
        assert_eq!(error(vec![]), CurveError::Empty);
        assert_eq!(error(vec![(0, 5)]), CurveError::Zero { at: 0, tokens: 0, ns: 5 });
        assert_eq!(error(vec![(2, 5), (2, 6)]), CurveError::Order { at: 1 });
        assert_eq!(error(vec![(2, 5), (3, 4)]), CurveError::Order { at: 1 });
    }
}
