//! The trace of a request: a span for the whole of it, and spans below for its prompt, and for each choice's waiting and stream.

use std::time::Instant;

use chassis::traces::{Kind, Span, SpanRef, Tracer, Value};

/// What a client said of its request's trace, as it said it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traceparent(pub(crate) Option<String>);

/// A sampled request; its span ends when this is dropped.
#[derive(Debug)]
pub(crate) struct RequestTrace {
    tracer: Tracer,
    own: SpanRef,
    parent: Option<SpanRef>,
    began: Instant,
    id: String,
}

/// A sampled request as one of its choices knows it.
#[derive(Clone, Debug)]
pub(crate) struct ChoiceTrace {
    tracer: Tracer,
    request: SpanRef,
    choice: u32,
}

/// A try on an attention node; its span ends when this is dropped, by whatever end.
#[derive(Debug)]
pub(crate) struct Attempt {
    trace: ChoiceTrace,
    own: SpanRef,
    began: Instant,
    node: String,
}

// === impl RequestTrace ===

impl RequestTrace {
    /// The trace of a request, if it is sampled.
    pub(crate) fn begin(
        tracer: &Tracer,
        traceparent: &Traceparent,
        id: &str,
        began: Instant,
    ) -> Option<Self> {
        let (own, parent) = tracer.sample(traceparent.0.as_deref())?;
        Some(Self { tracer: tracer.clone(), own, parent, began, id: id.to_owned() })
    }

    /// The prompts were tokenized.
    pub(crate) fn tokenized(&self, tokens: usize) {
        let attributes = vec![("gen_ai.usage.prompt_tokens", tokens.into())];
        self.tracer.tell(self.own, "tokenize", [self.began, Instant::now()], attributes);
    }

    /// What a choice needs to tell of itself.
    pub(crate) fn choice(&self, choice: u32) -> ChoiceTrace {
        ChoiceTrace { tracer: self.tracer.clone(), request: self.own, choice }
    }
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        self.tracer.emit(Span {
            own: self.own,
            parent: self.parent,
            name: "request".into(),
            kind: Kind::Server,
            began: self.began,
            ended: Instant::now(),
            attributes: vec![("gen_ai.request.id", Value::Text(std::mem::take(&mut self.id)))],
        });
    }
}

// === impl ChoiceTrace ===

impl ChoiceTrace {
    /// A try on an attention node begins.
    pub(crate) fn attempt(&self, node: &str) -> Attempt {
        let own = self.tracer.child(self.request);
        Attempt { trace: self.clone(), own, began: Instant::now(), node: node.to_owned() }
    }

    /// The choice has ended; `first` and `last` say when its tokens came.
    pub(crate) fn ended(
        &self,
        arrived: Instant,
        stream: Option<(Instant, Instant)>,
        tokens: usize,
    ) {
        let choice = ("amoe.choice", Value::Number(self.choice.into()));
        let waited = stream.map_or_else(Instant::now, |(first, _)| first);
        self.tracer.tell(self.request, "queue", [arrived, waited], vec![choice.clone()]);
        if let Some((first, last)) = stream {
            let attributes = vec![choice, ("gen_ai.usage.completion_tokens", tokens.into())];
            self.tracer.tell(self.request, "stream", [first, last], attributes);
        }
    }
}

// === impl Attempt ===

impl Attempt {
    /// What the node is told.
    pub(crate) fn traceparent(&self) -> String {
        self.own.to_string()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let choice = Value::Number(self.trace.choice.into());
        self.trace.tracer.emit(Span {
            own: self.own,
            parent: Some(self.trace.request),
            name: "attention node".into(),
            kind: Kind::Client,
            began: self.began,
            ended: Instant::now(),
            attributes: vec![("amoe.node", (&*self.node).into()), ("amoe.choice", choice)],
        });
    }
}
