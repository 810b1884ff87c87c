//! The store in an etcd cluster. Uses calls of etcd 3.4 only.

use std::{fmt, fs, path::Path, time::Duration};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions,
    Identity, KeyValue, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use futures::future::{BoxFuture, FutureExt};
use tokio::sync::mpsc;

use crate::config::EtcdTls;

use super::{
    Change, Commit, Entry, Expect, LeaseId, Outcome, Revision, Snapshot, Store, StoreError,
    WATCH_BACKLOG_MAX, Watch, Write,
};

/// A connection that stays silent for this long while it is asked for a sign of life is dead.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// A client of an etcd cluster that keeps all of its keys under one prefix.
pub struct EtcdStore {
    client: Client,
    endpoints: Vec<String>,
    prefix: String,
    timeout: Duration,
}

impl EtcdStore {
    /// A store at `endpoints` under `prefix`. Connects when it is first used and again whenever it
    /// has to; each call fails after `timeout`.
    ///
    /// # Errors
    /// An endpoint is no URL, or a file of `tls` cannot be used.
    pub async fn new(
        endpoints: Vec<String>,
        prefix: String,
        timeout: Duration,
        tls: Option<&EtcdTls>,
    ) -> Result<Self, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(timeout)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
            .with_keep_alive_while_idle(true);
        if let Some(tls) = tls {
            options = options.with_tls(identified(tls)?);
        }
        let client = Client::connect(&endpoints, Some(options)).await.map_err(|error| {
            StoreError::Refused(format!("etcd at {}: {error}", endpoints.join(", ")))
        })?;
        Ok(Self { client, endpoints, prefix, timeout })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => answer.map_err(classify),
            Err(_) => {
                let waited = format!("no answer in {} ms", self.timeout.as_millis());
                Err(StoreError::Unavailable(waited))
            }
        }
    }

    fn condition(&self, expect: &Expect) -> Compare {
        let modified = expect.modified.cast_signed();
        Compare::mod_revision(self.key(&expect.key), CompareOp::Equal, modified)
    }

    fn operation(&self, write: Write) -> TxnOp {
        match write {
            Write::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(self.key(&key), value, options)
            }
            Write::Delete { key } => TxnOp::delete(self.key(&key), None),
        }
    }
}

/// The files of `[store.tls]`.
fn identified(tls: &EtcdTls) -> Result<TlsOptions, StoreError> {
    let read = |path: &Path| {
        let refused =
            |why: &dyn fmt::Display| StoreError::Refused(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| refused(&error))?;
        // Anything else would be taken for no certificate at all, and be told by a failed handshake.
        match text.contains("-----BEGIN ") {
            true => Ok(text),
            false => Err(refused(&"found no PEM, expected a certificate or a key")),
        }
    };
    let mut options =
        TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.authority)?));
    if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
        options = options.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(options)
}

impl Store for EtcdStore {
    fn place(&self) -> String {
        format!("etcd at {} under {}", self.endpoints.join(", "), self.prefix)
    }

