//! Connections of test clients: plain, or TLS with whatever certificate a test wants to show.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context as Waker, Poll},
};

use anyhow::{Context, Result};
use futures::{FutureExt, future::BoxFuture};
use hyper::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// Opens connections for an HTTP client or a gRPC channel.
#[derive(Clone, Debug, Default)]
pub struct Dial(Option<(Arc<ClientConfig>, ServerName<'static>)>);

/// An open connection.
pub struct Stream(Box<dyn Both>);

trait Both: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Both for S {}

// === impl Dial ===

impl Dial {
    /// Without TLS.
    #[must_use]
    pub fn plain() -> Self {
        Self(None)
    }

    /// To a server that shows a certificate for `name` by an authority in `authority`; `shown` is the
    /// client's own certificate and its key.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn tls(authority: &Path, name: &str, shown: Option<(&Path, &Path)>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authority)? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match shown {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain: Result<Vec<_>, _> =
                    CertificateDer::pem_file_iter(certificate)?.collect();
                config.with_client_auth_cert(chain?, PrivateKeyDer::from_pem_file(key)?)?
            }
        };
        let name = ServerName::try_from(name.to_owned()).context("a server's name")?;
        Ok(Self(Some((Arc::new(config), name))))
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.0.is_some() { "https" } else { "http" }
    }

    async fn open(self, authority: String) -> io::Result<TokioIo<Stream>> {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Both> = match self.0 {
            None => Box::new(stream),
            Some((config, name)) => {
                Box::new(TlsConnector::from(config).connect(name, stream).await?)
            }
        };
        Ok(TokioIo::new(Stream(stream)))
    }
}

impl tower::Service<Uri> for Dial {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        self.clone().open(authority).boxed()
    }
}

// === impl Stream ===

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stream")
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Waker<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Waker<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
