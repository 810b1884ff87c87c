//! Every kind of link through the same cases, and what is special to links between processes.

use std::{sync::LazyLock, time::Instant};

use bytes::Bytes;
use domain::{Epoch, Layer};
use proto::frame::{Dispatch, Done, Output, Ticket};
use trust::{Callers, Party};

use super::{nccl::tests::fake::World, *};
use crate::server::{Listener, Services, serve};

mod cases;
mod nccl;
mod wire;

const ROW_BYTES: usize = 1024;
const CREDIT: u64 = 64 << 10;
const ATTENTION: NodeId = NodeId(1);
const EXPERT: NodeId = NodeId(2);

/// Long enough for anything on a busy machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine's end: its links and its mailbox.
struct Engine {
    links: Links,
    mailbox: Mailbox<LinkEvent>,
    bell: Doorbell,
}

fn settings() -> LinkSettings {
    let limits = Limits { row_bytes: ROW_BYTES, layers: 8, experts: 16, top_k: 2 };
    LinkSettings {
        credit_bytes: CREDIT,
        frame_bytes_max: 1 << 20,
        links_max: 3,
        greeting_timeout: Duration::from_secs(5),
        backoff: Backoff { first: Duration::from_millis(5), max: Duration::from_millis(20) },
        refused_pause: Duration::from_millis(20),
        keep_alive: KeepAlive {
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(400),
        },
        ..LinkSettings::new(limits)
    }
}

fn engine(node: NodeId, model: &str, hub: &Hub) -> Engine {
    engine_with(settings(), node, model, hub)
}

fn engine_with(settings: LinkSettings, node: NodeId, model: &str, hub: &Hub) -> Engine {
    let identity = Identity { node, model_fingerprint: model.into() };
    let metrics = LinkMetrics::register(&prometheus::Registry::new(), "test").unwrap();
    let bell = Doorbell::new();
    let (links, mailbox) = Links::new(identity, settings, metrics, hub.clone(), bell.clone());
    Engine { links, mailbox, bell }
}

impl Engine {
    /// The next event; the test's threads may be slow, but something has to come.
    fn next(&mut self) -> LinkEvent {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.mailbox.try_recv() {
                return event;
            }
            assert!(self.bell.wait(Some(deadline)) || Instant::now() < deadline, "no event");
        }
    }

    fn up(&mut self, peer: NodeId) -> LinkSender {
        let event = self.next();
        assert_eq!(event.peer, peer);
        match event.kind {
            LinkEventKind::Up(sender) => {
                assert_eq!(sender.peer(), peer);
                sender
            }
            other => panic!("expected up, got {other:?}"),
        }
    }

    fn down(&mut self, peer: NodeId) -> String {
        let event = self.next();
        assert_eq!(event.peer, peer);
        match event.kind {
            LinkEventKind::Down(down) => down.to_string(),
            other => panic!("expected down, got {other:?}"),
        }
    }

    fn frame(&mut self) -> (Frame, Permit) {
        match self.next().kind {
            LinkEventKind::Frame(frame, permit) => (frame, permit),
            other => panic!("expected a frame, got {other:?}"),
        }
    }
}

/// How the two ends reach each other.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Memory,
    Inproc,
    Tcp,
    /// As `Tcp`, with rows beside it as soon as the two have made a pair: somewhere within the case.
    Nccl,
}

impl Kind {
    fn engine(self, node: NodeId, model: &str, hub: &Hub) -> Engine {
        static WORLD: LazyLock<World> = LazyLock::new(World::default);
        match self {
            Self::Memory | Self::Inproc | Self::Tcp => engine(node, model, hub),
            Self::Nccl => {
                let nccl = Some(Nccl::fake(&WORLD));
                engine_with(LinkSettings { nccl, ..settings() }, node, model, hub)
            }
        }
    }
}

/// A listening end, killed when dropped as if its process died.
struct Serving {
    address: String,
    _listener: Option<MemoryListener>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Serving {
    fn start(kind: Kind, engine: &Engine, hub: &Hub) -> Self {
        let address = match kind {
            Kind::Memory => "memory:expert",
            Kind::Inproc => "inproc:expert",
            Kind::Tcp | Kind::Nccl => "127.0.0.1:0",
        };
        Self::start_at(address, engine, hub)
    }

    fn start_at(address: &str, engine: &Engine, hub: &Hub) -> Self {
        if let Some(name) = address.strip_prefix("memory:") {
            return Self {
                address: address.to_owned(),
                _listener: Some(engine.links.listen(name).unwrap()),
                runtime: None,
            };
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (address, hub) = (address.to_owned(), hub.clone());
        let (sender, bound) = std::sync::mpsc::sync_channel(1);
        let services =
            Services::new(settings().keep_alive).add(engine.links.service(), Callers::Everybody);
        runtime.spawn(async move {
            let listener = Listener::bind(&address, &hub).await.unwrap();
            sender.send(listener.address().unwrap()).unwrap();
            serve(listener, services, std::future::pending()).await.unwrap();
        });
        Self { address: bound.recv().unwrap(), _listener: None, runtime: Some(runtime) }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits until everything is dropped, which a thread of another runtime may not.
            let killed = std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE));
            killed.join().unwrap();
        }
    }
}

fn dispatch(step: u64, rows: usize) -> Frame {
    Frame::Dispatch(Dispatch {
        epoch: Epoch(1),
        step,
        layer: Layer(3),
        pairs: vec![],
        rows: Bytes::from(vec![7; rows * ROW_BYTES]),
        behind: Vec::new(),
    })
}

fn output(step: u64, rows: usize) -> Frame {
    let done = Done { ticket: Ticket(step), rank: 1 };
    Frame::Output(Output {
        step,
        layer: Layer(3),
        results: vec![done; rows],
        rows: Bytes::from(vec![9; rows * ROW_BYTES]),
        timings: Vec::new(),
    })
}

/// Sends as an engine does: keeps what is refused for want of credit until its bell rings.
fn send(engine: &Engine, sender: &LinkSender, mut frame: Frame) {
    loop {
        match sender.try_send(frame) {
            Ok(()) => return,
            Err(Refused::NoCredit(back)) => frame = back,
            Err(other) => panic!("{other}"),
        }
        assert!(engine.bell.wait(Some(Instant::now() + PATIENCE)), "starved");
    }
}