    fn range<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        async move {
            let mut client = self.client.kv_client();
            let options = GetOptions::new().with_prefix();
            let response = self.in_time(client.get(self.key(prefix), Some(options))).await?;
            let entries = response.kvs().iter().map(|kv| entry(&self.prefix, kv));
            Ok(Snapshot {
                entries: entries.collect::<Result<_, _>>()?,
                revision: revision(response.header().map(etcd_client::ResponseHeader::revision)),
            })
        }
        .boxed()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        async move {
            let when: Vec<Compare> = commit.when.iter().map(|when| self.condition(when)).collect();
            let then: Vec<TxnOp> =
                commit.then.into_iter().map(|write| self.operation(write)).collect();
            let transaction = Txn::new().when(when).and_then(then);
            let mut client = self.client.kv_client();
            let response = self.in_time(client.txn(transaction)).await?;
            if !response.succeeded() {
                return Ok(Outcome::Conflict);
            }
            let number = response.header().map(etcd_client::ResponseHeader::revision);
            Ok(Outcome::Done(revision(number)))
        }
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>> {
        async move {
            let mut client = self.client.watch_client();
            let from = from.cast_signed();
            let options = WatchOptions::new().with_prefix().with_start_revision(from);
            let stream = self.in_time(client.watch(self.key(prefix), Some(options))).await?;
            let (sender, changes) = mpsc::channel(WATCH_BACKLOG_MAX);
            tokio::spawn(follow(stream, self.prefix.clone(), sender));
            Ok(Watch { changes })
        }
        .boxed()
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        async move {
            let mut client = self.client.lease_client();
            let seconds = ttl.as_millis().div_ceil(1000).max(1);
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            let lease = self.in_time(client.grant(seconds, None)).await?;
            Ok(LeaseId(lease.id()))
        }
        .boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let mut client = self.client.lease_client();
            // One short stream per call: its first answer says whether the lease lives.
            self.in_time(client.keep_alive(lease.0)).await.map(drop)
        }
        .boxed()
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let mut client = self.client.lease_client();
            match self.in_time(client.revoke(lease.0)).await {
                Ok(_) | Err(StoreError::LeaseGone) => Ok(()),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }
}

/// Hands events on until the stream or the one who watches ends.
async fn follow(
    mut stream: WatchStream,
    prefix: String,
    changes: mpsc::Sender<Result<Change, StoreError>>,
) {
    let ended = loop {
        let message = tokio::select! {
            message = stream.message() => message,
            () = changes.closed() => return,
        };
        let response = match message {
            Ok(Some(response)) => response,
            Ok(None) => break StoreError::Unavailable("the watch has ended".to_owned()),
            Err(error) => break classify(error),
        };
        if response.compact_revision() > 0 {
            break StoreError::Missed;
        }
        if response.canceled() {
            break StoreError::Unavailable(response.cancel_reason().to_owned());
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let change = entry(&prefix, kv).map(|entry| match event.event_type() {
                EventType::Put => Change::Put(entry),
                EventType::Delete => Change::Deleted { key: entry.key, revision: entry.modified },
            });
            if changes.send(change).await.is_err() {
                return;
            }
        }
    };
    // Nobody left to tell is fine: then nobody watches.
    let _ = changes.send(Err(ended)).await;
}

fn entry(prefix: &str, kv: &KeyValue) -> Result<Entry, StoreError> {
    let key = kv.key_str().map_err(|error| StoreError::Refused(format!("a key: {error}")))?;
    Ok(Entry {
        key: key.strip_prefix(prefix).unwrap_or(key).to_owned(),
        value: kv.value().to_vec(),
        created: revision(Some(kv.create_revision())),
        modified: revision(Some(kv.mod_revision())),
    })
}

/// etcd's revisions are signed and never negative.
fn revision(number: Option<i64>) -> Revision {
    number.map_or(0, i64::cast_unsigned)
}

fn classify(error: Error) -> StoreError {
    match error {
        Error::LeaseKeepAliveError(_) => StoreError::LeaseGone,
        // The only thing that is looked up by number is a lease.
        Error::GRpcStatus(status) if status.code() == tonic::Code::NotFound => {
            StoreError::LeaseGone
        }
        Error::GRpcStatus(status)
            if matches!(
                status.code(),
                tonic::Code::InvalidArgument
                    | tonic::Code::PermissionDenied
                    | tonic::Code::Unauthenticated
            ) =>
        {
            StoreError::Refused(status.message().to_owned())
        }
        Error::InvalidArgs(what) => StoreError::Refused(what),
        Error::GRpcStatus(status) => {
            StoreError::Unavailable(format!("{}: {}", status.code(), status.message()))
        }
        other => StoreError::Unavailable(other.to_string()),
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EtcdStore").field(&self.place()).finish()
    }
}
