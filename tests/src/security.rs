//! What a secured cluster is started with: certificates of all parties and keys of all scopes, in one folder.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow};
use tempfile::TempDir;
use trust::{Party, Scope, authority::Authority};

use crate::dial::Dial;

/// Days that certificates of tests last.
const DAYS: i64 = 2;

/// The files, and the keys in plain.
#[derive(Debug)]
pub struct Security {
    folder: TempDir,
    /// Opens the public API.
    pub inference: String,
    /// Opens `/metrics`.
    pub metrics: String,
    /// Opens Admin.
    pub admin: String,
}

impl Security {
    /// Makes everything, for a gateway at `host`.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn new(host: IpAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        certify(folder.path(), DAYS)?;
        Authority::open(folder.path())?.certify_public(&[host.to_string()], DAYS)?;
        let made = |name, scope| trust::new_key(name, &[scope]).map_err(|error| anyhow!(error));
        let inference = made("asks", Scope::Inference)?;
        let (metrics, admin) = (made("scrapes", Scope::Metrics)?, made("rules", Scope::Admin)?);
        let entries = [&inference, &metrics, &admin].map(|key| key.entry.as_str());
        fs::write(folder.path().join("keys.toml"), entries.concat())?;
        let (inference, metrics, admin) = (inference.secret, metrics.secret, admin.secret);
        Ok(Self { folder, inference, metrics, admin })
    }

    /// A file of the folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a program of `role` is told by its environment.
    pub(crate) fn settings(&self, role: &str) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.file(name).display().to_string();
        let mut settings = vec![
            ("TLS__CERTIFICATE", path(&format!("{role}.pem"))),
            ("TLS__KEY", path(&format!("{role}.key"))),
            ("TLS__AUTHORITY", path("ca.pem")),
            ("KEYS__FILE", path("keys.toml")),
        ];
        if role == "gateway" {
            settings.push(("PUBLIC_TLS__CERTIFICATE", path("public.pem")));
            settings.push(("PUBLIC_TLS__KEY", path("public.key")));
        }
        settings
    }

    /// Connections of a client of the gateway at `host`.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn client(&self, host: IpAddr) -> Result<Dial> {
        Dial::tls(&self.file("ca.pem"), &host.to_string(), None)
    }

    /// Connections of `shown`, or of somebody without a certificate, to processes of `party`.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn process(&self, party: Party, shown: Option<Party>) -> Result<Dial> {
        self.stranger(self.folder.path(), party, shown)
    }

    /// The same with a certificate from another folder.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn stranger(&self, folder: &Path, party: Party, shown: Option<Party>) -> Result<Dial> {
        let file = |end: &str| {
            shown.map(|shown| folder.join(format!("{}.{end}", shown.name()))).unwrap_or_default()
        };
        let (certificate, key) = (file("pem"), file("key"));
        let shown = shown.map(|_| (&*certificate, &*key));
        Dial::tls(&self.file("ca.pem"), party.dns_name(), shown)
    }

    /// A folder with other certificates of all parties by this authority, for `days` from now; if that is
    /// less than 0 they are over.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn others(&self, days: i64) -> Result<TempDir> {
        let folder = tempfile::tempdir()?;
        for name in ["ca.pem", "ca.key"] {
            fs::copy(self.file(name), folder.path().join(name))?;
        }
        certify(folder.path(), days)?;
        Ok(folder)
    }

    /// A folder with certificates of all parties by another authority.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn foreign() -> Result<TempDir> {
        let folder = tempfile::tempdir()?;
        certify(folder.path(), DAYS)?;
        Ok(folder)
    }
}

/// Certificates of all parties, by the authority of the folder or a new one.
fn certify(folder: &Path, days: i64) -> Result<()> {
    let authority = Authority::open(folder)?;
    Ok(Party::ALL.into_iter().try_for_each(|party| authority.certify(party, days))?)
}
