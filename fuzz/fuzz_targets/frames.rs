//! Messages between processes: broken ones are refused, and good ones mean the same after another trip.

#![no_main]

use domain::{ClusterView, SequenceRequest, TokenOutput};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::{
    control::{Beat, Registration, Report, Welcome},
    frame::{Frame, Limits},
    internal as wire,
};

const LIMITS: Limits = Limits { row_bytes: 8, layers: 4, experts: 16, top_k: 4 };

fn frame(bytes: &[u8]) {
    let Ok(message) = wire::Frame::decode(bytes) else { return };
    let Ok(frame) = Frame::decode(message, &LIMITS) else { return };
    let sent = frame.clone().encode().encode_to_vec();
    let again = wire::Frame::decode(&*sent).expect("own messages can be read");
    assert_eq!(Frame::decode(again, &LIMITS).as_ref(), Ok(&frame));
}

fn node(bytes: &[u8]) {
    use wire::node_message::Kind;
    let Ok(wire::NodeMessage { kind: Some(kind) }) = wire::NodeMessage::decode(bytes) else {
        return;
    };
    match kind {
        Kind::Register(register) => drop(Registration::try_from(register)),
        Kind::Heartbeat(beat) => drop(Beat::try_from(beat)),
        Kind::Report(report) => drop(Report::from(report)),
    }
}

fn coordinator(bytes: &[u8]) {
    use wire::coordinator_message::Kind;
    match wire::CoordinatorMessage::decode(bytes).map(|message| message.kind) {
        Ok(Some(Kind::Welcome(welcome))) => drop(Welcome::try_from(welcome)),
        Ok(Some(Kind::View(view))) => drop(ClusterView::try_from(view)),
        Ok(Some(Kind::Guidance(guidance))) => {
            drop(proto::control::guidance(guidance, &domain::Guidance::default()));
        }
        Ok(None) | Err(_) => {}
    }
}

fn sequence(bytes: &[u8]) {
    if let Ok(request) = wire::SequenceRequest::decode(bytes) {
        drop(SequenceRequest::try_from(request));
    }
    if let Ok(output) = wire::SequenceOutput::decode(bytes) {
        output.tokens.into_iter().for_each(|token| drop(TokenOutput::try_from(token)));
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    match choice % 4 {
        0 => frame(bytes),
        1 => node(bytes),
        2 => coordinator(bytes),
        _ => sequence(bytes),
    }
});
