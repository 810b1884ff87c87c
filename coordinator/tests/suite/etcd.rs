//! A real etcd server as a child process, with its data in a temporary folder.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use coordinator::{
    EtcdTls,
    store::{EtcdStore, Store, StoreError},
};
use tempfile::TempDir;
use trust::{Party, authority::Authority};

/// A server; it is stopped when this is dropped.
pub(crate) struct Etcd {
    data: TempDir,
    ports: [u16; 2],
    server: Option<Child>,
    /// The folder of its certificates, if it talks TLS.
    certificates: Option<TempDir>,
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// A server with a certificate that wants to see one of the same authority.
    pub(crate) async fn start_secured() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        authority.certify_public(&["127.0.0.1".to_owned()], 1).unwrap();
        authority.certify(Party::Coordinator, 1).unwrap();
        Self::start_with(Some(folder)).await
    }

    async fn start_with(certificates: Option<TempDir>) -> Self {
        // Both are held until both are chosen, so that they differ.
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = free.map(|listener| listener.local_addr().unwrap().port());
        let data = tempfile::tempdir().unwrap();
        let mut etcd = Self { data, ports, server: None, certificates };
        etcd.start_again().await;
        etcd
    }

    /// Starts it on the data it has, and waits until it answers.
    pub(crate) async fn start_again(&mut self) {
        let (client, peer) = (self.endpoint(), format!("http://127.0.0.1:{}", self.ports[1]));
        let mut command = Command::new("etcd");
        if let Some(folder) = &self.certificates {
            let file = |name: &str| folder.path().join(name).display().to_string();
            command.args(["--cert-file", &file("public.pem"), "--key-file", &file("public.key")]);
            command.args(["--client-cert-auth", "--trusted-ca-file", &file("ca.pem")]);
        }
        let server = command
            .arg("--data-dir")
            .arg(self.data.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cannot start `etcd`: install Debian's package etcd-server");
        self.server = Some(server);
        let store = self.store("").await;
        for _ in 0..120 {
            if store.range("started?").await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        panic!("etcd does not answer");
    }

    /// Kills it; the data stays.
    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.ports[0])
    }

    /// What a coordinator has to show and to see.
    pub(crate) fn tls(&self) -> Option<EtcdTls> {
        let file = |name: &str| self.certificates.as_ref().map(|folder| folder.path().join(name));
        Some(EtcdTls {
            authority: file("ca.pem")?,
            certificate: file("coordinator.pem"),
            key: file("coordinator.key"),
        })
    }

    pub(crate) async fn store(&self, prefix: &str) -> EtcdStore {
        self.store_by(prefix, self.tls()).await.unwrap()
    }

    pub(crate) async fn store_by(
        &self,
        prefix: &str,
        tls: Option<EtcdTls>,
    ) -> Result<EtcdStore, StoreError> {
        let timeout = Duration::from_secs(2);
        EtcdStore::new(vec![self.endpoint()], prefix.to_owned(), timeout, tls.as_ref()).await
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}
