//! Who is served at a port, with certificates and without.

use std::{path::Path, time::Duration};

use domain::{SamplingParams, SequenceRequest};
use proto::internal::{
    self,
    sequences_server::{Sequences as SequencesService, SequencesServer},
};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tonic::{Request as Call, Response as Answer, Status};
use trust::{Party, TlsConfig, Trust, TrustConfig, authority::Authority};

use super::*;
use crate::sequences::{SequenceError, Sequences};

/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node that has no room: whoever hears so got through.
struct Busy;

#[tonic::async_trait]
impl SequencesService for Busy {
    type RunStream = futures::stream::Pending<Result<internal::SequenceOutput, Status>>;

    async fn run(
        &self,
        _: Call<internal::SequenceRequest>,
    ) -> Result<Answer<Self::RunStream>, Status> {
        Err(Status::resource_exhausted("no room"))
    }
}

/// A folder with certificates of all parties.
fn cluster() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path()).unwrap();
    Party::ALL.into_iter().for_each(|party| authority.certify(party, 1).unwrap());
    folder
}

fn hub(folder: &Path, party: Party) -> Hub {
    let file = |end: &str| folder.join(format!("{party}.{end}"));
    let (certificate, key, authority) = (file("pem"), file("key"), folder.join("ca.pem"));
    let tls = Some(TlsConfig { certificate, key, authority });
    let config = TrustConfig { tls, keys: None };
    let registry = prometheus::Registry::new();
    Hub::trusting(&Trust::open(Some(party), &config, &registry).unwrap())
}

/// A server for gateways; its address.
async fn serve_at(hub: &Hub) -> String {
    let listener = Listener::bind("127.0.0.1:0", hub).await.unwrap();
    let address = listener.address().unwrap();
    let services = Services::new(KeepAlive::default())
        .add(SequencesServer::new(Busy), Callers::Parties(&[Party::Gateway]));
    tokio::spawn(serve(listener, services, std::future::pending()));
    address
}

async fn ask(hub: Hub, address: &str) -> SequenceError {
    let sampling = SamplingParams::default();
    let request = SequenceRequest { id: "a".into(), tokens: vec![1], prompt_len: 1, sampling };
    let sequences = Sequences::new(hub, KeepAlive::default());
    let asked = timeout(PATIENCE, sequences.run(address, request, None)).await.expect("no answer");
    asked.expect_err("nobody has room")
}

#[tokio::test]
async fn only_the_party_that_a_service_is_for_gets_through() {
    let (ours, theirs) = (cluster(), cluster());
    let address = serve_at(&hub(ours.path(), Party::AttentionNode)).await;
    let gateway = hub(ours.path(), Party::Gateway);
    assert_eq!(ask(gateway.clone(), &address).await, SequenceError::Full("no room".into()));
    for party in [Party::ExpertNode, Party::AttentionNode, Party::Operator] {
        let refused = ask(hub(ours.path(), party), &address).await.to_string();
        let sentence = format!("the certificate of {party}; expected that of gateway");
        assert!(refused.contains(&sentence), "{refused}");
    }
    for stranger in [hub(theirs.path(), Party::Gateway), Hub::new()] {
        let refused = ask(stranger, &address).await;
        assert!(matches!(refused, SequenceError::Unavailable(_)), "{refused}");
    }
    // A node that is none is not asked.
    let impostor = serve_at(&hub(ours.path(), Party::ExpertNode)).await;
    let refused = ask(gateway, &impostor).await.to_string();
    assert!(refused.contains("not valid for name"), "{refused}");
}

#[tokio::test]
async fn without_certificates_nobody_has_to_prove_anything() {
    let hub = Hub::new();
    let address = serve_at(&hub).await;
    assert_eq!(ask(hub, &address).await, SequenceError::Full("no room".into()));
}

#[tokio::test]
async fn a_port_closes_with_its_server() {
    let hub = Hub::new();
    let listener = Listener::bind("127.0.0.1:0", &hub).await.unwrap();
    let address = listener.address().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(serve(listener, Services::new(KeepAlive::default()), async {
        let _ = stopped.await;
    }));
    let mut silent = TcpStream::connect(&address).await.unwrap();
    let _ = stop.send(());
    timeout(PATIENCE, served).await.expect("still served").unwrap().unwrap();
    assert_eq!(timeout(PATIENCE, silent.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    timeout(PATIENCE, async { while TcpStream::connect(&address).await.is_ok() {} })
        .await
        .expect("the port is still open");
}
