//! gRPC servers as every process of a cluster sets them up: each service with who may call it.

use std::{convert::Infallible, future::Future, io};

use futures::StreamExt;
use thiserror::Error;
use tokio::{io::DuplexStream, net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    body::Body,
    codegen::http::{Request, Response},
    server::NamedService,
    service::RoutesBuilder,
    transport::Server,
};
use tower::Service;
use trust::{Callers, Certificates};

use crate::{
    Hub, KeepAlive,
    accept::{Held, certified, plain},
    address::{Address, AddressError},
    channel::{CONNECTION_WINDOW, HTTP2_FRAME, STREAM_WINDOW},
    guarded::Guarded,
};

#[cfg(test)]
mod tests;

/// Sequences that may run over one connection.
const STREAMS_MAX: u32 = 1 << 16;
/// Streams that may be reset before they were accepted: a gateway that loses its clients cancels many at once.
const RESETS_MAX: usize = 4096;
/// Bytes of a call's headers: there are a few short ones.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Connections within the process that wait to be accepted.
const INPROC_BACKLOG: usize = 64;

/// A place where a server accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// A port; with certificates only processes of the cluster get a connection.
    Tcp(TcpListener, Option<Certificates>),
    /// A name in a hub.
    Inproc(InprocListener),
}

/// Connections within the process.
#[derive(Debug)]
pub struct InprocListener {
    name: String,
    connections: mpsc::Receiver<DuplexStream>,
}

/// A place that could not be listened at.
#[derive(Debug, Error)]
pub enum ListenError {
    /// It is no address for a server.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The operating system refused.
    #[error("cannot listen at {address}")]
    Io {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
}

/// What a server offers, and to whom.
#[derive(Debug)]
pub struct Services {
    keep_alive: KeepAlive,
    routes: RoutesBuilder,
}

// === impl Services ===

impl Services {
    /// None yet.
    #[must_use]
    pub fn new(keep_alive: KeepAlive) -> Self {
        Self { keep_alive, routes: RoutesBuilder::default() }
    }

    /// Offers `service` to `callers`, and to nobody else.
    #[must_use]
    pub fn add<S>(mut self, service: S, callers: Callers) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.routes.add_service(Guarded::new(service, callers));
        self
    }
}

/// Serves `services` until `shutdown`, then finishes the calls that run and returns. Calls that
/// never end by themselves (sessions, links) have to be ended by their owners.
///
/// # Errors
/// When the server cannot go on.
pub async fn serve(
    listener: Listener,
    services: Services,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let Services { keep_alive, routes } = services;
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(HTTP2_FRAME)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_keepalive_interval(Some(keep_alive.interval))
        .http2_keepalive_timeout(Some(keep_alive.timeout))
        .add_routes(routes.routes());
    match listener {
        Listener::Tcp(listener, None) => {
            router.serve_with_incoming_shutdown(plain(listener), shutdown).await
        }
        Listener::Tcp(listener, Some(certificates)) => {
            let incoming = certified(listener, certificates);
            router.serve_with_incoming_shutdown(incoming, shutdown).await
        }
        Listener::Inproc(listener) => {
            let incoming = ReceiverStream::new(listener.connections)
                .map(|stream| Ok::<_, io::Error>(Held::inside(stream)));
            router.serve_with_incoming_shutdown(incoming, shutdown).await
        }
    }
}

// === impl Listener ===

impl Listener {
    /// Listens at `host:port` (port 0: any) or `inproc:NAME`.
    ///
    /// # Errors
    /// When `address` is not one of these, or is taken.
    pub async fn bind(address: &str, hub: &Hub) -> Result<Self, ListenError> {
        match address.parse()? {
            Address::Tcp(authority) => match TcpListener::bind(&authority).await {
                Ok(listener) => Ok(Self::Tcp(listener, hub.certificates().cloned())),
                Err(source) => Err(ListenError::Io { address: authority, source }),
            },
            Address::Inproc(name) => {
                let (sender, connections) = mpsc::channel(INPROC_BACKLOG);
                hub.listen_inproc(&name, sender)?;
                Ok(Self::Inproc(InprocListener { name, connections }))
            }
            address @ Address::Memory(_) => {
                let expected = "host:port or inproc:NAME";
                Err(AddressError::WrongKind { address, expected }.into())
            }
        }
    }

    /// The address to give to others, with the actual port.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn address(&self) -> io::Result<String> {
        match self {
            Self::Tcp(listener, _) => Ok(listener.local_addr()?.to_string()),
            Self::Inproc(listener) => Ok(format!("inproc:{}", listener.name)),
        }
    }
}
