//! A real etcd server as a child process, with its data in a temporary folder.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use coordinator::store::{EtcdStore, Store};
use tempfile::TempDir;

/// A server; it is stopped when this is dropped.
pub(crate) struct Etcd {
    data: TempDir,
    ports: [u16; 2],
    server: Option<Child>,
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        // Both are held until both are chosen, so that they differ.
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = free.map(|listener| listener.local_addr().unwrap().port());
        let mut etcd = Self { data: tempfile::tempdir().unwrap(), ports, server: None };
        etcd.start_again().await;
        etcd
    }

    /// Starts it on the data it has, and waits until it answers.
    pub(crate) async fn start_again(&mut self) {
        let [client, peer] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let server = Command::new("etcd")
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
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    pub(crate) async fn store(&self, prefix: &str) -> EtcdStore {
        let timeout = Duration::from_secs(2);
        EtcdStore::new(vec![self.endpoint()], prefix.to_owned(), timeout).await.unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}
