//! The trace of a sampled sequence: its queue, its first passes, and in each of their layers attention, links and experts.

use std::time::{Duration, Instant};

use chassis::traces::{Kind, Span, SpanRef, Tracer, Value};
use domain::{ClusterView, Layer, NodeId};
use proto::frame::Timing;

/// Passes of a sequence whose layers are told of: the chunks of a short prompt, and its first tokens. A pass has some spans
/// for every layer and node.
const PASSES_MAX: u32 = 4;

/// What is known of a traced sequence.
#[derive(Debug)]
pub(crate) struct Trace {
    tracer: Tracer,
    own: SpanRef,
    parent: SpanRef,
    arrived: Instant,
    passes: u32,
    pass: Option<Pass>,
}

/// A chunk or a token on its way through the layers.
#[derive(Debug)]
struct Pass {
    own: SpanRef,
    name: &'static str,
    rows: usize,
    began: Instant,
    /// Since when it has been ready for its layer.
    ready: Instant,
    /// When its layer was run here, and when that had sent the rows to their experts.
    attended: Option<(Instant, Instant)>,
    answers: Vec<Answer>,
}

/// What one expert node made of a pass's last row in a layer.
#[derive(Clone, Copy, Debug)]
struct Answer {
    node: NodeId,
    sent: Instant,
    back: Instant,
    queued: Duration,
    ran: Duration,
}

// === impl Trace ===

impl Trace {
    /// The trace of a sequence that has come, below the span of who sent it.
    pub(crate) fn new(tracer: &Tracer, parent: SpanRef, now: Instant) -> Self {
        let (tracer, own) = (tracer.clone(), tracer.child(parent));
        Self { tracer, own, parent, arrived: now, passes: 0, pass: None }
    }

    /// Rows begin their way through the layers; whether these layers are told of.
    pub(crate) fn begin_pass(&mut self, name: &'static str, rows: usize, now: Instant) -> bool {
        if self.passes == 0 {
            self.tracer.tell(self.own, "queue", [self.arrived, now], Vec::new());
        }
        if self.passes >= PASSES_MAX {
            return false;
        }
        self.passes += 1;
        let own = self.tracer.child(self.own);
        let (attended, answers) = (None, Vec::new());
        self.pass = Some(Pass { own, name, rows, began: now, ready: now, attended, answers });
        true
    }

    /// A layer was run here.
    pub(crate) fn attended(&mut self, began: Instant, sent: Instant) {
        if let Some(pass) = &mut self.pass {
            pass.attended = Some((began, sent));
        }
    }

    /// An expert node has answered what it was sent at `sent`; of several answers of a node the last one counts.
    pub(crate) fn answered(&mut self, node: NodeId, sent: Instant, timing: Timing) {
        let Some(pass) = &mut self.pass else { return };
        let (queued, ran) =
            (Duration::from_nanos(timing.queued_ns), Duration::from_nanos(timing.ran_ns));
        let answer = Answer { node, sent, back: Instant::now(), queued, ran };
        match pass.answers.iter_mut().find(|answer| answer.node == node) {
            Some(before) => *before = answer,
            None => pass.answers.push(answer),
        }
    }

    /// The pass is through a layer.
    pub(crate) fn passed(&mut self, layer: Layer, view: &ClusterView, now: Instant) {
        let Some(pass) = &mut self.pass else { return };
        let ready = std::mem::replace(&mut pass.ready, now);
        let (attended, answers) = (pass.attended.take(), std::mem::take(&mut pass.answers));
        let of_layer = vec![("amoe.layer", Value::Number(layer.0.into()))];
        let parent = pass.own;
        let own = self.tracer.tell(parent, "layer", [ready, now], of_layer);
        if let Some((began, sent)) = attended {
            self.tracer.tell(own, "attention", [began, sent], Vec::new());
        }
        for answer in answers {
            let name = view.member(answer.node).map(|member| member.name.clone());
            let name = name.unwrap_or_else(|| format!("node {}", answer.node));
            self.trip(own, answer, &name);
        }
    }

    /// The way to an expert node and back. Clocks of two machines are not compared: the node says how long the row was
    /// queued and computed there, and what is left of the time is taken to be one half each way.
    fn trip(&self, parent: SpanRef, answer: Answer, node: &str) {
        let away = answer.back.saturating_duration_since(answer.sent);
        let link = away.saturating_sub(answer.queued + answer.ran) / 2;
        let queue = answer.sent + link;
        let (expert, back) = (queue + answer.queued, queue + answer.queued + answer.ran);
        let parts = [
            ("link", answer.sent, queue),
            ("queue", queue, expert),
            ("expert", expert, back),
            ("link back", back, answer.back.max(back)),
        ];
        for (name, began, ended) in parts {
            self.tracer.tell(parent, name, [began, ended], vec![("amoe.node", node.into())]);
        }
    }

    /// The pass is through all layers, and at its last row the next token is drawn.
    pub(crate) fn end_pass(&mut self, drawn: bool, now: Instant) {
        let Some(pass) = self.pass.take() else { return };
        if drawn {
            self.tracer.tell(pass.own, "head", [pass.ready, now], Vec::new());
        }
        let attributes = vec![("amoe.rows", pass.rows.into())];
        let span = Span {
            own: pass.own,
            parent: Some(self.own),
            name: pass.name.into(),
            kind: Kind::Internal,
            began: pass.began,
            ended: now,
            attributes,
        };
        self.tracer.emit(span);
    }

    /// The sequence has ended with so many tokens.
    pub(crate) fn end(self, tokens: usize) {
        self.tracer.emit(Span {
            own: self.own,
            parent: Some(self.parent),
            name: "sequence".into(),
            kind: Kind::Server,
            began: self.arrived,
            ended: Instant::now(),
            attributes: vec![("amoe.tokens", tokens.into())],
        });
    }
}
