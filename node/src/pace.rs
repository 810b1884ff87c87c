//! A paced device: right answers from the processor, in the time another device would take for them.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use domain::{Curves, NodeProfile, Profile};

use crate::config::Device;

/// Holds a node's thread after each piece of work until its time is over, as the device would.
///
/// It makes a cluster of any devices out of one processor that is much faster than they are: what
/// the scheduling of a cluster gains can then be measured on real processes.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// None for a device that takes its own time.
    profile: Option<NodeProfile>,
}

// === impl Pace ===

impl Pace {
    /// The pace of `device`: that of the curve file's node called `name`, or of its first node.
    ///
    /// # Errors
    /// The curve file cannot be read or is none.
    pub fn open(device: &Device, name: &str) -> Result<Self> {
        let Device::Paced(path) = device else { return Ok(Self::default()) };
        let text = fs::read_to_string(path)
            .with_context(|| format!("key `node.device`: cannot read {}", path.display()))?;
        let Profile { mut nodes } = serde_json::from_str(&text)
            .with_context(|| format!("key `node.device`: {} is no curve file", path.display()))?;
        let at = nodes.iter().position(|node| node.name == name).unwrap_or(0);
        Ok(Self { profile: Some(nodes.swap_remove(at)) })
    }

    /// The curves it keeps to; none if the device takes its own time.
    #[must_use]
    pub fn curves(&self) -> Option<Curves> {
        self.profile.clone().map(Curves::from)
    }

    /// What a launch of experts with these tokens each takes.
    pub fn launch(&self, tokens: impl Iterator<Item = usize>) -> Duration {
        let Some(NodeProfile { expert, .. }) = &self.profile else { return Duration::ZERO };
        Duration::from_nanos(tokens.map(|tokens| expert.ns(count(tokens))).sum())
    }

    /// What an attention layer takes for `rows` rows.
    #[must_use]
    pub fn layer(&self, rows: usize) -> Duration {
        let Some(NodeProfile { layer, .. }) = &self.profile else { return Duration::ZERO };
        Duration::from_nanos(layer.ns(count(rows)))
    }

    /// Holds the calling thread until `due`.
    pub fn hold(due: Instant) {
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            thread::sleep(left);
        }
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
