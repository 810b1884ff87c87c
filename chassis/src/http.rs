//! An HTTP door: accepts connections within bounds, with TLS where there is a certificate, and drains them.

mod prefixed;

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use trust::ServerTls;

use prefixed::Prefixed;

#[cfg(test)]
mod tests;

/// How often an idle HTTP/2 client is asked whether it still lives, and for how long it may be silent.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A pause after the system refused a connection, for example because all descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// By this a client says that it speaks HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// hyper buffers at least this much of a request's head.
pub const HEADER_BYTES_LEAST: u32 = 8192;

/// What a door takes in at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more wait until one closes.
    pub connections_max: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// Headers of a request over HTTP/1.
    pub headers_max: usize,
    /// Bytes of a request's headers, at least [`HEADER_BYTES_LEAST`].
    pub header_bytes_max: u32,
    /// How long a client may take to say which protocol it speaks, and then for the headers of a request.
    pub receive_timeout: Duration,
}

/// How connections are served; clones are cheap.
#[derive(Clone)]
struct Door {
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    router: Router,
    tls: Option<ServerTls>,
    receive_timeout: Duration,
    closing: CancellationToken,
}

/// Accepts connections until `shutdown`, then lets those that are open finish their requests.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    tls: Option<ServerTls>,
    shutdown: impl Future<Output = ()>,
) {
    let door = Door::new(router, limits, tls);
    let connections = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    let accept = async {
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (door, watcher) = (door.clone(), graceful.watcher());
            tokio::spawn(async move {
                if let Err(error) = door.serve(stream, watcher).await {
                    tracing::debug!("a connection broke: {error}");
                }
                drop(permit);
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
    drop(listener);
    door.closing.cancel();
    graceful.shutdown().await;
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

impl Door {
    fn new(router: Router, limits: Limits, tls: Option<ServerTls>) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.receive_timeout)
            .max_headers(limits.headers_max)
            .max_buf_size(limits.header_bytes_max.max(HEADER_BYTES_LEAST) as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_header_list_size(limits.header_bytes_max)
            .max_concurrent_streams(limits.streams_max);
        Self {
            http1: builder.clone().http1_only(),
            http2: builder.http2_only(),
            router,
            tls,
            receive_timeout: limits.receive_timeout,
            closing: CancellationToken::new(),
        }
    }

    async fn serve(self, stream: TcpStream, watcher: Watcher) -> Result<(), Broken> {
        stream.set_nodelay(true)?;
        match &self.tls {
            None => self.speak(stream, watcher).await,
            Some(tls) => {
                let stream = tls.accept(stream).await?;
                self.speak(stream, watcher).await
            }
        }
    }

    /// Serves a connection, once its client has said in time which protocol it speaks.
    async fn speak<S>(&self, mut stream: S, watcher: Watcher) -> Result<(), Broken>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let begun = tokio::select! {
            begun = timeout(self.receive_timeout, beginning(&mut stream)) => begun??,
            // Nothing was asked yet, so nothing has to be finished.
            () = self.closing.cancelled() => return Ok(()),
        };
        let builder = if begun == PREFACE { &self.http2 } else { &self.http1 };
        let stream = TokioIo::new(Prefixed::new(begun, stream));
        let service = TowerToHyperService::new(self.router.clone());
        let connection = builder.serve_connection(stream, service).into_owned();
        watcher.watch(connection).await
    }
}

/// Reads HTTP/2's preface, or as much as shows that there is none.
async fn beginning(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = [0; PREFACE.len()];
    let mut filled = 0;
    while filled < bytes.len() && PREFACE.starts_with(&bytes[..filled]) {
        match stream.read(&mut bytes[filled..]).await? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(bytes[..filled].to_vec())
}
