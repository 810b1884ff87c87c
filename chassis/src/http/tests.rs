//! Strangers at a door: slow ones, silent ones, and those who say too much.

use axum::routing::{get, post};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
};

use super::*;

const LIMITS: Limits = Limits {
    connections_max: 2,
    streams_max: 4,
    headers_max: 8,
    header_bytes_max: HEADER_BYTES_LEAST,
    receive_timeout: Duration::from_millis(300),
};

struct Open {
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

async fn open() -> Open {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let router = Router::new()
        .route("/", get(async || "hello"))
        .route("/echo", post(async |body: String| body));
    let shutdown = async {
        let _ = stopped.await;
    };
    let served = tokio::spawn(serve(listener, router, LIMITS, None, shutdown));
    Open { address, stop, served }
}

impl Open {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// All that is answered to `bytes` until the door closes the connection.
    async fn say(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // The door may close while it is still being told things.
        let _ = stream.read_to_end(&mut answer).await;
        answer
    }

    async fn status(&self, bytes: &[u8]) -> String {
        String::from_utf8_lossy(&self.say(bytes).await).lines().next().unwrap_or("").to_owned()
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn whoever_says_nothing_or_half_a_thing_is_let_go() {
    let door = open().await;
    for half in [&b""[..], b"PRI * HT", b"GET / HTTP/1.1\r\nhost: h", b"GET / HTTP/1.1\r\n"] {
        assert_eq!(door.say(half).await, b"", "{:?}", String::from_utf8_lossy(half));
    }
    assert_eq!(door.status(GET).await, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn slow_clients_do_not_keep_others_out_for_long() {
    let door = open().await;
    // All places are taken by clients who never say anything; the third one gets one of theirs.
    let silent = [door.connect().await, door.connect().await];
    assert_eq!(door.status(GET).await, "HTTP/1.1 200 OK");
    drop(silent);
}

#[tokio::test]
async fn headers_are_bounded_in_number_and_size() {
    let door = open().await;
    let with = |headers: String| {
        format!("GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{headers}\r\n").into_bytes()
    };
    let many: String = (0..LIMITS.headers_max).map(|n| format!("x-{n}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(LIMITS.header_bytes_max as usize));
    let refused = "HTTP/1.1 431 Request Header Fields Too Large";
    assert_eq!(door.status(&with(many)).await, refused);
    assert_eq!(door.status(&with(long)).await, refused);
    assert_eq!(door.status(&with("x: y\r\n".into())).await, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn http2_is_told_the_bounds_and_what_is_no_http_is_refused() {
    let door = open().await;
    let mut stream = door.connect().await;
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream.write_all(&[&PREFACE[..], &settings].concat()).await.unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "a server begins with its settings");
    let mut payload = vec![0; usize::from(head[2])];
    stream.read_exact(&mut payload).await.unwrap();
    let said: Vec<_> =
        payload.chunks(6).map(|s| (s[1], u32::from_be_bytes([s[2], s[3], s[4], s[5]]))).collect();
    assert!(said.contains(&(3, LIMITS.streams_max)), "{said:?}");
    assert!(said.contains(&(6, LIMITS.header_bytes_max)), "{said:?}");
    assert_eq!(
        door.status(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await,
        "HTTP/1.1 400 Bad Request"
    );
}

#[tokio::test]
async fn a_stop_waits_for_requests_and_not_for_silence() {
    let door = open().await;
    let mut silent = door.connect().await;
    let mut busy = door.connect().await;
    let head =
        "POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n";
    busy.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    busy.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    let _ = door.stop.send(());
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    busy.write_all(b"ab").await.unwrap();
    let mut answer = String::new();
    busy.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("ab"), "{answer}");
    door.served.await.unwrap();
}
