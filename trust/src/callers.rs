//! Who may call a service: the rule that stands beside each one, and the answer to one caller.

use crate::{Keys, Party, Peer, Scope};

/// Who may call a service between processes. There is no default: whoever adds a service says it.
#[derive(Clone, Debug)]
pub enum Callers {
    /// Whoever got a connection: with TLS every process of the cluster.
    Everybody,
    /// These, as their certificates say.
    Parties(&'static [Party]),
    /// Operators: by their certificate, or by a key with the scope `admin`.
    Operators(Option<Keys>),
}

/// Why a caller is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Nobody knows who it is.
    #[error("{0}")]
    Unknown(&'static str),
    /// It is known, and may not do this.
    #[error("{0}")]
    Forbidden(String),
}

// === impl Callers ===

impl Callers {
    /// Lets `peer`, who may have shown a key (the value of `authorization`), in or not.
    ///
    /// # Errors
    /// It may not call this.
    pub fn check(&self, peer: &Peer, authorization: Option<&[u8]>) -> Result<(), Denied> {
        match self {
            Self::Everybody => Ok(()),
            Self::Parties(parties) if parties.iter().any(|&party| peer.is(party)) => Ok(()),
            Self::Parties(parties) => {
                let names: Vec<_> = parties.iter().map(|party| party.name()).collect();
                let names = names.join(" or ");
                Err(Denied::Forbidden(format!("{peer}; expected that of {names}")))
            }
            Self::Operators(keys) => operator(keys.as_ref(), peer, authorization),
        }
    }
}

fn operator(keys: Option<&Keys>, peer: &Peer, authorization: Option<&[u8]>) -> Result<(), Denied> {
    match (peer, keys) {
        (Peer::Certified(parties), _) if parties.contains(&Party::Operator) => Ok(()),
        (Peer::Unchecked, None) => Ok(()),
        (_, Some(keys)) => keys.check(authorization, Some(Scope::Admin)).map(drop),
        (Peer::Certified(_), None) => {
            Err(Denied::Forbidden(format!("{peer}; expected that of operator")))
        }
    }
}
