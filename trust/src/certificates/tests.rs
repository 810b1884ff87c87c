//! Who gets a connection and who does not, and what a change of files does.

use std::{fs, path::Path, time::Duration};

use prometheus::{Encoder, Registry, TextEncoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::authority::Authority;

fn config(folder: &Path, name: &str) -> TlsConfig {
    TlsConfig {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
        authority: folder.join("ca.pem"),
    }
}

fn party(folder: &Path, party: Party) -> Certificates {
    Certificates::open(&config(folder, party.name()), Some(party), None).unwrap()
}

/// A folder with an authority and certificates of all parties that last for `days`.
fn cluster(days: i64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path()).unwrap();
    for party in Party::ALL {
        authority.certify(party, days).unwrap();
    }
    folder
}

/// Lets a client that looks for `wanted` connect to a server; what the server says of it, when both
/// are content and a byte has gone each way.
async fn meet(client: &Certificates, wanted: Party, server: &Certificates) -> Result<Peer, String> {
    let (here, there) = duplex(1 << 16);
    let greet = async {
        let mut stream = client.connect(here, wanted).await.map_err(|error| error.to_string())?;
        stream.write_all(b"?").await.map_err(|error| error.to_string())?;
        // In TLS 1.3 a client learns only by reading that the server did not want it.
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
        Ok::<_, String>(())
    };
    let answer = async {
        let (mut stream, peer) = server.accept(there).await.map_err(|error| error.to_string())?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
        stream.write_all(b"!").await.map_err(|error| error.to_string())?;
        Ok(peer)
    };
    let (greeted, answered) = tokio::join!(greet, answer);
    greeted?;
    answered
}

#[tokio::test]
async fn parties_of_one_cluster_know_each_other_by_name() {
    let folder = cluster(1);
    let (gateway, node) =
        (party(folder.path(), Party::Gateway), party(folder.path(), Party::AttentionNode));
    let peer = meet(&gateway, Party::AttentionNode, &node).await.unwrap();
    assert_eq!(peer, Peer::Certified(vec![Party::Gateway]));
    assert!(peer.is(Party::Gateway) && !peer.is(Party::Operator));
    let wrong = meet(&gateway, Party::Coordinator, &node).await.unwrap_err();
    assert!(wrong.contains("not valid for name"), "{wrong}");
}

#[tokio::test]
async fn strangers_and_the_expired_get_no_connection() {
    let (ours, theirs, over) = (cluster(1), cluster(1), cluster(1));
    // The same authority as ours, and certificates that ended yesterday.
    for file in ["ca.pem", "ca.key"] {
        fs::copy(ours.path().join(file), over.path().join(file)).unwrap();
    }
    let authority = Authority::open(over.path()).unwrap();
    Party::ALL.into_iter().for_each(|party| authority.certify(party, -1).unwrap());
    let node = party(ours.path(), Party::ExpertNode);
    for (folder, part) in [(&theirs, "BadSignature"), (&over, "xpired")] {
        let stranger = party(folder.path(), Party::AttentionNode);
        let refused = meet(&stranger, Party::ExpertNode, &node).await.unwrap_err();
        assert!(refused.contains(part), "{refused}");
        let stranger = party(folder.path(), Party::ExpertNode);
        let ours = party(ours.path(), Party::AttentionNode);
        let refused = meet(&ours, Party::ExpertNode, &stranger);
        let refused = refused.await.unwrap_err();
        assert!(refused.contains(part), "{refused}");
    }
}

#[tokio::test]
async fn somebody_without_a_certificate_gets_no_connection() {
    let folder = cluster(1);
    let node = party(folder.path(), Party::ExpertNode);
    let (roots, _) = pem::authorities(&folder.path().join("ca.pem")).unwrap();
    let bare = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (here, there) = duplex(1 << 16);
    let name = ServerName::try_from(Party::ExpertNode.dns_name()).unwrap();
    let greet = TlsConnector::from(Arc::new(bare)).connect(name, here);
    let (greeted, answered) = tokio::join!(greet, node.accept(there));
    drop(greeted);
    let refused = answered.unwrap_err().to_string();
    assert!(refused.contains("no certificates"), "{refused}");
    let (mut plain, there) = duplex(1 << 16);
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert!(matches!(node.accept(there).await, Err(HandshakeError::Failed(_))));
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_not_waited_for() {
    let folder = cluster(1);
    let (silent, there) = duplex(64);
    let refused = party(folder.path(), Party::ExpertNode).accept(there).await;
    assert!(matches!(refused, Err(HandshakeError::Slow)));
    drop(silent);
}

fn text(registry: &Registry) -> String {
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn new_files_are_taken_over_and_broken_ones_are_not() {
    let (ours, next) = (cluster(1), cluster(1));
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let config = config(ours.path(), "expert-node");
    let node = Certificates::open(&config, Some(Party::ExpertNode), Some(&metrics)).unwrap();
    let client = party(next.path(), Party::AttentionNode);
    assert!(meet(&client, Party::ExpertNode, &node).await.is_err());
    let until = async |line: &str| {
        while !text(&registry).contains(line) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };

    let good = fs::read(&config.certificate).unwrap();
    fs::write(&config.certificate, &good[..good.len() / 2]).unwrap();
    until("amoe_trust_reloads_total{outcome=\"bad\",section=\"tls\"} 1").await;
    fs::write(&config.certificate, &good).unwrap();
    until("amoe_trust_reloads_total{outcome=\"good\",section=\"tls\"} 1").await;

    // A renewal from another authority, as a secret that is mounted anew: all files at once.
    for file in ["ca.pem", "expert-node.key", "expert-node.pem"] {
        fs::rename(next.path().join(file), ours.path().join(file)).unwrap();
    }
    let renewed = async {
        while meet(&client, Party::ExpertNode, &node).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.unwrap();
    assert!(text(&registry).contains("amoe_trust_certificate_expiry_seconds{section=\"tls\"} 1"));
}

#[tokio::test]
async fn files_that_cannot_be_used_are_told_in_one_sentence() {
    let (folder, other) = (cluster(1), cluster(1));
    let path = folder.path();
    let with = |change: &dyn Fn(&mut TlsConfig)| {
        let mut config = config(path, "gateway");
        change(&mut config);
        let opened = Certificates::open(&config, Some(Party::Gateway), None);
        opened.unwrap_err().to_string()
    };
    for (sentence, part) in [
        (with(&|c| c.certificate = "/nowhere".into()), "/nowhere: cannot be read"),
        (with(&|c| c.certificate.clone_from(&c.key)), "expected certificates as PEM"),
        (with(&|c| c.key.clone_from(&c.authority)), "expected a private key as PEM"),
        (with(&|c| c.key = other.path().join("gateway.key")), "cannot be used with its key"),
        (
            with(&|c| *c = super::tests::config(path, "expert-node")),
            "is the certificate of expert-node, expected one with the DNS name gateway.amoe",
        ),
    ] {
        assert!(sentence.contains(part) && sentence.lines().count() == 1, "{sentence}");
    }
}
