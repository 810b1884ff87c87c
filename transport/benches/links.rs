//! Round trips and throughput of dispatches and their outputs over each kind of link, beside raw TCP.
//!
//! `cargo bench -p transport --bench links`. One side plays the expert: it answers each dispatch
//! with as many output rows as came in. The kinds take turns, and the best round of each counts, so
//! that a busy machine spoils less; a quiet one is still better.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use domain::{Epoch, Expert, Layer, NodeId};
use proto::frame::{Dispatch, Done, Frame, Limits, Output, Pair, Ticket};
use transport::{
    Doorbell, Hub, Listener, Services,
    link::{
        Connection, Identity, LinkEvent, LinkEventKind, LinkMetrics, LinkSender, LinkSettings,
        Links, MemoryListener, Permit, Refused,
    },
    mailbox::Mailbox,
    serve,
};
use trust::Callers;

const ROW_BYTES: usize = 4096;
const ROWS: [usize; 4] = [1, 16, 64, 256];
/// Turns each kind gets.
const ROUNDS: usize = 9;
/// Single exchanges of one round, for the round trip.
const EXCHANGES: usize = 200;
/// Frames of one round's throughput measurement: 32 MiB each way, at most this many.
const BYTES: usize = 32 << 20;
const FRAMES_MAX: usize = 2_000;
/// Dispatches that may be unanswered while throughput is measured.
const AHEAD: usize = 16;
const ATTENTION: NodeId = NodeId(1);
const EXPERT: NodeId = NodeId(2);

struct End {
    links: Links,
    mailbox: Mailbox<LinkEvent>,
    bell: Doorbell,
}

fn end(node: NodeId, hub: &Hub) -> End {
    let limits = Limits { row_bytes: ROW_BYTES, layers: 4, experts: 128, top_k: 8 };
    let identity = Identity { node, model_fingerprint: "bench".into() };
    let metrics =
        LinkMetrics::register(&prometheus::Registry::new(), "bench").expect("new registry");
    let bell = Doorbell::new();
    let settings = LinkSettings::new(limits);
    let (links, mailbox) = Links::new(identity, settings, metrics, hub.clone(), bell.clone());
    End { links, mailbox, bell }
}

impl End {
    /// As a device thread does: look, spin a little, sleep. Long spins only keep the connection's
    /// tasks off the core on a small machine.
    fn next(&mut self) -> LinkEventKind {
        const SPIN: Duration = Duration::from_micros(10);
        loop {
            if let Some(event) = self.mailbox.try_recv() {
                return event.kind;
            }
            let end = Instant::now() + SPIN;
            while !self.bell.ready() && Instant::now() < end {
                std::hint::spin_loop();
            }
            self.bell.wait(None);
        }
    }

    fn up(&mut self) -> LinkSender {
        match self.next() {
            LinkEventKind::Up(sender) => sender,
            other => panic!("expected up, got {other:?}"),
        }
    }

    fn frame(&mut self) -> Option<(Frame, Permit)> {
        match self.next() {
            LinkEventKind::Frame(frame, permit) => Some((frame, permit)),
            LinkEventKind::Up(_) | LinkEventKind::Down(_) => None,
        }
    }

    fn send(&self, sender: &LinkSender, mut frame: Frame) {
        loop {
            match sender.try_send(frame) {
                Ok(()) | Err(Refused::Closed(_)) => return,
                Err(Refused::NoCredit(back)) => frame = back,
                Err(too_large @ Refused::TooLarge { .. }) => panic!("{too_large}"),
            }
            self.bell.wait(None);
        }
    }
}

fn dispatch(rows: &Bytes) -> Frame {
    let pair = |row| Pair {
        ticket: Ticket(u64::from(row)),
        row,
        weight: 0.5,
        expert: Expert(3),
        rank: 0,
        traced: false,
    };
    let count = u32::try_from(rows.len() / ROW_BYTES).expect("few rows");
    Frame::Dispatch(Dispatch {
        epoch: Epoch(1),
        step: 0,
        layer: Layer(1),
        pairs: (0..count).map(pair).collect(),
        rows: rows.clone(),
        behind: Vec::new(),
    })
}

fn output(dispatch: &Dispatch) -> Frame {
    let done = |pair: &Pair| Done { ticket: pair.ticket, rank: pair.rank };
    Frame::Output(Output {
        step: 0,
        layer: dispatch.layer,
        results: dispatch.pairs.iter().map(done).collect(),
        rows: dispatch.rows.clone(),
        timings: Vec::new(),
    })
}

/// Median round trip and bytes of rows per second each way.
#[derive(Clone, Copy)]
struct Figures {
    round_trip: Duration,
    bytes_per_second: f64,
}

impl Figures {
    const WORST: Self = Self { round_trip: Duration::MAX, bytes_per_second: 0.0 };

    fn better(self, other: Self) -> Self {
        Self {
            round_trip: self.round_trip.min(other.round_trip),
            bytes_per_second: self.bytes_per_second.max(other.bytes_per_second),
        }
    }
}

