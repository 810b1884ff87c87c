//! gRPC channels and servers as every process of a cluster sets them up, on the network or within the process.

use std::{future::Future, io, time::Duration};

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{io::DuplexStream, net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    transport::{
        Channel, Endpoint, Server, Uri,
        server::{Router, TcpIncoming},
    },
};
use tower::service_fn;

use crate::{
    Hub,
    address::{Address, AddressError},
};

/// Bytes a stream may have unread; above the largest frame would only queue what credits hold back.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes of one HTTP/2 frame: rows travel in few pieces.
const HTTP2_FRAME: u32 = 1 << 20;
/// Sequences that may run over one connection.
const STREAMS_MAX: u32 = 1 << 16;
/// Streams that may be reset before they were accepted: a gateway that loses its clients cancels many at once.
const RESETS_MAX: usize = 4096;
/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes in flight between the ends of a connection within the process.
const INPROC_BUFFER: usize = 1 << 20;
/// Connections within the process that wait to be accepted.
const INPROC_BACKLOG: usize = 64;

/// HTTP/2 pings that find out about peers that went silent. Without them a connection through a
/// network that drops everything would be used for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Pause between pings.
    pub interval: Duration,
    /// A connection whose ping is not answered for this long is closed.
    pub timeout: Duration,
}

/// A place where a server accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// A port.
    Tcp(TcpListener),
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

impl Default for KeepAlive {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), timeout: Duration::from_secs(5) }
    }
}

// === clients ===

/// A channel to `host:port`, `http://host:port` or `inproc:NAME`. It connects when first used, and
/// again after a loss.
///
/// # Errors
/// When `address` is not one, or a `memory:` one.
pub fn channel(address: &str, hub: &Hub, keep_alive: KeepAlive) -> Result<Channel, AddressError> {
    let target = Target::new(address.parse()?, keep_alive)?;
    Ok(match target.inproc {
        Some(name) => target.endpoint.connect_with_connector_lazy(dialer(hub.clone(), name)),
        None => target.endpoint.connect_lazy(),
    })
}

/// A channel that is connected now; the error is one sentence.
pub(crate) async fn connect(
    address: &Address,
    hub: &Hub,
    keep_alive: KeepAlive,
) -> Result<Channel, String> {
    let target = Target::new(address.clone(), keep_alive).map_err(|error| error.to_string())?;
    let connected = match target.inproc {
        Some(name) => target.endpoint.connect_with_connector(dialer(hub.clone(), name)).await,
        None => target.endpoint.connect().await,
    };
    connected.map_err(|error| format!("cannot connect to {address}: {}", root_cause(&error)))
}

/// An endpoint with our settings, and the name of the server where it is in this process.
struct Target {
    endpoint: Endpoint,
    inproc: Option<String>,
}

impl Target {
    fn new(address: Address, keep_alive: KeepAlive) -> Result<Self, AddressError> {
        let (uri, inproc) = match address {
            Address::Tcp(authority) => (format!("http://{authority}"), None),
            Address::Inproc(name) => ("http://inproc".to_owned(), Some(name)),
            Address::Memory(_) => {
                let expected = "a server's address, host:port or inproc:NAME";
                return Err(AddressError::WrongKind { address, expected });
            }
        };
        let endpoint =
            Endpoint::from_shared(uri.clone()).map_err(|_| AddressError::Unknown(uri))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(HTTP2_FRAME)
            .http2_keep_alive_interval(keep_alive.interval)
            .keep_alive_timeout(keep_alive.timeout)
            .keep_alive_while_idle(true);
        Ok(Self { endpoint, inproc })
    }
}

fn dialer(
    hub: Hub,
    name: String,
) -> impl tower::Service<Uri, Response = TokioIo<DuplexStream>, Error = io::Error, Future: Send>
+ Send
+ 'static {
    service_fn(move |_: Uri| {
        let server = hub.inproc(&name);
        let nobody = format!("nobody serves inproc:{name}");
        async move {
            let nobody = || io::Error::new(io::ErrorKind::ConnectionRefused, nobody);
            let Some(server) = server else { return Err(nobody()) };
            let (here, there) = tokio::io::duplex(INPROC_BUFFER);
            server.send(there).await.map_err(|_| nobody())?;
            Ok(TokioIo::new(here))
        }
    })
}

/// What lies at the bottom of an error: the layers above only say that something failed.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// A call's error for a log: its code, its message and what lies at the bottom of it.
pub(crate) fn sentence(status: &Status) -> String {
    let (code, message) = (status.code(), status.message());
    match std::error::Error::source(status) {
        Some(source) => format!("{code:?}: {message}: {}", root_cause(source)),
        None => format!("{code:?}: {message}"),
    }
}

// === servers ===

/// A server builder with our settings, for `add_service`.
#[must_use]
pub fn server(keep_alive: KeepAlive) -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(HTTP2_FRAME)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_keepalive_interval(Some(keep_alive.interval))
        .http2_keepalive_timeout(Some(keep_alive.timeout))
}

/// Serves `services` until `shutdown`, then finishes the calls that run and returns. Calls that
/// never end by themselves (sessions, links) have to be ended by their owners.
///
/// # Errors
/// When the server cannot go on.
pub async fn serve(
    listener: Listener,
    services: Router,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    match listener {
        Listener::Tcp(listener) => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            services.serve_with_incoming_shutdown(incoming, shutdown).await
        }
        Listener::Inproc(listener) => {
            let incoming = ReceiverStream::new(listener.connections).map(Ok::<_, io::Error>);
            services.serve_with_incoming_shutdown(incoming, shutdown).await
        }
    }
}

impl Listener {
    /// Listens at `host:port` (port 0: any) or `inproc:NAME`.
    ///
    /// # Errors
    /// When `address` is not one of these, or is taken.
    pub async fn bind(address: &str, hub: &Hub) -> Result<Self, ListenError> {
        match address.parse()? {
            Address::Tcp(authority) => match TcpListener::bind(&authority).await {
                Ok(listener) => Ok(Self::Tcp(listener)),
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
            Self::Tcp(listener) => Ok(listener.local_addr()?.to_string()),
            Self::Inproc(listener) => Ok(format!("inproc:{}", listener.name)),
        }
    }
}
