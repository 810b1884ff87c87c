//! Handshakes between processes, where both ends show a certificate, and of public doors, where the server does.

use std::{io, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, ServerConfig, SupportedProtocolVersion,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::ServerName,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{
    Metrics, Party, Peer, PublicTlsConfig, TlsConfig, TrustError,
    pem::{self, Identity, content},
    watched::Watched,
};

#[cfg(test)]
mod tests;

/// How long a handshake may take: a stranger who says nothing holds a place no longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const TLS: &str = "tls";
const PUBLIC_TLS: &str = "public_tls";

/// This process's certificate and the authorities it trusts, as the files last said.
#[derive(Clone, Debug)]
pub struct Certificates(Arc<Watched<Mutual>>);

/// The server's side of TLS at a door where clients need no certificate.
#[derive(Clone, Debug)]
pub struct ServerTls(Source);

#[derive(Clone, Debug)]
enum Source {
    Public(Arc<Watched<Arc<ServerConfig>>>),
    /// The certificate of section `[tls]`.
    Own(Certificates),
}

#[derive(Debug)]
struct Mutual {
    /// Wants a certificate of clients.
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// Wants none.
    open_server: Arc<ServerConfig>,
}

/// Why a connection did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// One end does not trust the other, or does not speak TLS.
    #[error("TLS: {0}")]
    Failed(#[from] io::Error),
    /// The other end says nothing.
    #[error("TLS: no handshake within {HANDSHAKE_TIMEOUT:?}")]
    Slow,
}

// === impl Certificates ===

impl Certificates {
    pub(crate) fn open(
        config: &TlsConfig,
        own: Option<Party>,
        metrics: Option<&Metrics>,
    ) -> Result<Self, TrustError> {
        let paths = vec![config.certificate.clone(), config.key.clone(), config.authority.clone()];
        let (config, told) = (config.clone(), metrics.cloned());
        let read = move || Mutual::read(&config, own, told.as_ref());
        Watched::open(TLS, paths, metrics, read).map(Self)
    }

    /// This process's certificate for a door that wants none of its clients.
    #[must_use]
    pub fn server_tls(&self) -> ServerTls {
        ServerTls(Source::Own(self.clone()))
    }

    /// Answers a client that has to show a certificate of the cluster.
    ///
    /// # Errors
    /// It has none that is trusted, or does not speak TLS.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<(server::TlsStream<S>, Peer), HandshakeError> {
        let config = Arc::clone(&self.0.current().server);
        let stream = accept(config, stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = Peer::Certified(shown.map(pem::parties).unwrap_or_default());
        Ok((stream, peer))
    }

    /// Greets a server that has to show the certificate of `party`.
    ///
    /// # Errors
    /// It has none that is trusted, or another party's, or does not trust this process.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        party: Party,
    ) -> Result<client::TlsStream<S>, HandshakeError> {
        let config = Arc::clone(&self.0.current().client);
        let name = ServerName::try_from(party.dns_name()).map_err(io::Error::other)?;
        let connect = TlsConnector::from(config).connect(name, stream);
        Ok(timeout(HANDSHAKE_TIMEOUT, connect).await.map_err(|_| HandshakeError::Slow)??)
    }
}

// === impl ServerTls ===

impl ServerTls {
    pub(crate) fn public(
        config: &PublicTlsConfig,
        metrics: Option<&Metrics>,
    ) -> Result<Self, TrustError> {
        let paths = vec![config.certificate.clone(), config.key.clone()];
        let (config, told) = (config.clone(), metrics.cloned());
        let read = move || {
            let identity = pem::identity(&config.certificate, &config.key)?;
            let server =
                open_server(&identity).map_err(|error| mismatch(&config.certificate, &error))?;
            if let Some(metrics) = &told {
                metrics.expires(PUBLIC_TLS, identity.expires_s);
            }
            Ok(server)
        };
        Watched::open(PUBLIC_TLS, paths, metrics, read).map(|public| Self(Source::Public(public)))
    }

    /// Answers a client.
    ///
    /// # Errors
    /// It does not speak TLS, or is slow to.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<server::TlsStream<S>, HandshakeError> {
        let config = match &self.0 {
            Source::Public(public) => public.current().as_ref().clone(),
            Source::Own(certificates) => Arc::clone(&certificates.0.current().open_server),
        };
        accept(config, stream).await
    }
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    stream: S,
) -> Result<server::TlsStream<S>, HandshakeError> {
    let accept = TlsAcceptor::from(config).accept(stream);
    Ok(timeout(HANDSHAKE_TIMEOUT, accept).await.map_err(|_| HandshakeError::Slow)??)
}

// === impl Mutual ===

impl Mutual {
    fn read(
        config: &TlsConfig,
        own: Option<Party>,
        metrics: Option<&Metrics>,
    ) -> Result<Self, TrustError> {
        let identity = pem::identity(&config.certificate, &config.key)?;
        let (roots, authority_expires_s) = pem::authorities(&config.authority)?;
        if let Some(own) = own.filter(|own| !identity.parties.contains(own)) {
            let peer = Peer::Certified(identity.parties);
            let name = own.dns_name();
            let reason = format!("is {peer}, expected one with the DNS name {name}");
            return Err(content(&config.certificate, reason));
        }
        let roots = Arc::new(roots);
        let broken = |error| mismatch(&config.certificate, &error);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .build()
            .map_err(|error| content(&config.authority, error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(broken)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(broken)?;
        // Every connection shows its certificate anew.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(broken)?
            .with_root_certificates(roots)
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(broken)?;
        client.resumption = Resumption::disabled();
        client.alpn_protocols = vec![b"h2".to_vec()];
        let open_server = open_server(&identity).map_err(broken)?;
        if let Some(metrics) = metrics {
            metrics.expires(TLS, identity.expires_s.min(authority_expires_s));
        }
        Ok(Self { server: Arc::new(server), client: Arc::new(client), open_server })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// For clients of all kinds: HTTP/1.1 and HTTP/2, TLS 1.2 and 1.3.
fn open_server(identity: &Identity) -> Result<Arc<ServerConfig>, rustls::Error> {
    const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&VERSIONS)?
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(server))
}

fn mismatch(certificate: &std::path::Path, error: &rustls::Error) -> TrustError {
    content(certificate, format!("cannot be used with its key: {error}"))
}
