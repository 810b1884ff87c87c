//! Reads certificates and keys from PEM files, and from certificates when they end and whom they name.

use std::{fs, path::Path};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use crate::{Party, TrustError};

/// Larger files are no certificates; nothing is read to its end that could be endless.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate with the ones between it and its authority, and its key.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// When the first of the chain ends, in seconds since 1970.
    pub(crate) expires_s: i64,
    pub(crate) parties: Vec<Party>,
}

pub(crate) fn identity(certificate: &Path, key: &Path) -> Result<Identity, TrustError> {
    let chain = certificates(certificate)?;
    let (mut expires_s, mut parties) = (i64::MAX, Vec::new());
    for (nth, der) in chain.iter().enumerate() {
        let (ends, named) = facts(der).map_err(|reason| content(certificate, reason))?;
        expires_s = expires_s.min(ends);
        if nth == 0 {
            parties = named;
        }
    }
    let bytes = read(key)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| content(key, "expected a private key as PEM"))?;
    Ok(Identity { chain, key, expires_s, parties })
}

/// The authorities of a file, and when the first of them ends.
pub(crate) fn authorities(path: &Path) -> Result<(RootCertStore, i64), TrustError> {
    let mut roots = RootCertStore::empty();
    let mut expires_s = i64::MAX;
    for der in certificates(path)? {
        expires_s = expires_s.min(facts(&der).map_err(|reason| content(path, reason))?.0);
        roots.add(der).map_err(|error| content(path, format!("holds no authority: {error}")))?;
    }
    Ok((roots, expires_s))
}

/// Whom a peer's certificate names. What is no certificate names nobody.
pub(crate) fn parties(der: &CertificateDer<'_>) -> Vec<Party> {
    facts(der).map(|(_, parties)| parties).unwrap_or_default()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(content(path, "expected certificates as PEM")),
    }
}

/// When a certificate ends, and the parties among its DNS names.
fn facts(der: &CertificateDer<'_>) -> Result<(i64, Vec<Party>), String> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der)
        .map_err(|error| format!("holds a broken certificate: {error}"))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| format!("holds a certificate with broken names: {error}"))?;
    let parties =
        names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Party::of_dns_name(name),
            _ => None,
        });
    Ok((certificate.validity().not_after.timestamp(), parties.collect()))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    let unreadable = |source| TrustError::Unreadable { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        let reason = format!("has {bytes} bytes, expected at most {FILE_BYTES_MAX}");
        return Err(content(path, reason));
    }
    fs::read(path).map_err(unreadable)
}

pub(crate) fn content(path: &Path, reason: impl Into<String>) -> TrustError {
    TrustError::Content { path: path.to_owned(), reason: reason.into() }
}
