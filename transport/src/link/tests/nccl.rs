//! Links whose rows go by NCCL: what an engine sees when pairs are made, refused, broken and made again.

use prost::Message;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::{
    frame::{Hello, NcclOffer, NcclStep, NcclWord},
    internal,
};

use super::{wire::Rude, *};
use crate::link::nccl::tests::ROW_BYTES_MAX;

/// Two linked engines with a GPU each.
struct Gpus {
    world: World,
    attention: Engine,
    expert: Engine,
    to_expert: LinkSender,
    to_attention: LinkSender,
    _connection: Connection,
    _serving: Serving,
}

fn with_gpu(world: &World, node: NodeId, hub: &Hub) -> Engine {
    let nccl = Some(Nccl::fake(world));
    engine_with(LinkSettings { nccl, ..settings() }, node, "m", hub)
}

impl Gpus {
    fn linked(world: World) -> Self {
        let hub = Hub::new();
        let mut attention = with_gpu(&world, ATTENTION, &hub);
        let mut expert = with_gpu(&world, EXPERT, &hub);
        let _serving = Serving::start(Kind::Nccl, &expert, &hub);
        let _connection = attention.links.connect(EXPERT, &_serving.address).unwrap();
        let to_expert = attention.up(EXPERT);
        let to_attention = expert.up(ATTENTION);
        Self { world, attention, expert, to_expert, to_attention, _connection, _serving }
    }

    fn wait_for_pair(&self) {
        for engine in [&self.attention, &self.expert] {
            eventually("a pair", || engine.links.end.metrics.nccl_pairs.get() == 1);
        }
    }

    /// Takes what has come to the expert node, whose frames must be in order, none twice and none left out; whether
    /// the next link came up.
    fn expert_takes(&mut self, next: &mut u64) -> bool {
        let mut up = false;
        while let Some(event) = self.expert.mailbox.try_recv() {
            match event.kind {
                LinkEventKind::Frame(frame, _) => {
                    assert_eq!(frame, dispatch(*next, 2));
                    *next += 1;
                }
                LinkEventKind::Up(sender) => (self.to_attention, up) = (sender, true),
                LinkEventKind::Down(_) => {}
            }
        }
        up
    }
}

fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn by_nccl(engine: &Engine) -> (u64, u64) {
    let metrics = &engine.links.end.metrics;
    (metrics.nccl_row_bytes_sent.get(), metrics.nccl_row_bytes_received.get())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn frames_keep_their_order_from_grpc_to_nccl_and_back() {
    const FRAMES: u64 = 400;
    let gpus = Gpus::linked(World::default());
    let Gpus { world, attention, mut expert, to_expert, .. } = gpus;
    let received = std::thread::spawn(move || {
        (0..FRAMES).flat_map(mixed).for_each(|frame| assert_eq!(expert.frame().0, frame));
        expert
    });
    let done = Arc::new(AtomicBool::new(false));
    let moody = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            // Rows fall behind the frames that follow them, and catch up.
            while !done.load(Ordering::Relaxed) {
                world.state().mute ^= true;
                std::thread::sleep(Duration::from_micros(300));
            }
            world.state().mute = false;
        }
    });
    (0..FRAMES).flat_map(mixed).for_each(|frame| send(&attention, &to_expert, frame));
    done.store(true, Ordering::Relaxed);
    moody.join().unwrap();
    let expert = received.join().unwrap();
    let (by_nccl, all) = (by_nccl(&expert).1, expert.links.end.metrics.row_bytes_received.get());
    assert!(by_nccl > 0 && by_nccl < all, "{by_nccl} of {all} bytes by NCCL");
}

