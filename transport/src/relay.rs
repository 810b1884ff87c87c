//! A network that can go silent, for tests.

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Forwards connections to one address. Once frozen it keeps its connections open and swallows
/// everything; connections made after a thaw work again.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Where to connect.
    pub(crate) address: String,
    frozen: watch::Sender<bool>,
}

impl Relay {
    pub(crate) async fn to(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            address: listener.local_addr().unwrap().to_string(),
            frozen: watch::channel(false).0,
        };
        tokio::spawn(accept(listener, address.to_owned(), relay.frozen.subscribe()));
        relay
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

async fn accept(listener: TcpListener, to: String, frozen: watch::Receiver<bool>) {
    loop {
        let (mut here, _) = listener.accept().await.unwrap();
        let (to, mut frozen) = (to.clone(), frozen.clone());
        tokio::spawn(async move {
            let mut there = TcpStream::connect(to).await.unwrap();
            tokio::select! {
                biased;
                _ = frozen.wait_for(|&frozen| frozen) => {}
                _ = copy_bidirectional(&mut here, &mut there) => return,
            }
            std::future::pending::<()>().await;
        });
    }
}
