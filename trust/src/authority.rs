//! A development authority: makes the certificates of a cluster where nobody else does.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::Party;

/// Days that an authority lasts; its leaves last as long as they are told.
const AUTHORITY_DAYS: i64 = 3650;
/// A certificate begins this much before now: clocks differ.
const SKEW: Duration = Duration::minutes(5);
/// The name of the public door's files.
pub const PUBLIC: &str = "public";

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The certificates themselves.
    #[error("cannot make certificates: {0}")]
    Certificates(#[from] rcgen::Error),
}

/// An authority whose files `ca.pem` and `ca.key` lie in a folder.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

// === impl Authority ===

impl Authority {
    /// The authority of a folder, which is made if there is none yet.
    ///
    /// # Errors
    /// Its files cannot be read or written.
    pub fn open(folder: &Path) -> Result<Self, AuthorityError> {
        let at = |source| AuthorityError::File { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(at)?;
        let (certificate, key) = (folder.join("ca.pem"), folder.join("ca.key"));
        let issuer = if certificate.exists() {
            let pem = read(&certificate)?;
            Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&read(&key)?)?)?
        } else {
            let pair = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "amoe development authority");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            lasts(&mut params, AUTHORITY_DAYS);
            let pem = params.self_signed(&pair)?.pem();
            write(&key, &pair.serialize_pem(), 0o600)?;
            write(&certificate, &pem, 0o644)?;
            Issuer::new(params, pair)
        };
        Ok(Self { folder: folder.to_owned(), issuer })
    }

    /// Writes `NAME.pem` and `NAME.key` for a party, for `days` from now; none are over already.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn certify(&self, party: Party, days: i64) -> Result<(), AuthorityError> {
        self.issue(party.name(), vec![party.dns_name().to_owned()], days)
    }

    /// Writes `public.pem` and `public.key` for a public door that clients reach at `hosts`.
    ///
    /// # Errors
    /// A host is no name and no address, or the files cannot be written.
    pub fn certify_public(&self, hosts: &[String], days: i64) -> Result<(), AuthorityError> {
        self.issue(PUBLIC, hosts.to_vec(), days)
    }

    fn issue(&self, name: &str, subjects: Vec<String>, days: i64) -> Result<(), AuthorityError> {
        let mut params = CertificateParams::new(subjects)?;
        params.distinguished_name.push(DnType::CommonName, format!("amoe {name}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        lasts(&mut params, days);
        let pair = KeyPair::generate()?;
        let pem = params.signed_by(&pair, &self.issuer)?.pem();
        write(&self.folder.join(format!("{name}.key")), &pair.serialize_pem(), 0o600)?;
        write(&self.folder.join(format!("{name}.pem")), &pem, 0o644)
    }
}

fn lasts(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_after = now + Duration::days(days);
    params.not_before = now.min(params.not_after) - SKEW;
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path)
        .map_err(|source| AuthorityError::File { path: path.to_owned(), source })
}

/// Writes beside the file and renames: a process that watches it never sees a half.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let beside = path.with_extension("new");
    let written = (|| {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    written.map_err(|source| AuthorityError::File { path: path.to_owned(), source })
}
