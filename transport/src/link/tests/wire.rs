//! What only a link between processes can meet: peers that break the rules, and networks that go silent.

use futures::{StreamExt, stream};
use proptest::{prelude::*, sample::Index, strategy::ValueTree, test_runner::TestRunner};
use prost::Message;
use proto::{frame::Hello, internal};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::*;
use crate::{channel::channel, relay::Relay};

/// A codec that sends and receives messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(to, item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let left = bytes::Buf::remaining(from);
        Ok(Some(bytes::Buf::copy_to_bytes(from, left)))
    }
}

/// An expert node, and a peer of it that sends what it likes.
pub(super) struct Rude {
    pub(super) expert: Engine,
    hub: Hub,
    serving: Serving,
}

impl Rude {
    fn new() -> Self {
        let hub = Hub::new();
        Self::to(engine(EXPERT, "m", &hub), hub)
    }

    pub(super) fn to(expert: Engine, hub: Hub) -> Self {
        let serving = Serving::start(Kind::Tcp, &expert, &hub);
        Self { expert, hub, serving }
    }

    /// Sends `messages` as one stream and returns what came back until the server ended it.
    pub(super) async fn send(&self, messages: Vec<Bytes>) -> Status {
        let channel =
            channel(&self.serving.address, Party::ExpertNode, &self.hub, settings().keep_alive)
                .unwrap();
        let mut client = Grpc::new(channel);
        client.ready().await.unwrap();
        let path = "/amoe.internal.v1.ExpertLink/Open".parse().unwrap();
        // The stream stays open: the server has to be the one who ends it.
        let messages = stream::iter(messages).chain(stream::pending());
        let answer = client.streaming(Request::new(messages), path, Raw).await;
        let mut answer: Streaming<Bytes> = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status,
        };
        loop {
            match answer.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("ended"),
                Err(status) => return status,
            }
        }
    }

    /// The same after a proper greeting, and what the engine was told.
    async fn send_greeted(&mut self, frame: Bytes) -> (Status, String) {
        let status = self.send(vec![hello("m"), frame]).await;
        let sender = self.expert.up(ATTENTION);
        let mut delivered = 0;
        let reason = loop {
            match self.expert.next().kind {
                LinkEventKind::Frame(..) => delivered += 1,
                LinkEventKind::Down(down) => break down.to_string(),
                up @ LinkEventKind::Up(_) => panic!("a second {up:?}"),
            }
        };
        drop(sender);
        assert!(delivered <= 1);
        (status, reason)
    }
}

fn bytes_of(frame: Frame) -> Bytes {
    frame.encode().encode_to_vec().into()
}

fn hello(model: &str) -> Bytes {
    bytes_of(Frame::Hello(Hello {
        node: ATTENTION,
        model_fingerprint: model.into(),
        credit_bytes: 1 << 20,
        nccl: None,
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_without_a_proper_greeting_is_refused() {
    let rude = Rude::new();
    let check = async |first: Bytes, code: Code, sentence: &str| {
        let status = rude.send(vec![first]).await;
        assert_eq!((status.code(), status.message()), (code, sentence));
    };
    let first = "the first frame is not a hello";
    check(bytes_of(dispatch(0, 1)), Code::InvalidArgument, first).await;
    check(Bytes::new(), Code::InvalidArgument, "frame.kind: is missing").await;
    let models = "n1 serves the model \"other\" where n2 serves \"m\": \
                  all nodes of a cluster must serve the same weights with rows of the same precision";
    check(hello("other"), Code::FailedPrecondition, models).await;
    assert!(rude.expert.mailbox.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_frame_that_breaks_the_rules_closes_its_link_with_a_sentence() {
    let mut rude = Rude::new();
    let mut check = async |frame: Bytes, sentence: &str| {
        let (status, reason) = rude.send_greeted(frame).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!((status.message(), reason.as_str()), (sentence, sentence));
    };
    let odd = internal::Dispatch { rows: Bytes::from_static(b"odd"), ..Default::default() };
    let odd = internal::Frame { kind: Some(internal::frame::Kind::Dispatch(odd)) };
    let expected = "dispatch.rows: has 3 bytes, expected a multiple of 1024";
    check(odd.encode_to_vec().into(), expected).await;
    check(hello("m"), "a second hello").await;
    check(bytes_of(output(0, 1)), "an output, reject or barrier for an expert node").await;
    check(bytes_of(Frame::Credit(1)), "more credit came back than was taken").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_frame_above_the_limit_closes_its_link() {
    let mut rude = Rude::new();
    let (status, _) = rude.send_greeted(bytes_of(dispatch(0, 1025))).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("the limit is: 1048576 bytes"), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_peer_that_ignores_its_credit_is_cut_off() {
    let mut rude = Rude::new();
    let frames = vec![hello("m"), bytes_of(dispatch(0, 40)), bytes_of(dispatch(1, 40))];
    let status = rude.send(frames).await;
    let sentence = "more rows than the credit granted";
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, sentence));
    let _up = rude.expert.up(ATTENTION);
    assert_eq!(rude.expert.frame().0, dispatch(0, 40));
    assert_eq!(rude.expert.down(ATTENTION), sentence);
}

/// What decodes by chance to a good frame leaves the link up; then the second hello ends it.
async fn closes_the_link(rude: &mut Rude, garbage: Vec<u8>) {
    let status = rude.send(vec![hello("m"), garbage.into(), hello("m")]).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let _sender = rude.expert.up(ATTENTION);
    while !matches!(rude.expert.next().kind, LinkEventKind::Down(_)) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn random_bytes_close_the_link_and_nothing_else() {
    let mut rude = Rude::new();
    let mut runner = TestRunner::deterministic();
    let valid = bytes_of(dispatch(0, 1));
    let damage = (any::<Index>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..64));
    for _ in 0..150 {
        let (at, byte, noise) = damage.new_tree(&mut runner).unwrap().current();
        closes_the_link(&mut rude, noise).await;
        // The rows at the end are free to be anything, so the damage goes to what comes before.
        let mut damaged = valid.to_vec();
        damaged[at.index(16)] = byte;
        closes_the_link(&mut rude, damaged).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_network_that_goes_silent_is_noticed_by_both_ends() {
    let hub = Hub::new();
    let mut attention = engine(ATTENTION, "m", &hub);
    let mut expert = engine(EXPERT, "m", &hub);
    let serving = Serving::start(Kind::Tcp, &expert, &hub);
    let relay = Relay::to(&serving.address).await;
    let _connection = attention.links.connect(EXPERT, &relay.address).unwrap();
    let to_expert = attention.up(EXPERT);
    let to_attention = expert.up(ATTENTION);
    send(&attention, &to_expert, dispatch(0, 1));
    assert_eq!(expert.frame().0, dispatch(0, 1));
    relay.freeze(true);
    attention.down(EXPERT);
    expert.down(ATTENTION);
    relay.freeze(false);
    let to_expert = attention.up(EXPERT);
    let _up = expert.up(ATTENTION);
    send(&attention, &to_expert, dispatch(1, 1));
    assert_eq!(expert.frame().0, dispatch(1, 1));
    drop(to_attention);
}
