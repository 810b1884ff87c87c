//! API keys: random, known by their hashes only, each with a name for logs and the scopes it opens.

use std::{fmt, path::Path, sync::Arc};

use ring::{
    digest::{SHA256, SHA256_OUTPUT_LEN, digest},
    rand::{SecureRandom, SystemRandom},
};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use crate::{
    Denied, Metrics, TrustError,
    pem::{content, read},
    watched::Watched,
};

#[cfg(test)]
mod tests;

/// Where clients show their key, as `Bearer KEY`.
pub const KEY_HEADER: &str = "authorization";
/// Random bytes of a key. As nobody can guess one, a plain hash of it gives nothing away.
const KEY_BYTES: usize = 32;
/// Keys of a file: all are looked at for each request.
const KEYS_MAX: usize = 4096;
const EXPECTED: &str = "a known key is expected in the header `authorization: Bearer KEY`";

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Asking the model.
    Inference,
    /// Reading metrics and the state of the cluster.
    Metrics,
    /// Changing the cluster, and reading it.
    Admin,
}

/// The keys that are known, as the file last said.
#[derive(Clone, Debug)]
pub struct Keys(Source);

#[derive(Clone)]
enum Source {
    File(Arc<Watched<Vec<Key>>>),
    Fixed(Arc<Vec<Key>>),
}

/// A key as it is known here.
struct Key {
    name: Arc<str>,
    scopes: Vec<Scope>,
    hash: [u8; SHA256_OUTPUT_LEN],
}

/// The key file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(default)]
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    scopes: Vec<Scope>,
    sha256: String,
}

/// A key that was just made.
pub struct NewKey {
    /// To be given to its owner and kept nowhere else.
    pub secret: String,
    /// Its entry of the key file.
    pub entry: String,
}

// === impl Scope ===

impl Scope {
    /// As key files say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }

    fn opens(self, wanted: Self) -> bool {
        self == wanted || (self == Self::Admin && wanted == Self::Metrics)
    }
}

// === impl Keys ===

impl Keys {
    pub(crate) fn open(file: &Path, metrics: Option<&Metrics>) -> Result<Self, TrustError> {
        let (path, told) = (file.to_owned(), metrics.cloned());
        let read = move || {
            let keys = parse(&path)?;
            if let Some(metrics) = &told {
                metrics.keys(keys.len());
            }
            Ok(keys)
        };
        Watched::open("keys", vec![file.to_owned()], metrics, read).map(Source::File).map(Self)
    }

    /// Keys that open everything, told in plain: for one process with flags.
    #[must_use]
    pub fn plain(secrets: &[String]) -> Self {
        let key = |(nth, secret): (usize, &String)| Key {
            name: format!("flag-{nth}").into(),
            scopes: vec![Scope::Inference, Scope::Admin],
            hash: hash(secret.as_bytes()),
        };
        Self(Source::Fixed(Arc::new(secrets.iter().enumerate().map(key).collect())))
    }

    /// The name of the key in the value of `authorization`, if it opens `scope`, or anything at all.
    ///
    /// # Errors
    /// The key is not known, or opens other things.
    pub fn check(
        &self,
        authorization: Option<&[u8]>,
        scope: Option<Scope>,
    ) -> Result<Arc<str>, Denied> {
        let secret = authorization.and_then(bearer).ok_or(Denied::Unknown(EXPECTED))?;
        let shown = hash(secret);
        let keys = match &self.0 {
            Source::File(file) => file.current(),
            Source::Fixed(keys) => Arc::clone(keys),
        };
        // Every key is looked at, and each to its end: the time says nothing about them.
        let found = keys.iter().fold(None, |found, key| {
            if bool::from(key.hash.ct_eq(&shown)) { Some(key) } else { found }
        });
        let key = found.ok_or(Denied::Unknown(EXPECTED))?;
        match scope.filter(|&scope| !key.scopes.iter().any(|opened| opened.opens(scope))) {
            None => Ok(Arc::clone(&key.name)),
            Some(scope) => {
                let (name, scope) = (&key.name, scope.name());
                Err(Denied::Forbidden(format!("the key `{name}` has not the scope `{scope}`")))
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Fixed(keys) => write!(f, "{} keys", keys.len()),
        }
    }
}

/// The key in `Bearer KEY`; the scheme's case does not matter (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| rest.trim_ascii())
}

fn hash(secret: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(digest(&SHA256, secret).as_ref());
    bytes
}

fn parse(path: &Path) -> Result<Vec<Key>, TrustError> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| content(path, "expected text"))?;
    // Of the error only the sentence: what it quotes belongs in no log.
    let file: KeyFile =
        toml::from_str(text).map_err(|error| content(path, error.message().replace('\n', " ")))?;
    if file.keys.len() > KEYS_MAX {
        let found = file.keys.len();
        return Err(content(path, format!("holds {found} keys, expected at most {KEYS_MAX}")));
    }
    file.keys.into_iter().map(|entry| entry.check(path)).collect()
}

impl Entry {
    fn check(self, path: &Path) -> Result<Key, TrustError> {
        let visible = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if !(1..=64).contains(&self.name.len()) || !self.name.chars().all(visible) {
            let expected = "expected 1 to 64 letters, digits, `-`, `_`, `.` and `@`";
            return Err(content(path, format!("name {:?}: {expected}", self.name)));
        }
        let Some(hash) = unhex(&self.sha256) else {
            let expected = "`sha256` is expected to be 64 hexadecimal digits";
            return Err(content(path, format!("key {}: {expected}", self.name)));
        };
        Ok(Key { name: self.name.into(), scopes: self.scopes, hash })
    }
}

fn unhex(text: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    if text.len() != 2 * bytes.len() || !text.is_ascii() {
        return None;
    }
    for (nth, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * nth..2 * nth + 2], 16).ok()?;
    }
    Some(bytes)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a key called `name` that opens `scopes`.
///
/// # Errors
/// The system has no random numbers, or the name cannot be used.
pub fn new_key(name: &str, scopes: &[Scope]) -> Result<NewKey, String> {
    let mut random = [0; KEY_BYTES];
    SystemRandom::new().fill(&mut random).map_err(|_| "the system has no random numbers")?;
    let secret = format!("amoe-{}", to_hex(&random));
    let names: Vec<_> = scopes.iter().map(|scope| format!("\"{}\"", scope.name())).collect();
    let (names, hash) = (names.join(", "), to_hex(&hash(secret.as_bytes())));
    let entry = Entry { name: name.to_owned(), scopes: scopes.to_vec(), sha256: hash.clone() };
    entry.check(Path::new("flag `--name`")).map_err(|error| error.to_string())?;
    let entry = format!("[[keys]]\nname = \"{name}\"\nscopes = [{names}]\nsha256 = \"{hash}\"\n");
    Ok(NewKey { secret, entry })
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("entry", &self.entry).finish_non_exhaustive()
    }
}
