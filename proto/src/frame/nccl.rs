//! What two ends of a link say to each other to make a pair of NCCL communicators.

use crate::{Invalid, internal as wire};

/// Bytes of the name of a communicator, NCCL's unique id.
pub const NCCL_NAME_BYTES: usize = 128;

/// Names a communicator; who knows it can become an end.
pub type NcclName = [u8; NCCL_NAME_BYTES];

/// What one end can do by NCCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NcclOffer {
    /// First part of the library's version; both ends must have the same.
    pub major: u32,
    /// The most bytes of rows that one frame may bring this end.
    pub row_bytes_max: usize,
}

/// One step of one attempt to make a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NcclWord {
    /// Counts the attempts of one link from 1. Words of other attempts mean nothing.
    pub attempt: u32,
    /// The step.
    pub step: NcclStep,
}

/// Steps of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NcclStep {
    /// Attention → expert: make these two, the first for dispatches, the second for outputs.
    Names(Box<[NcclName; 2]>),
    /// The sender has made both and takes rows by them.
    Joined,
    /// The sender has given the attempt up, for this reason.
    Failed(String),
}

// === impl NcclOffer ===

impl NcclOffer {
    pub(super) fn encode(self) -> wire::NcclOffer {
        wire::NcclOffer { major: self.major, row_bytes_max: self.row_bytes_max as u64 }
    }

    pub(super) fn decode(offer: wire::NcclOffer) -> Self {
        let row_bytes_max = usize::try_from(offer.row_bytes_max).unwrap_or(usize::MAX);
        Self { major: offer.major, row_bytes_max }
    }
}

// === impl NcclWord ===

impl NcclWord {
    pub(super) fn encode(self) -> wire::Nccl {
        use wire::nccl::Step;
        let step = match self.step {
            NcclStep::Names(names) => {
                let [forth, back] = names.map(|name| name.to_vec());
                Step::Names(wire::NcclNames { forth, back })
            }
            NcclStep::Joined => Step::Joined(wire::NcclJoined {}),
            NcclStep::Failed(why) => Step::Failed(why),
        };
        wire::Nccl { attempt: self.attempt, step: Some(step) }
    }

    pub(super) fn decode(word: wire::Nccl) -> Result<Self, Invalid> {
        use wire::nccl::Step;
        let step = match word.step.ok_or_else(|| Invalid::missing("nccl.step"))? {
            Step::Names(names) => {
                let forth = name("nccl.names.forth", &names.forth)?;
                let back = name("nccl.names.back", &names.back)?;
                NcclStep::Names(Box::new([forth, back]))
            }
            Step::Joined(wire::NcclJoined {}) => NcclStep::Joined,
            Step::Failed(why) => NcclStep::Failed(why),
        };
        Ok(Self { attempt: word.attempt, step })
    }
}

fn name(field: &'static str, bytes: &[u8]) -> Result<NcclName, Invalid> {
    bytes.try_into().map_err(|_| {
        Invalid::new(field, format!("has {} bytes, expected {NCCL_NAME_BYTES}", bytes.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_wire() {
        let names = Box::new([[1; NCCL_NAME_BYTES], [2; NCCL_NAME_BYTES]]);
        let failed = NcclStep::Failed("no".to_owned());
        for step in [NcclStep::Names(names), NcclStep::Joined, failed] {
            let word = NcclWord { attempt: 7, step };
            assert_eq!(NcclWord::decode(word.clone().encode()), Ok(word));
        }
    }

    #[test]
    fn a_bad_word_is_one_sentence() {
        let names = wire::NcclNames { forth: vec![0; 128], back: Vec::new() };
        let word = wire::Nccl { attempt: 1, step: Some(wire::nccl::Step::Names(names)) };
        let error = NcclWord::decode(word).unwrap_err();
        assert_eq!(error.to_string(), "nccl.names.back: has 0 bytes, expected 128");
        let error = NcclWord::decode(wire::Nccl { attempt: 1, step: None }).unwrap_err();
        assert_eq!(error.to_string(), "nccl.step: is missing");
    }
}
