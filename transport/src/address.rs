//! Addresses of services and engines: on the network, or by name within the process.

use std::{fmt, str::FromStr};

use thiserror::Error;
use tonic::transport::Uri;

/// Where something can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port` or `http://host:port`: a gRPC server.
    Tcp(String),
    /// `inproc:NAME`: a gRPC server in this process, without a port.
    Inproc(String),
    /// `memory:NAME`: an engine in this process, without gRPC.
    Memory(String),
}

/// An address that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// It reads as none of the kinds.
    #[error(
        "{0:?} is no address: expected host:port, http://host:port, inproc:NAME or memory:NAME"
    )]
    Unknown(String),
    /// It is an address, but of a kind that does not work here.
    #[error("{address} cannot be used here: expected {expected}")]
    WrongKind {
        /// The address.
        address: Address,
        /// The kinds that would do.
        expected: &'static str,
    },
    /// The name within the process is in use.
    #[error("{0} is taken by something else in this process")]
    Taken(Address),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let unknown = || AddressError::Unknown(text.to_owned());
        let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        if let Some(name) = text.strip_prefix("memory:") {
            return named(name).map(Self::Memory).ok_or_else(unknown);
        }
        if let Some(name) = text.strip_prefix("inproc:") {
            return named(name).map(Self::Inproc).ok_or_else(unknown);
        }
        let authority = text.strip_prefix("http://").unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let uri: Uri = format!("http://{authority}/").parse().map_err(|_| unknown())?;
        match uri.authority() {
            Some(parsed) if parsed.as_str() == authority && parsed.port_u16().is_some() => {
                Ok(Self::Tcp(authority.to_owned()))
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => f.write_str(authority),
            Self::Inproc(name) => write!(f, "inproc:{name}"),
            Self::Memory(name) => write!(f, "memory:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_their_kind() {
        for (text, expected) in [
            ("node-3:7000", Address::Tcp("node-3:7000".into())),
            ("http://10.0.0.1:7000/", Address::Tcp("10.0.0.1:7000".into())),
            ("[::1]:80", Address::Tcp("[::1]:80".into())),
            ("inproc:gateway", Address::Inproc("gateway".into())),
            ("memory:expert-0", Address::Memory("expert-0".into())),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_address_is_told_in_one_sentence() {
        for text in [
            "",
            "host",
            "host:",
            "host:99999",
            "memory:",
            "inproc:",
            "https://host:1",
            "host:1/path",
            "a b:1",
            "tcp:host:1",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error, AddressError::Unknown(text.into()));
            assert!(error.to_string().contains("expected host:port"));
        }
    }
}
