//! Connections that are ready to be served: few enough, not silent, and of the cluster where there are certificates.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::Connected;
use trust::{Certificates, Peer};

/// Connections of one port at once; more wait until one closes.
const CONNECTIONS_MAX: usize = 8192;
/// Connections that are ready and not taken yet.
const READY_MAX: usize = 64;
/// How long a client may take to say its first word.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A pause after the system refused a connection, for example because all descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection that counts until it is dropped, and who is on its other end.
#[derive(Debug)]
pub(crate) struct Held<S> {
    stream: S,
    peer: Peer,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Connections of a port. Dropping it closes the port.
#[derive(Debug)]
pub(crate) struct Incoming<S> {
    ready: mpsc::Receiver<Held<S>>,
    _stop: DropGuard,
}

/// Connections of `listener` as they come.
pub(crate) fn plain(listener: TcpListener) -> Incoming<TcpStream> {
    Incoming::start(listener, async |stream: TcpStream| {
        timeout(SILENCE_MAX, stream.readable()).await??;
        Ok((stream, Peer::Unchecked))
    })
}

/// Connections of `listener` from processes of the cluster.
pub(crate) fn certified(
    listener: TcpListener,
    certificates: Certificates,
) -> Incoming<TlsStream<TcpStream>> {
    Incoming::start(listener, move |stream| {
        let certificates = certificates.clone();
        async move { Ok(certificates.accept(stream).await?) }
    })
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

// === impl Incoming ===

impl<S: Send + 'static> Incoming<S> {
    fn start<F>(listener: TcpListener, greet: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(S, Peer), Broken>> + Send + 'static,
    {
        let (sender, ready) = mpsc::channel(READY_MAX);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, greet, sender)));
        Self { ready, _stop: stop.drop_guard() }
    }
}

impl<S> Stream for Incoming<S> {
    type Item = io::Result<Held<S>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|held| held.map(Ok))
    }
}

/// Accepts for ever; each connection is greeted by a task of its own, so that none waits for another.
async fn accept<S, F>(
    listener: TcpListener,
    greet: impl Fn(TcpStream) -> F,
    ready: mpsc::Sender<Held<S>>,
) where
    S: Send + 'static,
    F: Future<Output = Result<(S, Peer), Broken>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(permit) = Arc::clone(&places).acquire_owned().await {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if stream.set_nodelay(true).is_err() {
            // It closed before it was served.
            continue;
        }
        let (greeted, ready) = (greet(stream), ready.clone());
        tokio::spawn(async move {
            let greeted = tokio::select! {
                greeted = greeted => greeted,
                () = ready.closed() => return,
            };
            match greeted {
                Ok((stream, peer)) => {
                    // A server that is gone needs no connections.
                    let _ = ready.send(Held { stream, peer, _permit: Some(permit) }).await;
                }
                Err(error) => tracing::debug!(%address, "a connection was turned away: {error}"),
            }
        });
    }
}

// === impl Held ===

impl<S> Held<S> {
    /// A connection within the process.
    pub(crate) fn inside(stream: S) -> Self {
        Self { stream, peer: Peer::Unchecked, _permit: None }
    }
}

impl<S> Connected for Held<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
