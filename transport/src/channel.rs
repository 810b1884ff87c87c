//! gRPC channels as every process of a cluster sets them up, on the network or within the process.

use std::{io, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{io::DuplexStream, net::TcpStream};
use tokio_rustls::client::TlsStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;
use trust::{Certificates, Party};

use crate::{
    Hub,
    address::{Address, AddressError},
};

/// Bytes a stream may have unread; above the largest frame would only queue what credits hold back.
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
/// The same for all streams of a connection.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes of one HTTP/2 frame: rows travel in few pieces.
pub(crate) const HTTP2_FRAME: u32 = 1 << 20;
/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes in flight between the ends of a connection within the process.
const INPROC_BUFFER: usize = 1 << 20;
/// HTTP/2 pings that find out about peers that went silent. Without them a connection through a
/// network that drops everything would be used for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Pause between pings.
    pub interval: Duration,
    /// A connection whose ping is not answered for this long is closed.
    pub timeout: Duration,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), timeout: Duration::from_secs(5) }
    }
}

// === clients ===

/// A channel to the process of `party` at `host:port`, `http://host:port` or `inproc:NAME`. It
/// connects when first used, and again after a loss.
///
/// # Errors
/// When `address` is not one, or a `memory:` one.
pub fn channel(
    address: &str,
    party: Party,
    hub: &Hub,
    keep_alive: KeepAlive,
) -> Result<Channel, AddressError> {
    let Target { endpoint, at } = Target::new(address.parse()?, keep_alive)?;
    Ok(match (at, hub.certificates()) {
        (At::Inproc(name), _) => endpoint.connect_with_connector_lazy(dialer(hub.clone(), name)),
        (At::Tcp(authority), Some(certificates)) => {
            endpoint.connect_with_connector_lazy(tls_dialer(certificates.clone(), authority, party))
        }
        (At::Tcp(_), None) => endpoint.connect_lazy(),
    })
}

/// A channel that is connected now; the error is one sentence.
pub(crate) async fn connect(
    address: &Address,
    party: Party,
    hub: &Hub,
    keep_alive: KeepAlive,
) -> Result<Channel, String> {
    let target = Target::new(address.clone(), keep_alive).map_err(|error| error.to_string())?;
    let Target { endpoint, at } = target;
    let connected = match (at, hub.certificates()) {
        (At::Inproc(name), _) => endpoint.connect_with_connector(dialer(hub.clone(), name)).await,
        (At::Tcp(authority), Some(certificates)) => {
            let dialer = tls_dialer(certificates.clone(), authority, party);
            endpoint.connect_with_connector(dialer).await
        }
        (At::Tcp(_), None) => endpoint.connect().await,
    };
    connected.map_err(|error| format!("cannot connect to {address}: {}", root_cause(&error)))
}

/// An endpoint with our settings, and where the server is.
struct Target {
    endpoint: Endpoint,
    at: At,
}

enum At {
    /// `host:port`.
    Tcp(String),
    /// A name in this process.
    Inproc(String),
}

impl Target {
    fn new(address: Address, keep_alive: KeepAlive) -> Result<Self, AddressError> {
        let (uri, at) = match address {
            // Even with TLS: that is the dialer's matter.
            Address::Tcp(authority) => (format!("http://{authority}"), At::Tcp(authority)),
            Address::Inproc(name) => ("http://inproc".to_owned(), At::Inproc(name)),
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
        Ok(Self { endpoint, at })
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

fn tls_dialer(
    certificates: Certificates,
    authority: String,
    party: Party,
) -> impl tower::Service<Uri, Response = TokioIo<TlsStream<TcpStream>>, Error = io::Error, Future: Send>
+ Send
+ 'static {
    service_fn(move |_: Uri| {
        let (certificates, authority) = (certificates.clone(), authority.clone());
        async move {
            let stream = TcpStream::connect(&authority).await?;
            stream.set_nodelay(true)?;
            let stream = certificates.connect(stream, party).await.map_err(io::Error::other)?;
            Ok(TokioIo::new(stream))
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