fn figures(rows: usize, mut exchange: impl FnMut(usize) -> Duration) -> Figures {
    let frames = (BYTES / (rows * ROW_BYTES)).min(FRAMES_MAX);
    let mut times: Vec<_> = (0..EXCHANGES).map(|_| exchange(1)).collect();
    times.sort_unstable();
    let elapsed = exchange(frames);
    Figures {
        round_trip: times[EXCHANGES / 2],
        bytes_per_second: (frames * rows * ROW_BYTES) as f64 / elapsed.as_secs_f64(),
    }
}

/// Everything that has to live while a link is measured.
struct Linked {
    attention: End,
    to_expert: LinkSender,
    _connection: Connection,
    _listener: Option<MemoryListener>,
}

async fn link(address: &str) -> Linked {
    let hub = Hub::new();
    let mut attention = end(ATTENTION, &hub);
    let mut expert = end(EXPERT, &hub);
    let mut listener = None;
    let mut reachable = address.to_owned();
    if let Some(name) = address.strip_prefix("memory:") {
        listener = Some(expert.links.listen(name).expect("free name"));
    } else {
        let bound = Listener::bind(address, &hub).await.expect("free port");
        reachable = bound.address().expect("bound");
        let services = Services::new(
            LinkSettings::new(Limits { row_bytes: ROW_BYTES, layers: 4, experts: 128, top_k: 8 })
                .keep_alive,
        )
        .add(expert.links.service(), Callers::Everybody);
        tokio::spawn(serve(bound, services, std::future::pending()));
    }
    let connection = attention.links.connect(EXPERT, &reachable).expect("an address");
    let to_expert = attention.up();
    let to_attention = expert.up();
    thread::spawn(move || {
        while let Some((frame, permit)) = expert.frame() {
            if let Frame::Dispatch(dispatch) = frame {
                let output = output(&dispatch);
                drop(permit);
                expert.send(&to_attention, output);
            }
        }
    });
    Linked { attention, to_expert, _connection: connection, _listener: listener }
}

fn measure_link(linked: &mut Linked, rows: usize) -> Figures {
    let payload = Bytes::from(vec![1; rows * ROW_BYTES]);
    let Linked { attention, to_expert, .. } = linked;
    figures(rows, |frames| {
        let start = Instant::now();
        let mut answered = 0;
        for sent in 1..=frames {
            attention.send(to_expert, dispatch(&payload));
            while sent - answered >= AHEAD || (sent == frames && answered < sent) {
                drop(attention.frame());
                answered += 1;
            }
        }
        start.elapsed()
    })
}

/// The floor: lengths and bytes over a socket, one thread at each end, the same number ahead.
fn measure_tcp(rows: usize) -> std::io::Result<Figures> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let bytes = rows * ROW_BYTES;
    thread::spawn(move || -> std::io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        let mut frame = vec![0; bytes + 4];
        loop {
            socket.read_exact(&mut frame)?;
            socket.write_all(&frame)?;
        }
    });
    let mut writer = TcpStream::connect(address)?;
    writer.set_nodelay(true)?;
    let mut reader = writer.try_clone()?;
    let frame = vec![0; bytes + 4];
    let mut answer = frame.clone();
    Ok(figures(rows, |frames| {
        let start = Instant::now();
        thread::scope(|scope| {
            if frames > 1 {
                scope.spawn(|| (0..frames).try_for_each(|_| writer.write_all(&frame)));
            } else {
                writer.write_all(&frame).expect("the echo runs");
            }
            for _ in 0..frames {
                reader.read_exact(&mut answer).expect("the echo runs");
            }
        });
        start.elapsed()
    }))
}

#[expect(clippy::print_stdout, reason = "a bench reports to its reader")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut memory = runtime.block_on(link("memory:expert"));
    let mut grpc = runtime.block_on(link("127.0.0.1:0"));
    println!("rows x {ROW_BYTES} B   link     round trip      each way   against raw TCP");
    for rows in ROWS {
        let mut best = [Figures::WORST; 3];
        for _ in 0..ROUNDS {
            best[0] = best[0].better(measure_tcp(rows)?);
            best[1] = best[1].better(measure_link(&mut memory, rows));
            best[2] = best[2].better(measure_link(&mut grpc, rows));
        }
        let tcp = best[0];
        for (name, figures) in ["tcp", "memory", "grpc"].into_iter().zip(best) {
            println!(
                "{rows:>4}            {name:<8} {:>8.1} us  {:>7.0} MB/s   {:.2} x time, {:.2} x rate",
                figures.round_trip.as_secs_f64() * 1e6,
                figures.bytes_per_second / 1e6,
                figures.round_trip.as_secs_f64() / tcp.round_trip.as_secs_f64(),
                figures.bytes_per_second / tcp.bytes_per_second,
            );
        }
    }
    runtime.shutdown_background();
    Ok(())
}