/// Frames of one step: with rows for NCCL, without rows, sometimes with more rows than a transfer takes.
fn mixed(step: u64) -> Vec<Frame> {
    let rows = if step % 40 == 7 { ROW_BYTES_MAX / ROW_BYTES + 1 } else { (step % 9) as usize };
    vec![dispatch(step, rows), Frame::Cancel(vec![Ticket(step)])]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_pair_that_breaks_takes_its_link_down_and_both_come_back() {
    let mut gpus = Gpus::linked(World::default());
    let mut next = 0;
    for _ in 0..5 {
        gpus.wait_for_pair();
        gpus.world.state().through.clear();
        gpus.world.state().breaks_after = Some(10);
        // As an attention node does: what has not arrived is sent again on the next link.
        let mut sent = next;
        let (mut up, mut there) = (None, false);
        while up.is_none() {
            match gpus.to_expert.try_send(dispatch(sent, 2)) {
                Ok(()) => sent += 1,
                Err(Refused::NoCredit(_)) => {}
                Err(Refused::Closed(_)) => {
                    gpus.attention.down(EXPERT);
                    up = Some(gpus.attention.up(EXPERT));
                }
                Err(other) => panic!("{other}"),
            }
            there |= gpus.expert_takes(&mut next);
        }
        gpus.to_expert = up.unwrap();
        eventually("link", || there || gpus.expert_takes(&mut next));
        assert!(
            next > 0 && next < sent,
            "{next} of {sent} arrived, the rest went down with the link"
        );
    }
    send(&gpus.attention, &gpus.to_expert, dispatch(next, 2));
    eventually("frame", || {
        let before = next;
        gpus.expert_takes(&mut next);
        next > before
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_pair_that_cannot_be_made_leaves_all_rows_to_grpc_until_it_can() {
    let world = World::default();
    world.state().refuses = true;
    let mut gpus = Gpus::linked(world);
    let failures = |engine: &Engine| engine.links.end.metrics.nccl_pairs_failed.get();
    eventually("attempts", || failures(&gpus.attention) >= 3);
    send(&gpus.attention, &gpus.to_expert, dispatch(0, 9));
    assert_eq!(gpus.expert.frame().0, dispatch(0, 9));
    assert_eq!(by_nccl(&gpus.attention), (0, 0));
    gpus.world.state().refuses = false;
    gpus.wait_for_pair();
    send(&gpus.attention, &gpus.to_expert, dispatch(1, 9));
    assert_eq!(gpus.expert.frame().0, dispatch(1, 9));
    send(&gpus.expert, &gpus.to_attention, output(1, 4));
    assert_eq!(gpus.attention.frame().0, output(1, 4));
    let row = ROW_BYTES as u64;
    eventually("count", || by_nccl(&gpus.attention) == (9 * row, 4 * row));
    eventually("count", || by_nccl(&gpus.expert) == (4 * row, 9 * row));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_peer_without_nccl_is_served_by_grpc() {
    let hub = Hub::new();
    let mut attention = with_gpu(&World::default(), ATTENTION, &hub);
    let mut expert = engine(EXPERT, "m", &hub);
    let serving = Serving::start(Kind::Tcp, &expert, &hub);
    let _connection = attention.links.connect(EXPERT, &serving.address).unwrap();
    let (to_expert, _to_attention) = (attention.up(EXPERT), expert.up(ATTENTION));
    send(&attention, &to_expert, dispatch(0, 9));
    assert_eq!(expert.frame().0, dispatch(0, 9));
    assert_eq!(attention.links.end.metrics.nccl_pairs_failed.get(), 1);
    assert_eq!(expert.links.end.metrics.nccl_pairs_failed.get(), 0, "it never wanted one");
}

/// What a node with a GPU does with `frames` after the greeting of a peer that has NCCL, or not.
async fn rude(has_nccl: bool, frame: internal::Frame) -> String {
    let hub = Hub::new();
    let mut rude = Rude::to(with_gpu(&World::default(), EXPERT, &hub), hub);
    let nccl = has_nccl.then_some(NcclOffer { major: 2, row_bytes_max: 1 << 20 });
    let model_fingerprint = "m".to_owned();
    let hello = Hello { node: ATTENTION, model_fingerprint, credit_bytes: 1 << 20, nccl };
    let frames = [Frame::Hello(hello).encode(), frame];
    rude.send(frames.map(|frame| frame.encode_to_vec().into()).to_vec()).await;
    let _sender = rude.expert.up(ATTENTION);
    rude.expert.down(ATTENTION)
}

fn header(bytes: u64) -> internal::Frame {
    let dispatch = internal::Dispatch { row_bytes_apart: bytes, ..Default::default() };
    internal::Frame { kind: Some(internal::frame::Kind::Dispatch(dispatch)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rows_that_nobody_agreed_to_close_the_link_with_a_sentence() {
    let sentence = "rows apart from their frame, which nobody agreed to";
    assert_eq!(rude(false, header(ROW_BYTES as u64)).await, sentence);
    let word = Frame::Nccl(NcclWord { attempt: 1, step: NcclStep::Joined });
    let sentence = "a word on NCCL, which nobody agreed to";
    assert_eq!(rude(false, word.encode()).await, sentence);
    let above = ROW_BYTES_MAX as u64 + 1;
    let sentence = "262145 bytes of rows apart, at most 262144 were agreed";
    assert_eq!(rude(true, header(above)).await, sentence);
    let sentence = "rows on their way by NCCL are lost";
    assert_eq!(rude(true, header(ROW_BYTES as u64)).await, sentence, "there is no pair yet");
}
